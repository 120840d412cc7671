"""Segmentation: one class per cell of a grid that covers the whole input.

Three forms, told apart in `find_segments`: a map of class numbers (the model ends in ArgMax),
scores of each class per cell (the best one wins), and one score per cell, a mask (class 1
where it passes the threshold, class 0, the background, elsewhere).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from agent.vision.engines import Tensor, TensorSpec
from agent.vision.heads import SUPPRESSION, ClassMap, Decode, Found, Limits, Look
from agent.vision.heads.quantized import real_range, to_real, to_stored
from agent.vision.tflite_file import (
    BUILTIN_ARG_MAX,
    BUILTIN_CAST,
    BUILTIN_LOGISTIC,
    BUILTIN_SOFTMAX,
)

# Classes of Cityscapes, Pascal VOC and ADE20K, with a background where they count one. As many
# channels, one per pixel of the input, are theirs: heat maps of points are coarser.
PUBLIC_CLASSES = (19, 21, 150, 151)
# How far a cell's probabilities may be from 1 together, however many classes round them.
SUM_TOLERANCE, LARGEST_SUM_TOLERANCE = 0.02, 0.25
# The step of a quantized sigmoid, which every converter gives it: 1/256 of 8 bits, 1/32768 of 16.
SIGMOID_STEPS = {1: 1 / 256, 2: 1 / 32768}
# Class numbers beyond this are none; ClassMap holds them in 16 bits.
MAX_CLASS_ID = np.iinfo(np.int16).max - 1
NO_CLASS = -1

Form = Literal["numbers", "scores", "mask"]


def find_segments(look: Look) -> Found | str | None:
    """Tell a class map: one output, a grid over the input, and a sign that it holds classes.

    Depth, heat maps and pictures have such grids too, within 0 to 1 as well, so neither grid nor
    range is enough unless the manifest asks for it by name.
    """
    if len(look.outputs) != 1 or not _covers_input(look):
        return None
    spec = look.outputs[0]
    channels = spec.shape[3] if len(spec.shape) == 4 else 1
    if channels > 1:
        form: Form | None = "scores" if (why := _why_scores(look, channels)) else None
    else:
        form, why = _single_form(look)
    if form is None and channels == 1:
        return (
            'a grid of one number each over the input: if it is a mask, say "type": "segment" or '
            "give its 2 labels, the background's first"
        )
    if form is None:
        return None
    is_logit = form == "mask" and _is_logit(look)

    def bind(limits: Limits) -> Decode:
        counted = limits.thresholds <= 1  # above 1: left out by the configuration
        number = _numbering(form, spec, limits, is_logit=is_logit)
        return lambda tensors: ClassMap(class_ids=number(tensors[0]), counted=counted)

    height, width = spec.shape[1:3]
    return Found(
        kind="segment",
        task="segmentation",
        class_count={"numbers": _numbered_classes(look), "scores": channels, "mask": 2}[form],
        why=f"segmentation because its one output is a grid of {height}x{width} cells over the "
        f"input with {why}",
        bind=bind,
        read_as={"logits": is_logit} if form == "mask" else {},
        ignores=SUPPRESSION | {"max_detections", "top_k"},
    )


def _numbered_classes(look: Look) -> int | None:
    """Return how many classes a map's numbers are of, where a list of labels can tell it too.

    A list with a line for a background that the model does not have would else name every class
    after its neighbour. Longer lists, as Pascal's with its notes at the end, are left whole.
    """
    count = look.file.arg_max_classes.get(look.outputs[0].index)
    return count if count is not None and look.label_counts & {count, count + 1} else None


def _covers_input(look: Look) -> bool:
    """Return whether the output is [1, h, w] or [1, h, w, c], shaped as the input or coarser."""
    shape = look.outputs[0].shape
    if len(shape) not in (3, 4) or shape[0] != 1 or min(shape) < 1 or min(shape[1:3]) < 2:
        return False
    (_, height, width, _), (rows, columns) = look.image.shape, shape[1:3]
    is_same_aspect = abs(rows * width - columns * height) <= max(height, width)
    return rows <= height and columns <= width and is_same_aspect


def _why_scores(look: Look, channels: int) -> str | None:
    """Return why the channels are classes, or None where nothing says so."""
    spec, first = look.outputs[0], look.first_run[0]
    if look.wanted.type == "segment":
        return f"{channels} scores each, as the manifest says"
    if look.file.producers.get(spec.index) == BUILTIN_SOFTMAX:
        return f"the softmax of {channels} classes each"
    if channels in look.label_counts:
        return f"{channels} scores each, as many as there are labels"
    real = to_real(first, spec.scale, spec.zero_point)
    sums = np.where(np.isfinite(real), real, 0).sum(axis=3)
    # Each probability is off by half a step at most, and they do not all err to one side.
    rounding = spec.scale * channels / 2 if first.dtype.kind in "iu" else 0.0
    tolerance = min(SUM_TOLERANCE + rounding, LARGEST_SUM_TOLERANCE)
    if real.min() >= 0 and np.abs(sums - 1).max() < tolerance:
        return f"{channels} scores each that add up to 1"
    if spec.shape[1:3] == look.image.shape[1:3] and channels in PUBLIC_CLASSES:
        return f"{channels} scores each, one per pixel of the input"
    return None


def _single_form(look: Look) -> tuple[Form | None, str]:
    """Tell class numbers from scores of a mask where there is one value per cell."""
    spec, first = look.outputs[0], look.first_run[0]
    producer = look.file.producers.get(spec.index)
    is_float = np.issubdtype(spec.dtype, np.floating)
    if producer == BUILTIN_ARG_MAX or spec.dtype in (np.int32, np.int64):
        return "numbers", "one class number each"
    if producer == BUILTIN_CAST and (is_float or not spec.scale):
        return "numbers", "one class number each, made by a cast"
    if not is_float and not spec.scale:
        return "numbers", "one unscaled number each, taken for a class number"
    if _is_sigmoid(look):
        return "mask", "the sigmoid of one score each, a mask"
    if 2 in look.label_counts:
        return "mask", "one score each and two labels, a mask"
    if look.wanted.type == "segment":
        is_whole = is_float and bool((first == np.rint(first)).all())
        form: Form = "numbers" if is_whole and look.wanted.logits is None else "mask"
        return form, f"one value each, read as {form} because the manifest says segment"
    return None, ""


def _is_sigmoid(look: Look) -> bool:
    """Return whether a sigmoid makes the numbers: the operator says so, or the steps do."""
    spec = look.outputs[0]
    if look.file.producers.get(spec.index) == BUILTIN_LOGISTIC:
        return True
    span = real_range(spec)
    if span is None or spec.scale != SIGMOID_STEPS.get(spec.dtype.itemsize):
        return False
    return spec.zero_point == 0 if spec.dtype == np.int16 else span[0] == 0


def _is_logit(look: Look) -> bool:
    """Return whether a mask's scores need a sigmoid."""
    spec, first = look.outputs[0], look.first_run[0]
    if look.wanted.logits is not None:
        return look.wanted.logits
    if _is_sigmoid(look):
        return False
    span = real_range(spec)
    if span is not None:
        return span[0] < -0.01 or span[1] > 1.01
    return bool(first.min() < 0 or first.max() > 1)


def _numbering(
    form: Form, spec: TensorSpec, limits: Limits, *, is_logit: bool
) -> Callable[[Tensor], npt.NDArray[np.int16]]:
    """Return what makes int16[h, w] class numbers of the output; nothing big is dequantized."""
    if form == "scores":
        return lambda output: best_classes(output[0])
    if form == "numbers":
        return lambda output: class_numbers(output.reshape(spec.shape[1:3]))
    threshold = float(limits.thresholds[1])
    lowest = to_stored(threshold, spec.scale, spec.zero_point, spec.dtype, are_logits=is_logit)
    if threshold > 1:  # left out; a logit has no such threshold
        lowest = np.inf
    return lambda output: (output.reshape(spec.shape[1:3]) >= lowest).astype(np.int16)


def best_classes(scores: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """Return the class with the highest of [h, w, c]; stored numbers order as real ones do."""
    best: npt.NDArray[np.int16] = scores.argmax(axis=2).astype(np.int16)
    if np.issubdtype(scores.dtype, np.floating) and np.isnan(scores.sum(dtype=np.float64)):
        best[np.isnan(scores).any(axis=2)] = NO_CLASS  # argmax takes NaN for the highest
    return best


def class_numbers(numbers: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """Return [h, w] of any type as class numbers; what cannot be one is NO_CLASS."""
    is_class = (numbers >= 0) & (numbers <= MAX_CLASS_ID)  # false of NaN
    return np.where(is_class, numbers, NO_CLASS).astype(np.int16)
