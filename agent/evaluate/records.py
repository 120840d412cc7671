"""What is compared, and what comes out: the records that the files of this room exchange.

A score or class that a reference does not give is None and is not compared.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from agent.contract.payloads import Box, Pose, Score
from agent.errors import UnavailableError
from agent.vision.detect import UsedModel

Positive = Annotated[float, Meta(ge=0)]
Verdict = Literal["within", "outside", "none"]


class ExpectedBox(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One object that should be found; box as in the payloads, x_min, y_min, x_max, y_max in px."""

    box: Box
    class_id: Annotated[int, Meta(ge=0)] | None = None
    label: str | None = None
    score: Score | None = None
    # COCO: an area full of objects; what is found in it counts neither way.
    is_crowd: bool = False
    area: float | None = None  # px², of the object's outline, as COCO sorts objects by size


class ExpectedClass(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One class of a whole picture, best first in its list."""

    class_id: Annotated[int, Meta(ge=0)] | None = None
    label: str | None = None
    score: Score | None = None


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What should be found in one picture; exactly one field is set."""

    detections: list[ExpectedBox] | UnsetType = UNSET
    classes: list[ExpectedClass] | UnsetType = UNSET
    keypoints: list[Pose] | UnsetType = UNSET
    mask: Annotated[str, Meta(description="a picture of class numbers")] | UnsetType = UNSET

    @property
    def kind(self) -> str:
        """Return the name of the field that is set, or nothing where not exactly one is."""
        given = [name for name in self.__struct_fields__ if getattr(self, name) is not UNSET]
        return given[0] if len(given) == 1 else ""


class Tolerance(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far a model may be from what is expected.

    The defaults are what one model's int8 kernels were seen to differ by from one CPU to
    another: 0.05 of score and 1 % of a box, with a margin.
    """

    # Boxes with lower scores may come or go; absent: the threshold and `score` above it.
    boxes_with_score_at_least: Positive | None = None
    iou: Positive = 0.85
    score: Positive = 0.08
    class_score: Positive = 0.05
    point_distance: Annotated[
        Positive, Meta(description="mean over a figure's points, as a share of the picture")
    ] = 0.03
    # Mean over a figure's points; absent: not judged, as exports of one network differ in it.
    point_score: Positive | None = None
    # Not the mean IoU: a few pixels of a class that is not in the picture take a whole share of it.
    pixel_accuracy: Annotated[Positive, Meta(description="of each picture")] = 0.95


SAME_RUNTIME, OTHER_RUNTIME = "same_runtime", "other_runtime_or_cpu"
# Where a file has none: another runtime moves small boxes and the scores of doubtful ones.
DEFAULT_TOLERANCES = {
    SAME_RUNTIME: Tolerance(),
    OTHER_RUNTIME: Tolerance(iou=0.75, score=0.15, class_score=0.15, pixel_accuracy=0.93),
}


class Reference(Struct, frozen=True, kw_only=True):
    """What one model should find: picture -> entry, and by which rules that is judged."""

    where: str  # for messages
    pictures: dict[str, Entry]
    # By name, "" for the only one; empty: a ground truth, which no model has to meet.
    tolerances: dict[str, Tolerance]
    runtime: str = "litert"  # that the reference was made with
    # COCO's categories, name -> id; their ids stand in `class_id` of the boxes.
    categories: dict[str, int] = field(default_factory=dict)
    points_are_shares: bool = False  # of the picture, instead of pixels in it


class ClassFigures(Struct, frozen=True, kw_only=True):
    """One class over all pictures."""

    class_id: int
    label: str | None
    expected: int
    found: int
    matched: int
    precision: float | None
    recall: float | None
    f1: float | None
    mean_iou: float | None
    mean_score_difference: float | None
    ap: float | None = None
    ap50: float | None = None


class AveragePrecision(Struct, frozen=True, kw_only=True):
    """COCO's own figures; None where no object of that size is annotated."""

    map: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar_100: float | None
    lowest_score: float


class PoseFigures(Struct, frozen=True, kw_only=True):
    """Distances are shares of the picture's width and height."""

    points: int
    mean_distance: float
    max_distance: float
    mean_score_difference: float | None


class MaskFigures(Struct, frozen=True, kw_only=True):
    """Over all pixels of all pictures that the reference gives a class."""

    mean_iou: float
    pixel_accuracy: float
    pixels: int


class Outcome(Struct, frozen=True, kw_only=True):
    """How one model fared, or why it could not be tried."""

    name: str
    reference: str
    model: UsedModel | None = None
    threshold: float | None = None
    pictures: int = 0
    expected: int = 0
    found: int = 0
    matched: int = 0
    missing: int = 0
    unexpected: int = 0
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    mean_iou: float | None = None
    mean_score_difference: float | None = None
    classes: list[ClassFigures] = field(default_factory=list)
    average_precision: AveragePrecision | None = None
    pose: PoseFigures | None = None
    segmentation: MaskFigures | None = None
    tolerance: Tolerance | None = None
    verdict: Verdict = "none"
    outside: list[str] = field(default_factory=list)  # each case beyond the tolerance
    notes: list[str] = field(default_factory=list)
    not_evaluated: list[str] = field(default_factory=list)  # pictures, each with the reason
    error: str | None = None


class Saved(Struct, frozen=True, kw_only=True):
    """The file that `--save` writes: a reference for another run, board or runtime."""

    note: str
    runtime: str
    expected: dict[str, dict[str, Entry]]
    tolerance: dict[str, Tolerance] = field(default_factory=lambda: dict(DEFAULT_TOLERANCES))


def share(part: float, whole: float) -> float | None:
    """Return part / whole, None where there is no whole."""
    return part / whole if whole else None


def f1_of(precision: float | None, recall: float | None) -> float | None:
    """Return the harmonic mean, None where either is unknown."""
    if precision is None or recall is None:
        return None
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def to_json(value: object) -> str:
    """Return indented JSON.

    Raises:
        UnavailableError: a file name in it is not UTF-8, as JSON must be.
    """
    try:
        return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    except UnicodeEncodeError as error:
        shown = error.object.encode("utf-8", "replace").decode()
        raise UnavailableError(f"{shown}: the name is not UTF-8; rename the file") from error
