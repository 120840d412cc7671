"""What one model's findings come to, picture by picture: classes, figures or masks.

One tally per kind of entry; that of boxes is in `boxes`. `add` takes what a picture should
show and what was found; the fields that `figures` returns are those of `records.Outcome`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, final

from msgspec import UNSET

from agent.contract.payloads import Classification, Pose
from agent.errors import UnavailableError
from agent.evaluate import pose
from agent.evaluate.masks import MaskTally, on_frame, read_mask
from agent.evaluate.records import (
    Entry,
    ExpectedClass,
    PoseFigures,
    Tolerance,
    f1_of,
    share,
)
from agent.vision.encode import Findings
from agent.vision.heads import Boxes, ClassMap, Decoded
from agent.vision.preprocess import Transform

Label = Callable[[int], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a model made of one picture."""

    findings: Findings
    decoded: Decoded
    where: Transform


class Tally(Protocol):
    """Counts over pictures; `outside` names each case beyond the tolerance."""

    outside: list[str]
    notes: list[str]

    def add(self, picture: str, entry: Entry, look: Look) -> None:
        """Take one picture; raises UnavailableError where the two cannot be compared."""

    def figures(self) -> dict[str, Any]:
        """Return fields of an Outcome."""


@final
@dataclass(slots=True, kw_only=True)
class ClassTally:
    """The best class of a whole picture: one expected and one found in each."""

    labels: Sequence[str]
    tolerance: Tolerance | None
    outside: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _pictures: int = 0
    _first: int = 0
    _matched: int = 0
    _differences: list[float] = field(default_factory=list)

    def add(self, picture: str, entry: Entry, look: Look) -> None:
        """See `Tally`."""
        found = look.findings.classes
        if found is UNSET:
            raise UnavailableError("classes are expected, but the model is no classifier")
        best = (entry.classes or [])[0]
        self._pictures += 1
        got = next((one for one in found if _is_class(best, one)), None)
        is_first = bool(found) and got is found[0]
        self._first += is_first
        self._matched += got is not None
        if got is not None and best.score is not None:
            self._differences.append(abs(got.score - best.score))
        if self.tolerance is not None and not self._holds(best, got, found, self.tolerance):
            shown = ", ".join(f"{one.label or one.class_id} {one.score:.2f}" for one in found)
            name = best.label if best.label is not None else f"class {best.class_id}"
            score = "" if best.score is None else f" {best.score:.2f}"
            self.outside.append(f"{picture}: {name}{score} was expected; found: {shown or 'none'}")
            if best.label is not None and self.labels and best.label not in self.labels:
                self.notes.append(f'{picture}: the model has no label "{best.label}"')

    @staticmethod
    def _holds(
        best: ExpectedClass,
        got: Classification | None,
        found: Sequence[Classification],
        rules: Tolerance,
    ) -> bool:
        if got is None:
            return False
        if best.score is None:
            return got is found[0]
        # Another class may come first by what scores may differ, and no more.
        is_near_first = found[0].score - got.score <= rules.class_score
        return abs(got.score - best.score) <= rules.class_score and is_near_first

    def figures(self) -> dict[str, Any]:
        """See `Tally`; found are the best classes, right where they are the expected ones."""
        rate = share(self._first, self._pictures)
        differences = self._differences
        return {
            "expected": self._pictures,
            "found": self._pictures,
            "matched": self._matched,
            "missing": self._pictures - self._matched,
            "unexpected": self._pictures - self._first,
            "precision": rate,
            "recall": share(self._matched, self._pictures),
            "f1": None,
            "mean_score_difference": share(sum(differences), len(differences)),
        }


def _is_class(best: ExpectedClass, one: Classification) -> bool:
    """Labels decide where both sides have one, as another model may number them otherwise."""
    if best.label is not None and one.label is not None:
        return best.label == one.label
    return best.class_id is not None and best.class_id == one.class_id


@final
@dataclass(slots=True, kw_only=True)
class PoseTally:
    """Figures."""

    tolerance: Tolerance | None
    are_shares: bool
    outside: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _expected: int = 0
    _found: int = 0
    _pairs: list[PoseFigures] = field(default_factory=list)

    def add(self, picture: str, entry: Entry, look: Look) -> None:
        """See `Tally`."""
        wanted = [] if entry.keypoints is UNSET else entry.keypoints
        size = (look.where.frame_width, look.where.frame_height)
        there = pose.in_shares(_figures_of(look), *size)
        if not self.are_shares:
            wanted = pose.in_shares(wanted, *size)
        pairs, missing, unexpected = pose.pair(wanted, there)
        self._expected += len(wanted)
        self._found += len(there)
        self._pairs += [figures for _, _, figures in pairs]
        if self.tolerance is None:
            return
        for _, _, figures in pairs:
            self._judge(picture, figures, self.tolerance)
        self.outside += [f"{picture}: figure {at} was not found" for at in missing]
        self.outside += [f"{picture}: figure {at} was found, not expected" for at in unexpected]

    def _judge(self, picture: str, figures: PoseFigures, rules: Tolerance) -> None:
        if figures.mean_distance > rules.point_distance:
            self.outside.append(
                f"{picture}: the points of a figure are {figures.mean_distance:.3f} of the picture "
                f"away on average; {rules.point_distance:g} is allowed"
            )
        difference, allowed = figures.mean_score_difference, rules.point_score
        if difference is not None and allowed is not None and difference > allowed:
            self.outside.append(
                f"{picture}: the scores of a figure's points differ by "
                f"{difference:.3f} on average; {allowed:g} is allowed"
            )

    def figures(self) -> dict[str, Any]:
        """See `Tally`."""
        matched, together = len(self._pairs), pose.together(self._pairs)
        precision, recall = share(matched, self._found), share(matched, self._expected)
        return {
            "expected": self._expected,
            "found": self._found,
            "matched": matched,
            "missing": self._expected - matched,
            "unexpected": self._found - matched,
            "precision": precision,
            "recall": recall,
            "f1": f1_of(precision, recall),
            "mean_score_difference": together.mean_score_difference if together else None,
            "pose": together,
        }


def _figures_of(look: Look) -> Sequence[Pose]:
    """Return a pose model's figures, or those of a detector that gives points as well."""
    findings = look.findings
    if findings.keypoints is not UNSET:
        return findings.keypoints
    if not isinstance(look.decoded, Boxes) or look.decoded.keypoints is None:
        raise UnavailableError(
            "figures are expected, but the model finds none: it is no pose model"
        )
    return [
        Pose(
            label=one.label,
            class_id=one.class_id,
            score=one.score,
            box=one.box,
            points=one.keypoints,
        )
        for one in findings.detections or ()
        if one.keypoints is not UNSET
    ]


@final
@dataclass(slots=True, kw_only=True)
class RegionTally:
    """Masks."""

    label: Label
    tolerance: Tolerance | None
    outside: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _masks: MaskTally = field(default_factory=MaskTally)
    _pictures: int = 0
    _good: int = 0

    def add(self, picture: str, entry: Entry, look: Look) -> None:
        """See `Tally`."""
        if not isinstance(look.decoded, ClassMap):
            raise UnavailableError("a mask is expected, but the model does no segmentation")
        mask = read_mask(Path(str(entry.mask)))
        found = on_frame(look.decoded, look.where, (mask.shape[0], mask.shape[1]))
        accuracy = self._masks.add(mask, found)
        self._pictures += 1
        if self.tolerance is None or accuracy >= self.tolerance.pixel_accuracy:
            self._good += 1
            return
        self.outside.append(
            f"{picture}: {accuracy:.3f} of the pixels are those of its mask; at least "
            f"{self.tolerance.pixel_accuracy:g} are wanted"
        )

    def figures(self) -> dict[str, Any]:
        """See `Tally`; one mask per picture."""
        figures = self._masks.figures()
        return {
            "expected": self._pictures,
            "found": self._pictures,
            "matched": self._good,
            "missing": self._pictures - self._good,
            "mean_iou": figures.mean_iou if figures else None,
            "classes": self._masks.classes(self.label),
            "segmentation": figures,
        }
