"""Every detector against a slow, plain reference, stored in any numbers; and against garbage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from looks import limits, look, spec
from plain_decoders import (
    logistic,
    plain_blazeface,
    plain_distribution,
    plain_found,
    plain_prior_maps,
    plain_ssd_raw,
    plain_weighted,
    plain_yolov5,
    plain_yolov8,
)

from agent.vision.heads.anchors import tf_ssd_anchors
from agent.vision.heads.choose import recognise
from agent.vision.heads.yolo_maps import V5_PRIORS

# A small input, so that plain loops are quick: 64 x 96 pixels, 8 x 12 + 4 x 6 + 2 x 3 cells.
IMAGE, SIZE, STRIDES = (1, 64, 96, 3), (96, 64), (8, 16, 32)
CELLS = 8 * 12 + 4 * 6 + 2 * 3
LOWEST = 0.4


class Stored:
    """Numbers as one dtype stores them; `real` is what a reference is given."""

    def __init__(self, values, dtype):
        values = np.asarray(values)
        if dtype in ("float32", "float16"):
            self.array, self.scale, self.zero_point = values.astype(dtype), 0.0, 0
            self.real = self.array.astype(np.float64)
            return
        bounds = np.iinfo(dtype)
        low, high = min(0.0, float(values.min())), max(float(values.max()), 1e-3)
        self.scale = float(np.float32((high - low) / 255))
        self.zero_point = round(bounds.min - low / self.scale)
        steps = np.rint(values / self.scale) + self.zero_point
        self.array = np.clip(steps, bounds.min, bounds.max).astype(dtype)
        self.real = (self.array.astype(np.float64) - self.zero_point) * self.scale

    def spec(self, number=1):
        return spec(
            self.array.shape,
            self.array.dtype,
            self.scale,
            self.zero_point,
            name=f"out{number}",
            index=number,
        )


def decoded(*stored, first=None, image=IMAGE, score=LOWEST, **wanted):
    specs = [one.spec(number) for number, one in enumerate(stored)]
    arrays = [one.array for one in stored]
    found = recognise(look(specs, arrays if first is None else first, image=image, **wanted))
    return found, found.bind(limits(found, score))(arrays)


def same(found, rows):
    """Ties in score may come in any order, so rows are compared sorted."""
    mine = sorted(
        (round(float(score), 4), int(class_id), *(round(float(v), 3) for v in box))
        for score, class_id, box in zip(found.scores, found.class_ids, found.xyxy_norm, strict=True)
    )
    plain = sorted((round(row[0], 4), row[1], *(round(v, 3) for v in row[2])) for row in rows)
    assert len(mine) == len(plain)
    assert len(mine) > 3, "a test of nothing"
    if mine:
        np.testing.assert_allclose(np.array(mine), np.array(plain), atol=2e-3)


def sparse_scores(rng, rows, classes):
    """Scores of a network: nearly all low, some high, no two alike."""
    scores = rng.uniform(0, 0.2, (rows, classes))
    lucky = rng.choice(rows, min(rows, 24), replace=False)
    scores[lucky, rng.integers(0, classes, len(lucky))] = np.linspace(0.3, 0.97, len(lucky))
    return scores


def logits_of(scores):
    return np.log(scores / (1 - scores) + 1e-6)


DTYPES = pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8"])
SEEDS = pytest.mark.parametrize("seed", range(2))


@DTYPES
@SEEDS
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("kind", "classes"), [("yolov8", 1), ("yolov8", 7), ("yolov5", 1)])
def test_one_tensor(dtype, seed, axis, kind, classes):
    rng = np.random.default_rng(seed)
    count = CELLS * (3 if kind == "yolov5" else 1)
    boxes = np.concatenate([rng.uniform(0.1, 0.9, (count, 2)), rng.uniform(0, 0.3, (count, 2))], 1)
    parts = [boxes, sparse_scores(rng, count, classes)]
    if kind == "yolov5":
        parts.insert(1, rng.uniform(0.8, 1, (count, 1)))
    stored = Stored(np.concatenate(parts, axis=1), dtype)
    plain = (plain_yolov8 if kind == "yolov8" else plain_yolov5)(stored.real, LOWEST)
    turned = Stored.__new__(Stored)
    turned.__dict__.update(stored.__dict__)
    turned.array = np.ascontiguousarray(stored.array.T if axis == 0 else stored.array)[None]
    found, boxes = decoded(turned, type=kind)
    assert (found.kind, found.class_count) == (kind, classes)
    same(boxes, plain_found(plain, 0.45))


def distribution_parts(rng, classes, bins):
    sides = rng.normal(0, 2, (CELLS, 4 * bins))
    return sparse_scores(rng, CELLS, classes), sides


@DTYPES
@SEEDS
@pytest.mark.parametrize("are_logits", [False, True])
@pytest.mark.parametrize("bins", [8, 11])
def test_nanodet_in_two_tensors(dtype, seed, are_logits, bins):
    scores, sides = distribution_parts(np.random.default_rng(seed), 5, bins)
    given_scores = Stored(logits_of(scores)[None] if are_logits else scores[None], dtype)
    given_sides = Stored(sides[None], dtype)
    found, boxes = decoded(given_sides, given_scores)
    assert found.kind == "nanodet"
    real = given_scores.real[0]
    if are_logits:
        real = [[logistic(v) for v in row] for row in real]
    rows = plain_distribution(real, given_sides.real[0], LOWEST, SIZE, STRIDES, 0.5)
    same(boxes, plain_found(on_input(rows), 0.6))


def on_input(rows):
    """Rows with something of them inside the input; cells at the edge may reach out."""
    return [r for r in rows if r[2][2] > 0 and r[2][3] > 0 and r[2][0] < 1 and r[2][1] < 1]


def test_nanodet_plus_in_one_tensor_counts_from_corners():
    rng = np.random.default_rng(0)
    strides = (8, 16, 32, 64)
    cells = CELLS + 1 * 2
    scores, sides = sparse_scores(rng, cells, 80), rng.normal(0, 2, (cells, 32))
    stored = Stored(np.concatenate([scores, sides], axis=1)[None], "float32")
    found, boxes = decoded(stored)
    assert "NanoDet-Plus" in found.why
    rows = plain_distribution(scores, sides, LOWEST, SIZE, strides, 0.0)
    same(boxes, plain_found(on_input(rows), 0.6))


@DTYPES
@SEEDS
@pytest.mark.parametrize("axis", [0, 1])
def test_distributions_of_yolo(dtype, seed, axis):
    scores, sides = distribution_parts(np.random.default_rng(seed), 5, 16)
    parts = [
        np.ascontiguousarray(p.T if axis == 0 else p)[None] for p in (sides, logits_of(scores))
    ]
    given_sides, given_scores = (Stored(part, dtype) for part in parts)
    found, boxes = decoded(given_scores, given_sides)
    assert found.kind == "yolo_split"
    real = [one.real[0].T if axis == 0 else one.real[0] for one in (given_scores, given_sides)]
    real[0] = [[logistic(v) for v in row] for row in real[0]]
    rows = plain_distribution(*real, LOWEST, SIZE, STRIDES, 0.5)
    same(boxes, plain_found(on_input(rows), 0.45))


@DTYPES
@pytest.mark.parametrize("order", ["nhwc", "nchw"])
@pytest.mark.parametrize("is_split", [False, True])
def test_feature_maps_of_yolo(dtype, order, is_split):
    """Each map has a scale of its own."""
    rng = np.random.default_rng(3)
    scores, sides = distribution_parts(rng, 80, 16)
    scores = logits_of(scores)
    given, real_scores, real_sides = [], [], []
    start = 0
    for stride in STRIDES:
        h, w = 64 // stride, 96 // stride
        rows = slice(start, start + h * w)
        start += h * w
        parts = [sides[rows] * (1 + stride / 32), scores[rows]]
        if not is_split:
            parts = [np.concatenate(parts, axis=1)]
        stored = []
        for part in parts:
            grid = part.reshape(1, h, w, -1)
            grid = grid if order == "nhwc" else np.ascontiguousarray(grid.transpose(0, 3, 1, 2))
            stored.append(Stored(grid, dtype))
        flat = [
            (one.real if order == "nhwc" else one.real.transpose(0, 2, 3, 1)).reshape(h * w, -1)
            for one in stored
        ]
        whole = np.concatenate(flat, axis=1)
        real_sides += whole[:, :64].tolist()
        real_scores += [[logistic(v) for v in row] for row in whole[:, 64:]]
        given += stored
    rng.shuffle(given)
    found, boxes = decoded(*given)
    assert (found.kind, found.class_count) == ("yolo_split", 80)
    rows = plain_distribution(real_scores, real_sides, LOWEST, SIZE, STRIDES, 0.5)
    same(boxes, plain_found(on_input(rows), 0.45))


@DTYPES
@pytest.mark.parametrize("layout", ["nhwc", "nchw", "anchors first", "anchors last"])
def test_maps_with_priors(dtype, layout):
    rng = np.random.default_rng(1)
    given, real = [], []
    for stride in STRIDES:
        h, w = 64 // stride, 96 // stride
        numbers = rng.normal(0, 0.5, (h, w, 3, 8))
        numbers[..., 4:] = -5 + 0.1 * numbers[..., 4:]
        for _ in range(3):
            at = rng.integers(0, h), rng.integers(0, w), rng.integers(0, 3)
            numbers[at][4], numbers[at][5 + rng.integers(0, 3)] = rng.uniform(2, 5, 2)
        ordered = {
            "nhwc": numbers.reshape(1, h, w, 24),
            "nchw": numbers.reshape(1, h, w, 24).transpose(0, 3, 1, 2),
            "anchors first": numbers.transpose(2, 0, 1, 3)[None],
            "anchors last": numbers[None],
        }[layout]
        one = Stored(np.ascontiguousarray(ordered), dtype)
        given.append(one)
        back = {
            "nhwc": lambda a: a[0],
            "nchw": lambda a: a[0].transpose(1, 2, 0),
            "anchors first": lambda a: a[0].transpose(1, 2, 0, 3),
            "anchors last": lambda a: a[0],
        }[layout](one.real)
        real.append(back.reshape(h * w, 3, 8))
    found, boxes = decoded(*given[::-1], type="yolo_split")
    assert found.class_count == 3
    rows = plain_prior_maps(real, V5_PRIORS, STRIDES, SIZE, LOWEST)
    same(boxes, plain_found(on_input(rows), 0.45))


@DTYPES
@pytest.mark.parametrize("has_background", [False, True])
@pytest.mark.parametrize("are_logits", [False, True])
def test_raw_ssd(dtype, has_background, are_logits):
    rng = np.random.default_rng(2)
    scores = sparse_scores(rng, 1917, 6)
    if has_background:
        scores[:, 0] = 0.98
    offsets = rng.normal(0, 1, (1917, 4))
    given_scores = Stored(logits_of(scores)[None] if are_logits else scores[None], dtype)
    given_boxes = Stored(offsets[None], dtype)
    found, boxes = decoded(given_boxes, given_scores, image=(1, 300, 300, 3))
    assert (found.kind, found.class_count) == ("ssd_raw", 5 if has_background else 6)
    real = given_scores.real[0][:, 1:] if has_background else given_scores.real[0]
    if are_logits:
        real = [[logistic(v) for v in row] for row in real]
    rows = plain_ssd_raw(given_boxes.real[0], real, tf_ssd_anchors().tolist(), LOWEST)
    same(boxes, plain_found(on_input(rows), 0.6))


@DTYPES
@pytest.mark.parametrize("are_logits", [False, True])
@pytest.mark.parametrize(
    ("side", "grids", "points"),
    [(128, ((16, 2), (8, 6)), 6), (192, ((48, 1),), 6), (192, ((24, 2), (12, 6)), 7)],
)
def test_blazeface(dtype, are_logits, side, grids, points):
    rng = np.random.default_rng(5)
    count = sum(grid * grid * priors for grid, priors in grids)
    scores = sparse_scores(rng, count, 1)
    offsets = rng.uniform(-10, 10, (count, 4 + 2 * points))
    offsets[:, 2:4] = rng.uniform(20, 40, (count, 2))
    given_scores = Stored(logits_of(scores)[None] if are_logits else scores[None], dtype)
    given_boxes = Stored(offsets[None], dtype)
    found, boxes = decoded(given_scores, given_boxes, image=(1, side, side, 3))
    assert found.kind == "blazeface"
    real = [logistic(v) if are_logits else v for v in given_scores.real[0, :, 0]]
    rows = plain_blazeface(given_boxes.real[0], real, side, grids, LOWEST)
    plain = plain_weighted(rows, 0.3)
    same(boxes, plain)
    assert boxes.keypoints.shape == (len(plain), points, 3)
    np.testing.assert_allclose(
        boxes.keypoints[:, :, 2], np.repeat(boxes.scores[:, None], points, 1)
    )
    mine = np.sort(boxes.keypoints[:, :, :2].reshape(len(plain), -1), axis=0)
    reference = np.sort(np.array([row[3] for row in plain]), axis=0)
    np.testing.assert_allclose(mine, reference, atol=2e-3)


def test_tensorflows_anchors():
    anchors = tf_ssd_anchors()
    assert anchors.shape == (1917, 4)
    # ssd_anchor_generator of TensorFlow's object detection: the first cell of the first map, and
    # the only cell of the last one.
    np.testing.assert_allclose(
        anchors[:3],
        [
            [0.5 / 19, 0.5 / 19, 0.1, 0.1],
            [0.5 / 19, 0.5 / 19, 0.1414, 0.2828],
            [0.5 / 19, 0.5 / 19, 0.2828, 0.1414],
        ],
        atol=1e-4,
    )
    np.testing.assert_allclose(anchors[-6], [0.5, 0.5, 0.95, 0.95], atol=1e-6)
    np.testing.assert_allclose(anchors[-1], [0.5, 0.5, 0.9747, 0.9747], atol=1e-4)


def test_suppression_across_classes_is_honoured_everywhere():
    shape = (1, 6, CELLS)
    found = recognise(look([shape], image=IMAGE))
    output = np.zeros(shape, np.float32)
    output[0, :, 3] = [0.5, 0.5, 0.4, 0.4, 0.9, 0.1]
    output[0, :, 4] = [0.51, 0.5, 0.4, 0.4, 0.1, 0.8]
    assert found.bind(limits(found))([output]).class_ids.tolist() == [0, 1]
    assert found.bind(limits(found, is_agnostic=True))([output]).class_ids.tolist() == [0]
    assert found.bind(limits(found, max_detections=1))([output]).class_ids.tolist() == [0]


# Garbage

FAMILIES = {
    "yolov8": ([(1, 7, CELLS)], IMAGE, {}),
    "yolov8 rows": ([(1, CELLS, 7)], IMAGE, {"type": "yolov8"}),
    "yolov5": ([(1, 3 * CELLS, 8)], IMAGE, {}),
    "end to end": ([(1, 50, 6)], IMAGE, {"type": "yolo_end_to_end"}),
    "split": ([(1, 4, CELLS), (1, 3, CELLS)], IMAGE, {"box_format": "xywh"}),
    "distributions": ([(1, CELLS, 64), (1, CELLS, 3)], IMAGE, {}),
    "maps": ([(1, 8, 12, 67), (1, 4, 6, 67), (1, 2, 3, 67)], IMAGE, {"type": "yolo_split"}),
    "priors": ([(1, 8, 12, 24), (1, 4, 6, 24), (1, 2, 3, 24)], IMAGE, {"type": "yolo_split"}),
    "nanodet": ([(1, CELLS, 3), (1, CELLS, 44)], IMAGE, {}),
    "ssd_raw": ([(1, 1917, 4), (1, 1917, 3)], (1, 300, 300, 3), {}),
    "blazeface": ([(1, 896, 16), (1, 896, 1)], (1, 128, 128, 3), {}),
}
ODD = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40, 1e9, -1.0, 0.0, 0.6, 0.9, 1.0, 1.5, 70.0]


@pytest.mark.parametrize("family", FAMILIES)
@given(
    seed=st.integers(0, 2**32 - 1),
    odd=st.lists(st.sampled_from(ODD) | st.floats(width=32), min_size=1, max_size=4),
    dtype=st.sampled_from(["float32", "float16", "int8", "uint8"]),
    logits=st.booleans(),
    agnostic=st.booleans(),
    score=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
@settings(max_examples=40)
def test_garbage_never_crashes_or_leaks(family, seed, odd, dtype, logits, agnostic, score):
    shapes, image, wanted = FAMILIES[family]
    rng = np.random.default_rng(seed)
    first = [np.zeros(shape, np.float32) for shape in shapes]
    if family == "ssd_raw":
        first[1][0, 0, 1] = 0.1
    found = recognise(look(shapes, first, image=image, logits=logits, **wanted))
    outputs = []
    for shape in shapes:
        values = rng.choice(np.array([*odd, 0.0, 0.7], np.float32), shape)
        values[..., rng.integers(0, shape[-1])] = 0.5
        if dtype in ("int8", "uint8"):
            outputs.append(rng.integers(0, 255, shape).astype(dtype))
        else:
            with np.errstate(over="ignore"):
                outputs.append(values.astype(dtype))
    kept = limits(found, score, is_agnostic=agnostic)
    boxes = found.bind(kept)(outputs)
    assert boxes.xyxy_norm.shape == (len(boxes.scores), 4)
    assert boxes.xyxy_norm.dtype == boxes.scores.dtype == np.float32
    assert np.isfinite(boxes.xyxy_norm).all()
    assert np.abs(boxes.xyxy_norm).max(initial=0) <= 17
    assert (boxes.xyxy_norm[:, 2:] >= boxes.xyxy_norm[:, :2]).all()
    assert ((boxes.scores >= score - 1e-5) & (boxes.scores <= 1)).all()
    assert ((boxes.class_ids >= 0) & (boxes.class_ids < len(kept.thresholds))).all()
    assert (np.diff(boxes.scores) <= 1e-6).all()
    assert len(boxes.scores) <= kept.max_detections
    if boxes.keypoints is not None:
        assert boxes.keypoints.shape == (len(boxes.scores), 6, 3)
        assert (np.abs(boxes.keypoints) <= 17).all()


@pytest.mark.parametrize("family", FAMILIES)
@given(seed=st.integers(0, 2**32 - 1), value=st.sampled_from(ODD), is_told=st.booleans())
@settings(max_examples=15)
def test_garbage_in_the_first_run_is_survived(family, seed, value, is_told):
    """Whatever an interpreter's memory held: a head, `raw`, or a sentence."""
    from agent.errors import ModelError

    shapes, image, wanted = FAMILIES[family]
    rng = np.random.default_rng(seed)
    first = [
        np.where(rng.random(shape) < 0.5, np.float32(value), rng.normal(0, 1, shape)).astype("f4")
        for shape in shapes
    ]
    try:
        found = recognise(look(shapes, first, image=image, **(wanted if is_told else {})))
    except ModelError as error:
        assert str(error)
    else:
        assert found.why
