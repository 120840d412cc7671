"""Which head fits which outputs, and what is said where none does."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from looks import limits, look, spec, tflite_file

from agent.config import ModelConfig
from agent.contract.manifest import Manifest
from agent.errors import ModelError
from agent.vision.exporter_notes import parse_notes
from agent.vision.heads.choose import recognise
from agent.vision.model import lowest_scores

CELLS_320 = 40 * 40 + 20 * 20 + 10 * 10


def test_more_classes_than_anyone_named():
    shape = (1, 2102)
    found = recognise(look([shape], image=(1, 224, 224, 3), type="classify", logits=False))
    thresholds = lowest_scores(ModelConfig(), Manifest(name="m"), found, ())
    scores = np.zeros(shape, np.float32)
    scores[0, 2000] = 0.9
    assert found.bind(limits(found, thresholds=thresholds))([scores]).class_ids[0] == 2000


@pytest.mark.parametrize(
    ("shape", "kind", "classes"),
    [
        ((1, 84, CELLS_320), "yolov8", 80),
        ((1, CELLS_320, 84), "yolov8", 80),
        ((1, CELLS_320, 5), "yolov8", 1),
        ((1, 3 * CELLS_320, 85), "yolov5", 80),
        ((1, 7, 3 * CELLS_320), "yolov5", 2),
        ((1, 1001), "classify", 1001),
    ],
)
def test_heads_are_told_apart_by_shape(shape, kind, classes):
    found = recognise(look([shape]))
    assert (found.kind, found.class_count) == (kind, classes)
    assert found.bind(limits(found))([np.zeros(shape, np.float32)]).scores.size == 0


@pytest.mark.parametrize(("largest", "unit"), [(0.99, 1), (315.0, 320)])
def test_pixel_boxes_are_told_from_fractions(largest, unit):
    shape = (1, 84, CELLS_320)
    first = np.zeros(shape, np.float32)
    first[0, :2] = np.linspace(0, largest, CELLS_320)
    found = recognise(look([shape], [first]))
    output = np.zeros(shape, np.float32)
    output[0, :5, 7] = [0.5 * unit, 0.5 * unit, 0.2 * unit, 0.4 * unit, 0.9]
    boxes = found.bind(limits(found))([output])
    np.testing.assert_allclose(boxes.xyxy_norm, [[0.4, 0.3, 0.6, 0.7]], atol=1e-6)


@pytest.mark.parametrize("shapes", [[(1, 10, 10, 4)], [(1, 84, 77)], [(1, 10), (1, 20)]])
def test_what_fits_no_head_is_raw_and_says_so(shapes):
    found = recognise(look(shapes))
    assert (found.kind, found.task) == ("raw", "raw")
    assert "no head fits its outputs (out0 float32" in found.why


def test_a_head_that_is_asked_for_and_does_not_fit():
    with pytest.raises(ModelError, match=r"a yolov8 head does not fit its outputs \(out0"):
        recognise(look([(1, 10), (1, 20)], type="yolov8"))


def test_stored_numbers_are_made_real_for_raw():
    found = recognise(look([spec((1, 2, 3), np.uint8, 0.5, 10)], type="raw"))
    ((name, values),) = found.bind(limits(found))([np.full((1, 2, 3), 12, np.uint8)]).values
    assert name == "out"
    np.testing.assert_array_equal(values, np.full((1, 2, 3), 1.0))


ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 90) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
NOTED = st.sampled_from(["names", "task", "kpt_shape", "args", "end2end", "imgsz", "stride"])


@given(
    st.dictionaries(NOTED, ODD | st.sampled_from(["pose", "segment", "classify", [17, 3]])),
    st.sampled_from([(1, 84, CELLS_320), (1, 56, CELLS_320), (1, 300, 6), (1, 1000), (1, 5)]),
)
def test_any_notes_of_an_exporter(notes, shape):
    file = tflite_file(exporter=parse_notes(repr(notes)) or {})
    with contextlib.suppress(ModelError):
        assert recognise(look([shape], file=file)).why
