"""Decoders against slow, plain references."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_decoders import plain_found, plain_nms, plain_yolov8

from agent.vision.heads import Limits, nms, select_boxes, top_scores
from agent.vision.heads.classify import decode_scores
from agent.vision.heads.ssd import decode_ssd
from agent.vision.heads.yolo import decode_yolov5, decode_yolov8


def limits(thresholds, iou_threshold=0.45, max_detections=100, is_agnostic=False):
    return Limits(
        thresholds=np.asarray(thresholds, np.float32),
        iou_threshold=iou_threshold,
        max_detections=max_detections,
        is_agnostic=is_agnostic,
        top_k=3,
    )


def random_boxes(rng, count):
    corner, size = rng.uniform(0, 0.8, (count, 2)), rng.uniform(0.05, 0.4, (count, 2))
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


@given(st.integers(0, 2**32 - 1), st.integers(0, 200), st.integers(1, 90), st.booleans())
@settings(max_examples=60, deadline=None)
def test_nms_is_the_plain_loop(seed, count, limit, is_agnostic):
    rng = np.random.default_rng(seed)
    boxes, classes = random_boxes(rng, count), rng.integers(0, 3, count)
    kept = nms(boxes, classes, iou_threshold=0.45, limit=limit, is_agnostic=is_agnostic)
    assert kept == plain_nms(boxes.astype(np.float64), classes, limit, 0.45, is_agnostic)


def test_what_no_network_means_is_left_out():
    boxes = [
        [0.1, 0.1, 0.5, 0.5],
        [np.nan, 0.1, 0.5, 0.5],
        [0.5, 0.1, 0.1, 0.5],  # its right is left of its left
        [0.1, 0.1, 1e30, 0.5],
        [1.2, 0.1, 1.4, 0.5],  # beside the input
        [0.1, 0.1, 0.5, 0.5],
        [0.1, 0.1, 0.5, 0.5],
        [0.6, 0.6, 1.4, 0.9],
    ]
    scores = [0.9, 0.9, 0.9, 0.9, 0.9, np.inf, np.nan, 1.05]
    found = select_boxes(
        np.array(boxes, np.float32),
        np.array(scores, np.float32),
        np.zeros(8, np.intp),
        limits([0.5]),
    )
    np.testing.assert_allclose(found.xyxy_norm, np.float32([boxes[7], boxes[0]]))
    assert found.scores.tolist() == pytest.approx([1.0, 0.9])
    ids = np.array([0, 1, -1, 2, 0, 0, 0, 7])
    found = select_boxes(
        np.tile(np.float32([0, 0, 1, 1]), (8, 1)), np.full(8, 0.6, np.float32), ids, limits([0.5])
    )
    assert found.class_ids.tolist() == [0]


@given(st.lists(st.floats(0, 1, width=32), max_size=50), st.integers(1, 10))
def test_top_scores_is_sorting(scores, limit):
    array = np.array(scores, np.float32)
    plain = sorted(range(len(scores)), key=lambda i: (-array[i], i))
    assert list(top_scores(array, limit)) == plain[:limit]


def ssd_tensors(rows, count, size=10):
    boxes = np.full((1, size, 4), np.nan, np.float32)
    classes = np.full((1, size), 1e30, np.float32)
    scores = np.full((1, size), np.nan, np.float32)
    for i, (box, class_id, score) in enumerate(rows):
        boxes[0, i], classes[0, i], scores[0, i] = box, class_id, score
    return boxes, classes, scores, np.array([count], np.float32)


def test_ssd_reads_count_first_and_turns_yxyx_round():
    rows = [((0.1, 0.2, 0.3, 0.4), 2, 0.9), ((0, 0, 1, 1), 1, 0.6), ((0, 0, 1, 1), 0, 0.3)]
    found = decode_ssd(*ssd_tensors(rows, 3), limits=limits([0.5] * 3))
    assert found.class_ids.tolist() == [2, 1]
    np.testing.assert_allclose(found.xyxy_norm[0], [0.2, 0.1, 0.4, 0.3])
    assert found.scores.tolist() == pytest.approx([0.9, 0.6])


@pytest.mark.parametrize("count", [0, -1, np.nan, np.inf, -np.inf, 1e30])
def test_ssd_garbage_count_and_rows(count):
    found = decode_ssd(*ssd_tensors([], count), limits=limits([0.5] * 3))
    assert found.scores.size == 0


def test_ssd_per_class_thresholds_and_limit():
    rows = [((0, 0, 1, 1), i % 2, 0.9 - i / 100) for i in range(8)]
    found = decode_ssd(*ssd_tensors(rows, 8), limits=limits([0.5, 2.0], max_detections=3))
    assert found.class_ids.tolist() == [0, 0, 0]
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_ssd_rows_that_no_network_means_and_doubles_across_classes():
    box = (0.1, 0.2, 0.3, 0.4)
    odd = [
        (box, 0, np.inf),
        (box, 0, 1e30),
        ((0.3, 0.2, 0.1, 0.4), 0, 0.9),
        ((0.1, 0.4, 0.3, 0.2), 0, 0.9),
        ((-1e9, 0.2, 0.3, 0.4), 0, 0.9),
        ((0.1, 0.2, np.nan, 0.4), 0, 0.9),
        (box, 7, 0.9),
    ]
    rows = [*odd, (box, 1, 0.8), (box, 0, 0.7)]
    found = decode_ssd(*ssd_tensors(rows, 9), limits=limits([0.5] * 2))
    assert found.class_ids.tolist() == [1, 0]
    found = decode_ssd(*ssd_tensors(rows, 9), limits=limits([0.5] * 2, is_agnostic=True))
    assert found.class_ids.tolist() == [1]


def quantize(real, scale, zero_point, dtype):
    limits = np.iinfo(dtype)
    return np.clip(np.rint(real / scale) + zero_point, limits.min, limits.max).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point"),
    [(np.int8, 1 / 255, -128), (np.uint8, 1 / 255, 0), (np.float32, 0.0, 0)],
)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("seed", range(3))
def test_yolov8_is_the_plain_decoder(dtype, scale, zero_point, axis, seed):
    rng = np.random.default_rng(seed)
    raw = rng.uniform(0, 1, (4 + 7, 200)).astype(np.float32)
    raw[4:] **= 4  # most scores low, as a network's
    stored = raw if dtype == np.float32 else quantize(raw, scale, zero_point, dtype)
    real = stored if dtype == np.float32 else (stored.astype(np.float64) - zero_point) * scale
    thresholds = np.array([0.5, 0.6, 0.7, 0.4, 0.5, 0.5, 2.0], np.float32)
    found = decode_yolov8(
        stored if axis == 0 else np.ascontiguousarray(stored.T),
        axis=axis,
        scale=scale,
        zero_point=zero_point,
        box_unit=(1.0, 1.0),
        limits=limits(thresholds, max_detections=30),
    )
    rows = plain_yolov8(np.asarray(real).T.tolist(), 0.4 - 1e-6)
    plain = plain_found([r for r in rows if r[0] >= thresholds[r[1]] - 1e-6], 0.45, 30)
    np.testing.assert_allclose(found.scores, [row[0] for row in plain], atol=1e-6)
    # Ties in score may come in any order, so boxes are compared as sets of their scores' groups.
    assert sorted(found.class_ids.tolist()) == sorted(row[1] for row in plain)
    mine = sorted(map(tuple, np.round(found.xyxy_norm, 4).tolist()))
    reference = sorted(map(tuple, np.round([row[2] for row in plain], 4).tolist()))
    np.testing.assert_allclose(mine, reference, atol=2e-4)


def test_yolov5_multiplies_objectness_and_takes_pixels():
    raw = np.zeros((50, 5 + 3), np.float32)
    raw[7] = [320, 160, 64, 32, 0.9, 0.1, 0.8, 0.2]
    raw[9] = [100, 100, 10, 10, 0.4, 0.9, 0.0, 0.0]  # 0.36: below the threshold
    found = decode_yolov5(
        raw,
        axis=1,
        scale=0.0,
        zero_point=0,
        box_unit=(640.0, 320.0),
        limits=limits([0.5] * 3),
    )
    assert found.class_ids.tolist() == [1]
    assert found.scores.tolist() == pytest.approx([0.72])
    np.testing.assert_allclose(found.xyxy_norm[0], [0.45, 0.45, 0.55, 0.55], atol=1e-6)


@pytest.mark.parametrize("decode", [decode_yolov8, decode_yolov5])
def test_yolo_survives_nan_and_nothing(decode):
    for fill in (np.nan, np.inf, 0.0):
        array = np.full((9, 60) if decode is decode_yolov8 else (60, 9), fill, np.float32)
        found = decode(
            array,
            axis=0 if decode is decode_yolov8 else 1,
            scale=0.0,
            zero_point=0,
            box_unit=(1.0, 1.0),
            limits=limits([0.5] * (4 if decode is decode_yolov5 else 5)),
        )
        assert found.scores.size == 0


def test_exact_threshold_step_is_kept():
    """A score that is stored exactly at the threshold passes; rounding must not lose it."""
    stored = np.full((4 + 1, 8), -128, np.int8)
    stored[:, 3] = 0  # (0 + 128) / 256 = 0.5
    found = decode_yolov8(
        stored,
        axis=0,
        scale=1 / 256,
        zero_point=-128,
        box_unit=(1.0, 1.0),
        limits=limits([0.5]),
    )
    assert found.scores.tolist() == [0.5]


def test_classes_quantized_logits_and_threshold():
    stored = np.array([[0, 64, 255, 128]], np.uint8)
    found = decode_scores(
        stored,
        scale=1 / 256,
        zero_point=0,
        are_logits=False,
        thresholds=np.full(4, 0.4, np.float32),
        top_k=3,
    )
    assert found.class_ids.tolist() == [2, 3]
    logits = np.array([1.0, 3.0, np.nan], np.float32)
    soft = decode_scores(
        logits,
        scale=0.0,
        zero_point=0,
        are_logits=True,
        thresholds=np.zeros(3, np.float32),
        top_k=3,
    )
    assert soft.class_ids[0] == 1
    assert float(soft.scores.sum()) == pytest.approx(1.0)


def test_a_listed_class_of_low_rank_is_reported():
    """Thresholds come before the limit: what is not wanted must not use up the places."""
    scores = np.array([0.4, 0.3, 0.2, 0.1], np.float32)
    thresholds = np.array([2.0, 2.0, 2.0, 0.05], np.float32)
    found = decode_scores(
        scores, scale=0.0, zero_point=0, are_logits=False, thresholds=thresholds, top_k=3
    )
    assert found.class_ids.tolist() == [3]
