"""What a model's notes and its first run prove about its outputs; no proof is None, never a guess.

The first run is on whatever the input held, so only facts that hold for any picture count:
predicted boxes lie about their cells, corners are in order, probabilities are within 0 to 1.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from agent.vision.engines import TensorSpec
from agent.vision.heads import Look
from agent.vision.heads.anchors import grid_centres
from agent.vision.heads.quantized import F32, real_range
from agent.vision.labels import BACKGROUND
from agent.vision.tflite_file import BUILTIN_LOGISTIC

BoxForm = Literal["xywh", "xyxy", "yxyx"]
# A box coordinate above this cannot be a fraction of the input, so it is in pixels.
LARGEST_FRACTION = 2.0
# Rounding of a quantized probability may leave 0 to 1 by this much.
OUTSIDE = 0.02
# Of each predicted centre with its cell's, over all cells; unrelated numbers are near 0.
CORRELATED = 0.8
COCO_CLASSES = 80


def known_class_counts(look: Look) -> set[int]:
    """Return how many classes the file's own words allow; empty where it says nothing."""
    names = look.file.exporter.get("names")
    if isinstance(names, (dict, list)) and names:
        return {len(names)}
    counts = set()
    for lines in look.file.label_files.values():
        labels = [line.strip() for line in lines]
        while labels and not labels[-1]:
            labels.pop()
        if labels:
            counts.add(len(labels))
            if labels[0] in BACKGROUND:
                counts.add(len(labels) - 1)
    return counts


def box_form(boxes: F32, image: TensorSpec, strides: tuple[int, ...]) -> BoxForm | None:
    """Tell how float32[n, 4] predicted boxes, one per cell in order, are written.

    Corners are in order for every cell and a centre and size never is: it would have to be
    as wide as it is far from the edge everywhere.
    """
    cells, _ = grid_centres(image, strides)
    if boxes.shape != (len(cells), 4) or not np.isfinite(boxes).all():
        return None
    low, high = boxes[:, :2], boxes[:, 2:]
    ordered = float(np.mean((high >= low).all(axis=1)))
    if ordered > 0.999:
        centres = (low + high) * np.float32(0.5)
        if _lie_on(centres, cells):
            return "xyxy"
        return "yxyx" if _lie_on(centres[:, ::-1], cells) else None
    return "xywh" if ordered < 0.5 and _lie_on(low, cells) else None


def _lie_on(centres: F32, cells: F32) -> bool:
    for axis in (0, 1):
        ours, theirs = (one[:, axis].astype(np.float64) for one in (centres, cells))
        ours, theirs = ours - ours.mean(), theirs - theirs.mean()
        norm = float(np.sqrt((ours**2).sum() * (theirs**2).sum()))
        if not norm or float((ours * theirs).sum()) / norm < CORRELATED:
            return False
    return True


def box_unit(look: Look, spec: TensorSpec, boxes: F32) -> tuple[tuple[float, float], str]:
    """Return (width, height) that coordinates are divided by, and how that is known.

    boxes: float32[n, 4] of the first run; over all cells they span the input in any picture
    """
    pixels = (float(look.image.shape[2]), float(look.image.shape[1]))
    if look.wanted.box_units is not None:
        return (pixels if look.wanted.box_units == "pixels" else (1.0, 1.0)), "as the manifest says"
    reach = real_range(spec)
    largest = reach[1] if reach else float(np.max(boxes, initial=0, where=np.isfinite(boxes)))
    if largest > LARGEST_FRACTION:
        return pixels, "in pixels of the input"
    return (1.0, 1.0), "as fractions of the input"


def are_logits(look: Look, scores: F32, spec: TensorSpec | None = None) -> bool | None:
    """Return whether float32[n, classes] of the first run need a sigmoid; None if unlike either.

    spec: of a tensor that holds nothing but scores, whose range then tells for any run
    """
    if look.wanted.logits is not None:
        return look.wanted.logits
    if spec is not None and look.file.producers.get(spec.index) == BUILTIN_LOGISTIC:
        return False
    reach = real_range(spec) if spec is not None else None
    if reach is not None:
        return True if reach[0] < -OUTSIDE else False if reach[1] < LARGEST_FRACTION else None
    finite = np.where(np.isfinite(scores), scores, 0)
    outside = ((finite < -OUTSIDE) | (finite > 1 + OUTSIDE)).any(axis=0)
    if not outside.any():
        return False
    # Logits of nearly everything nearly everywhere are below 0; a column or two that leave 0 to
    # 1 are an angle or a point, not classes.
    is_unlikely = float(np.mean(finite < 0)) > 0.5
    return True if is_unlikely and float(outside.mean()) > 0.5 else None
