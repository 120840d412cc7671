"""Boxes are paired as COCO's own program pairs them, and average precision is its own."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.evaluate.average_precision import Seen, average_precision
from agent.evaluate.matching import Item, iou, match
from agent.evaluate.records import ExpectedBox

BOX = (0.0, 0.0, 100.0, 100.0)


def item(box, class_id=1, score=None, **more):
    return Item(class_id=class_id, box=box, score=score, **more)


def test_iou_of_boxes_that_share_a_third():
    assert iou(BOX, (50.0, 0.0, 150.0, 100.0)) == pytest.approx(1 / 3)
    assert iou(BOX, (200.0, 0.0, 300.0, 100.0)) == 0
    assert iou((5.0, 5.0, 5.0, 5.0), (5.0, 5.0, 5.0, 5.0)) == 0


def test_the_best_score_takes_the_box_and_the_rest_are_unexpected():
    found = [item((0, 0, 100, 70), score=0.5), item((0, 0, 100, 60), score=0.9)]
    matches = match([item(BOX)], found, iou_threshold=0.5)
    assert [(pair.found, round(pair.iou, 3)) for pair in matches.pairs] == [(1, 0.6)]
    assert (matches.missing, matches.unexpected) == ((), (0,))


def test_another_class_or_too_small_an_overlap_is_no_match():
    matches = match(
        [item(BOX), item(BOX, class_id=2)],
        [item((0, 0, 100, 49), score=0.9), item(BOX, class_id=3, score=0.8)],
        iou_threshold=0.5,
    )
    assert (matches.pairs, matches.missing, matches.unexpected) == ((), (0, 1), (0, 1))


def test_each_found_box_takes_the_expected_box_it_covers_most():
    expected = [item(BOX), item((10.0, 0.0, 110.0, 100.0))]
    found = [item((9.0, 0.0, 109.0, 100.0), score=0.9), item((1.0, 0.0, 101.0, 100.0), score=0.8)]
    matches = match(expected, found, iou_threshold=0.5)
    assert {(pair.expected, pair.found) for pair in matches.pairs} == {(1, 0), (0, 1)}


def test_what_lies_in_a_crowd_counts_neither_way():
    crowd = item((0.0, 0.0, 1000.0, 1000.0), is_crowd=True)
    found = [item((10, 10, 30, 30), score=0.9), item((990, 990, 1200, 1200), score=0.8)]
    matches = match([crowd], found, iou_threshold=0.5)
    assert (matches.pairs, matches.missing, matches.unexpected) == ((), (), (1,))


side = st.integers(0, 12)
boxes = st.tuples(side, side, side, side).map(
    lambda b: (float(b[0]), float(b[1]), b[0] + 1.0 + b[2], b[1] + 1.0 + b[3])
)
expected_items = st.lists(
    st.builds(Item, class_id=st.integers(1, 2), box=boxes, is_crowd=st.booleans()), max_size=6
)
found_items = st.lists(
    st.builds(
        Item, class_id=st.integers(1, 2), box=boxes, score=st.sampled_from([0.2, 0.4, 0.6, 0.8])
    ),
    max_size=8,
)


@given(expected_items, found_items, st.sampled_from([0.5, 0.75, 1.0]))
def test_pairs_are_those_of_cocoeval(expected, found, threshold):
    evaluation = cocoeval(expected, found, threshold)
    hits = misses = 0
    for per_class in evaluation.evalImgs:
        if per_class is None:
            continue
        judged = ~per_class["dtIgnore"][0].astype(bool)
        hits += int(((per_class["dtMatches"][0] > 0) & judged).sum())
        misses += int(((per_class["dtMatches"][0] == 0) & judged).sum())
    matches = match(expected, found, iou_threshold=threshold)
    assert (len(matches.pairs), len(matches.unexpected)) == (hits, misses)
    assert len(matches.missing) == sum(not one.is_crowd for one in expected) - hits


def cocoeval(expected, found, threshold):
    """pycocotools on one picture, at one overlap, for objects of any size."""
    cocoeval_module = pytest.importorskip("pycocotools.cocoeval")
    coco = pytest.importorskip("pycocotools.coco")
    indexed = []
    for items in (expected, found):
        with contextlib.redirect_stdout(None):
            index = coco.COCO()
            index.dataset = {
                "images": [{"id": 1}],
                "categories": [{"id": 1}, {"id": 2}],
                "annotations": [
                    {
                        "id": at,
                        "image_id": 1,
                        "category_id": one.class_id,
                        "bbox": [*one.box[:2], one.box[2] - one.box[0], one.box[3] - one.box[1]],
                        "area": 1.0,
                        "iscrowd": int(one.is_crowd),
                        "score": one.score,
                    }
                    for at, one in enumerate(items, start=1)
                ],
            }
            index.createIndex()
        indexed.append(index)
    with contextlib.redirect_stdout(None):
        evaluation = cocoeval_module.COCOeval(*indexed, "bbox")
        evaluation.params.iouThrs = [threshold]
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
    return evaluation


def test_average_precision_of_a_case_worked_out_by_hand():
    """Two objects; a hit, a false alarm, then a hit that overlaps by 0.62.

    Up to IoU 0.60 both hits count: precision 1 up to recall 0.5, which is 51 of the 101 recalls
    sampled, then 2/3. From 0.65 on the second is none: 51 of 101.
    """
    pytest.importorskip("pycocotools")
    pictures = [
        Seen(
            expected=[ExpectedBox(box=BOX, class_id=3)],
            found=[(3, 0.9, BOX), (3, 0.8, (200.0, 200.0, 300.0, 300.0))],
        ),
        Seen(
            expected=[ExpectedBox(box=BOX, class_id=3)], found=[(3, 0.7, (0.0, 0.0, 100.0, 62.0))]
        ),
    ]
    at_50, at_75 = (51 + 50 * 2 / 3) / 101, 51 / 101
    precisions = average_precision(pictures, [3, 4])
    assert precisions.total.ap50 == pytest.approx(at_50)
    assert precisions.total.ap75 == pytest.approx(at_75)
    assert precisions.total.map == pytest.approx((3 * at_50 + 7 * at_75) / 10)
    # 100 x 100 px is above COCO's 96 x 96.
    assert precisions.total.ap_large is not None
    assert (precisions.total.ap_small, precisions.total.ap_medium) == (None, None)
    assert set(precisions.of_category) == {3}
    assert precisions.of_category[3][1] == pytest.approx(at_50)


def test_average_precision_with_nothing_found_and_with_nothing_annotated():
    pytest.importorskip("pycocotools")
    lacking = [Seen(expected=[ExpectedBox(box=BOX, class_id=1)], found=[])]
    assert average_precision(lacking, [1]).total.map == 0
    empty = [Seen(expected=[], found=[(1, 0.9, BOX)])]
    assert average_precision(empty, [1]).total.map is None
