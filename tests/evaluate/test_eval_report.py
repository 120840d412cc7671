"""Outcomes as tables: one row per model, a row over all, and every case beyond the tolerance."""

from agent.contract.payloads import ModelIdentity
from agent.evaluate.records import AveragePrecision, ClassFigures, MaskFigures, Outcome, PoseFigures
from agent.evaluate.report import lines
from agent.vision.detect import UsedModel

USED = UsedModel(
    **{name: getattr(ModelIdentity(name="n", version=None, sha256="0" * 64), name)
       for name in ("name", "version", "sha256")},
    task="detection", runtime="litert 2.3.0", accelerator="cpu",
)  # fmt: skip


def outcome(name="net", **changes):
    values = {
        "pictures": 9, "expected": 20, "found": 21, "matched": 18, "missing": 2, "unexpected": 3,
        "precision": 18 / 21, "recall": 0.9, "f1": 0.878, "mean_iou": 0.93,
        "mean_score_difference": 0.02, "verdict": "within", "threshold": 0.5,
    }  # fmt: skip
    return Outcome(name=name, reference="expected.json", model=USED, **{**values, **changes})


def cells(line):
    return [cell for cell in line.split("  ") if cell]


def test_a_row_has_its_figures_under_their_headings():
    heading, row = lines([outcome()])
    assert heading.index("pictures") + len("pictures") == row.index(" 9 ") + 2
    assert [cell.strip() for cell in cells(row)] == [
        "net", "9", "20", "18", "2", "3", "0.930", "0.020", "within tolerance"
    ]  # fmt: skip


def test_several_models_end_in_a_row_over_all_weighted_by_matches():
    text = lines(
        [
            outcome("one", matched=30, mean_iou=1.0),
            outcome("two", matched=10, mean_iou=0.6, verdict="outside", outside=["a.jpg: cat"]),
            Outcome(name="broken", reference="expected.json", error="broken.tflite: is damaged"),
        ]
    )
    assert [cell.strip() for cell in cells(text[3])] == ["broken", *"-------", "not evaluated"]
    assert [cell.strip() for cell in cells(text[4])] == [
        "all", "18", "40", "40", "4", "6", "0.900", "0.020", "1 of 3 within tolerance"
    ]  # fmt: skip
    assert text[5:] == ["", "two:", "outside the tolerance:", "  a.jpg: cat"]


def test_long_lists_end_in_their_number():
    text = lines([outcome(verdict="outside", outside=[f"case {at}" for at in range(25)])])
    assert text[-1] == "  and 5 more (--json lists them all)"
    assert "  case 19" in text
    assert "  case 20" not in text


def test_average_precision_and_classes_are_shown_for_one_model():
    figures = AveragePrecision(
        map=0.5, ap50=0.7, ap75=0.4, ap_small=None, ap_medium=0.3, ap_large=0.6, ar_100=0.6,
        lowest_score=0.001,
    )  # fmt: skip
    rows = [
        ClassFigures(
            class_id=at, label=label, expected=at, found=4, matched=2, precision=0.5, recall=None,
            f1=None, mean_iou=0.9, mean_score_difference=None, ap=ap, ap50=ap,
        )
        for at, label, ap in ((1, "cat", 0.25), (3, None, None))
    ]  # fmt: skip
    text = lines([outcome(verdict="none", average_precision=figures, classes=rows)])
    assert "mAP 0.500  AP50 0.700  AP75 0.400  small -  medium 0.300" in text[3]
    assert text[4] == "precision 0.857  recall 0.900  F1 0.878 at the score 0.50"
    assert cells(text[6])[-1].strip() == "AP50"
    assert [cell.strip() for cell in cells(text[7])][:2] == ["class 3", "3"]
    assert [cell.strip() for cell in cells(text[8])][-1] == "0.250"


def test_figures_and_masks_have_lines_of_their_own():
    pose = PoseFigures(
        points=17, mean_distance=0.0123, max_distance=0.05, mean_score_difference=None
    )
    masks = MaskFigures(mean_iou=0.8, pixel_accuracy=0.96, pixels=100)
    text = lines([outcome(pose=pose, segmentation=masks, notes=["a note"])])
    assert text[2:] == [
        "",
        "note: a note",
        "17 points: mean distance 0.0123 of the picture, largest 0.0500; mean score difference -",
        "100 pixels: mean IoU 0.8000 over the classes, 0.9600 of the pixels right",
    ]
