"""MediaPipe's BlazeFace family: boxes with key points as offsets from a grid of square priors.

Faces at short range (128, and 256 for the rear camera), at full range (192), and palms.
Layers: mediapipe/modules/face_detection/*.pbtxt and palm_detection_cpu.pbtxt, options of
SsdAnchorsCalculator and TensorsToDetectionsCalculator; every prior has size 1 there, so only
its centre counts. Priors of layers with the same stride share their cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.vision.engines import TensorSpec
from agent.vision.heads import FARTHEST, Boxes, Decode, Found, Limits, Look, sound_rows
from agent.vision.heads.evidence import are_logits
from agent.vision.heads.quantized import F32, hold_numbers, sigmoid, to_real, to_stored

FACE_POINTS = (
    "right_eye", "left_eye", "nose_tip", "mouth_center", "right_ear_tragion", "left_ear_tragion",
)  # fmt: skip
PALM_POINTS = (
    "wrist", "index_finger_mcp", "middle_finger_mcp", "ring_finger_mcp", "pinky_mcp",
    "thumb_cmc", "thumb_mcp",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    what: str
    label: str
    layers: tuple[tuple[int, int], ...]  # (cells per side, priors per cell)
    points: tuple[str, ...]
    normalization: tuple[float, float]


_SIGNED = (127.5, 127.5)  # -1 to 1; palms 0 to 1: output_tensor_float_range of the graphs
_FACES = _Kind(
    what="faces",
    label="face",
    layers=((16, 2), (8, 6)),
    points=FACE_POINTS,
    normalization=_SIGNED,
)
_FULL_RANGE = _Kind(
    what="faces at full range",
    label="face",
    layers=((48, 1),),
    points=FACE_POINTS,
    normalization=_SIGNED,
)
_PALMS = _Kind(
    what="palms",
    label="palm",
    layers=((24, 2), (12, 6)),
    points=PALM_POINTS,
    normalization=(0.0, 255.0),
)
# Input side in pixels -> what it may be.
_KINDS = {128: (_FACES,), 192: (_FULL_RANGE, _PALMS), 256: (_FACES,)}


def find_blazeface(look: Look) -> Found | str | None:
    """Tell it by both shapes and the input size, which together fit nothing else."""
    if len(look.outputs) != 2 or look.image.shape[1] != look.image.shape[2]:
        return None
    side = int(look.image.shape[1])
    for kind in _KINDS.get(side, ()):
        count = sum(cells * cells * priors for cells, priors in kind.layers)
        wanted = [(1, count, 4 + 2 * len(kind.points)), (1, count, 1)]
        shapes = [spec.shape for spec in look.outputs]
        if sorted(shapes) == sorted(wanted) and hold_numbers(look.outputs):
            return _found(look, kind, shapes.index(wanted[0]), side)
    return None


def _found(look: Look, kind: _Kind, at_boxes: int, side: int) -> Found | str:
    boxes, scores = look.outputs[at_boxes], look.outputs[1 - at_boxes]
    first = to_real(look.first_run[1 - at_boxes][0], scores.scale, scores.zero_point)
    logits = are_logits(look, first, scores)
    if logits is None:
        return "it has the shape of BlazeFace, but its scores are neither probabilities nor logits"
    centres = prior_centres(kind.layers)

    def bind(limits: Limits) -> Decode:
        return lambda tensors: decode_blazeface(
            tensors[at_boxes][0],
            tensors[1 - at_boxes][0, :, 0],
            boxes=boxes,
            scores=scores,
            centres=centres,
            side=side,
            are_logits=logits,
            limits=limits,
        )

    return Found(
        kind="blazeface",
        task="detection",
        class_count=1,
        why=f"BlazeFace ({kind.what}) because {len(centres)} rows of a box and "
        f"{len(kind.points)} points are its priors for {side}x{side}"
        + ("; scores are logits" if logits else ""),
        bind=bind,
        keypoint_names=kind.points,
        labels=(kind.label,),
        resize="letterbox",  # keep_aspect_ratio of ImageToTensorCalculator
        normalization=kind.normalization,
        ignores=frozenset({"is_agnostic", "top_k"}),  # there is one class
        iou_threshold=0.3,  # min_suppression_threshold of NonMaxSuppressionCalculator
    )


def prior_centres(layers: tuple[tuple[int, int], ...]) -> F32:
    """Return float32[n, 2] x, y, 0 to 1, row by row, each cell's priors together."""
    centres = []
    for cells, priors in layers:
        y, x = (np.mgrid[:cells, :cells] + 0.5) / cells
        centres.append(np.repeat(np.stack([x.ravel(), y.ravel()], axis=1), priors, axis=0))
    return np.concatenate(centres).astype(np.float32)


def decode_blazeface(
    stored_boxes: npt.NDArray[Any],
    stored_scores: npt.NDArray[Any],
    *,
    boxes: TensorSpec,
    scores: TensorSpec,
    centres: F32,
    side: int,
    are_logits: bool,
    limits: Limits,
) -> Boxes:
    """Decode boxes with their points, and average those that overlap.

    stored_boxes: [n, 4 + 2 * points] in pixels: centre x, y from the prior's, width, height, then
        each point's x, y from the prior's centre; stored_scores: [n]
    centres: float32[n, 2] x, y of the priors, 0 to 1; side: of the input in pixels

    Formula: mediapipe/calculators/tensor/tensors_to_detections_calculator.cc DecodeBoxes, with
    reverse_output_order. A point has its box's score; it has none of its own.
    """
    lowest = to_stored(
        float(limits.thresholds[0]),
        scores.scale,
        scores.zero_point,
        scores.dtype,
        are_logits=are_logits,
    )
    rows = np.flatnonzero(stored_scores >= lowest)
    found = to_real(stored_scores[rows], scores.scale, scores.zero_point)
    if are_logits:
        found = sigmoid(found)
    values = to_real(stored_boxes[rows], boxes.scale, boxes.zero_point) / np.float32(side)
    middle = values[:, :2] + centres[rows]
    half = values[:, 2:4] * np.float32(0.5)
    points = values[:, 4:] + np.tile(centres[rows], (values.shape[1] - 4) // 2)
    geometry = np.concatenate([middle - half, middle + half, points], axis=1)
    is_near = (np.abs(geometry) <= FARTHEST).all(axis=1)  # NaN is not
    geometry, found = geometry[is_near], found[is_near]
    order = sound_rows(geometry[:, :4], found, np.zeros(len(found), np.intp), limits)
    merged, kept = weighted_nms(geometry[order], found[order], limits)
    xy = merged[:, 4:].reshape(len(merged), points.shape[1] // 2, 2)
    own = np.minimum(found[order][kept], 1)
    return Boxes(
        xyxy_norm=merged[:, :4],
        scores=own,
        class_ids=np.zeros(len(merged), np.intp),
        keypoints=np.concatenate(
            [xy, np.broadcast_to(own[:, None, None], (*xy.shape[:2], 1))], axis=2
        ),
    )


def weighted_nms(geometry: F32, scores: F32, limits: Limits) -> tuple[F32, list[int]]:
    """Return (float32[m, k] averages, the indices of the best of each group).

    geometry float32[n, k]: a box's corners, then whatever moves with it; best score first. Each
    best box becomes the average, weighted by score, of those that overlap it:
    mediapipe/calculators/util/non_max_suppression_calculator.cc WeightedNonMaxSuppression;
    arxiv.org/abs/1907.05047, section 3.4 (it keeps faces from jittering between frames).
    """
    sides = np.maximum(geometry[:, 2:4] - geometry[:, :2], 0)
    areas = sides[:, 0] * sides[:, 1]
    left = np.arange(len(geometry))
    merged: list[F32] = []
    kept: list[int] = []
    while left.size and len(kept) < limits.max_detections:
        best = left[0]
        low = np.maximum(geometry[best, :2], geometry[left, :2])
        high = np.minimum(geometry[best, 2:4], geometry[left, 2:4])
        shared = np.maximum(high - low, 0).prod(axis=1)
        group = shared > limits.iou_threshold * (areas[best] + areas[left] - shared)
        group[0] = True  # even a box without area is its own
        weights = scores[left[group]]
        total = max(float(weights.sum()), 1e-9)
        merged.append((geometry[left[group]] * weights[:, None]).sum(axis=0) / np.float32(total))
        kept.append(int(best))
        left = left[~group]
    shape = (len(merged), geometry.shape[1])
    return np.array(merged, np.float32).reshape(shape), kept
