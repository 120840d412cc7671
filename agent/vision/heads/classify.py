"""Classification: one score per class for the whole image."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from agent.vision.heads import Scores, top_scores


def decode_scores(
    output: npt.NDArray[Any],
    *,
    scale: float,
    zero_point: int,
    are_logits: bool,
    thresholds: npt.NDArray[np.float32],
    top_k: int,
) -> Scores:
    """Decode one score vector.

    output: uint8, int8 or float32, any shape with `classes` elements
    thresholds: float32[classes]
    """
    stored = output.reshape(-1)
    values = stored.astype(np.float32)
    if not np.issubdtype(stored.dtype, np.floating) and scale:
        values = (values - np.float32(zero_point)) * np.float32(scale)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    if are_logits:
        values = np.exp(values - values.max())
        values /= values.sum()
    passing = np.flatnonzero(values >= thresholds)
    best = passing[top_scores(values[passing], top_k)]
    return Scores(scores=np.clip(values[best], 0, 1), class_ids=best)
