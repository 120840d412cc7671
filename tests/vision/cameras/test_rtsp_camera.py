from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from camera_sources import CLIP_SIZE, RtspServer, drain

from agent.config import CameraConfig
from agent.errors import CameraError
from agent.vision.cameras import open_camera, opencv

Start = Callable[..., RtspServer]
SHAPE = (CLIP_SIZE[1], CLIP_SIZE[0], 3)
DEADLINE_S = 20.0  # five seconds, and some for a busy machine


def test_frames_arrive_until_the_server_dies_and_again_when_it_is_back(rtsp_server: Start) -> None:
    server = rtsp_server()
    config = CameraConfig(source=server.url())
    camera = open_camera(config)
    assert camera.live
    buffer = np.empty(SHAPE, np.uint8)
    for _ in range(10):
        frame = camera.read(buffer)
        assert frame is not None
        assert frame.ctypes.data == buffer.ctypes.data
    server.stop()
    started = time.monotonic()
    with pytest.raises(CameraError, match="the stream ended, or the connection was lost"):
        drain(camera, seconds=DEADLINE_S)
    assert time.monotonic() - started < DEADLINE_S
    camera.close()
    with pytest.raises(CameraError, match="nothing listens on"):
        open_camera(config)
    server.start()
    camera = open_camera(config)
    assert camera.read(None) is not None
    camera.close()
    camera.close()


def test_the_right_password(rtsp_server: Start) -> None:
    server = rtsp_server("joe", "hunter2")
    camera = open_camera(CameraConfig(source=server.url("joe:hunter2")))
    assert camera.read(None) is not None
    camera.close()


def test_a_wrong_password_is_said_but_not_shown(
    rtsp_server: Start, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    server = rtsp_server("joe", "hunter2")
    # Not in the code itself, whose lines Python 3.13 shows in a traceback.
    source = {"SOURCE": server.url("joe:wr0ngpw")}
    code = """
import logging, os
logging.basicConfig(level=logging.DEBUG)
from agent.config import CameraConfig
from agent.vision.cameras import open_camera, opencv
open_camera(CameraConfig(source=os.environ["SOURCE"]))
"""
    talkative = {
        "OPENCV_LOG_LEVEL": "DEBUG",
        "OPENCV_VIDEOIO_DEBUG": "1",
        "OPENCV_FFMPEG_DEBUG": "1",
        "OPENCV_FFMPEG_LOGLEVEL": "56",
    }
    for environment in ({}, talkative):
        done = run_python(code, **environment, **source)
        assert done.returncode == 1
        assert "does not accept the user name and password" in done.stderr
        assert "rtsp://joe:***@127.0.0.1" in done.stderr
        said = done.stdout + done.stderr
        # FFmpeg would show it plain or as base64.
        assert "wr0ngpw" not in said
        assert "am9lOndyMG5ncHc=" not in said


def test_sentences(rtsp_server: Start) -> None:
    server = rtsp_server("joe", "hunter2")
    with pytest.raises(CameraError, match="wants a user name and password"):
        open_camera(CameraConfig(source=server.url()))
    server = rtsp_server()
    with pytest.raises(CameraError, match="has nothing at this path"):
        open_camera(CameraConfig(source=server.url() + "/other"))
    with pytest.raises(CameraError, match=r"name nowhere\.invalid is not known"):
        open_camera(CameraConfig(source="rtsp://nowhere.invalid/1"))


def test_the_test_server_ends_with_its_owner(rtsp_server: Start) -> None:
    process = rtsp_server()._process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 0


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One second where production has five: the same mechanism, a faster test."""
    assert (opencv.OPEN_TIMEOUT_MS, opencv.READ_TIMEOUT_MS) == (5000, 4000)
    params = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 1000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 1000)
    monkeypatch.setattr(opencv, "FFMPEG_PARAMS", params)
    monkeypatch.setattr(opencv, "OPEN_TIMEOUT_MS", 1000)
    monkeypatch.setattr(opencv, "READ_TIMEOUT_MS", 1000)


@pytest.mark.usefixtures("short_timeouts")
def test_a_server_that_says_nothing_is_given_up(free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)):
        started = time.monotonic()
        with pytest.raises(CameraError, match="no video within 1 s"):
            open_camera(CameraConfig(source=f"rtsp://127.0.0.1:{free_port}/1"))
        assert time.monotonic() - started < 10


def test_a_server_that_falls_silent_is_given_up(
    rtsp_server: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 20_000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 1000)
    monkeypatch.setattr(opencv, "FFMPEG_PARAMS", params)
    monkeypatch.setattr(opencv, "OPENING_LIMIT_S", 30.0)
    monkeypatch.setattr(opencv, "READ_TIMEOUT_MS", 1000)
    server = rtsp_server()
    camera = open_camera(CameraConfig(source=server.url()))
    assert camera.read(None) is not None
    assert server._process is not None
    server._process.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(CameraError, match="sent nothing for 1 s"):
        drain(camera, seconds=DEADLINE_S)
    camera.close()  # which tells a server that does not listen
    assert time.monotonic() - started < 10
