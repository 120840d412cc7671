"""No V4L2 device exists where tests run: OpenCV's capture is replaced, our use of it is not."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.errors import CameraError
from agent.vision.cameras import U8Image
from agent.vision.cameras.opencv import DeviceCamera

MJPG = cv2.VideoWriter.fourcc(*"MJPG")


class FakeCapture:
    """What cv2.VideoCapture does with a webcam that knows only 640x480 and 1280x720."""

    frames: list[U8Image | None] = []
    opens = True
    seconds_per_failure = 0.0

    def __init__(self, device: str, backend: int) -> None:
        assert backend == cv2.CAP_V4L2
        self.asked: list[tuple[int, float]] = []
        self.got = {cv2.CAP_PROP_FRAME_WIDTH: 640.0, cv2.CAP_PROP_FRAME_HEIGHT: 480.0}
        self.got[cv2.CAP_PROP_FPS] = 30.0

    def isOpened(self) -> bool:  # noqa: N802
        return self.opens

    def set(self, key: int, value: float) -> bool:
        self.asked.append((key, value))
        if key in self.got and value in (1280, 720, 15):
            self.got[key] = value
        return True

    def get(self, key: int) -> float:
        return self.got[key]

    def read(self, buffer: U8Image | None = None) -> tuple[bool, U8Image | None]:
        frame = self.frames.pop(0)
        if frame is None:
            Clock.now += self.seconds_per_failure
            return False, None
        if buffer is not None and buffer.shape == frame.shape:
            buffer[:] = frame
            return True, buffer
        return True, frame

    def release(self) -> None:
        self.opens = False


class Clock:
    now = 0.0


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> type[FakeCapture]:
    class Fresh(FakeCapture):
        frames: list[U8Image | None] = []

    monkeypatch.setattr(cv2, "VideoCapture", Fresh)
    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Fresh


@pytest.fixture
def node(tmp_path: Path) -> Path:
    path = tmp_path / "video0"
    path.touch()
    return path


def asked(camera: DeviceCamera) -> list[tuple[int, float]]:
    assert isinstance(camera._capture, FakeCapture)
    return camera._capture.asked


def test_mjpeg_comes_first_and_only_for_large_pictures(
    capture: type[FakeCapture], node: Path
) -> None:
    assert asked(DeviceCamera(str(node), 1280, 720, 15)) == [
        (cv2.CAP_PROP_FOURCC, MJPG),
        (cv2.CAP_PROP_FRAME_WIDTH, 1280),
        (cv2.CAP_PROP_FRAME_HEIGHT, 720),
        (cv2.CAP_PROP_FPS, 15),
    ]
    assert asked(DeviceCamera(str(node), 640, 480, 0))[0][0] == cv2.CAP_PROP_FRAME_WIDTH
    assert asked(DeviceCamera(str(node), 0, 0, 0)) == []
    assert DeviceCamera(str(node), 1280, 720, 15).rate_hz == 15


def test_another_size_than_asked_is_logged(
    capture: type[FakeCapture], node: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        DeviceCamera(str(node), 1280, 720, 0)
    assert not caplog.records
    DeviceCamera(str(node), 800, 600, 0)
    assert "asked=800x600 got=640x480" in caplog.text


def test_reading_in_place(capture: type[FakeCapture], node: Path) -> None:
    image = np.full((480, 640, 3), 3, np.uint8)
    capture.frames += [image, image]
    camera = DeviceCamera(str(node), 0, 0, 0)
    buffer = np.zeros_like(image)
    frame = camera.read(buffer)
    assert frame is not None
    assert frame.ctypes.data == buffer.ctypes.data
    assert camera.read(None) is not None
    camera.close()
    camera.close()


def test_silence_is_for_the_owner_to_judge(capture: type[FakeCapture], node: Path) -> None:
    capture.seconds_per_failure = 2.0
    capture.frames += [None] * 20
    camera = DeviceCamera(str(node), 0, 0, 0)
    assert [camera.read(None) for _ in range(20)] == [None] * 20
    assert "cable" in camera.silence_hint


def test_an_error_is_told_from_silence(capture: type[FakeCapture], node: Path) -> None:
    capture.frames += [None, np.zeros((4, 4, 3), np.uint8), None, None]
    camera = DeviceCamera(str(node), 0, 0, 0)
    with pytest.raises(CameraError, match=r"in use by another program.*share its bandwidth"):
        camera.read(None)
    camera.read(None)
    with pytest.raises(CameraError, match="stopped giving frames"):
        camera.read(None)
    node.unlink()
    with pytest.raises(CameraError, match="was unplugged"):
        camera.read(None)


def test_a_device_that_does_not_open(capture: type[FakeCapture], node: Path) -> None:
    capture.opens = False
    with pytest.raises(CameraError, match="in use by"):
        DeviceCamera(str(node), 0, 0, 0)
