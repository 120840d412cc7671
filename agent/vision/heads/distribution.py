"""Boxes as distributions: each side's distance from the cell is an average over bins.

Shared by NanoDet and by YOLO exports that stop before their own decoding. Generalized Focal
Loss, arxiv.org/abs/2006.04388, section 3: distance = sum(softmax(bins) * [0 .. bins - 1]) * stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.vision.engines import Tensor, TensorSpec
from agent.vision.heads import Boxes, Limits, select_boxes
from agent.vision.heads.quantized import (
    F32,
    as_fractions,
    best_classes,
    sigmoid,
    to_real,
    to_stored,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some channels of one output, of which each cell has a row."""

    output: int  # position among the outputs
    spec: TensorSpec
    axis: int  # of the channels, once the cells are one axis: 0 or 1
    channels: slice = field(default_factory=lambda: slice(None))

    def view(self, tensors: Sequence[Tensor]) -> npt.NDArray[Any]:
        """Return [channels, n] or [n, channels], as `axis` says, without copying."""
        whole = tensors[self.output][0]
        if whole.ndim == 3:
            rows = whole.shape[0 if self.axis == 0 else 2]
            whole = whole.reshape(rows, -1) if self.axis == 0 else whole.reshape(-1, rows)
        view: npt.NDArray[Any] = whole[self.channels] if self.axis == 0 else whole[:, self.channels]
        return view

    def real(self, tensors: Sequence[Tensor], cells: npt.NDArray[np.intp]) -> F32:
        """Return float32[cells, channels] of the chosen cells."""
        view = self.view(tensors)
        stored = view[:, cells].T if self.axis == 0 else view[cells]
        return to_real(stored, self.spec.scale, self.spec.zero_point)

    def whole(self, tensors: Sequence[Tensor]) -> F32:
        """Return float32[n, channels] of all cells."""
        view = self.view(tensors)
        return to_real(view if self.axis else view.T, self.spec.scale, self.spec.zero_point)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Cells whose scores and sides lie in the same tensors."""

    scores: Part
    sides: Part
    centres: F32  # float32[n, 2] x, y in pixels of the input
    strides: F32  # float32[n]


def expected_distances(bins: F32) -> F32:
    """Return float32[n, 4] in cells, of float32[n, 4 * bins] logits: left, top, right, bottom."""
    logits = bins.reshape(len(bins), 4, -1)
    powers = np.exp(logits - logits.max(axis=2, keepdims=True, initial=-1e6))
    steps = np.arange(logits.shape[2], dtype=np.float32)
    distances: F32 = (powers @ steps) / powers.sum(axis=2)
    return distances


def decode_levels(
    tensors: Sequence[Tensor],
    levels: Sequence[Level],
    *,
    size: tuple[float, float],
    are_logits: bool,
    limits: Limits,
) -> Boxes:
    """Decode scores and distributions of all levels.

    tensors: each level's parts: scores of the classes, sides 4 * bins logits per cell
    size: (width, height) of the input in pixels
    """
    boxes, scores, classes = [], [], []
    for level in levels:
        spec = level.scores.spec
        lowest = to_stored(
            float(limits.thresholds.min()),
            spec.scale,
            spec.zero_point,
            spec.dtype,
            are_logits=are_logits,
        )
        view = level.scores.view(tensors)
        cells, class_ids = best_classes(view, lowest, axis=level.scores.axis)
        if not cells.size:
            continue
        stored = view[class_ids, cells] if level.scores.axis == 0 else view[cells, class_ids]
        best = to_real(stored, spec.scale, spec.zero_point)
        distances = expected_distances(level.sides.real(tensors, cells))
        distances *= level.strides[cells, None]
        centres = level.centres[cells]
        boxes.append(np.concatenate([centres - distances[:, :2], centres + distances[:, 2:]], 1))
        scores.append(sigmoid(best) if are_logits else best)
        classes.append(class_ids)
    if not boxes:
        return select_boxes(
            np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.intp), limits
        )
    xyxy = as_fractions(np.concatenate(boxes), size)
    return select_boxes(xyxy, np.concatenate(scores), np.concatenate(classes), limits)
