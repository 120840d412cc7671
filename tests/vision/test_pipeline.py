"""The stages with fakes at the seams: order, exact drop accounting, shutdown, failure."""

import json
import threading
import time
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from fakes import LOST, FakeCamera, FakeEngine, fake_model, setup_of

from agent.config import CameraConfig
from agent.vision import capture as capture_module
from agent.vision.capture import Capture
from agent.vision.encode import CameraStream
from agent.vision.handoff import FrameBuffers, LatestSlot
from agent.vision.pipeline import CameraLane, Pipeline


class Rig:
    """A pipeline with fake cameras, and what comes out of it."""

    def __init__(self, cameras, engine=None, *, configs=None, starts=None, skip=0):
        self.engine = engine or FakeEngine()
        self.model = fake_model(self.engine)
        self.stopping = threading.Event()
        self.ready = threading.Condition()
        self.results = []
        self.sent = []
        self.said = []
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
            setup=setup_of(self.model),
            lanes=self.lanes,
            ready=self.ready,
            emit=self.take,
            say=self.said.append,
            clock_synced=lambda: None,
            stopping=self.stopping,
        )

    def take(self, result):
        self.sent.append(result)
        self.results.append(json.loads(result.payload))

    def start(self):
        self.threads = self.pipeline.start()
        for lane in self.lanes.values():
            thread = threading.Thread(target=lane.capture.run, daemon=True)
            thread.start()
            self.threads.append(thread)
        return self

    def wait(self, until, timeout_s=30.0):
        deadline = time.monotonic() + timeout_s
        while not until():
            assert time.monotonic() < deadline, self.results[-3:]
            time.sleep(0.002)

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(20)
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
    assert (capture_module.SILENCE_S, capture_module.FIRST_FRAME_S) == (4, 12)
    monkeypatch.setattr(capture_module, "FIRST_FRAME_S", 0.05)
    monkeypatch.setattr(capture_module, "SILENCE_S", 0.01)
    monkeypatch.setattr(capture_module, "REOPEN_FIRST_S", 0.01)
    silent = FakeCamera(0, live=True, script=dict.fromkeys(range(10**6)))
    silent.silence_hint = "check its cable"
    running = rig({"a": source(silent)})
    running.wait(lambda: ("a", "offline", "no frame for 0 s; check its cable") in running.changes)


@pytest.mark.parametrize(
    ("known_hz", "wanted_hz", "is_lost"),
    [(0.1, 0.0, False), (None, 0.1, False), (100.0, 0.1, True), (None, 0.0, True)],
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

    started = time.monotonic()
    running = rig({"a": source(Steady(100, live=True))}, configs={"a": config})
    running.wait(lambda: ("a", "offline", "ended") in running.changes)
    took_s = time.monotonic() - started  # 0.5 s, longer on a busy machine
    captured = running.lanes["a"].capture.captured
    assert 15 <= captured <= min(100, 50 * took_s * 1.5 + 5)


class Scripted(FakeCamera):
    """Frames of one grey; its brightness changes at the frames named, by far more than noise."""

    def __init__(self, frames, *, moves_at=(), **settings):
        super().__init__(frames, **settings)
        self._moves_at = frozenset(moves_at)
        self._grey = 60

    def read(self, buffer):
        number = self._next
        pixels = super().read(buffer)
        if pixels is not None:
            if number in self._moves_at:
                self._grey = 200 - self._grey
            pixels[1:] = self._grey
        return pixels


def moving(name="a", **settings):
    return CameraConfig(name=name, source="fake", motion=0.5, motion_look_s=1000.0, **settings)


def counts_of(lane):
    capture = lane.capture
    return capture.captured, capture.dropped, capture.still, lane.stream.processed


def test_still_frames_are_counted_and_not_looked_at(rig):
    moves_at = (3, 4, 50, 99)
    running = rig({"a": source(Scripted(100, moves_at=moves_at))}, configs={"a": moving()})
    running.wait(lambda: ("a", "offline", "ended") in running.changes)
    running.wait(lambda: len(running.results) == 5)
    assert [r["frame_id"] for r in running.results] == [1, 4, 5, 51, 100]
    assert [r["still"] for r in running.results] == [0, 2, 0, 45, 48]
    assert not any(r["dropped"] for r in running.results)
    assert counts_of(running.lanes["a"]) == (100, 0, 95, 5)


@pytest.mark.parametrize("hz", [10.0, 50.0])
def test_a_file_s_looks_fall_due_by_its_own_time(rig, hz):
    """However fast it is worked through."""
    config = moving(loop=False)
    config = msgspec.structs.replace(config, motion_look_s=2.0)
    running = rig({"a": source(Scripted(200, rate_hz=hz))}, configs={"a": config})
    running.wait(lambda: ("a", "offline", "ended") in running.changes)
    expected = list(range(1, 201, int(2 * hz)))
    running.wait(lambda: len(running.results) == len(expected))
    assert [r["frame_id"] for r in running.results] == expected
    assert running.results[-1]["still"] == 2 * hz - 1


def test_a_live_camera_s_counts_stay_exact_with_drops_and_still_frames(rig):
    gate = threading.Event()
    moves_at = [*range(100, 200), *range(300, 310)]
    camera = Scripted(500, live=True, moves_at=moves_at)
    running = rig({"a": source(camera)}, FakeEngine(gate=gate), configs={"a": moving()})
    lane = running.lanes["a"]
    running.wait(lambda: lane.capture.captured == 500)
    gate.set()
    running.wait(lambda: lane.stream.last_frame_id == 310)
    captured, dropped, still, processed = counts_of(lane)
    assert (captured, still) == (500, 500 - 111)
    assert dropped + processed == 111
    previous = 0
    for result in running.results:
        assert result["frame_id"] == previous + result["dropped"] + result["still"] + 1
        previous = result["frame_id"]


def test_a_camera_that_comes_back_is_looked_at(rig, monkeypatch):
    monkeypatch.setattr(capture_module, "REOPEN_FIRST_S", 0.01)
    opener = source(Scripted(100, live=True, script={5: LOST}), Scripted(10, live=True))
    running = rig({"a": opener}, configs={"a": moving()})
    running.wait(lambda: ("a", "offline", "ended") in running.changes)
    running.wait(lambda: running.lanes["a"].stream.last_frame_id == 6)
    results = {r["frame_id"]: r["still"] for r in running.results}
    assert results[6] == 4, "the first after the loss, after four still ones"
    assert running.lanes["a"].capture.still == 4 + 9


def test_still_frames_give_their_memory_back(rig):
    seen = set()

    class Watching(Scripted):
        def read(self, buffer):
            pixels = super().read(buffer)
            seen.add(id(pixels))
            return pixels

    running = rig({"a": source(Watching(300, live=True))}, configs={"a": moving()})
    running.wait(lambda: ("a", "offline", "ended") in running.changes)
    assert running.lanes["a"].capture.still == 299
    assert len(seen) <= FrameBuffers.COUNT


def test_a_fast_camera_does_not_starve_a_slow_one(rig):
    """The engine is the bottleneck: the fast one would take it all.

    The slow one's frames are so many runs of the engine apart, however long those take.
    """
    engine = FakeEngine(invoke_s=0.01)

    class Slow(FakeCamera):
        due = 0

        def read(self, buffer):
            if engine.invokes < self.due:
                time.sleep(0.002)
                return None
            self.due = engine.invokes + 6
            return super().read(buffer)

    class Fast(FakeCamera):
        def read(self, buffer):
            time.sleep(0.001)
            return super().read(buffer)

    cameras = {"slow": source(Slow(12, live=True)), "fast": source(Fast(10**6, live=True))}
    running = rig(cameras, engine)
    running.wait(lambda: ("slow", "offline", "ended") in running.changes)
    running.wait(lambda: running.lanes["slow"].stream.last_frame_id == 12)
    mine = [r for r in running.results if r["camera"] == "slow"]
    assert sum(r["dropped"] for r in mine) <= 2
    assert running.lanes["fast"].stream.processed > 12


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


def test_every_processed_frame_leaves_its_times_published_or_not():
    configs = {"a": CameraConfig(name="a", source="fake", publish="detections")}
    running = Rig({"a": source(FakeCamera(4)), "b": source(FakeCamera(5))}, configs=configs)
    nothing = {"a": lambda *_: np.zeros(0, np.intp)}  # nothing in it counts
    running.pipeline.switch.current.keeps = nothing
    running.start()
    try:
        running.wait(lambda: sum(lane.stream.last_frame_id for lane in running.lanes.values()) == 9)
    finally:
        running.stop()
    news = running.pipeline.frame_log.take(100)
    assert [one.camera for one in news.times].count("a") == 4
    shown = [(one["camera"], one["latency_ms"]) for one in running.results]
    published = [one for one in news.times if one.camera == "b"]
    assert shown == [("b", round(one.total / 1e6, 3)) for one in published]
    assert news.found == {"a": {}, "b": {f"class_{number}": 1 for number in range(5)}}
    spans = [one.encoded_ns - one.captured_ns for one in running.sent]
    assert spans == [one.total for one in published], "what follows adds up with the stages"
