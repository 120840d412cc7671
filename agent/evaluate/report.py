"""Outcomes as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from agent.evaluate.records import ClassFigures, Outcome, share

SHOWN_CASES = 20
WORDS = ("model", "class", "verdict")  # columns that are not numbers
HEADINGS = (
    "model", "pictures", "expected", "matched", "missing", "unexpected", "mean IoU",
    "mean |score diff|", "verdict",
)  # fmt: skip
CLASS_HEADINGS = (
    "class", "expected", "found", "matched", "precision", "recall", "F1", "mean IoU",
    "mean |score diff|",
)  # fmt: skip


def lines(outcomes: Sequence[Outcome]) -> list[str]:
    """Return all that is printed: one table over the models, then what each is to be told of."""
    rows = [_row(outcome) for outcome in outcomes]
    if len(outcomes) > 1:
        rows.append(_total(outcomes))
    text = table(HEADINGS, rows)
    for outcome in outcomes:
        body = _details(outcome, is_alone=len(outcomes) == 1)
        if body:
            text += ["", *([] if len(outcomes) == 1 else [f"{outcome.name}:"]), *body]
    return text


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return aligned lines: words to the left, numbers to the right."""
    widths = [max(len(row[at]) for row in (headings, *rows)) for at in range(len(headings))]
    return [
        "  ".join(
            cell.ljust(width) if heading in WORDS else cell.rjust(width)
            for heading, cell, width in zip(headings, row, widths, strict=True)
        ).rstrip()
        for row in (headings, *rows)
    ]


def number(value: float | None, digits: int = 3) -> str:
    """Return a figure, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def verdict(outcome: Outcome) -> str:
    """Say whether the tolerance is kept."""
    if outcome.error is not None:
        return "not evaluated"
    texts = {"within": "within tolerance", "outside": f"{len(outcome.outside)} outside"}
    return texts.get(outcome.verdict, "-")


def _row(outcome: Outcome) -> list[str]:
    if outcome.error is not None:
        return [outcome.name, *["-"] * 7, verdict(outcome)]
    return [
        outcome.name,
        str(outcome.pictures),
        str(outcome.expected),
        str(outcome.matched),
        str(outcome.missing),
        str(outcome.unexpected),
        number(outcome.mean_iou),
        number(outcome.mean_score_difference),
        verdict(outcome),
    ]


def _total(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the row over all models; means weigh each model by what it matched."""

    def mean(values: Sequence[tuple[float | None, int]]) -> str:
        known = [(value, weight) for value, weight in values if value is not None]
        weight = sum(weight for _, weight in known)
        return number(share(sum(value * weight for value, weight in known), weight))

    judged = [one for one in outcomes if one.verdict != "none" or one.error is not None]
    good = sum(one.verdict == "within" for one in judged)
    return [
        "all",
        *(
            str(sum(getattr(one, key) for one in outcomes))
            for key in ("pictures", "expected", "matched", "missing", "unexpected")
        ),
        mean([(one.mean_iou, one.matched) for one in outcomes]),
        mean([(one.mean_score_difference, one.matched) for one in outcomes]),
        f"{good} of {len(judged)} within tolerance" if judged else "-",
    ]


def _details(outcome: Outcome, *, is_alone: bool) -> list[str]:
    text = [f"note: {note}" for note in outcome.notes]
    precision = outcome.average_precision
    if precision is not None:
        text.append(
            f"mAP {number(precision.map)}  AP50 {number(precision.ap50)}  AP75 "
            f"{number(precision.ap75)}  small {number(precision.ap_small)}  medium "
            f"{number(precision.ap_medium)}  large {number(precision.ap_large)}  (pycocotools, "
            f"scores from {precision.lowest_score:g})"
        )
    if outcome.precision is not None and (precision is not None or outcome.verdict == "none"):
        text.append(
            f"precision {number(outcome.precision)}  recall {number(outcome.recall)}  F1 "
            f"{number(outcome.f1)} at the score {number(outcome.threshold, 2)}"
        )
    if outcome.pose is not None:
        pose = outcome.pose
        text.append(
            f"{pose.points} points: mean distance {pose.mean_distance:.4f} of the picture, largest "
            f"{pose.max_distance:.4f}; mean score difference {number(pose.mean_score_difference)}"
        )
    if outcome.segmentation is not None:
        masks = outcome.segmentation
        text.append(
            f"{masks.pixels} pixels: mean IoU {masks.mean_iou:.4f} over the classes, "
            f"{masks.pixel_accuracy:.4f} of the pixels right"
        )
    if is_alone and outcome.classes:
        text += [*([""] if text else []), *class_table(outcome.classes)]
    if outcome.outside:
        text += [*([""] if text else []), "outside the tolerance:"]
        text += [f"  {case}" for case in outcome.outside[:SHOWN_CASES]]
        if len(outcome.outside) > SHOWN_CASES:
            text.append(f"  and {len(outcome.outside) - SHOWN_CASES} more (--json lists them all)")
    return text


def class_table(classes: Sequence[ClassFigures]) -> list[str]:
    """Return one line per class, the most frequent first."""
    has_precision = any(row.ap is not None for row in classes)
    ordered = sorted(classes, key=lambda row: (-row.expected, row.label or "", row.class_id))
    return table(
        [*CLASS_HEADINGS, *(("AP", "AP50") if has_precision else ())],
        [
            [
                f"class {row.class_id}" if row.label is None else row.label,
                str(row.expected),
                str(row.found),
                str(row.matched),
                number(row.precision),
                number(row.recall),
                number(row.f1),
                number(row.mean_iou),
                number(row.mean_score_difference),
                *([number(row.ap), number(row.ap50)] if has_precision else []),
            ]
            for row in ordered
        ],
    )
