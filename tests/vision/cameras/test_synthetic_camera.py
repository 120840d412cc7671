from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import CameraConfig
from agent.errors import CameraError
from agent.vision.cameras import open_camera
from agent.vision.cameras.synthetic import SyntheticCamera, frame_number


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def make(width: int = 64, height: int = 48, fps: float = 10.0) -> tuple[SyntheticCamera, Clock]:
    clock = Clock()
    return SyntheticCamera(width, height, fps, clock=clock, sleep=clock.sleep), clock


def number(camera: SyntheticCamera) -> int:
    frame = camera.read(None)
    assert frame is not None
    return frame_number(frame)


def test_frames_come_on_the_clock() -> None:
    camera, clock = make(fps=10)
    assert [number(camera) for _ in range(25)] == list(range(25))
    assert clock.now == pytest.approx(102.4)


def test_a_slow_reader_loses_frames() -> None:
    camera, clock = make(fps=10)
    assert number(camera) == 0
    clock.now += 1.05
    assert number(camera) == 10


def test_a_slow_camera_says_none_meanwhile() -> None:
    camera, _ = make(fps=0.4)
    assert number(camera) == 0
    assert [camera.read(None) for _ in range(2)] == [None, None]
    assert number(camera) == 1


def test_a_very_slow_camera_is_not_a_lost_one() -> None:
    camera, clock = make(fps=0.1)
    assert number(camera) == 0
    assert [camera.read(None) for _ in range(9)] == [None] * 9
    assert number(camera) == 1
    assert clock.now == pytest.approx(110)


@given(st.integers(32, 200), st.integers(16, 90), st.integers(0, 2**24))
def test_a_frame_depends_on_its_number_and_size_alone(width: int, height: int, n: int) -> None:
    images = []
    for _ in range(2):
        camera, clock = make(width, height)
        clock.now += n / 10
        image = camera.read(None)
        assert image is not None
        images.append(image)
    assert images[0].shape == (height, width, 3)
    assert np.array_equal(images[0], images[1])
    # Dividing a time by a period may land on the frame before.
    assert frame_number(images[0]) in (n - 1, n)


def test_it_moves() -> None:
    camera, _ = make()
    first, second = camera.read(None), camera.read(None)
    assert first is not None
    assert second is not None
    assert (first[20:] != second[20:]).mean() > 0.5


def test_it_writes_into_the_buffer_where_that_fits() -> None:
    camera, _ = make()
    buffer = np.empty((48, 64, 3), np.uint8)
    assert camera.read(buffer) is buffer
    wrong = np.empty((48, 65, 3), np.uint8)
    assert camera.read(wrong) is not wrong
    assert camera.read(np.empty((48, 128, 3), np.uint8)[:, ::2]).flags.c_contiguous  # type: ignore[union-attr]


def test_defaults() -> None:
    camera = open_camera(CameraConfig(source="synthetic"))
    assert camera.live
    assert camera.rate_hz == 30
    frame = camera.read(None)
    assert frame is not None
    assert frame.shape == (480, 640, 3)
    camera.close()
    camera.close()


def test_too_small() -> None:
    with pytest.raises(CameraError, match="at least 32x16"):
        open_camera(CameraConfig(source="synthetic", width=8, height=8))
