"""A camera made of arithmetic: needs no hardware, and every frame can be checked.

Frame `n` is a pure function of (n, width, height): a ramp of colours that moves by a few
pixels each frame, under a strip of 32 black or white cells that spell `n`. Like a real
camera it does not wait for a slow reader: frames that nobody took in time are gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from agent.errors import CameraError
from agent.vision.cameras import U8Image, fitting

if TYPE_CHECKING:
    from agent.vision.cameras import Camera

DEFAULT_SIZE_PX = (640, 480)
DEFAULT_FPS = 30.0
CELLS = 32  # bits of the frame number in the strip
STRIP_PX = 8
STEP_PX = 4  # how far the picture moves each frame
SHORT_WAIT_S = 1.0


class SyntheticCamera:
    """Frames on a clock."""

    live = True
    rate_hz: float | None
    silence_hint = "the board has no time left for it"

    def __init__(
        self,
        width: int = 0,
        height: int = 0,
        fps: float = 0.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._width = width or DEFAULT_SIZE_PX[0]
        self._height = height or DEFAULT_SIZE_PX[1]
        if self._width < CELLS or self._height < 2 * STRIP_PX:
            raise CameraError(
                f'source = "synthetic": {self._width}x{self._height} is too small; the pattern'
                f" needs at least {CELLS}x{2 * STRIP_PX}"
            )
        self.rate_hz = fps or DEFAULT_FPS
        self._period_s = 1 / self.rate_hz
        self._clock = clock
        self._sleep = sleep
        self._started = clock()
        self._next = 0
        self._ramp = _ramp(self._width, self._height)

    def read(self, buffer: U8Image | None) -> U8Image | None:
        """Return the frame whose time has come; those that were missed are skipped."""
        now = self._clock() - self._started
        self._next = max(self._next, int(now / self._period_s))
        wait_s = self._next * self._period_s - now
        if wait_s > SHORT_WAIT_S:
            self._sleep(SHORT_WAIT_S)
            return None
        if wait_s > 0:
            self._sleep(wait_s)
        frame = fitting(buffer, self._height, self._width)
        draw(frame, self._next, self._ramp)
        self._next += 1
        return frame

    def close(self) -> None:
        """Nothing is held."""


def draw(frame: U8Image, number: int, ramp: U8Image) -> None:
    """Fill `frame`, uint8[H, W, 3] BGR, with picture `number`."""
    width = frame.shape[1]
    start = number * STEP_PX % width
    np.copyto(frame, ramp[:, start : start + width])
    cell_px = width // CELLS
    bits = (number >> np.arange(CELLS)) & 1
    frame[:STRIP_PX, : cell_px * CELLS] = np.repeat(bits * 255, cell_px)[None, :, None]


def frame_number(frame: U8Image) -> int:
    """Read the number back from a frame's strip, uint8[H, W, 3]."""
    cell_px = frame.shape[1] // CELLS
    cells = frame[STRIP_PX // 2, cell_px // 2 : cell_px * CELLS : cell_px, 1] > 127
    return int((cells.astype(np.int64) << np.arange(CELLS)).sum())


def _ramp(width: int, height: int) -> U8Image:
    """Return uint8[H, 2W, 3]: the picture twice side by side, so that any W columns wrap."""
    ramp = np.empty((height, 2 * width, 3), np.uint8)
    across = np.arange(width) * 255 // (width - 1)
    ramp[:, :, 0] = np.concatenate([across, across])
    ramp[:, :, 1] = (np.arange(height) * 255 // (height - 1))[:, None]
    ramp[:, :, 2] = 255 - ramp[:, :, 0]
    return ramp


if TYPE_CHECKING:
    _: type[Camera] = SyntheticCamera
