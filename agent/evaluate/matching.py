"""Which found box is which expected one, as COCO's evaluation decides it.

pycocotools/cocoeval.py evaluateImg, for all object sizes: boxes found are taken best score
first, each takes the free expected box of its class that it overlaps most, from the threshold
on; what then lies in a crowd is left out of every count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from agent.contract.payloads import Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One box, expected or found; `class_id` in the numbers both sides share."""

    class_id: int
    box: Box
    score: float | None = None
    is_crowd: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A found box that was taken for an expected one."""

    expected: int
    found: int
    iou: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """Indices into both lists; crowds and what lies in them are in none."""

    pairs: tuple[Pair, ...]
    missing: tuple[int, ...]
    unexpected: tuple[int, ...]


def match(expected: Sequence[Item], found: Sequence[Item], *, iou_threshold: float) -> Matches:
    """Pair the boxes of one picture."""
    free = {index for index, item in enumerate(expected) if not item.is_crowd}
    crowds = [item for item in expected if item.is_crowd]
    least = min(iou_threshold, 1 - 1e-10)  # cocoeval's: equal boxes overlap by 1 within rounding
    pairs, unexpected = [], []
    order = sorted(range(len(found)), key=lambda index: -(found[index].score or 0.0))
    for index in order:
        item = found[index]
        best: Pair | None = None
        for candidate in sorted(free):
            if expected[candidate].class_id != item.class_id:
                continue
            overlap = iou(expected[candidate].box, item.box)
            # Of equals the later one, as in cocoeval.
            if overlap >= (best.iou if best else least):
                best = Pair(expected=candidate, found=index, iou=overlap)
        if best is not None:
            pairs.append(best)
            free.discard(best.expected)
        elif not any(_lies_in(item, crowd, least) for crowd in crowds):
            unexpected.append(index)
    return Matches(pairs=tuple(pairs), missing=tuple(sorted(free)), unexpected=tuple(unexpected))


def iou(one: Box, other: Box) -> float:
    """Return intersection over union of two xyxy boxes, 0 where both are empty."""
    shared = _shared(one, other)
    union = area(one) + area(other) - shared
    return shared / union if union > 0 else 0.0


def area(box: Box) -> float:
    """Return the area of an xyxy box."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def is_sound(box: Box) -> bool:
    """Return whether an xyxy box has finite corners in their order."""
    return all(map(math.isfinite, box)) and box[0] <= box[2] and box[1] <= box[3]


def _shared(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _lies_in(item: Item, crowd: Item, least: float) -> bool:
    """COCO maskApi bbIou: a crowd is overlapped by the share of the box that lies in it."""
    if crowd.class_id != item.class_id:
        return False
    size = area(item.box)
    return size > 0 and _shared(item.box, crowd.box) / size >= least
