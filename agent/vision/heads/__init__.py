"""Decoders: output tensors in, boxes or scores out. Pure functions on arrays, one file per family.

`Boxes` are in the coordinates of the model's input, 0 to 1; `preprocess.boxes_to_frame` takes
them back to pixels of the frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from agent.contract.manifest import FileEntry, HeadManifest
from agent.vision.engines import Tensor, TensorSpec
from agent.vision.tflite_file import TfliteFile

# Candidates that go into suppression; the best ones, as Ultralytics' max_nms bounds them.
MAX_CANDIDATES = 1000
NMS_BLOCK = 64  # candidates compared at once: one block is nearly every picture's
# A sigmoid, rounded to a coarse step, may lie a little above 1; what is higher is damage.
HIGHEST_SCORE = 1.1
# A box that reaches farther than this many inputs away is damage; a real one ends at the edge
# or, for the widest reach of a YOLO head (15 cells of 32 pixels), somewhat beyond.
FARTHEST = 16.0
SCORE_TOLERANCE = 1e-6  # of a float that was rounded on its way to a threshold it equals

# Fields of `Limits` that count nowhere but in suppression, which some families bring with them
# or have no need of.
SUPPRESSION = frozenset({"iou_threshold", "is_agnostic"})

Task = Literal["detection", "classification", "pose", "segmentation", "raw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """Objects found, best first: xyxy_norm float32[n, 4], scores float32[n], class_ids int[n].

    keypoints float32[n, k, 3] are x, y (0 to 1 of the input) and score, for heads that have them.
    """

    xyxy_norm: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.intp]
    keypoints: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Classes of a whole image, best first: scores float32[n], class_ids int[n]."""

    scores: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Poses:
    """Figures found, best first: keypoints float32[n, k, 3] as in `Boxes`, scores float32[n].

    A point's score is NaN where the model gives none; coordinates are finite. Without class_ids
    int[n] all figures are of class 0.
    """

    keypoints: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    xyxy_norm: npt.NDArray[np.float32] | None = None
    class_ids: npt.NDArray[np.intp] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMap:
    """One class per cell of a grid over the input: class_ids int16[h, w], -1 for none.

    counted bool[k] are the classes that the configuration lets through; from k on none is.
    """

    class_ids: npt.NDArray[np.int16]
    counted: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """Outputs nobody here can read, dequantized, in the model's order, each with its name."""

    values: tuple[tuple[str, npt.NDArray[Any]], ...]


Decoded = Boxes | Scores | Poses | ClassMap | Tensors
Decode = Callable[[Sequence[Tensor]], Decoded]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """All that can be seen of a model from outside; `outputs` and `first_run` go together."""

    file: TfliteFile
    image: TensorSpec
    outputs: tuple[TensorSpec, ...]
    first_run: Sequence[Tensor]  # what a first invoke gave
    wanted: HeadManifest
    folder: Path  # where files that the manifest names lie
    files: Mapping[str, FileEntry] = field(default_factory=dict)  # their hashes, as it lists them
    label_counts: frozenset[int] = frozenset()  # numbers of classes that its labels can be for


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Which findings count; thresholds float32[class_count], the lowest score of each class."""

    thresholds: npt.NDArray[np.float32]
    iou_threshold: float
    max_detections: int
    is_agnostic: bool  # boxes suppress each other across classes
    top_k: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A family that fits a model; `why` says in words how it was recognised."""

    kind: str
    task: Task
    class_count: int | None
    why: str
    bind: Callable[[Limits], Decode]
    keypoint_names: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()  # where the model brings none
    resize: Literal["stretch", "letterbox"] = "stretch"  # as the family is trained
    # What float pixels become where neither manifest nor metadata say: (mean, std), or not known.
    normalization: tuple[float, float] | None = None
    iou_threshold: float = 0.45  # where neither manifest nor configuration say
    is_agnostic: bool = False
    # Keys of the head's manifest that were settled without it, to be shown and overruled.
    read_as: Mapping[str, object] = field(default_factory=dict)
    # Fields of `Limits` that change nothing here; a setting of theirs deserves a note.
    ignores: frozenset[str] = frozenset({"top_k"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A decoder bound to one model."""

    kind: str
    task: Task
    class_count: int | None
    why: str
    decode: Decode
    keypoint_names: tuple[str, ...] = ()
    read_as: Mapping[str, object] = field(default_factory=dict)


def top_scores(scores: npt.NDArray[np.float32], limit: int) -> npt.NDArray[np.intp]:
    """Return the indices of the `limit` highest of float32[n], best first, ties by index."""
    return np.argsort(-scores, kind="stable")[:limit]


def nms(
    xyxy: npt.NDArray[np.float32],
    class_ids: npt.NDArray[np.intp],
    *,
    iou_threshold: float,
    limit: int,
    is_agnostic: bool = False,
) -> list[int]:
    """Return the indices kept by greedy non-maximum suppression, within classes or across them.

    xyxy float32[n, 4], class_ids int[n], both best score first. Written on arrays instead of
    with cv2.dnn.NMSBoxesBatched, which converts each box to a Python object and back. Blocks
    are compared with what is kept and within themselves, which costs a few calls per block.
    """
    left, top, right, bottom = np.ascontiguousarray(xyxy.T)
    areas = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)

    def cover(ones: npt.NDArray[np.intp], others: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        """Return [ones, others]: which of them overlap too much to be two things."""
        row = ones[:, None]
        width = np.minimum(right[row], right[others]) - np.maximum(left[row], left[others])
        height = np.minimum(bottom[row], bottom[others]) - np.maximum(top[row], top[others])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        union = areas[row] + areas[others] - shared
        covered: npt.NDArray[np.bool_] = shared > iou_threshold * union
        return covered if is_agnostic else covered & (class_ids[row] == class_ids[others])

    kept: list[int] = []
    for start in range(0, len(xyxy), NMS_BLOCK):
        block = np.arange(start, min(start + NMS_BLOCK, len(xyxy)))
        if kept:
            block = block[~cover(np.array(kept), block).any(axis=0)]
        free = ~cover(block, block)
        alive = np.ones(len(block), bool)
        for at, index in enumerate(block.tolist()):
            if not alive[at]:
                continue
            kept.append(index)
            if len(kept) == limit:
                return kept
            alive &= free[at]
    return kept


def select_boxes(
    xyxy: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float32],
    class_ids: npt.NDArray[np.intp],
    limits: Limits,
) -> Boxes:
    """Apply the class thresholds, suppress, and return the best.

    xyxy float32[n, 4] of the input, 0 to 1; scores float32[n]; class_ids int[n]. Rows that no
    network means are left out: NaN, negative sizes, nothing of it inside the input.
    """
    order = sound_rows(xyxy, scores, class_ids, limits)
    xyxy, scores, class_ids = xyxy[order], scores[order], class_ids[order]
    kept = nms(
        xyxy,
        class_ids,
        iou_threshold=limits.iou_threshold,
        limit=limits.max_detections,
        is_agnostic=limits.is_agnostic,
    )
    return Boxes(
        xyxy_norm=xyxy[kept], scores=np.minimum(scores[kept], 1), class_ids=class_ids[kept]
    )


def sound_rows(
    xyxy: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float32],
    class_ids: npt.NDArray[np.intp],
    limits: Limits,
) -> npt.NDArray[np.intp]:
    """Return the indices of at most MAX_CANDIDATES rows that count, best first."""
    is_known = (class_ids >= 0) & (class_ids < len(limits.thresholds))
    lowest = limits.thresholds[np.where(is_known, class_ids, 0)]
    good = is_known & (scores >= lowest - SCORE_TOLERANCE) & (scores <= HIGHEST_SCORE)
    low, high = xyxy[:, :2], xyxy[:, 2:]
    good &= (
        (low >= -FARTHEST) & (low < 1) & (high > 0) & (high <= FARTHEST + 1) & (high >= low)
    ).all(axis=1)
    rows = np.flatnonzero(good)
    return rows[top_scores(scores[rows], MAX_CANDIDATES)]
