"""Segmentation exports of Ultralytics, read for their boxes."""

import numpy as np
import pytest
from looks import limits, look, tflite_file

from agent.errors import ModelError
from agent.vision.heads.choose import recognise

CELLS = 40 * 40 + 20 * 20 + 10 * 10
NAMES = {number: f"thing {number}" for number in range(3)}


def outputs_of(*, transposed):
    """One box of class 1 in row 5; the mask coefficients behind the scores are large."""
    rows = np.zeros((CELLS, 4 + 3 + 32), np.float32)
    rows[:, 7:] = 9.0
    rows[5, :7] = [0.5, 0.5, 0.2, 0.4, 0.1, 0.9, 0.2]
    boxes = rows[None] if transposed else rows.T[None]
    return [np.ascontiguousarray(boxes), np.zeros((1, 80, 80, 32), np.float32)]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("boxes_first", [False, True])
def test_boxes_without_masks(transposed, boxes_first):
    tensors = outputs_of(transposed=transposed)
    tensors = tensors if boxes_first else tensors[::-1]
    shapes = [tensor.shape for tensor in tensors]
    file = tflite_file(exporter={"task": "segment", "names": NAMES})
    found = recognise(look(shapes, tensors, file=file, box_format="xywh"))
    assert (found.kind, found.task, found.class_count) == ("yolo_segment", "detection", 3)
    assert "not the 32 masks" in found.why
    boxes = found.bind(limits(found))(tensors)
    assert boxes.class_ids.tolist() == [1]
    np.testing.assert_allclose(boxes.xyxy_norm, [[0.4, 0.3, 0.6, 0.7]], atol=1e-6)


def test_it_can_be_asked_for():
    tensors = outputs_of(transposed=False)
    shapes = [tensor.shape for tensor in tensors]
    asked = {"type": "yolo_segment", "box_format": "xywh"}
    assert recognise(look(shapes, tensors, **asked)).class_count == 3
    with pytest.raises(ModelError, match="a yolo_segment head does not fit"):
        recognise(look([(1, 39, CELLS)], **asked))


def test_rotated_boxes_are_published_raw():
    file = tflite_file(exporter={"task": "obb", "names": NAMES})
    found = recognise(look([(1, 8, CELLS)], file=file))
    assert found.kind == "raw"
    assert "rotated boxes" in found.why


def ambiguous(masks=32, *, channels_first=False):
    """v8 with 4 classes, or v5 with 3: no names, and candidates in rows."""
    rows = np.zeros((1, CELLS, 8 + masks), np.float32)
    rows[0, 5, :8] = [0.5, 0.5, 0.2, 0.4, 0.1, 0.9, 0.2, 0.3]
    grid = (1, masks, 80, 80) if channels_first else (1, 80, 80, masks)
    return [rows, np.zeros(grid, np.float32)]


@pytest.mark.parametrize("asked", [{}, {"type": "yolo_segment"}])
@pytest.mark.parametrize("channels_first", [False, True])
def test_without_names_it_is_v8_which_has_no_objectness(asked, channels_first):
    tensors = ambiguous(channels_first=channels_first)
    found = recognise(look([tensor.shape for tensor in tensors], tensors, **asked))
    assert (found.kind, found.class_count) == ("yolo_segment", 4)
    boxes = found.bind(limits(found))(tensors)
    assert (boxes.class_ids.tolist(), boxes.scores.tolist()) == ([1], [pytest.approx(0.9)])


def test_names_say_that_there_is_an_objectness():
    tensors = ambiguous()
    file = tflite_file(exporter={"names": NAMES})
    shapes = [tensor.shape for tensor in tensors]
    found = recognise(look(shapes, tensors, file=file, box_format="xywh"))
    assert (found.kind, found.class_count) == ("yolo_segment", 3)
    assert "yolov5" in found.why


def test_v5_has_three_candidates_per_cell():
    tensors = [np.zeros((1, 3 * CELLS, 85 + 32), np.float32), np.zeros((1, 80, 80, 32), np.float32)]
    found = recognise(look([tensor.shape for tensor in tensors], tensors))
    assert (found.kind, found.class_count) == ("yolo_segment", 80)
    assert "yolov5" in found.why


def test_eighty_classes_behind_an_objectness_are_no_reason_either():
    shapes = [(1, CELLS, 85 + 32), (1, 80, 80, 32)]
    assert recognise(look(shapes)).class_count == 81
