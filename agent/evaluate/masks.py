"""Masks: a class number per pixel, read from pictures and held against a model's class map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import cv2
import numpy as np
import numpy.typing as npt

from agent.errors import UnavailableError
from agent.evaluate.records import ClassFigures, MaskFigures, share
from agent.vision.cameras.images import MAX_FILE_BYTES, MAX_PIXELS, picture_size
from agent.vision.heads import ClassMap
from agent.vision.preprocess import Transform

Mask = npt.NDArray[np.uint8]
# PASCAL VOC's ignore label: pixels that count neither way.
UNJUDGED = 255


def read_mask(path: Path) -> Mask:
    """Return uint8[H, W] class numbers from a grey picture.

    Raises:
        UnavailableError: it cannot be read or is not one number per pixel.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UnavailableError(f"{path}: is larger than {MAX_FILE_BYTES >> 20} MiB")
        content = path.read_bytes()
    except OSError as error:
        raise UnavailableError(f"{path}: the mask cannot be read: {error.strerror}") from error
    size = picture_size(content)
    if size is None or size[0] * size[1] > MAX_PIXELS:
        raise UnavailableError(f"{path}: the mask is not a picture, or one that is too large")
    try:
        mask = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        mask = None
    if mask is None:
        raise UnavailableError(f"{path}: the mask is damaged")
    if mask.ndim == 3:
        # A grey palette or three equal channels hold the numbers; colours do not.
        if not (mask[:, :, :3] == mask[:, :, :1]).all():
            raise UnavailableError(
                f"{path}: is a colour picture; a mask must hold class numbers, as grey values"
            )
        mask = mask[:, :, 0]
    if mask.dtype != np.uint8:
        raise UnavailableError(f"{path}: has {mask.dtype} pixels; a mask has 8 bits per pixel")
    return np.asarray(mask, np.uint8)


def write_mask(path: Path, mask: npt.NDArray[Any]) -> None:
    """Write class numbers as a grey PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done, content = cv2.imencode(".png", mask.astype(np.uint8))
    if not done:
        raise ValueError("cannot be written as PNG")
    path.write_bytes(content.tobytes())


def on_frame(decoded: ClassMap, where: Transform, size: tuple[int, int]) -> npt.NDArray[Any]:
    """Return int[height, width]: the class of the cell under the centre of each pixel.

    size: (height, width) wanted, covering the frame
    """
    cells = decoded.class_ids
    frame = (where.frame_width, where.frame_height)
    columns, rows = (
        _cells(size[1 - axis], frame[axis], axis, where, cells.shape[1 - axis]) for axis in (0, 1)
    )
    found: npt.NDArray[Any] = cells[np.ix_(rows, columns)]
    return found


def _cells(
    count: int, frame_px: int, axis: int, where: Transform, cells: int
) -> npt.NDArray[np.intp]:
    """Return, for `count` pixels across the frame, which of the map's cells each lies in."""
    centres = (np.arange(count) + 0.5) / count * frame_px
    norm = (centres - float(where.box_shift[axis])) / float(where.box_scale[axis])
    return np.clip(np.floor(norm * cells), 0, cells - 1).astype(np.intp)


@final
class MaskTally:
    """Pixels by expected and found class, over all pictures."""

    def __init__(self) -> None:
        self._counts = np.zeros((256, 256), np.int64)  # [expected, found]

    def add(self, expected: Mask, found: npt.NDArray[Any]) -> float:
        """Count a picture; return the share of its pixels that are right."""
        judged = expected != UNJUDGED
        # What the model calls none, or cannot be in a mask, is no class.
        classes = np.where((found >= 0) & (found < UNJUDGED), found, UNJUDGED).astype(np.int64)
        pairs = expected[judged].astype(np.int64) * 256 + classes[judged]
        counts = np.bincount(pairs, minlength=1 << 16).reshape(256, 256)
        self._counts += counts
        return share(float(np.trace(counts)), int(counts.sum())) or 0.0

    def figures(self) -> MaskFigures | None:
        """Return the figures over all pictures."""
        pixels = int(self._counts.sum())
        mean = _mean_iou(self._counts)
        if not pixels or mean is None:
            return None
        accuracy = float(np.trace(self._counts)) / pixels
        return MaskFigures(mean_iou=mean, pixel_accuracy=accuracy, pixels=pixels)

    def classes(self, label: Callable[[int], str | None]) -> list[ClassFigures]:
        """Return each class that was expected or found; counts are pixels."""
        rows = []
        seen = self._counts.sum(axis=0) + self._counts.sum(axis=1)
        for number in np.flatnonzero(seen[:UNJUDGED]).tolist():
            expected = int(self._counts[number].sum())
            found = int(self._counts[:, number].sum())
            both = int(self._counts[number, number])
            rows.append(
                ClassFigures(
                    class_id=number,
                    label=label(number),
                    expected=expected,
                    found=found,
                    matched=both,
                    precision=share(both, found),
                    recall=share(both, expected),
                    f1=share(2 * both, expected + found),
                    mean_iou=share(both, expected + found - both),
                    mean_score_difference=None,
                )
            )
        return rows


def _mean_iou(counts: npt.NDArray[np.int64]) -> float | None:
    """Return the mean over the classes that were expected or found at all."""
    both = np.diag(counts)
    union = counts.sum(axis=0) + counts.sum(axis=1) - both
    seen = (union > 0) & (np.arange(256) != UNJUDGED)
    return float((both[seen] / union[seen]).mean()) if seen.any() else None
