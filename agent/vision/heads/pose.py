"""Poses from models that give points themselves: MoveNet, and Ultralytics' YOLO pose.

MoveNet: one tensor of figures, each 17 points as y, x and score, 0 to 1 of the input
(tfhub.dev/google/movenet: [1, 1, 17, 3] for one figure; [1, 6, 56] for six, with the box as
ymin, xmin, ymax, xmax and a score behind the points).
YOLO pose: as a detector's [4 + classes + points, candidates]
(ultralytics/nn/modules/head.py Pose: points as x, y and a sigmoid visibility).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.vision.engines import TensorSpec
from agent.vision.heads import (
    MAX_CANDIDATES,
    SUPPRESSION,
    Decode,
    Found,
    Limits,
    Look,
    Poses,
    nms,
    top_scores,
)
from agent.vision.heads.anchors import strides_of
from agent.vision.heads.evidence import box_unit
from agent.vision.heads.quantized import hold_numbers, to_real

# The points of COCO's figures in their order: cocodataset.org/#keypoints-2020, and the model
# cards of MoveNet and PoseNet.
COCO_POINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
    "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip",
    "left_knee", "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip
# What a figure of these points is, where the model brings no label of its own.
FIGURE_LABELS = ("person",)
# Numbers per figure in MoveNet MultiPose: the points, a box and its score.
MULTIPOSE_NUMBERS = 3 * len(COCO_POINTS) + 5
# Figures a MoveNet may be made for; the public one has six, and a detector's grid has far more.
MOST_FIGURES = 32


def find_movenet(look: Look) -> Found | None:
    """Tell MoveNet by its one output's shape; no other family has 17 points of 3, or rows of 56."""
    if len(look.outputs) != 1:
        return None
    spec = look.outputs[0]
    shape = spec.shape
    is_single = shape[-2:] == (len(COCO_POINTS), 3) and np.prod(shape[:-2]) == 1
    is_multi = (
        len(shape) == 3
        and shape[0] == 1
        and shape[2] == MULTIPOSE_NUMBERS
        and shape[1] <= MOST_FIGURES
    )
    if not (is_single or is_multi) or not hold_numbers(look.outputs):
        return None

    def bind(limits: Limits) -> Decode:
        lowest, limit = float(limits.thresholds.min()), limits.max_detections
        if is_single:
            return lambda tensors: decode_movenet(
                to_real(tensors[0], spec.scale, spec.zero_point), lowest=lowest
            )
        return lambda tensors: decode_multipose(
            to_real(tensors[0][0], spec.scale, spec.zero_point), lowest=lowest, limit=limit
        )

    what = "17 points of y, x and score" if is_single else f"up to {shape[1]} figures of 56 numbers"
    return Found(
        kind="movenet",
        task="pose",
        class_count=1,
        why=f"MoveNet because its one output holds {what}",
        bind=bind,
        keypoint_names=COCO_POINTS,
        labels=FIGURE_LABELS,
        ignores=SUPPRESSION | ({"top_k", "max_detections"} if is_single else {"top_k"}),
        # Trained on padded squares: the model's tutorial feeds it tf.image.resize_with_pad.
        resize="letterbox",
        normalization=(0.0, 1.0),  # float inputs too take bytes, 0 to 255
    )


def decode_movenet(points: npt.NDArray[np.float32], *, lowest: float) -> Poses:
    """Decode one figure: float32[..., 17, 3] y, x, score.

    The model scores points, not figures: the figure's score is the mean of its points'.
    """
    return _figures(points.reshape(1, -1, 3), None, None, lowest=lowest, limit=1)


def decode_multipose(rows: npt.NDArray[np.float32], *, lowest: float, limit: int) -> Poses:
    """Decode several figures: float32[n, 56], 17 times y, x, score, then yxyx and a score."""
    points = rows[:, :-5].reshape(len(rows), -1, 3)
    return _figures(points, rows[:, -5:-1], rows[:, -1], lowest=lowest, limit=limit)


def _figures(
    points: npt.NDArray[np.float32],
    yxyx: npt.NDArray[np.float32] | None,
    scores: npt.NDArray[np.float32] | None,
    *,
    lowest: float,
    limit: int,
) -> Poses:
    """Return the figures that count, best first; points float32[n, k, 3] y, x, score."""
    good = np.asarray(np.isfinite(points).all(axis=(1, 2)))
    if yxyx is not None:
        good &= np.isfinite(yxyx).all(axis=1)
    if scores is None:
        scores = np.where(good[:, None], points[:, :, 2], 0).mean(axis=1)
    passing = np.flatnonzero(good & (scores >= lowest))  # false of NaN
    best = passing[top_scores(scores[passing], limit)]
    keypoints = points[best][:, :, [1, 0, 2]]
    keypoints[:, :, 2] = np.clip(keypoints[:, :, 2], 0, 1)
    return Poses(
        keypoints=keypoints,
        scores=np.clip(scores[best], 0, 1),
        xyxy_norm=None if yxyx is None else yxyx[best][:, [1, 0, 3, 2]],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class YoloPoseLayout:
    """How the channels of one candidate are laid out, and what its coordinates are divided by."""

    classes: int
    points: int
    dims: int  # numbers per point: x, y and perhaps a score
    unit: tuple[float, float]  # width and height that make a coordinate 0 to 1 of the input


def find_yolo_pose(look: Look) -> Found | None:
    """Tell YOLO pose by the exporter's notes, or by 56 channels over as many anchors as fit.

    56 channels are also a detector's of 52 classes, so without the notes both may fit.
    """
    if len(look.outputs) != 1 or len(look.outputs[0].shape) != 3 or look.outputs[0].shape[0] != 1:
        return None
    spec, notes = look.outputs[0], look.file.exporter
    if not hold_numbers(look.outputs) or (notes.get("task") or "pose") != "pose":
        return None
    points, dims = _kpt_shape(notes.get("kpt_shape"))
    rows, columns = spec.shape[1:]
    is_told = look.wanted.type == "yolo_pose"
    if strides_of(columns, look.image) or (is_told and columns > rows):
        channels, is_transposed = rows, False
    elif strides_of(rows, look.image) or (is_told and rows > columns):
        channels, is_transposed = columns, True
    else:
        return None
    classes = channels - 4 - points * dims
    if classes < 1 or (classes > 1 and "kpt_shape" not in notes and not is_told):
        return None
    first = to_real(look.first_run[0][0], spec.scale, spec.zero_point)
    unit, unit_why = box_unit(look, spec, (first if is_transposed else first.T)[:, :4])
    layout = YoloPoseLayout(classes=classes, points=points, dims=dims, unit=unit)

    def bind(limits: Limits) -> Decode:
        return lambda tensors: decode_yolo_pose(
            tensors[0][0].T if is_transposed else tensors[0][0], spec, layout, limits
        )

    is_person = (classes, points) == (1, len(COCO_POINTS))
    how = "the exporter's notes say pose" if notes.get("task") else f"it has {channels} channels"
    return Found(
        kind="yolo_pose",
        task="pose",
        class_count=classes,
        why=f"YOLO pose because {how}, which are 4 of the box, {classes} of classes and "
        f"{points} points of {dims}; coordinates {unit_why}",
        bind=bind,
        keypoint_names=COCO_POINTS if points == len(COCO_POINTS) else (),
        labels=FIGURE_LABELS if is_person else (),
        resize="letterbox",  # ultralytics/data/augment.py LetterBox
        normalization=(0.0, 255.0),
        iou_threshold=0.7,  # ultralytics/cfg/default.yaml
    )


def _kpt_shape(noted: object) -> tuple[int, int]:
    """Return (points, numbers per point) of the exporter's `kpt_shape`; COCO's without."""
    if isinstance(noted, list | tuple) and len(noted) == 2:
        points, dims = noted
        if isinstance(points, int) and points > 0 and dims in (2, 3):
            return points, int(dims)
    return len(COCO_POINTS), 3


def decode_yolo_pose(
    output: npt.NDArray[Any], spec: TensorSpec, layout: YoloPoseLayout, limits: Limits
) -> Poses:
    """Decode [4 + classes + points * dims, n]: cx, cy, w, h, class scores, then the points.

    Only candidates whose best score can pass are dequantized and unpacked.
    """
    first_point = 4 + layout.classes
    scores = to_real(output[4:first_point], spec.scale, spec.zero_point)
    scores[~(scores >= limits.thresholds[: layout.classes, None])] = -1.0  # NaN too
    class_ids, best = scores.argmax(axis=0), scores.max(axis=0)
    candidates = np.flatnonzero(best >= 0)
    candidates = candidates[top_scores(best[candidates], MAX_CANDIDATES)]
    values = to_real(output[:, candidates], spec.scale, spec.zero_point).T
    points = values[:, first_point:].reshape(len(candidates), layout.points, layout.dims)
    usable = np.isfinite(values[:, :4]).all(axis=1)
    usable &= np.isfinite(points[:, :, :2]).all(axis=(1, 2))
    candidates, values, points = candidates[usable], values[usable], points[usable]
    unit = np.array(layout.unit, np.float32)
    centre, half = values[:, :2] / unit, values[:, 2:4] / unit / 2
    xyxy = np.concatenate([centre - half, centre + half], axis=1)
    keypoints = np.full((len(candidates), layout.points, 3), np.nan, np.float32)
    keypoints[:, :, :2] = points[:, :, :2] / unit
    if layout.dims == 3:
        keypoints[:, :, 2] = np.clip(points[:, :, 2], 0, 1)
    kept = nms(
        xyxy,
        class_ids[candidates],
        iou_threshold=limits.iou_threshold,
        limit=limits.max_detections,
        is_agnostic=limits.is_agnostic,
    )
    return Poses(
        keypoints=keypoints[kept],
        scores=np.clip(best[candidates][kept], 0, 1),
        xyxy_norm=xyxy[kept],
        class_ids=class_ids[candidates][kept],
    )
