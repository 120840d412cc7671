"""Ultralytics YOLO exports with one output tensor: YOLOv5 and YOLOv8/v11.

Both look at the stored numbers first: a candidate is dequantized only when its best score
can pass, so thousands of candidates cost two passes over small integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from agent.vision.heads import Boxes, nms, top_scores

# Candidates that go into suppression; the best ones, as Ultralytics' max_nms bounds them.
MAX_CANDIDATES = 1000


def decode_yolov8(
    output: npt.NDArray[Any],
    *,
    scale: float,
    zero_point: int,
    box_unit: tuple[float, float],
    thresholds: npt.NDArray[np.float32],
    iou_threshold: float,
    max_detections: int,
) -> Boxes:
    """Decode YOLOv8/v11: [4 + classes, candidates], channels first; no objectness.

    output: int8, uint8 or float32 [4 + classes, n]: rows cx, cy, w, h, then one per class
    box_unit: (width, height) that a box coordinate is divided by to be 0 to 1 of the input
    thresholds: float32[classes]

    Layout: ultralytics/nn/modules/head.py Detect (boxes and sigmoid scores concatenated).
    """
    stored_scores = output[4:]
    best = stored_scores.max(axis=0)
    candidates = np.flatnonzero(best >= _stored(float(thresholds.min()), scale, zero_point, best))
    chosen = output[:, candidates]
    class_ids = chosen[4:].argmax(axis=0)
    values = _real(chosen, scale, zero_point)
    scores = values[4:][class_ids, np.arange(len(candidates))]
    return _select(
        values[:4].T, scores, class_ids, box_unit, thresholds, iou_threshold, max_detections
    )


def decode_yolov5(
    output: npt.NDArray[Any],
    *,
    scale: float,
    zero_point: int,
    box_unit: tuple[float, float],
    thresholds: npt.NDArray[np.float32],
    iou_threshold: float,
    max_detections: int,
) -> Boxes:
    """Decode YOLOv5: [candidates, 5 + classes]; score = objectness * class.

    output: int8, uint8 or float32 [n, 5 + classes]: cx, cy, w, h, objectness, then the classes.
    The rest as `decode_yolov8`. Layout: ultralytics/yolov5 models/yolo.py Detect.
    """
    objectness = output[:, 4]
    lowest = _stored(float(thresholds.min()), scale, zero_point, objectness)
    values = _real(output[np.flatnonzero(objectness >= lowest)], scale, zero_point)
    class_ids = values[:, 5:].argmax(axis=1)
    scores = values[:, 4] * values[np.arange(len(values)), 5 + class_ids]
    return _select(
        values[:, :4], scores, class_ids, box_unit, thresholds, iou_threshold, max_detections
    )


def _stored(real: float, scale: float, zero_point: int, like: npt.NDArray[Any]) -> float:
    """Return the real threshold in the tensor's own numbers."""
    if np.issubdtype(like.dtype, np.floating):
        return real
    return real / scale + zero_point - 1e-6  # the float of an exact step must not exclude it


def _real(stored: npt.NDArray[Any], scale: float, zero_point: int) -> npt.NDArray[np.float32]:
    if np.issubdtype(stored.dtype, np.floating):
        return stored.astype(np.float32)
    real: npt.NDArray[np.float32] = stored.astype(np.float32)
    real -= np.float32(zero_point)
    real *= np.float32(scale)
    return real


def _select(
    xywh: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float32],
    class_ids: npt.NDArray[np.intp],
    box_unit: tuple[float, float],
    thresholds: npt.NDArray[np.float32],
    iou_threshold: float,
    max_detections: int,
) -> Boxes:
    """Apply the class thresholds, suppress, and return the best as xyxy of the input."""
    good = (scores >= thresholds[class_ids]) & np.isfinite(scores) & np.isfinite(xywh).all(axis=1)
    passing = np.flatnonzero(good)
    order = passing[top_scores(scores[passing], MAX_CANDIDATES)]
    unit = np.array([*box_unit, *box_unit], np.float32)
    centre_size = xywh[order] / unit
    half = centre_size[:, 2:] / 2
    xyxy = np.concatenate([centre_size[:, :2] - half, centre_size[:, :2] + half], axis=1)
    kept = nms(xyxy, class_ids[order], iou_threshold=iou_threshold, limit=max_detections)
    return Boxes(
        xyxy_norm=xyxy[kept],
        scores=np.clip(scores[order][kept], 0, 1),
        class_ids=class_ids[order][kept],
    )
