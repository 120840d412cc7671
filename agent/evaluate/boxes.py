"""What a detector's boxes come to: matched for the counts, judged by the tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

from msgspec import UNSET

from agent.contract.payloads import Box, Detection
from agent.errors import UnavailableError
from agent.evaluate.matching import Item, Matches, iou, match
from agent.evaluate.records import ClassFigures, Entry, ExpectedBox, Tolerance, f1_of, share
from agent.evaluate.tally import Look

NO_CLASS = -1  # of an expected box that names none the model could have; labels unknown follow


@dataclass(slots=True)
class _ClassCount:
    """One class; sums over its matched boxes."""

    expected: int = 0
    found: int = 0
    matched: int = 0
    iou: float = 0.0
    score: float = 0.0
    scored: int = 0

    def plus(self, other: _ClassCount) -> _ClassCount:
        return _ClassCount(
            self.expected + other.expected,
            self.found + other.found,
            self.matched + other.matched,
            self.iou + other.iou,
            self.score + other.score,
            self.scored + other.scored,
        )

    def rates(self) -> dict[str, Any]:
        """Return the fields that ClassFigures and Outcome have in common."""
        precision, recall = share(self.matched, self.found), share(self.matched, self.expected)
        return {
            "expected": self.expected,
            "found": self.found,
            "matched": self.matched,
            "precision": precision,
            "recall": recall,
            "f1": f1_of(precision, recall),
            "mean_iou": share(self.iou, self.matched),
            "mean_score_difference": share(self.score, self.scored),
        }


@final
@dataclass(slots=True, kw_only=True)
class BoxTally:
    """Boxes of a detector.

    threshold: boxes with lower scores were only wanted for average precision
    category_of: class id -> category id, which the expected boxes have for class_id; None: they
    name classes as the model does, by label where they have one
    categories: name -> category id
    """

    labels: Sequence[str]
    tolerance: Tolerance | None
    threshold: float
    least_iou: float
    category_of: dict[int, int] | None = None
    categories: dict[str, int] = field(default_factory=dict)
    outside: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _counts: dict[int, _ClassCount] = field(default_factory=dict)
    _unknown: dict[str, int] = field(default_factory=dict)

    def add(self, picture: str, entry: Entry, look: Look) -> None:
        """See `Tally`."""
        rows = [] if entry.detections is UNSET else entry.detections
        if look.findings.detections is UNSET:
            raise UnavailableError(
                "boxes are expected, but the model finds none: it is no detector"
            )
        found = [one for one in look.findings.detections if one.score >= self.threshold]
        there = [
            Item(class_id=number, box=one.box, score=one.score)
            for one in found
            if (number := self._number(one)) is not None
        ]
        wanted = [
            Item(class_id=self._resolve(row), box=row.box, score=row.score, is_crowd=row.is_crowd)
            for row in rows
        ]
        matches = match(wanted, there, iou_threshold=self.least_iou)
        self._count(wanted, there, matches)
        if self.tolerance is not None:
            self._judge(picture, wanted, there, self.tolerance)

    def figures(self) -> dict[str, Any]:
        """See `Tally`."""
        total = _ClassCount()
        for count in self._counts.values():
            total = total.plus(count)
        return {
            **total.rates(),
            "missing": total.expected - total.matched,
            "unexpected": total.found - total.matched,
            "classes": [
                ClassFigures(class_id=number, label=self.name(number), **count.rates())
                for number, count in sorted(self._counts.items())
            ],
        }

    def name(self, number: int) -> str | None:
        """Return what a class is called; numbers below 0 stand for labels unknown to the model."""
        if number < 0:
            return next((label for label, at in self._unknown.items() if at == number), None)
        if self.category_of is not None:
            return next((name for name, at in self.categories.items() if at == number), None)
        return self.labels[number] if 0 <= number < len(self.labels) else None

    def _number(self, found: Detection) -> int | None:
        """Return the shared number of what was found, None where the reference has none."""
        if self.category_of is None:
            return found.class_id
        return self.category_of.get(found.class_id)

    def _resolve(self, row: ExpectedBox) -> int:
        """Return the shared number of what is expected; labels decide where both have them."""
        if self.category_of is not None or row.label is None or not self.labels:
            return NO_CLASS if row.class_id is None else row.class_id
        numbers = [at for at, label in enumerate(self.labels) if label == row.label]
        if not numbers:
            return self._lacking(row.label)
        if row.class_id is None or row.class_id in numbers:
            return numbers[0] if row.class_id is None else row.class_id
        note = f"{row.label} is class {row.class_id} in the reference, {numbers[0]} here"
        if note not in self.notes:
            self.notes.append(note)
        return numbers[0]

    def _lacking(self, label: str) -> int:
        if label not in self._unknown:
            self._unknown[label] = NO_CLASS - 1 - len(self._unknown)
            self.notes.append(f'the model has no label "{label}", so what has it counts as missed')
        return self._unknown[label]

    def _count(self, wanted: Sequence[Item], there: Sequence[Item], matches: Matches) -> None:
        def of(number: int) -> _ClassCount:
            return self._counts.setdefault(number, _ClassCount())

        for pair in matches.pairs:
            count = of(there[pair.found].class_id)
            count.expected += 1
            count.found += 1
            count.matched += 1
            count.iou += pair.iou
            expected, got = wanted[pair.expected].score, there[pair.found].score
            if expected is not None and got is not None:
                count.score += abs(expected - got)
                count.scored += 1
        for at in matches.missing:
            of(wanted[at].class_id).expected += 1
        for at in matches.unexpected:
            of(there[at].class_id).found += 1

    def _judge(
        self, picture: str, wanted: Sequence[Item], there: Sequence[Item], rules: Tolerance
    ) -> None:
        """Note what the tolerance does not cover; near the threshold boxes may come and go."""
        least = rules.boxes_with_score_at_least
        if least is None:
            least = self.threshold + rules.score
        for one in wanted:
            is_clear = one.score is None or one.score >= least
            if is_clear and not any(_agree(one, other, rules) for other in there):
                self.outside.append(f"{picture}: {self._shown(one)} {_nearest(one, there)}")
        for other in there:
            is_clear = (other.score or 0.0) >= least + rules.score
            if is_clear and not any(_agree(one, other, rules) for one in wanted):
                self.outside.append(f"{picture}: {self._shown(other)} was found, not expected so")

    def _shown(self, item: Item) -> str:
        name = self.name(item.class_id)
        name = f"class {item.class_id}" if name is None else name
        score = "" if item.score is None else f" {item.score:.2f}"
        return f"{name}{score} at {', '.join(f'{side:.0f}' for side in item.box)}"


def _agree(one: Item, other: Item, rules: Tolerance) -> bool:
    return (
        one.class_id == other.class_id
        and (one.score is None or abs(one.score - (other.score or 0.0)) <= rules.score)
        and iou(one.box, other.box) >= rules.iou
    )


def _nearest(one: Item, there: Sequence[Item]) -> str:
    """Say what was found in place of an expected box."""
    box: Box = one.box
    near = max(
        (item for item in there if item.class_id == one.class_id),
        key=lambda item: iou(box, item.box),
        default=None,
    )
    if near is None or iou(box, near.box) <= 0:
        return "was not found"
    return f"was found with {near.score or 0.0:.2f} and an overlap of {iou(box, near.box):.2f}"
