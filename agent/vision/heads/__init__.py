"""Decoders: output tensors in, boxes or scores out. Pure functions on arrays, one file per family.

`Boxes` are in the coordinates of the model's input, 0 to 1; `preprocess.boxes_to_frame` takes
them back to pixels of the frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Task = Literal["detection", "classification"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """Objects found, best first: xyxy_norm float32[n, 4], scores float32[n], class_ids int[n]."""

    xyxy_norm: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Classes of a whole image, best first: scores float32[n], class_ids int[n]."""

    scores: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A decoder bound to one model; `why` says in words how it was recognised."""

    kind: str
    task: Task
    class_count: int | None
    why: str
    decode: Callable[[Sequence[npt.NDArray[Any]]], Boxes | Scores]


def top_scores(scores: npt.NDArray[np.float32], limit: int) -> npt.NDArray[np.intp]:
    """Return the indices of the `limit` highest of float32[n], best first, ties by index."""
    return np.argsort(-scores, kind="stable")[:limit]


def nms(
    xyxy: npt.NDArray[np.float32],
    class_ids: npt.NDArray[np.intp],
    *,
    iou_threshold: float,
    limit: int,
) -> list[int]:
    """Return the indices kept by greedy per-class non-maximum suppression.

    xyxy float32[n, 4], class_ids int[n], both best score first. Written on arrays instead of
    with cv2.dnn.NMSBoxesBatched, which converts each box to a Python object and back.
    """
    areas = np.maximum(xyxy[:, 2] - xyxy[:, 0], 0) * np.maximum(xyxy[:, 3] - xyxy[:, 1], 0)
    alive = np.ones(len(xyxy), bool)
    kept: list[int] = []
    for index in range(len(xyxy)):
        if not alive[index]:
            continue
        kept.append(index)
        if len(kept) == limit:
            break
        low = np.maximum(xyxy[index, :2], xyxy[index + 1 :, :2])
        high = np.minimum(xyxy[index, 2:], xyxy[index + 1 :, 2:])
        sides = np.maximum(high - low, 0)
        shared = sides[:, 0] * sides[:, 1]
        union = areas[index] + areas[index + 1 :] - shared
        covered = (shared > iou_threshold * union) & (class_ids[index + 1 :] == class_ids[index])
        alive[index + 1 :] &= ~covered
    return kept
