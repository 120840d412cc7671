"""Classification: one score per class for the whole image.

Probabilities come as they are, whether they add up to 1 (softmax) or not (a sigmoid each, for
models with several labels at once); logits get a softmax.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from agent.vision.engines import TensorSpec
from agent.vision.heads import Decode, Found, Limits, Look, Scores, top_scores
from agent.vision.tflite_file import BUILTIN_LOGISTIC, BUILTIN_SOFTMAX

# Operators at the end of feature extractors, whose vectors are no scores (schema.fbs):
# AVERAGE_POOL_2D, L2_NORMALIZATION, MAX_POOL_2D, TANH, MEAN.
FEATURE_MAKERS = frozenset({1, 11, 17, 28, 40})
# A logit beyond this is as good as certain, and larger ones would overflow.
LARGEST_LOGIT = 1e4


def find_classes(look: Look) -> Found | None:
    """Tell a vector of scores, and whether they are probabilities or logits."""
    spec = look.outputs[0]
    is_told = look.wanted.type == "classify"
    sizes = [size for size in spec.shape if size != 1] or ([1] if is_told else [])
    if len(look.outputs) != 1 or len(sizes) != 1 or not _holds_scores(spec):
        return None
    if look.file.producers.get(spec.index) in FEATURE_MAKERS and not is_told:
        return None
    are_logits, how = _are_logits(look)

    def bind(limits: Limits) -> Decode:
        return lambda tensors: decode_scores(
            tensors[0],
            scale=spec.scale,
            zero_point=spec.zero_point,
            are_logits=are_logits,
            thresholds=limits.thresholds,
            top_k=limits.top_k,
        )

    return Found(
        kind="classify",
        task="classification",
        class_count=sizes[0],
        why=f"classification because its one output is a vector of {sizes[0]} scores; "
        f"{'logits' if are_logits else 'probabilities'} because {how}",
        bind=bind,
    )


def _holds_scores(spec: TensorSpec) -> bool:
    """Return whether stored values can be made real: floats, or small integers with a scale."""
    if spec.dtype in (np.int8, np.uint8, np.int16):
        return bool(spec.scale)
    return spec.dtype in (np.float16, np.float32)


def _are_logits(look: Look) -> tuple[bool, str]:
    """Return whether scores need a softmax, and how that is known."""
    spec = look.outputs[0]
    if look.wanted.logits is not None:
        return look.wanted.logits, "the manifest says so"
    if look.file.producers.get(spec.index) in (BUILTIN_SOFTMAX, BUILTIN_LOGISTIC):
        return False, "of the operator that makes it"
    if spec.scale:
        limits = np.iinfo(spec.dtype)
        low, high = ((limit - spec.zero_point) * spec.scale for limit in (limits.min, limits.max))
        # 16-bit tensors are symmetric: half of their range is below 0, used or not.
        is_beyond = high > 1.01 or (low < -0.01 and spec.dtype != np.int16)
        return is_beyond, f"its numbers run from {low:.2f} to {high:.2f}"
    values = look.first_run[0].reshape(-1).astype(np.float32)
    if values.min() >= 0 and abs(float(values.sum()) - 1) < 0.02:
        return False, "its scores add up to 1"
    return True, "no operator makes probabilities of them"


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

    output: uint8, int8, int16, float16 or float32, any shape with `classes` elements
    thresholds: float32[classes]
    """
    stored = output.reshape(-1)
    values = stored.astype(np.float32)
    if not np.issubdtype(stored.dtype, np.floating) and scale:
        values = (values - np.float32(zero_point)) * np.float32(scale)
    if are_logits:
        values = np.nan_to_num(values, nan=-LARGEST_LOGIT)
        values = np.clip(values, -LARGEST_LOGIT, LARGEST_LOGIT)
        values = np.exp(values - values.max())
        values /= values.sum()
    else:
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    passing = np.flatnonzero(values >= thresholds)
    best = passing[top_scores(values[passing], top_k)]
    return Scores(scores=np.clip(values[best], 0, 1), class_ids=best)
