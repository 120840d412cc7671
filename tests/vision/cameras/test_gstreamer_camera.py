from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from camera_sources import drain

from agent.config import CameraConfig
from agent.errors import CameraError
from agent.vision.cameras import Camera, EndOfStream, U8Image, gstreamer, open_camera

needs_gstreamer = pytest.mark.skipif(
    shutil.which(gstreamer.PROGRAM) is None, reason="gstreamer1.0-tools is not installed"
)
LIVE = "videotestsrc is-live=true pattern={} ! video/x-raw,width={},height={},framerate=30/1"


def launch(pipeline: str, width: int = 0, height: int = 0) -> Camera:
    return open_camera(CameraConfig(source=f"gst:{pipeline}", width=width, height=height))


def next_frame(camera: Camera, buffer: U8Image | None = None) -> U8Image:
    for _ in range(5):
        frame = camera.read(buffer)
        if frame is not None:
            return frame
    raise AssertionError("no frame")


@needs_gstreamer
@pytest.mark.parametrize(("width", "height"), [(64, 48), (62, 10), (63, 9)])
def test_frames_of_any_size_in_bgr(width: int, height: int) -> None:
    camera = launch(LIVE.format("red", width, height))
    assert camera.live
    assert camera.rate_hz == 30
    buffer = np.zeros((height, width, 3), np.uint8)
    for _ in range(3):
        assert next_frame(camera, buffer) is buffer
        assert (buffer == (0, 0, 255)).all()
    camera.close()
    camera.close()


@needs_gstreamer
def test_the_size_asked_for() -> None:
    camera = launch(LIVE.format("blue", 64, 48), 32, 20)
    assert next_frame(camera).shape == (20, 32, 3)
    camera.close()


@needs_gstreamer
def test_a_slow_reader_gets_a_new_frame() -> None:
    # The picture moves by two columns each frame, which tells how many have passed.
    camera = launch(
        "videotestsrc is-live=true pattern=smpte horizontal-speed=2"
        " ! video/x-raw,width=640,height=480,framerate=50/1"
    )
    before = next_frame(camera)[0]
    time.sleep(0.8)  # the reader is slow: 40 frames pass, and none may pile up
    next_frame(camera)
    next_frame(camera)
    after = next_frame(camera)[0]
    camera.close()
    passed = [n for n in range(320) if np.array_equal(np.roll(before, -2 * n, axis=0), after)]
    assert len(passed) == 1
    assert passed[0] >= 35


@needs_gstreamer
def test_an_end_before_the_first_frame() -> None:
    with pytest.raises(CameraError, match="it ended without a frame"):
        launch("fakesrc num-buffers=0 ! video/x-raw,format=BGR,width=4,height=4,framerate=1/1")


@needs_gstreamer
def test_the_end_of_a_pipeline() -> None:
    camera = launch("videotestsrc num-buffers=3 ! video/x-raw,width=64,height=48")
    with pytest.raises(EndOfStream, match="the pipeline ended"):
        drain(camera)
    camera.close()


@needs_gstreamer
def test_a_pipeline_that_dies() -> None:
    camera = launch(LIVE.format("red", 64, 48) + " ! identity error-after=30")
    with pytest.raises(CameraError, match="Failed after iterations as requested"):
        drain(camera)
    camera.close()


@needs_gstreamer
@pytest.mark.parametrize(
    ("pipeline", "reason"),
    [
        ("nosuchsrc", 'no element "nosuchsrc"'),
        ("videotestsrc colour=3", 'no property "colour"'),
        ("videotestsrc ! fakesink", "could not link"),
        ("filesrc location=/nowhere ! decodebin", "Resource not found"),
        ("videotestsrc name='a", "a quote is not closed"),
        ("  ", "the pipeline is empty"),
    ],
)
def test_a_wrong_pipeline(pipeline: str, reason: str) -> None:
    with pytest.raises(CameraError, match=re.escape(reason)):
        drain(launch(pipeline))


@needs_gstreamer
def test_a_pipeline_that_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gstreamer, "SHORT_WAIT_S", 0.1)
    camera = launch(LIVE.format("red", 64, 48))
    next_frame(camera)
    assert isinstance(camera, gstreamer.GStreamerCamera)
    pid = child_pid(camera)
    os.kill(pid, signal.SIGSTOP)
    silent = [camera.read(None) for _ in range(4)]
    assert silent[-1] is None
    started = time.monotonic()
    camera.close()  # a stopped process takes nothing but SIGKILL
    assert time.monotonic() - started < 10
    assert not Path(f"/proc/{pid}").exists()


@needs_gstreamer
def test_passwords_are_not_shown() -> None:
    with pytest.raises(CameraError) as caught:
        drain(launch("rtspsrc location=rtsp://joe:wr0ng@127.0.0.1:9/x user-pw=s3cret"))
    assert "wr0ng" not in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "joe:***@127.0.0.1" in str(caught.value)


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    descriptors = open_descriptors()
    with pytest.raises(CameraError, match=r"sudo apt install gstreamer1\.0-tools"):
        launch("videotestsrc")
    assert open_descriptors() <= descriptors


@needs_gstreamer
def test_nothing_is_left_behind(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """In a process of its own, where no other test's descriptors come and go."""
    done = run_python(f"""
import os
from pathlib import Path
from agent.config import CameraConfig
from agent.vision.cameras import open_camera
source = {"gst:" + LIVE.format("red", 64, 48)!r}
open_camera(CameraConfig(source=source)).close()  # what is opened once and kept is open now
before = set(os.listdir("/proc/self/fd"))
camera = open_camera(CameraConfig(source=source))
pid = camera._child._process.pid
camera.close()
assert len(set(os.listdir("/proc/self/fd"))) == len(before), before
assert not Path(f"/proc/{{pid}}").exists()
""")
    assert done.returncode == 0, done.stderr


@needs_gstreamer
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="util-linux is not installed")
def test_the_child_does_not_outlive_us(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = run_python(f"""
import os, signal, threading
from agent.config import CameraConfig
from agent.vision.cameras import open_camera
found = []
def run():
    found.append(open_camera(CameraConfig(source={"gst:" + LIVE.format("red", 64, 48)!r})))
thread = threading.Thread(target=run)
thread.start()
thread.join()
# The thread that opened it is gone, and the child is not.
while found[0].read(None) is None:
    pass
print(found[0]._child._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
""")
    assert done.returncode == -9, done.stderr
    pid = int(done.stdout)
    deadline = time.monotonic() + 60
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        # An orphan that nobody reaps yet is a zombie.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def child_pid(camera: gstreamer.GStreamerCamera) -> int:
    process = camera._child._process
    assert process is not None
    return process.pid
