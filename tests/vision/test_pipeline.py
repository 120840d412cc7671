"""The stages with fakes at the seams: order, exact drop accounting, shutdown, failure."""

import json
import threading
import time
from itertools import pairwise

import pytest
from fakes import LOST, FakeCamera, FakeEngine, fake_model

from agent.config import CameraConfig
from agent.vision import capture as capture_module
from agent.vision.capture import Capture
from agent.vision.encode import CameraStream, Origin
from agent.vision.handoff import Frame, FrameBuffers, LatestSlot, take_oldest
from agent.vision.pipeline import CameraLane, Pipeline


class Rig:
    """A pipeline with fake cameras, and what comes out of it."""

    def __init__(self, cameras, engine=None, *, configs=None, starts=None, skip=0):
        self.engine = engine or FakeEngine()
        self.model = fake_model(self.engine)
        self.stopping = threading.Event()
        self.ready = threading.Condition()
        self.results = []
        self.changes = []
        self.ticks = {}
        self.lanes = {}
        self.threads = []
        for name, source in cameras.items():
            slot, buffers = LatestSlot(self.ready), FrameBuffers()
            config = (configs or {}).get(name) or CameraConfig(name=name, source="fake")
            start = (starts or {}).get(name, 1)
            capture = Capture(
                config,
                next_frame_id=start,
                skip=skip,
                slot=slot,
                buffers=buffers,
                stopping=self.stopping,
                tick=lambda name=name: self.ticks.__setitem__(name, time.monotonic()),
                report=lambda state, reason=None, pixels=None, *, is_fault=False, name=name: (
                    self.changes.append((name, state, reason))
                ),
                open_source=source,
            )
            stream = CameraStream(name=name, publish=config.publish, next_seq=1)
            self.lanes[name] = CameraLane(
                slot=slot, buffers=buffers, capture=capture, stream=stream
            )
        self.pipeline = Pipeline(
            model=self.model,
            lanes=self.lanes,
            ready=self.ready,
            origin=Origin(
                device="d",
                boot_id="b",
                model=self.model.identity,
                accelerator="cpu",
                task="detection",
            ),
            emit=lambda camera, seq, frame_id, payload: self.results.append(json.loads(payload)),
            clock_synced=lambda: None,
            stopping=self.stopping,
        )

    def start(self):
        self.threads = self.pipeline.start()
        for lane in self.lanes.values():
            thread = threading.Thread(target=lane.capture.run, daemon=True)
            thread.start()
            self.threads.append(thread)
        return self

    def wait(self, until, timeout_s=10.0):
        deadline = time.monotonic() + timeout_s
        while not until():
            assert time.monotonic() < deadline, self.results[-3:]
            time.sleep(0.002)

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(3)
        assert not [thread.name for thread in self.threads if thread.is_alive()]


@pytest.fixture
def rig():
    made = []

    def make(*args, **kwargs):
        made.append(Rig(*args, **kwargs))
        return made[-1].start()

    yield make
    for one in made:
        one.stop()


def source(*cameras):
    """Return an opener that gives these one after the other, remembering how it was asked."""
    left = list(cameras)

    def open_source(config, *, skip_frames):
        open_source.skipped.append(skip_frames)
        camera = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(camera, Exception):
            raise camera
        return camera

    open_source.skipped = []
    return open_source


def test_a_file_gives_one_result_per_frame_in_order(rig):
    running = rig({"a": source(FakeCamera(200))})
    running.wait(lambda: len(running.results) == 200)
    assert [r["frame_id"] for r in running.results] == list(range(1, 201))
    assert [r["seq"] for r in running.results] == list(range(1, 201))
    # The class is the number that was in the pixels: no frame was mixed with another.
    assert [r["detections"][0]["class_id"] for r in running.results] == list(range(200))
    assert not any(r["dropped"] for r in running.results)
    running.wait(lambda: ("a", "offline", "ended") in running.changes)


def test_a_live_camera_drops_old_frames_and_counts_each(rig):
    gate = threading.Event()
    running = rig({"a": source(FakeCamera(500, live=True))}, FakeEngine(gate=gate))
    lane = running.lanes["a"]
    running.wait(lambda: lane.capture.captured == 500)
    gate.set()
    running.wait(lambda: running.results and running.results[-1]["frame_id"] == 500)
    ids = [r["frame_id"] for r in running.results]
    assert ids[-1] == 500, "the newest frame wins"
    previous = 0
    for result in running.results:
        assert result["frame_id"] == previous + result["dropped"] + 1
        assert result["detections"][0]["class_id"] == result["frame_id"] - 1
        previous = result["frame_id"]
    assert lane.capture.captured == lane.capture.dropped + lane.stream.processed
    assert lane.capture.dropped == sum(r["dropped"] for r in running.results)


def test_a_lost_camera_is_opened_again_and_ids_go_on(rig, monkeypatch):
    monkeypatch.setattr(capture_module, "REOPEN_FIRST_S", 0.01)
    first = FakeCamera(100, live=True, script={5: LOST})
    opener = source(first, LOST, FakeCamera(40))
    running = rig({"a": opener})
    running.wait(lambda: ("a", "offline", "ended") in running.changes)
    assert first.closed
    assert running.changes[0] == ("a", "online", None)
    assert ("a", "offline", "cable pulled") in running.changes
    assert opener.skipped == [0, 5, 5], "a file would go on behind what was captured"
    ids = [r["frame_id"] for r in running.results]
    assert all(a < b for a, b in pairwise(ids))


def test_a_silent_camera_is_given_up(rig, monkeypatch):
    assert capture_module.SILENCE_S == 5
    monkeypatch.setattr(capture_module, "SILENCE_S", 0.05)
    monkeypatch.setattr(capture_module, "REOPEN_FIRST_S", 0.01)
    silent = FakeCamera(0, live=True, script=dict.fromkeys(range(10**6)))
    silent.silence_hint = "check its cable"
    running = rig({"a": source(silent)})
    running.wait(lambda: ("a", "offline", "no frame for 0 s; check its cable") in running.changes)


@pytest.mark.parametrize(
    ("known_hz", "wanted_hz", "is_lost"),
    [(3.0, 0.0, False), (None, 3.0, False), (100.0, 3.0, True), (None, 0.0, True)],
)
def test_a_slow_camera_is_given_time(rig, monkeypatch, known_hz, wanted_hz, is_lost):
    monkeypatch.setattr(capture_module, "SILENCE_S", 0.05)

    class Slow(FakeCamera):
        silence_hint = "check its cable"

        def read(self, buffer):
            time.sleep(0.01)
            return super().read(buffer)

    slow = Slow(33, live=True, rate_hz=known_hz, script=dict.fromkeys(range(1, 32)))
    config = CameraConfig(name="a", source="fake", fps=wanted_hz)
    running = rig({"a": source(slow)}, configs={"a": config})
    running.wait(lambda: any(change[1] == "offline" for change in running.changes))
    reason = next(change[2] for change in running.changes if change[1] == "offline")
    assert reason.startswith("no frame for" if is_lost else "ended")


@pytest.mark.parametrize("is_opening", [True, False])
def test_a_failure_nobody_foresaw_is_one_lost_camera(rig, monkeypatch, caplog, is_opening):
    monkeypatch.setattr(capture_module, "REOPEN_FIRST_S", 0.01)
    failure = RuntimeError("netloc 'joe:geheim' is odd")
    bad = source(failure if is_opening else FakeCamera(9, script={0: failure}), FakeCamera(2))
    config = CameraConfig(name="bad", source="rtsp://joe:geheim@cam/1")
    running = rig({"good": source(FakeCamera(60)), "bad": bad}, configs={"bad": config})
    running.wait(lambda: len(running.results) == 62)
    assert ("bad", "offline", "unexpected: RuntimeError") in running.changes
    assert "camera lost camera=bad reason=unexpected: RuntimeError at=" in caplog.text
    assert "geheim" not in caplog.text
    assert "Traceback" not in caplog.text


def test_a_failure_of_a_source_without_secrets_is_quoted(rig, monkeypatch, caplog):
    monkeypatch.setattr(capture_module, "REOPEN_FIRST_S", 0.01)
    running = rig({"a": source(KeyError("caps"), FakeCamera(1))})
    running.wait(lambda: running.results)
    assert "text='caps'" in caplog.text


def test_the_frame_that_has_waited_longest_goes_first():
    ready = threading.Condition()
    slots = {name: LatestSlot(ready) for name in "abc"}

    def put(name, captured_ns):
        frame = Frame(
            camera=name, frame_id=1, pixels=None, captured_ns=captured_ns, captured_at=0.0
        )
        return slots[name].put(frame)

    for name, captured_ns in (("a", 30), ("b", 10), ("c", 20)):
        assert put(name, captured_ns) is None
    assert put("b", 40).captured_ns == 10, "the newer frame of a camera replaces its older one"
    order = [take_oldest(list(slots.values()), ready, 0.0) for _ in range(3)]
    assert [(frame.camera, dropped) for frame, dropped in order] == [("c", 0), ("a", 0), ("b", 1)]
    assert take_oldest(list(slots.values()), ready, 0.0) is None


def test_two_cameras_share_and_a_dead_one_stops_nothing(rig, monkeypatch):
    monkeypatch.setattr(capture_module, "REOPEN_FIRST_S", 0.05)
    running = rig(
        {
            "a": source(FakeCamera(60)),
            "b": source(FakeCamera(60)),
            "dead": source(LOST),
        }
    )
    running.wait(lambda: len(running.results) == 120)
    for name in "ab":
        mine = [r for r in running.results if r["camera"] == name]
        assert [r["seq"] for r in mine] == list(range(1, 61))


def test_start_number_is_kept_by_a_replaced_worker(rig):
    opener = source(FakeCamera(30, start=20))
    running = rig({"a": opener}, starts={"a": 21})
    running.wait(lambda: len(running.results) == 10)
    assert opener.skipped == [20]
    assert running.results[0]["frame_id"] == 21


def test_frames_stepped_over_are_counted_as_dropped(rig):
    opener = source(FakeCamera(30, start=23))
    running = rig({"a": opener}, starts={"a": 21}, skip=3)
    running.wait(lambda: len(running.results) == 7)
    assert opener.skipped == [23]
    assert (running.results[0]["frame_id"], running.results[0]["dropped"]) == (24, 3)
    assert running.lanes["a"].capture.dropped == 3


def test_real_time_file_keeps_the_clips_rate(rig):
    config = CameraConfig(name="a", source="fake", realtime=True)
    running = rig({"a": source(FakeCamera(20, rate_hz=100.0))}, configs={"a": config})
    started = time.monotonic()
    running.wait(lambda: ("a", "offline", "ended") in running.changes)
    assert time.monotonic() - started > 0.15


def test_live_rate_limit_skips_frames_without_numbering_them(rig):
    config = CameraConfig(name="a", source="fake", fps=50.0)

    class Steady(FakeCamera):
        def read(self, buffer):
            time.sleep(0.005)
            return super().read(buffer)

    running = rig({"a": source(Steady(100, live=True))}, configs={"a": config})
    running.wait(lambda: ("a", "offline", "ended") in running.changes)
    captured = running.lanes["a"].capture.captured
    assert 15 <= captured <= 40, "0.5 s at 50 Hz, on a busy machine"


def test_a_failing_stage_stops_the_pipeline_and_says_why(rig):
    engine = FakeEngine()
    engine.fail_at = 5
    running = rig({"a": source(FakeCamera(100))}, engine)
    running.wait(running.stopping.is_set)
    assert str(running.pipeline.failure) == "invoke failed"
    running.stop()
    assert len(running.results) == 4


def test_stages_tick_while_idle_and_only_a_stuck_one_does_not(rig):
    gate = threading.Event()
    running = rig({"a": source(FakeCamera(3))}, FakeEngine(gate=gate))
    running.wait(lambda: running.engine.invokes == 1)
    stuck = running.pipeline.ticks["inference"]
    before = running.pipeline.ticks["postprocess"]
    running.wait(lambda: running.pipeline.ticks["postprocess"] > before + 3e8)
    assert running.pipeline.ticks["inference"] == stuck
    gate.set()
    running.wait(lambda: len(running.results) == 3)


def test_capture_reuses_three_buffers(rig):
    seen = set()

    class Watching(FakeCamera):
        def read(self, buffer):
            pixels = super().read(buffer)
            seen.add(id(pixels))
            return pixels

    running = rig({"a": source(Watching(300, live=True))})
    running.wait(lambda: ("a", "offline", "ended") in running.changes)
    assert len(seen) <= FrameBuffers.COUNT


@pytest.mark.parametrize(
    ("policy", "classes", "expected"),
    [
        ("all", [(1,), (1,), ()], [True, True, True]),
        ("detections", [(1,), (), (1,)], [True, False, True]),
        ("changes", [(), (1,), (1,), (1, 1), ()], [True, True, False, True, True]),
    ],
)
def test_publish_policies(policy, classes, expected):
    stream = CameraStream(name="a", publish=policy, next_seq=1)
    assert [stream.wants(found) for found in classes] == expected
