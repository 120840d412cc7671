"""SSD with the `TFLite_Detection_PostProcess` operator: boxes arrive decoded and suppressed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.errors import ModelError
from agent.vision.engines import Tensor
from agent.vision.heads import (
    FARTHEST,
    HIGHEST_SCORE,
    Boxes,
    Decode,
    Found,
    Limits,
    Look,
    nms,
)


def find_ssd(look: Look) -> Found | None:
    """Match outputs to the operator's by tensor number: names and order are the exporter's whim.

    Raises:
        ModelError: the operator is there, but not all it makes comes out of the model.
    """
    if not look.file.ssd_outputs and look.wanted.type != "ssd":
        return None
    positions = {spec.index: position for position, spec in enumerate(look.outputs)}
    try:
        order = tuple(positions[tensor] for tensor in look.file.ssd_outputs)
    except KeyError:
        order = ()
    if len(order) != 4:
        raise ModelError(
            "an SSD head needs the four outputs of TFLite_Detection_PostProcess as outputs of "
            f"the model; found {len(look.outputs)} outputs"
        )

    def bind(limits: Limits) -> Decode:
        def decode(tensors: Sequence[Tensor]) -> Boxes:
            boxes, classes, scores, count = (tensors[position] for position in order)
            return decode_ssd(boxes, classes, scores, count, limits=limits)

        return decode

    return Found(
        kind="ssd",
        task="detection",
        class_count=look.file.ssd_classes,
        why="SSD because its outputs come from TFLite_Detection_PostProcess",
        bind=bind,
        # The operator has suppressed already; only across classes is it done here.
        ignores=frozenset({"iou_threshold", "top_k"}),
    )


def decode_ssd(
    boxes: npt.NDArray[Any],
    classes: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    count: npt.NDArray[Any],
    *,
    limits: Limits,
) -> Boxes:
    """Decode the operator's four outputs.

    boxes: float32[1, n, 4] ymin, xmin, ymax, xmax, 0 to 1 of the input
    classes: float32[1, n], no background; scores: float32[1, n]; count: float32[1]

    Order and meaning: tensorflow/lite/kernels/detection_postprocess.cc. Rows from `count` on
    are memory the operator did not write, so `count` is read first and bounds everything.
    """
    found = float(count.item(0))
    number = min(int(found), scores.size) if math.isfinite(found) and found > 0 else 0
    # At most a few dozen rows: plain lists are quicker here than a dozen array operations,
    # each of which finds the caches full of the network that has just run.
    row_scores = scores.reshape(-1)[:number].tolist()
    row_classes = classes.reshape(-1)[:number].tolist()
    lowest = limits.thresholds.tolist()
    keep = [
        row
        for row, (class_id, score) in enumerate(zip(row_classes, row_scores, strict=True))
        if 0 <= class_id < len(lowest) and lowest[int(class_id)] <= score <= HIGHEST_SCORE
    ]
    yxyx = boxes.reshape(-1, 4)
    keep = [row for row in keep if _is_sound(*yxyx[row].tolist())]
    keep.sort(key=row_scores.__getitem__, reverse=True)
    class_ids = np.array([int(row_classes[row]) for row in keep], np.intp)
    xyxy = yxyx[keep][:, [1, 0, 3, 2]].astype(np.float32, copy=False)
    kept = list(range(len(keep)))[: limits.max_detections]
    if limits.is_agnostic:  # the operator itself may have suppressed only within classes
        kept = nms(
            xyxy,
            class_ids,
            iou_threshold=limits.iou_threshold,
            limit=limits.max_detections,
            is_agnostic=True,
        )
    return Boxes(
        xyxy_norm=xyxy[kept],
        scores=np.array([min(row_scores[keep[at]], 1.0) for at in kept], np.float32),
        class_ids=class_ids[kept],
    )


def _is_sound(top: float, left: float, bottom: float, right: float) -> bool:
    """Return whether a box lies on the input; NaN does not."""
    low, high = min(top, left), max(bottom, right)
    return low >= -FARTHEST and high <= FARTHEST + 1 and top <= bottom and left <= right
