"""Classification: one score per class for the whole image.

Probabilities come as they are, whether they add up to 1 (softmax) or not (a sigmoid each, for
models with several labels at once); logits get a softmax, a single one a sigmoid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from agent.vision.engines import TensorSpec
from agent.vision.heads import SUPPRESSION, Decode, Found, Limits, Look, Scores, top_scores
from agent.vision.heads.quantized import real_range, sigmoid
from agent.vision.tflite_file import BUILTIN_LOGISTIC, BUILTIN_SOFTMAX

# Operators whose numbers have no bounds (schema.fbs): ADD, CONV_2D, DEPTHWISE_CONV_2D,
# FULLY_CONNECTED, BATCH_MATMUL.
UNBOUNDED = frozenset({0, 3, 4, 9, 126})
# Operators at the end of feature extractors, whose vectors are no scores (schema.fbs):
# AVERAGE_POOL_2D, L2_NORMALIZATION, MAX_POOL_2D, TANH, MEAN.
FEATURE_MAKERS = frozenset({1, 11, 17, 28, 40})
# Classes of ImageNet without and with a background; nothing else has as many numbers.
IMAGENET = (1000, 1001)
# So many logits do not lie within 0 to 1 all together by chance; a few may.
ENOUGH_SCORES = 5
# A logit beyond this is as good as certain, and larger ones would overflow.
LARGEST_LOGIT = 1e4


def find_classes(look: Look) -> Found | str | None:
    """Tell a vector of scores, and whether they are probabilities or logits.

    Embeddings, landmarks and boxes are such vectors too, so a vector alone is not enough.
    """
    spec = look.outputs[0]
    is_told = look.wanted.type == "classify"
    sizes = [size for size in spec.shape if size != 1] or ([1] if is_told else [])
    if len(look.outputs) != 1 or len(sizes) != 1 or not all(sizes) or not _holds_scores(spec):
        return None
    proof = _proof(look, sizes[0])
    if proof is None:
        return (
            f'if its {sizes[0]} numbers are scores of classes, say "type": "classify" or give '
            f"their {sizes[0]} labels"
        )
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
        why=f"classification because its one output is a vector of {sizes[0]} scores, "
        f"{proof}; "
        f"{'logits' if are_logits else 'probabilities'} because {how}",
        bind=bind,
        read_as={"logits": are_logits},
        ignores=SUPPRESSION | {"max_detections"},
    )


def _holds_scores(spec: TensorSpec) -> bool:
    """Return whether stored values can be made real: floats, or small integers with a scale."""
    if spec.dtype in (np.int8, np.uint8, np.int16):
        return bool(spec.scale)
    return spec.dtype in (np.float16, np.float32)


def _proof(look: Look, count: int) -> str | None:
    """Return how it is known that the numbers are scores of classes; None where it is not."""
    spec, maker = look.outputs[0], look.file.producers.get(look.outputs[0].index)
    if look.wanted.type == "classify":
        return "as the manifest says"
    if maker in (BUILTIN_SOFTMAX, BUILTIN_LOGISTIC):
        return f"made by a {'softmax' if maker == BUILTIN_SOFTMAX else 'sigmoid'}"
    if count in look.label_counts:
        return "as many as there are labels"
    if look.file.exporter.get("task") == "classify":
        return "as the exporter's notes say"
    if maker in FEATURE_MAKERS:
        return None
    if _is_range_of_scores(spec):
        return "whose type has room for 0 to 1"
    return "as many as ImageNet has classes" if count in IMAGENET else None


def _is_range_of_scores(spec: TensorSpec) -> bool:
    """Return whether a quantized tensor's numbers run from 0 to 1, as scores' are made to."""
    span = real_range(spec)
    if span is None:
        return False
    # 16-bit tensors are symmetric: half of their range is below 0, used or not.
    low = 0.0 if spec.dtype == np.int16 and spec.zero_point == 0 else span[0]
    return abs(low) < spec.scale / 2 and 0.99 < span[1] < 1.005


def _are_logits(look: Look) -> tuple[bool, str]:
    """Return whether scores need a softmax, and how that is known.

    A converter turns every softmax and sigmoid into an operator of its own, so numbers of
    another operator are mostly logits. But logits have no bounds: where a first run leaves all
    of them within 0 to 1, they went through something that has (a softmax written as a
    division, a hard sigmoid, an accelerator's operator), and a softmax of them would make all
    classes nearly equal. Only few numbers of an unbounded operator may lie there by chance.
    """
    spec = look.outputs[0]
    maker = look.file.producers.get(spec.index)
    if look.wanted.logits is not None:
        return look.wanted.logits, "the manifest says so"
    if maker in (BUILTIN_SOFTMAX, BUILTIN_LOGISTIC):
        return False, "of the operator that makes it"
    span = real_range(spec)
    if span is not None:
        is_beyond = span[1] > 1.01 or (span[0] < -0.01 and spec.dtype != np.int16)
        return is_beyond, f"its numbers run from {span[0]:.2f} to {span[1]:.2f}"
    values = look.first_run[0].reshape(-1).astype(np.float32)
    if values.min() >= 0 and values.max() <= 1:
        if abs(float(values.sum()) - 1) < 0.02:
            return False, "its scores add up to 1"
        is_chance = len(values) < ENOUGH_SCORES and maker in UNBOUNDED
        if values.min() < values.max() and not is_chance:
            return False, "its scores all lie within 0 to 1"
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
        if len(values) == 1:  # a softmax of one is always 1
            values = sigmoid(values)
        else:
            values = np.exp(values - values.max())
            values /= values.sum()
    else:
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    passing = np.flatnonzero(values >= thresholds)
    best = passing[top_scores(values[passing], top_k)]
    return Scores(scores=np.clip(values[best], 0, 1), class_ids=best)
