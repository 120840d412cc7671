"""Average precision by pycocotools, the program that defines it.

pycocotools takes an annotation with the id 0 for none (cocoeval.py: a match is noted by its
id), so annotations are numbered from 1 here, whatever the file calls them.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.contract.payloads import Box
from agent.evaluate.matching import area
from agent.evaluate.records import AveragePrecision, ExpectedBox

if TYPE_CHECKING:
    from pycocotools.coco import COCO

# Boxes down to this score take part: with fewer the curve of precision over recall is cut off.
# ultralytics/cfg/default.yaml: conf is 0.001 when validating.
LOWEST_SCORE = 0.001
INSTALL = (
    "average precision needs pycocotools, which is not installed: "
    'pip install "edge-agent[eval]"; precision, recall and F1 do without'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One picture: what is annotated and every box found, by category."""

    expected: Sequence[ExpectedBox]
    found: Sequence[tuple[int, float, Box]]  # category id, score, xyxy


@dataclass(frozen=True, slots=True, kw_only=True)
class Precisions:
    """The figures over all categories, and (AP, AP50) of each annotated one."""

    total: AveragePrecision
    of_category: dict[int, tuple[float, float]]


def is_installed() -> bool:
    """Return whether pycocotools can be imported."""
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError:
        return False
    return True


def average_precision(pictures: Sequence[Seen], categories: Sequence[int]) -> Precisions:
    """Evaluate boxes at IoU 0.50 to 0.95, over all sizes and by size, up to 100 a picture."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress there
        evaluation = COCOeval(
            _indexed(pictures, categories, is_truth=True),
            _indexed(pictures, categories, is_truth=False),
            "bbox",
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = [None if value < 0 else float(value) for value in evaluation.stats]
    # [IoU thresholds, recalls, categories, sizes, numbers of boxes]; -1: nothing annotated.
    curves = evaluation.eval["precision"][:, :, :, 0, -1]
    of_category = {
        int(number): (float(curves[:, :, at].mean()), float(curves[0, :, at].mean()))
        for at, number in enumerate(evaluation.params.catIds)
        if curves[0, 0, at] > -1
    }
    total = AveragePrecision(
        map=figures[0],
        ap50=figures[1],
        ap75=figures[2],
        ap_small=figures[3],
        ap_medium=figures[4],
        ap_large=figures[5],
        ar_100=figures[8],
        lowest_score=LOWEST_SCORE,
    )
    return Precisions(total=total, of_category=of_category)


def _indexed(pictures: Sequence[Seen], categories: Sequence[int], *, is_truth: bool) -> COCO:
    """Return pycocotools' own object, made in memory."""
    from pycocotools.coco import COCO

    rows: list[dict[str, object]] = []
    for image_id, picture in enumerate(pictures, start=1):
        if is_truth:
            rows += [
                _row(image_id, box.class_id, box.box, iscrowd=int(box.is_crowd), area=box.area)
                for box in picture.expected
            ]
        else:
            rows += [
                _row(image_id, number, box, iscrowd=0, score=score)
                for number, score, box in picture.found
            ]
    index = COCO()
    index.dataset = {
        "images": [{"id": number} for number in range(1, len(pictures) + 1)],
        "annotations": [{"id": number, **row} for number, row in enumerate(rows, start=1)],
        "categories": [{"id": number} for number in categories],
    }
    index.createIndex()
    return index


def _row(image_id: int, category: int | None, box: Box, **more: object) -> dict[str, object]:
    given = more.pop("area", None)
    return {
        "image_id": image_id,
        "category_id": category,
        "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
        "area": area(box) if given is None else given,
        **more,
    }
