"""Stored numbers and the real ones they stand for: real = (stored - zero_point) * scale.

Thresholds are turned into stored numbers, so that thousands of candidates are compared as the
small integers they are; only the few that pass become floats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.vision.engines import TensorSpec

F32 = npt.NDArray[np.float32]
# A real number beyond this is damage; clipped, it cannot overflow in what is done with it.
LARGEST_REAL = 1e6
# In steps of the quantization: a score stored exactly at the threshold is not lost to rounding.
STEP_TOLERANCE = 1e-4


def to_real(stored: npt.NDArray[Any], scale: float, zero_point: int) -> F32:
    """Return float32 of any stored array; floats are taken as they are, NaN stays NaN."""
    if stored.dtype == np.float64:  # what float32 cannot hold would be reported as an overflow
        stored = np.clip(stored, -LARGEST_REAL, LARGEST_REAL)
    real: F32 = stored.astype(np.float32)
    if scale and not np.issubdtype(stored.dtype, np.floating):
        real -= np.float32(zero_point)
        real *= np.float32(scale)
        return real
    return np.clip(real, -LARGEST_REAL, LARGEST_REAL, out=real)


def to_stored(
    threshold: float, scale: float, zero_point: int, dtype: np.dtype[Any], *, are_logits: bool
) -> float | int:
    """Return the lowest stored number whose score reaches the threshold.

    are_logits: the tensor holds x of score = 1 / (1 + exp(-x)), so the threshold becomes one.
    """
    real = threshold
    if are_logits:
        real = (
            -math.inf if threshold <= 0
            else math.inf if threshold >= 1
            else math.log(threshold / (1 - threshold))
        )  # fmt: skip
    if np.issubdtype(dtype, np.floating) or not scale:
        return real
    limits = np.iinfo(dtype)
    if not math.isfinite(real):
        return int(limits.min) if real < 0 else int(limits.max) + 1
    stored = math.ceil(real / scale + zero_point - STEP_TOLERANCE)
    return max(int(limits.min), min(stored, int(limits.max) + 1))


def as_fractions(coordinates: F32, unit: tuple[float, float]) -> F32:
    """Return float32[n, 4] divided by `unit`, the (width, height) of 0 to 1: x, y, x, y."""
    whole = np.array([*unit, *unit], np.float32)
    return np.divide(coordinates, whole).astype(np.float32, copy=False)


def sigmoid(logits: F32) -> F32:
    """Return 1 / (1 + exp(-x)); beyond 80 float32 knows no difference."""
    scores = 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
    return scores.astype(np.float32, copy=False)


def hold_numbers(specs: Sequence[TensorSpec]) -> bool:
    """Return whether every tensor holds floats, or integers whose one scale is known."""
    return all(
        spec.dtype.kind == "f" or (spec.dtype.kind in "iu" and 0 < spec.scale < math.inf)
        for spec in specs
    )


def real_range(spec: TensorSpec) -> tuple[float, float] | None:
    """Return the lowest and highest real number a quantized tensor can hold; None for floats."""
    if not spec.scale or np.issubdtype(spec.dtype, np.floating):
        return None
    limits = np.iinfo(spec.dtype)
    low, high = ((limit - spec.zero_point) * spec.scale for limit in (limits.min, limits.max))
    return low, high


def best_classes(
    stored: npt.NDArray[Any], lowest: float, *, axis: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return (candidates, class_ids): where the best class along `axis` reaches `lowest`.

    stored: any dtype, [classes, n] with axis 0 or [n, classes] with axis 1
    """
    if axis == 0 or stored.shape[1] == 1:
        candidates = np.flatnonzero(stored.max(axis=axis) >= lowest)
    else:
        # Along short rows one comparison of everything is quicker than a maximum of each.
        passing = stored >= lowest
        is_crowded = np.count_nonzero(passing) > len(stored)
        candidates = (
            np.flatnonzero(passing.any(axis=1))
            if is_crowded
            else np.unique(np.flatnonzero(passing) // stored.shape[1])
        )
    chosen = stored[candidates] if axis == 1 else stored[:, candidates]
    return candidates, chosen.argmax(axis=axis)
