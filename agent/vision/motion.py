"""Whether anything has moved since the last frame that was looked at.

Frames are compared as coarse grey pictures of 80 cells along the longer side: a cell averages so
many pixels that noise does not count, and larger frames cost hardly more than small ones.
The picture compared with is that of the last look, not of the frame before, so what creeps is
seen as well; and as each look renews it, light that changes slowly is not taken for motion. A
sudden change of all light counts, once: what is in the picture may be recognisable only now,
and an inference too many costs less than a thing missed.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from agent.config import CameraConfig
from agent.vision.filter import Polygons
from agent.vision.handoff import U8Image
from agent.vision.preprocess import pixels_of

# Cells along the longer side of what is looked at: 16 pixels wide at 1280.
CELLS = 80
# Places along each side of a cell that are looked at, each the mean of 2 x 2 pixels. Four would
# cost four times as much.
SAMPLES = 2
# A cell has changed when its grey differs by more, of 255. It averages 16 pixels (of frames at
# least 320 wide): noise of 10 grey levels a pixel, a poor camera at night, leaves
# 10 / sqrt(16) * sqrt(2) = 3.5 between two pictures, a quarter of this.
CHANGED = 15
# What sums and products of the limits may be off by: 0.07 * 100 is 7.000000000000001.
HAIR = 1e-6


class MotionGate:
    """One camera's gate, for the thread that captures; made anew when the camera is opened again.

    Memory is made at the first frame, and again where frames change their size.
    """

    def __init__(self, config: CameraConfig) -> None:
        self._config = config
        self._grid: Grid | None = None
        self._looked_s = 0.0

    def is_still(self, pixels: U8Image, now_s: float) -> bool:
        """Return whether a frame uint8[H, W, 3] BGR may go unseen; else it is the one looked at.

        `now_s` is of any clock that does not go back.
        """
        height, width = pixels.shape[:2]
        grid = self._grid
        is_first = grid is None or grid.frame_size != (width, height)
        if grid is None or is_first:
            grid = self._grid = Grid(self._config, width, height)
        grid.see(pixels)
        is_due = is_first or now_s - self._looked_s >= self._config.motion_look_s - HAIR
        if not is_due and grid.count_changed() < grid.enough:
            return True
        grid.keep()
        self._looked_s = now_s
        return False


class Grid:
    """The coarse pictures, now and at the last look, of frames of one size."""

    def __init__(self, config: CameraConfig, width: int, height: int) -> None:
        self.frame_size = (width, height)
        self._part = x_min, y_min, x_max, y_max = pixels_of(config.region, width, height)
        side = max(1.0, max(x_max - x_min, y_max - y_min) / CELLS)
        columns, rows = math.ceil((x_max - x_min) / side), math.ceil((y_max - y_min) / side)
        self._sampled = np.empty((rows * SAMPLES, columns * SAMPLES, 3), np.uint8)
        self._grey = np.empty((rows * SAMPLES, columns * SAMPLES), np.uint8)
        self._now = np.empty((rows, columns), np.uint8)
        self._looked_at = np.empty_like(self._now)
        self._differs = np.empty_like(self._now)
        self._counted = self._unmasked(Polygons(config.masks)) if config.masks else None
        count = self._now.size if self._counted is None else cv2.countNonZero(self._counted)
        # Cells that must change; one at the least, so that where all is masked only time brings a
        # look.
        self.enough = max(1, math.ceil(config.motion * count - HAIR))

    def see(self, pixels: U8Image) -> None:
        """Make the picture of now."""
        x_min, y_min, x_max, y_max = self._part
        rows, columns = self._now.shape
        samples = (columns * SAMPLES, rows * SAMPLES)
        part = pixels[y_min:y_max, x_min:x_max]
        cv2.resize(part, samples, dst=self._sampled, interpolation=cv2.INTER_LINEAR)
        cv2.cvtColor(self._sampled, cv2.COLOR_BGR2GRAY, dst=self._grey)
        cv2.resize(self._grey, (columns, rows), dst=self._now, interpolation=cv2.INTER_AREA)

    def count_changed(self) -> int:
        """Return how many of the cells that count differ from those of the last look."""
        differs = cv2.absdiff(self._now, self._looked_at, dst=self._differs)
        cv2.threshold(differs, CHANGED, 255, cv2.THRESH_BINARY, dst=differs)
        if self._counted is not None:
            cv2.bitwise_and(differs, self._counted, dst=differs)
        return cv2.countNonZero(differs)

    def keep(self) -> None:
        """Make the picture of now the one to compare with."""
        self._looked_at, self._now = self._now, self._looked_at

    def _unmasked(self, masks: Polygons) -> U8Image:
        """Return uint8[rows, columns], 255 where the middle of a cell is in no mask."""
        rows, columns = self._now.shape
        x_min, y_min, x_max, y_max = self._part
        across = x_min + (np.arange(columns) + 0.5) / columns * (x_max - x_min)
        down = y_min + (np.arange(rows) + 0.5) / rows * (y_max - y_min)
        middles = np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2)
        is_masked = masks.contain(middles / self.frame_size)
        return np.where(is_masked, 0, 255).astype(np.uint8).reshape(rows, columns)


def gate_of(config: CameraConfig) -> MotionGate | None:
    """Return a camera's gate, or None where every frame is looked at."""
    return MotionGate(config) if config.motion > 0 else None
