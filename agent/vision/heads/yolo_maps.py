"""YOLOv5's raw feature maps: three priors per cell, each a box, an objectness and the classes.

Formula: ultralytics/yolov5 models/yolo.py Detect.forward; YOLOv7 has the same with other
priors, YOLOv3 and v4 another one, and all have these shapes: so only the manifest can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.errors import ModelError
from agent.vision.engines import Tensor, TensorSpec
from agent.vision.heads import Boxes, Decode, Found, Limits, Look, select_boxes
from agent.vision.heads.anchors import grid_centres, grid_sizes, read_anchors
from agent.vision.heads.evidence import are_logits
from agent.vision.heads.quantized import F32, as_fractions, sigmoid, to_real, to_stored

PRIORS = 3
STRIDES = (8, 16, 32)
# Width and height in pixels: ultralytics/yolov5 models/yolov5s.yaml, clustered on COCO.
V5_PRIORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorMap:
    """One output and where its numbers lie."""

    output: int
    spec: TensorSpec
    shape: tuple[int, ...]  # [priors, cells, numbers] once reshaped and its axes ordered
    axes: tuple[int, int, int]
    cells: F32  # float32[cells, 2] x, y of the corners in pixels
    stride: int
    priors: F32  # float32[priors, 2] width, height in pixels

    def view(self, tensors: Sequence[Tensor]) -> npt.NDArray[Any]:
        """Return [priors, cells, 5 + classes] of stored numbers without copying."""
        view: npt.NDArray[Any] = tensors[self.output].reshape(self.shape).transpose(self.axes)
        return view


def is_prior_map(channels: int, counts: set[int]) -> bool:
    """Return whether a map's channels are three priors with one of the numbers of classes."""
    return any(channels == PRIORS * (5 + count) for count in counts)


def find_prior_maps(look: Look) -> Found | str | None:
    """Read the maps where the manifest says that they are YOLOv5's.

    Raises:
        ModelError: the anchors file does not fit.
    """
    placed = [_placed(look, spec) for spec in look.outputs]
    strides = sorted(one[0] for one in placed if one is not None)
    if len(strides) != len(placed) or len(set(strides)) != len(strides):
        return None
    if look.wanted.type != "yolo_split":
        return (
            f"its outputs look like YOLO feature maps with {PRIORS} priors per cell, which YOLOv5, "
            'v7 and v3 decode differently: if it is v5 say "yolo_split"; if it is v7 give its '
            '"anchors" as well'
        )
    priors = _priors(look, strides)
    maps = [
        PriorMap(
            output=at,
            spec=look.outputs[at],
            shape=one[1],
            axes=one[2],
            cells=grid_centres(look.image, (one[0],), 0.0)[0],
            stride=one[0],
            priors=priors[strides.index(one[0])],
        )
        for at, one in enumerate(placed)
        if one is not None
    ]
    numbers = {one.view(look.first_run).shape[2] for one in maps}
    if len(numbers) != 1 or min(numbers) < 6:
        return "its feature maps do not hold the same number of classes"
    count = min(numbers)
    first = np.concatenate([_real(one, look.first_run).reshape(-1, count) for one in maps])
    has_logits = are_logits(look, first) is not False  # some exports end in a sigmoid
    size = (float(look.image.shape[2]), float(look.image.shape[1]))

    def bind(limits: Limits) -> Decode:
        return lambda tensors: decode_prior_maps(
            tensors, maps, size=size, has_logits=has_logits, limits=limits
        )

    return Found(
        kind="yolo_split",
        task="detection",
        class_count=count - 5,
        why=f"YOLOv5 feature maps at the strides {strides} because the manifest says so; "
        f"{PRIORS} priors of a box, an objectness and {count - 5} classes",
        bind=bind,
        resize="letterbox",  # ultralytics/yolov5 utils/augmentations.py letterbox
        normalization=(0.0, 255.0),  # ultralytics/yolov5 detect.py: 0 to 1
    )


def _placed(
    look: Look, spec: TensorSpec
) -> tuple[int, tuple[int, ...], tuple[int, int, int]] | None:
    """Return (stride, shape, axes) of `PriorMap` for each layout that exporters write."""
    shape = spec.shape
    for stride in (8, 16, 32, 64):
        ((rows, columns),) = grid_sizes(look.image, (stride,))
        cells = rows * columns
        if len(shape) == 5 and shape[1:4] == (PRIORS, rows, columns):
            return stride, (PRIORS, cells, shape[4]), (0, 1, 2)
        if len(shape) == 5 and shape[1:4] == (rows, columns, PRIORS):
            return stride, (cells, PRIORS, shape[4]), (1, 0, 2)
        if len(shape) == 4 and shape[1:3] == (rows, columns) and not shape[3] % PRIORS:
            return stride, (cells, PRIORS, shape[3] // PRIORS), (1, 0, 2)
        if len(shape) == 4 and shape[2:] == (rows, columns) and not shape[1] % PRIORS:
            return stride, (PRIORS, shape[1] // PRIORS, cells), (0, 2, 1)
    return None


def _priors(look: Look, strides: list[int]) -> F32:
    own = read_anchors(look)
    if own is None:
        if tuple(strides) != STRIDES:
            raise ModelError(
                f"YOLO feature maps at the strides {strides} need their own priors: give them as "
                f'"anchors", a .npy file float[{len(strides)}, {PRIORS}, 2] in pixels'
            )
        return np.array(V5_PRIORS, np.float32)
    if own.shape != (len(strides), PRIORS, 2) or not (own > 0).all():
        raise ModelError(
            f"{look.wanted.anchors}: has the shape {list(own.shape)}; needed are widths and "
            f"heights in pixels, float[{len(strides)}, {PRIORS}, 2]"
        )
    return own


def _real(one: PriorMap, tensors: Sequence[Tensor]) -> F32:
    return to_real(one.view(tensors), one.spec.scale, one.spec.zero_point)


def decode_prior_maps(
    tensors: Sequence[Tensor],
    maps: Sequence[PriorMap],
    *,
    size: tuple[float, float],
    has_logits: bool,
    limits: Limits,
) -> Boxes:
    """Decode: s = sigmoid(t), centre = (cell + 2s - 0.5) * stride, side = prior * (2s) ** 2.

    size: (width, height) of the input in pixels; has_logits: the sigmoid is still to be applied
    """
    boxes, scores, classes = [], [], []
    for one in maps:
        view, spec = one.view(tensors), one.spec
        lowest = to_stored(
            float(limits.thresholds.min()),
            spec.scale,
            spec.zero_point,
            spec.dtype,
            are_logits=has_logits,
        )
        priors, cells = np.nonzero(view[:, :, 4] >= lowest)
        rows = to_real(view[priors, cells], spec.scale, spec.zero_point)
        if has_logits:
            rows = sigmoid(rows)
        centres = (rows[:, :2] * 2 - np.float32(0.5)) * one.stride + one.cells[cells]
        half = (rows[:, 2:4] * 2) ** 2 * one.priors[priors] * np.float32(0.5)
        class_ids = rows[:, 5:].argmax(axis=1)
        boxes.append(np.concatenate([centres - half, centres + half], axis=1))
        scores.append(rows[:, 4] * rows[np.arange(len(rows)), 5 + class_ids])
        classes.append(class_ids)
    xyxy = as_fractions(np.concatenate(boxes), size)
    return select_boxes(xyxy, np.concatenate(scores), np.concatenate(classes), limits)
