"""Which YOLO some outputs are: told by proof, settled by a manifest, or said to be open."""

import numpy as np
import pytest
from first_runs import (
    CELLS,
    CELLS_P6,
    IMAGE,
    STRIDES,
    background,
    boxes_on_grid,
    listed,
    named,
)
from looks import limits, look, spec, tflite_file

from agent.errors import ModelError
from agent.vision.heads.choose import recognise
from agent.vision.heads.evidence import box_form


def single(form, classes, *, unit=1.0, objectness=False, axis=0):
    """A first run of one tensor that holds everything."""
    parts = [boxes_on_grid(form, unit), background(CELLS, classes + objectness)]
    rows = np.concatenate(parts, axis=1)
    return np.ascontiguousarray(rows.T if axis == 0 else rows)[None]


# One tensor


@pytest.mark.parametrize(
    ("image", "cells"),
    [
        ((1, 640, 640, 3), 8400),
        ((1, 224, 224, 3), 1029),
        ((1, 384, 640, 3), 48 * 80 + 24 * 40 + 12 * 20),
        ((1, 320, 320, 3), CELLS_P6),
        ((1, 320, 320, 3), 80 * 80 + CELLS),
        ((1, 416, 416, 3), 26 * 26 + 13 * 13),
    ],
)
def test_grids_of_other_sizes_and_strides(image, cells):
    assert recognise(look([(1, 5, cells)], image=image)).class_count == 1
    assert recognise(look([(1, 84, cells)], image=image)).kind == "yolov8"


@pytest.mark.parametrize(
    ("shape", "names", "kind"),
    [
        ((1, CELLS, 7), 3, "yolov8"),
        ((1, CELLS, 7), 2, "yolov5"),
        ((1, 7, CELLS), 3, "yolov8"),
        ((1, 7, CELLS), 2, "yolov5"),
        ((1, 3 * CELLS, 6), 1, "yolov5"),
    ],
)
def test_the_number_of_names_settles_objectness(shape, names, kind):
    rows = single("xywh", 3, axis=0 if shape[1] == 7 else 1) if CELLS in shape else None
    found = recognise(look([shape], rows and [rows] if rows is None else [rows], file=named(names)))
    assert (found.kind, found.class_count) == (kind, names)


def test_names_that_fit_no_reading_leave_it_raw_and_say_so():
    found = recognise(look([(1, 9, CELLS)], file=named(3)))
    assert found.kind == "raw"
    assert "names 3 classes, but as YOLO it has room for 5 or 4" in found.why


@pytest.mark.parametrize("classes", [2, 3, 20])
def test_rows_that_may_or_may_not_have_an_objectness_are_refused(classes):
    with pytest.raises(ModelError, match=rf"yolov8 with {classes + 1} classes or yolov5 with"):
        recognise(look([(1, CELLS, 5 + classes)]))


@pytest.mark.parametrize(("channels", "kind"), [(84, "yolov8"), (85, "yolov5")])
def test_coco_in_rows(channels, kind):
    rows = single("xywh", 80, unit=320, objectness=channels == 85, axis=1)
    found = recognise(look([(1, CELLS, channels)], [rows]))
    assert (found.kind, found.class_count) == (kind, 80)
    assert "in pixels" in found.why


def test_undecoded_yolox_is_not_read_as_boxes():
    rows = np.random.default_rng(0).normal(0, 1, (1, CELLS, 85)).astype(np.float32)
    found = recognise(look([(1, CELLS, 85)], [rows]))
    assert found.kind == "raw"
    assert "--decode_in_inference" in found.why
    with pytest.raises(ModelError, match="--decode_in_inference"):
        recognise(look([(1, CELLS, 85)], [rows], type="yolov5"))


@pytest.mark.parametrize("form", ["xywh", "xyxy", "yxyx"])
@pytest.mark.parametrize("unit", [1.0, 320.0])
def test_the_first_run_tells_how_boxes_are_written(form, unit):
    found = recognise(look([(1, 84, CELLS)], [single(form, 80, unit=unit)]))
    output = np.zeros((1, 84, CELLS), np.float32)
    written = {"xywh": [0.3, 0.4, 0.2, 0.4], "xyxy": [0.2, 0.2, 0.4, 0.6]}
    written["yxyx"] = [0.2, 0.2, 0.6, 0.4]
    output[0, :5, 9] = [*(unit * value for value in written[form]), 0.9]
    boxes = found.bind(limits(found))([output])
    np.testing.assert_allclose(boxes.xyxy_norm, [[0.2, 0.2, 0.4, 0.6]], atol=1e-6)


@pytest.mark.parametrize(("kind", "channels"), [("yolov8", 84), ("yolov5", 85)])
def test_logits_are_told_and_made_scores(kind, channels):
    count = CELLS if kind == "yolov8" else 3 * CELLS
    rows = np.full((1, channels, count), -5, np.float32)
    rows[0, :4] = 0.1
    found = recognise(look([(1, channels, count)], [rows]))
    assert "scores are logits" in found.why
    output = rows.copy()
    output[0, :4, 7] = [0.5, 0.5, 0.2, 0.2]
    output[0, 4:6, 7] = [2.0, 3.0]
    boxes = found.bind(limits(found))([output])
    expected = 1 / (1 + np.exp(-3.0))
    if kind == "yolov5":
        expected /= 1 + np.exp(-2.0)
    assert boxes.scores == pytest.approx([expected])
    told = recognise(look([(1, channels, count)], [rows], logits=False))
    assert told.bind(limits(told))([output]).scores.size == 0  # 2 and 3 are no probabilities


def test_a_channel_that_holds_no_scores_is_not_taken_for_a_class():
    rows = single("xywh", 16)
    rows[0, -1] = np.linspace(-0.7, 2.3, CELLS)  # the angle of a rotated box
    found = recognise(look([(1, 20, CELLS)], [rows]))
    assert found.kind == "raw"
    assert "rotated boxes or key points" in found.why
    assert recognise(look([(1, 20, CELLS)], [rows], type="yolov8")).class_count == 16


@pytest.mark.parametrize("task", ["segment", "obb"])
def test_exporters_tasks_that_are_no_detectors(task):
    found = recognise(look([(1, 84, CELLS)], file=tflite_file(exporter={"task": task})))
    assert found.kind == "raw"


def test_pixels_in_eight_bits_leave_nothing_of_the_scores():
    shape = spec((1, 84, CELLS), np.int8, 2.5, -128)
    first = np.full(shape.shape, -128, np.int8)
    first[0, :4] = np.arange(4)[:, None]
    with pytest.raises(ModelError, match=r"in steps of 2\.5, too coarse"):
        recognise(look([shape], [first]))


def test_eight_bit_pixels_beside_logits_are_read():
    """In steps of a half, logits still tell what is likely, and boxes lie on 128 pixels."""
    shape = spec((1, 84, 16 * 16 + 8 * 8 + 4 * 4), np.uint8, 0.5, 20)
    first = np.full(shape.shape, 8, np.uint8)
    found = recognise(look([shape], [first], image=(1, 128, 128, 3)))
    output = first.copy()
    output[0, :6, 5] = [20 + 128, 20 + 64, 20 + 64, 20 + 32, 30, 8]  # 64, 32, 32, 16 pixels
    boxes = found.bind(limits(found))([output])
    np.testing.assert_allclose(boxes.xyxy_norm, [[0.375, 0.1875, 0.625, 0.3125]], atol=1e-6)
    assert boxes.scores == pytest.approx([1 / (1 + np.exp(-5.0))])


def test_boxes_of_which_some_are_in_order_prove_nothing():
    boxes = boxes_on_grid("xyxy")
    boxes[::10] = boxes[::10][:, [2, 3, 0, 1]]
    assert box_form(boxes, spec(IMAGE, np.uint8), STRIDES) is None
    assert box_form(boxes_on_grid("xyxy"), spec(IMAGE, np.uint8), STRIDES) == "xyxy"


def test_the_range_of_a_tensor_of_scores_tells_logits_for_any_run():
    specs = [
        spec((1, CELLS, 80), np.int8, 0.05, 70, name="scores", index=0),
        spec((1, CELLS, 44), np.int8, 0.05, 70, name="sides", index=1),
    ]
    first = [np.full(one.shape, 70, np.int8) for one in specs]
    assert "scores are logits" in recognise(look(specs, first)).why


# Rows with suppression inside


def results(count=300, unit=320.0):
    """A first run of YOLOv10: always full, best first."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 200, (count, 2))
    corners = np.concatenate([low, low + rng.uniform(1, 100, (count, 2))], axis=1) / 320 * unit
    scores = np.sort(rng.uniform(0, 0.1, (count, 1)), axis=0)[::-1]
    classes = rng.integers(0, 80, (count, 1))
    return np.concatenate([corners, scores, classes], axis=1).astype(np.float32)[None]


@pytest.mark.parametrize("unit", [1.0, 320.0])
def test_end_to_end_by_its_rows(unit):
    found = recognise(look([(1, 300, 6)], [results(unit=unit)]))
    assert (found.kind, found.class_count) == ("yolo_end_to_end", None)
    output = np.zeros((1, 300, 6), np.float32)
    output[0, 0] = [0.1 * unit, 0.2 * unit, 0.5 * unit, 0.6 * unit, 0.8, 17]
    output[0, 1] = [0.1 * unit, 0.2 * unit, 0.5 * unit, 0.6 * unit, 0.7, 17]
    boxes = found.bind(limits(found))([output])
    np.testing.assert_allclose(boxes.xyxy_norm, [[0.1, 0.2, 0.5, 0.6]] * 2, atol=1e-6)
    assert boxes.class_ids.tolist() == [17, 17]


def test_end_to_end_with_empty_rows_needs_a_word():
    empty = np.zeros((1, 300, 6), np.float32)
    found = recognise(look([(1, 300, 6)], [empty]))
    assert found.kind == "raw"
    assert 'say "yolo_end_to_end"' in found.why
    for file in (named(80, args={"nms": True}), named(80, end2end=True, task="detect")):
        found = recognise(look([(1, 300, 6)], [empty], file=file))
        assert (found.kind, found.class_count) == ("yolo_end_to_end", 80)
    assert recognise(look([(1, 300, 6)], [empty], type="yolo_end_to_end")).class_count is None


def test_a_detr_of_two_classes_is_not_taken_for_results():
    rows = results()
    rows[0, :, 5] = np.random.default_rng(1).uniform(0, 1, 300)
    assert recognise(look([(1, 300, 6)], [rows])).kind == "raw"


def test_results_and_candidates_of_the_same_shape():
    """12 x 20 and 6 x 10 cells, at the strides 16 and 32, are 300 candidates too."""
    image, shape = (1, 192, 320, 3), (1, 300, 6)
    found = recognise(look([shape], [results()], image=image))
    assert found.kind == "yolo_end_to_end"  # 79 is no score
    empty = np.zeros(shape, np.float32)
    with pytest.raises(ModelError, match=r"yolov8 with 2 classes or yolov5 with 1 .* behind an ob"):
        recognise(look([shape], [empty], image=image))
    with pytest.raises(ModelError, match=r"2 ways: yolov8 because.*suppression inside because"):
        recognise(look([shape], [empty], image=image, file=named(2, end2end=True)))
    for kind in ("yolo_end_to_end", "yolov8"):
        assert recognise(look([shape], [empty], image=image, type=kind)).kind == kind


def test_eight_bits_cannot_hold_results():
    with pytest.raises(ModelError, match="beside the class numbers"):
        recognise(look([spec((1, 300, 6), np.int8, 0.4, -128)]))


# Boxes and scores apart


@pytest.mark.parametrize("form", ["xywh", "xyxy", "yxyx"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("is_turned", [False, True])
def test_decoded_boxes_beside_scores(form, axis, is_turned):
    parts = [boxes_on_grid(form), background(CELLS, 7)]
    first = [np.ascontiguousarray(part.T if axis == 0 else part)[None] for part in parts]
    order = [1, 0] if is_turned else [0, 1]
    found = recognise(look([first[at].shape for at in order], [first[at] for at in order]))
    assert (found.kind, found.class_count) == ("yolo_split", 7)
    assert f"boxes {form} in pixels of the input" in found.why


def test_decoded_boxes_of_which_the_first_run_proves_nothing():
    shapes = [(1, 4, CELLS), (1, 7, CELLS)]
    found = recognise(look(shapes))
    assert found.kind == "raw"
    assert '"box_format"' in found.why
    told = recognise(look(shapes, box_format="xyxy", box_units="pixels"))
    boxes, scores = (np.zeros(shape, np.float32) for shape in shapes)
    boxes[0, :, 3], scores[0, 2, 3] = [32, 64, 160, 192], 0.9
    found = told.bind(limits(told))([boxes, scores])
    np.testing.assert_allclose(found.xyxy_norm, [[0.1, 0.2, 0.5, 0.6]], atol=1e-6)


def test_four_classes_beside_four_coordinates():
    first = [boxes_on_grid("xywh")[None], background(CELLS, 4)[None]]
    found = recognise(look([(1, CELLS, 4)] * 2, first))
    assert found.kind == "raw"
    assert "which output holds the boxes is not known" in found.why


def test_distributions_beside_logits_as_frigate_has_them():
    sides, scores = (1, CELLS, 64), (1, CELLS, 80)
    first = [np.full(scores, -6, np.float32), np.zeros(sides, np.float32)]
    found = recognise(look([scores, sides], first))
    assert (found.kind, found.class_count) == ("yolo_split", 80)
    best = first[0].max(axis=2)[..., None]
    with_best = recognise(look([scores, sides, (1, CELLS, 1)], [*first, best]))
    assert with_best.kind == "yolo_split"


def maps(channels, image=IMAGE, order="nhwc", strides=STRIDES):
    sizes = [(image[1] // stride, image[2] // stride) for stride in strides]
    return [(1, h, w, channels) if order == "nhwc" else (1, channels, h, w) for h, w in sizes]


def filled(shapes, value=-6.0):
    return [np.full(shape, value, np.float32) for shape in shapes]


@pytest.mark.parametrize("order", ["nhwc", "nchw"])
@pytest.mark.parametrize("image", [IMAGE, (1, 192, 320, 3)])
def test_feature_maps(order, image):
    whole = maps(144, image, order)
    found = recognise(look(whole, filled(whole), image=image))
    assert (found.kind, found.class_count) == ("yolo_split", 80)
    halves = [*maps(3, image, order), *maps(64, image, order)[::-1]]
    found = recognise(look(halves, filled(halves), image=image))
    assert (found.kind, found.class_count) == ("yolo_split", 3)


def test_feature_maps_whose_classes_nobody_knows():
    found = recognise(look(maps(67), filled(maps(67))))
    assert found.kind == "raw"
    assert "67 channels could be a YOLO's sides and 3 classes" in found.why
    for one in (
        look(maps(67), filled(maps(67)), file=listed("a", "b", "c")),
        look(maps(67), filled(maps(67)), type="yolo_split"),
    ):
        assert recognise(one).class_count == 3


@pytest.mark.parametrize("shapes", [maps(255), maps(255, order="nchw"), [
    (1, 3, 40, 40, 85), (1, 3, 20, 20, 85), (1, 3, 10, 10, 85)]])  # fmt: skip
def test_maps_with_priors_are_only_read_when_told(shapes):
    found = recognise(look(shapes, filled(shapes)))
    assert found.kind == "raw"
    assert "YOLOv5, v7 and v3 decode differently" in found.why
    told = recognise(look(shapes, filled(shapes), type="yolo_split"))
    assert (told.kind, told.class_count) == ("yolo_split", 80)
