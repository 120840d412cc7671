"""SSD with the `TFLite_Detection_PostProcess` operator: boxes arrive decoded and suppressed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.vision.heads import Boxes


def decode_ssd(
    boxes: npt.NDArray[Any],
    classes: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    count: npt.NDArray[Any],
    *,
    thresholds: npt.NDArray[np.float32],
    max_detections: int,
) -> Boxes:
    """Decode the operator's four outputs.

    boxes: float32[1, n, 4] ymin, xmin, ymax, xmax, 0 to 1 of the input
    classes: float32[1, n], no background; scores: float32[1, n]; count: float32[1]
    thresholds: float32[class_count], the lowest score of each class

    Order and meaning: tensorflow/lite/kernels/detection_postprocess.cc. Rows from `count` on
    are memory the operator did not write, so `count` is read first and bounds everything.
    """
    found = float(count.item(0))
    number = min(int(found), scores.size) if math.isfinite(found) and found > 0 else 0
    # At most a few dozen rows: plain lists are quicker here than a dozen array operations,
    # each of which finds the caches full of the network that has just run.
    row_scores = scores.reshape(-1)[:number].tolist()
    row_classes = classes.reshape(-1)[:number].tolist()
    lowest = thresholds.tolist()
    keep = [
        row
        for row, (class_id, score) in enumerate(zip(row_classes, row_scores, strict=True))
        if 0 <= class_id < len(lowest) and lowest[int(class_id)] <= score < math.inf
    ]
    yxyx = boxes.reshape(-1, 4)
    keep = [row for row in keep if all(map(math.isfinite, yxyx[row].tolist()))]
    keep.sort(key=row_scores.__getitem__, reverse=True)
    keep = keep[:max_detections]
    return Boxes(
        xyxy_norm=yxyx[keep][:, [1, 0, 3, 2]].astype(np.float32, copy=False),
        scores=np.array([min(row_scores[row], 1.0) for row in keep], np.float32),
        class_ids=np.array([int(row_classes[row]) for row in keep], np.intp),
    )
