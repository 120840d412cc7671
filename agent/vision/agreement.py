"""How far two models say the same of the same frames. Pure.

Boxes and figures agree where the label is the same and they overlap by SAME_IOU; the share is
2 * agreeing / (found by one + found by the other), over all frames together. Classes agree where
the likeliest is the same, as a share of frames; segmented pictures by the area that each label has
in both, over the area it has in either. Models that know other labels do not agree on them. Where
neither found anything there is nothing to compare, and raw outputs are not compared at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.contract.payloads import Box
from agent.vision.lending import Thing

SAME_IOU = 0.5


@dataclass(slots=True)
class Agreement:
    """Sums over frames; counts, or areas of segmented pictures."""

    task: str
    both: float = 0.0
    only_active: float = 0.0
    only_candidate: float = 0.0

    def add(self, active: Sequence[Thing], candidate: Sequence[Thing]) -> None:
        """Add one frame: what each model found in it, best first."""
        if self.task in ("detection", "pose"):
            both = matched(active, candidate)
            self._count(both, len(active) - both, len(candidate) - both)
        elif self.task == "classification":
            is_same = [_name(one) for one in active[:1]] == [_name(one) for one in candidate[:1]]
            if active or candidate:
                self._count(int(is_same), int(not is_same), 0)
        elif self.task == "segmentation":
            self._add_areas(active, candidate)

    def _add_areas(self, active: Sequence[Thing], candidate: Sequence[Thing]) -> None:
        of_active, of_candidate = _areas(active), _areas(candidate)
        both = sum(min(area, of_candidate.get(name, 0.0)) for name, area in of_active.items())
        self._count(both, sum(of_active.values()) - both, sum(of_candidate.values()) - both)

    def _count(self, both: float, only_active: float, only_candidate: float) -> None:
        self.both += both
        self.only_active += only_active
        self.only_candidate += only_candidate

    @property
    def share(self) -> float | None:
        """Return it, 0 to 1; None: there was nothing to compare."""
        if self.task == "classification":
            whole, agreeing = self.both + self.only_active, self.both
        else:
            agreeing = 2 * self.both
            whole = agreeing + self.only_active + self.only_candidate
        return round(agreeing / whole, 4) if whole > 0 else None


def _areas(things: Sequence[Thing]) -> dict[str, float]:
    areas: dict[str, float] = {}
    for one in things:
        areas[_name(one)] = areas.get(_name(one), 0.0) + (one.area or 0.0)
    return areas


def matched(active: Sequence[Thing], candidate: Sequence[Thing]) -> int:
    """Return how many pair up; the best go first, each takes the one it overlaps most."""
    free = list(active)
    pairs = 0
    for one in sorted(candidate, key=lambda thing: -(thing.score or 0.0)):
        best, best_iou = None, SAME_IOU
        for other in free:
            if _name(other) == _name(one):
                overlap = iou(one.box, other.box)
                if overlap >= best_iou:
                    best, best_iou = other, overlap
        if best is not None:
            free = [each for each in free if each is not best]
            pairs += 1
    return pairs


def iou(one: Box | None, other: Box | None) -> float:
    """Return the intersection over union of two xyxy boxes; of those that have no box, 1."""
    if one is None or other is None:
        return 1.0 if one is other else 0.0
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    union = _area(one) + _area(other) - shared
    return shared / union if union > 0 else 0.0


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _name(thing: Thing) -> str:
    """Return what both models may call it; numbers are each model's own, where it has labels."""
    return thing.label if thing.label is not None else f"class_{thing.class_id}"
