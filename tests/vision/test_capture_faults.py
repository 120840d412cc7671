"""Cameras that freeze, hang or do not let go, behind the thread that reads them."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from agent.config import CameraConfig
from agent.errors import CameraError
from agent.vision import capture as module
from agent.vision.cameras.waiting import close_in_time
from agent.vision.capture import Capture
from agent.vision.frozen import Patience, PictureWatch
from agent.vision.handoff import FrameBuffers, LatestSlot

WITHIN_S = 60.0


class Scripted:
    """A live camera whose `read` and `close` are the test's."""

    live = True
    rate_hz = 100.0
    silence_hint = "look at the script"

    def __init__(self, read, close=lambda: None):
        self._read, self._close = read, close
        self.is_closed = False

    def read(self, buffer):
        time.sleep(0.005)
        return self._read()

    def close(self):
        self.is_closed = True
        return self._close()


class Running:
    """A capture thread, and what it said; `steps` wait until something was said."""

    def __init__(self, *cameras, patience=None, **settings):
        self.cameras = list(cameras)
        self.opened = []
        self.said = []
        self.ticks = 0
        self.stopping = threading.Event()
        self.slot = LatestSlot(threading.Condition())
        self.capture = Capture(
            CameraConfig(name="a", **settings),
            next_frame_id=1,
            slot=self.slot,
            buffers=FrameBuffers(),
            stopping=self.stopping,
            tick=self._tick,
            report=self._report,
            open_source=self._open,
            watch=PictureWatch(patience),
        )
        self.thread = threading.Thread(target=self.capture.run, daemon=True)

    def start(self):
        self.thread.start()
        return self

    def _tick(self):
        self.ticks += 1

    def _report(self, state, reason=None, pixels=None, *, is_fault=False):
        self.said.append((state, reason, is_fault))

    def _open(self, config, *, skip_frames):
        self.opened.append(self.cameras.pop(0) if len(self.cameras) > 1 else self.cameras[0])
        return self.opened[-1]

    @property
    def states(self):
        return [state for state, _, _ in list(self.said)]

    def until(self, claim):
        deadline = time.monotonic() + WITHIN_S
        while not claim():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.005)

    def stop(self):
        self.stopping.set()
        self.thread.join(WITHIN_S)
        assert not self.thread.is_alive()


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(module, "REOPEN_FIRST_S", 0.02)
    started = []

    def start(*cameras, **settings):
        return prepare(*cameras, **settings).start()

    def prepare(*cameras, **settings):
        """Return one that is yet to be started, for scripts that look at it."""
        started.append(Running(*cameras, **settings))
        return started[-1]

    start.prepare = prepare
    yield start
    for one in started:
        one.stop()


def still():
    return np.full((24, 32, 3), 99, np.uint8)


def changing(rng=None):
    return np.random.default_rng().integers(0, 256, (24, 32, 3)).astype(np.uint8)


QUICK = Patience(
    look_every_s=0.01, suspect_s=0.05, frozen_s=0.2, reopen_after_s=0.4, reopen_again_s=0.4
)


def test_a_frozen_camera_is_told_and_reopened_and_its_frames_flow(run):
    running = run(Scripted(still), Scripted(still), Scripted(changing), patience=QUICK)
    running.until(lambda: running.states[:2] == ["online", "frozen"])
    assert running.said[1][2], "it is a fault"
    count = running.capture.captured
    running.until(lambda: running.capture.captured > count + 3)
    running.until(lambda: len(running.opened) >= 2)
    running.until(lambda: len(running.said) >= 3)
    assert running.states[:3] == ["online", "frozen", "frozen"], "opened again, and still the same"
    running.until(lambda: len(running.opened) == 3)
    running.until(lambda: running.states[-1] == "online")
    assert running.said[-1] == ("online", None, False)
    assert all(camera.is_closed for camera in running.opened[:2])
    assert "offline" not in running.states


def test_a_picture_of_a_file_may_stand_still(run):
    camera = Scripted(still)
    camera.live = False
    running = run(camera, patience=QUICK, realtime=True)
    running.until(lambda: running.capture.captured > 60)  # well over QUICK.frozen_s
    assert running.states == ["online"]


def test_darkness_is_a_fault_of_a_camera_that_is_online(run):
    patience = Patience(look_every_s=0.01, black_s=0.1)
    running = run(Scripted(lambda: changing() // 64), patience=patience)
    running.until(lambda: len(running.said) >= 2)
    state, reason, is_fault = running.said[1]
    assert (state, is_fault) == ("online", True)
    assert "the picture is black" in reason


def test_a_driver_that_hangs_is_told_by_another_thread_and_may_come_back(run):
    hangs, goes_on = threading.Event(), threading.Event()

    def read():
        if len(running.said) == 1 and not hangs.is_set():
            hangs.set()
            goes_on.wait(WITHIN_S)
        return changing()

    running = run.prepare(Scripted(read))
    running.start()
    assert hangs.wait(WITHIN_S)
    now, _ = running.capture._asked  # since when its driver has not come back
    running.capture.note_silence(now + module.SILENCE_S - 0.5)
    assert running.states == ["online"]
    running.capture.note_silence(now + module.SILENCE_S + module.HANG_GRACE_S + 0.1)
    running.capture.note_silence(now + 60)
    assert running.states == ["online", "offline"], "told once, within five seconds"
    assert "its driver hangs" in running.said[1][1]
    goes_on.set()
    running.until(lambda: running.states == ["online", "offline", "online"])
    running.capture.note_silence(time.monotonic())
    assert running.states[-1] == "online"


def test_a_lost_camera_is_told_before_it_is_closed(run):
    lets_go = threading.Event()

    def read():
        raise CameraError("unplugged")

    def close():
        assert running.states == ["offline"]
        lets_go.wait(WITHIN_S)

    running = run.prepare(Scripted(read, close), Scripted(changing))
    running.start()
    running.until(lambda: running.states == ["offline"])
    lets_go.set()
    running.until(lambda: running.states == ["offline", "online"])


def test_what_a_library_does_not_let_go_of_is_not_opened_and_holds_nobody_up(run, monkeypatch):
    monkeypatch.setattr("agent.vision.cameras.waiting.CLOSE_LIMIT_S", 0.05)
    lets_go = threading.Event()

    def read():
        raise CameraError("the camera has timed out")

    def close():
        return close_in_time("picamera:0", lambda: lets_go.wait(WITHIN_S))

    running = run(Scripted(read, close), Scripted(changing))
    other = run(Scripted(changing))
    running.until(lambda: running.capture._closing is not None)
    closing, asked = running.capture._closing, []
    is_alive = closing.is_alive
    closing.is_alive = lambda: (asked.append(1), is_alive())[1]
    running.until(lambda: len(asked) > 1)  # it waits for that alone
    ticks, captured = running.ticks, other.capture.captured
    other.until(lambda: other.capture.captured > captured + 20)
    assert len(running.opened) == 1, "to open it again would hang as well"
    assert running.ticks == ticks, "so that the worker is replaced in the end"
    lets_go.set()
    running.until(lambda: running.states == ["offline", "online"])


def test_the_end_does_not_wait_for_what_does_not_close(run, monkeypatch):
    monkeypatch.setattr("agent.vision.cameras.waiting.CLOSE_LIMIT_S", 0.05)
    lets_go = threading.Event()

    def close():
        return close_in_time("picamera:0", lambda: lets_go.wait(60))

    def read():
        raise CameraError("lost")

    running = run(Scripted(read, close))
    running.until(lambda: running.capture._closing is not None)
    started = time.monotonic()
    running.stop()
    assert time.monotonic() - started < WITHIN_S
    lets_go.set()
