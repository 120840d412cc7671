"""SSD with the `TFLite_Detection_PostProcess` operator: boxes arrive decoded and suppressed."""

from __future__ import annotations

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
    size = scores.size
    found = float(count.reshape(-1)[0])
    number = min(int(found), size) if np.isfinite(found) and found > 0 else 0
    raw_scores = scores.reshape(-1)[:number].astype(np.float32)
    raw_classes = classes.reshape(-1)[:number]
    yxyx = boxes.reshape(-1, 4)[:number].astype(np.float32)
    good = np.isfinite(raw_scores) & np.isfinite(raw_classes) & np.isfinite(yxyx).all(axis=1)
    good &= (raw_classes >= 0) & (raw_classes < len(thresholds))
    class_ids = np.where(good, raw_classes, 0).astype(np.intp)
    keep = np.flatnonzero(good & (raw_scores >= thresholds[class_ids]))
    keep = keep[np.argsort(-raw_scores[keep], kind="stable")][:max_detections]
    return Boxes(
        xyxy_norm=np.ascontiguousarray(yxyx[keep][:, [1, 0, 3, 2]]),
        scores=np.clip(raw_scores[keep], 0, 1),
        class_ids=class_ids[keep],
    )
