"""Which grids are class maps, and which class each cell gets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from looks import limits, look, spec, tflite_file

from agent.vision.heads.choose import recognise
from agent.vision.heads.segment import BUILTIN_ARG_MAX, BUILTIN_CAST, NO_CLASS
from agent.vision.tflite_file import BUILTIN_LOGISTIC, BUILTIN_SOFTMAX

IMAGE = (1, 64, 96, 3)
IDS = np.arange(32 * 48).reshape(32, 48) // 100  # 16 classes
RNG = np.random.default_rng(3)


def made_by(operator):
    return tflite_file(producers={1: operator})


def decoded(found, output, score=0.5, **changes):
    return found.bind(limits(found, score, **changes))([output])


@pytest.mark.parametrize("shape", [(1, 32, 48), (1, 32, 48, 1)])
@pytest.mark.parametrize(
    ("dtype", "file"),
    [
        (np.int64, None),
        (np.int32, None),
        (np.uint8, None),
        (np.float32, made_by(BUILTIN_ARG_MAX)),
        (np.float32, made_by(BUILTIN_CAST)),
    ],
)
def test_class_numbers(shape, dtype, file):
    output = IDS.astype(dtype).reshape(shape)
    found = recognise(look([spec(shape, dtype)], [output], image=IMAGE, file=file))
    assert (found.kind, found.task, found.class_count) == ("segment", "segmentation", None)
    np.testing.assert_array_equal(decoded(found, output).class_ids, IDS)


@pytest.mark.parametrize("classes", [2, 3, 21])
def test_softmax_of_classes(classes):
    real = RNG.dirichlet(np.ones(classes), (32, 48)).astype(np.float32)[None]
    for file, first in ((made_by(BUILTIN_SOFTMAX), None), (None, [real])):
        found = recognise(look([real.shape], first, image=IMAGE, file=file))
        assert (found.kind, found.class_count) == ("segment", classes)
        np.testing.assert_array_equal(decoded(found, real).class_ids, real[0].argmax(axis=2))
    stored = np.rint(real * 256).clip(0, 255).astype(np.uint8)
    found = recognise(look([spec(stored.shape, np.uint8, 1 / 256)], [stored], image=IMAGE))
    np.testing.assert_array_equal(decoded(found, stored).class_ids, stored[0].argmax(axis=2))


def test_logits_at_full_size():
    output = RNG.normal(0, 5, (1, 64, 96, 21)).astype(np.float32)
    output[0, 5, 6, 7] = np.nan
    found = recognise(look([output.shape], [output], image=IMAGE))
    assert (found.kind, found.class_count) == ("segment", 21)
    ids = decoded(found, output).class_ids
    assert ids[5, 6] == NO_CLASS
    assert (ids == np.nan_to_num(output[0], nan=-99).argmax(axis=2)).mean() > 0.999


MASK = RNG.uniform(0.02, 0.98, (1, 32, 48, 1)).astype(np.float32)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("kind", ["sigmoid", "logits", "uint8", "int8", "int8 logits"])
def test_one_score_per_cell_is_a_mask(kind, threshold):
    logits = np.log(MASK / (1 - MASK))
    file, wanted, one = None, {}, MASK.shape
    if kind == "sigmoid":
        output, file = MASK, made_by(BUILTIN_LOGISTIC)
    elif kind == "logits":
        output, wanted = logits, {"type": "segment", "logits": True}
    elif kind == "uint8":
        output, one = np.rint(MASK * 256).astype(np.uint8), spec(MASK.shape, np.uint8, 1 / 256)
    elif kind == "int8":
        output = (np.rint(MASK * 256) - 128).astype(np.int8)
        one = spec(MASK.shape, np.int8, 1 / 256, -128)
    else:
        output, wanted = np.rint(logits / 0.05).astype(np.int8), {"type": "segment"}
        one = spec(MASK.shape, np.int8, 0.05)
    found = recognise(look([one], [output], image=IMAGE, file=file, **wanted))
    assert (found.kind, found.class_count) == ("segment", 2)
    ids = decoded(found, output, threshold).class_ids
    assert set(np.unique(ids)) == {0, 1}
    is_clear = abs(MASK[0, :, :, 0] - threshold) > 0.02
    np.testing.assert_array_equal(ids[is_clear], (MASK[0, :, :, 0] >= threshold)[is_clear])
    assert not decoded(found, output, 2.0).class_ids.any()


def test_classes_that_are_left_out_are_not_counted():
    found = recognise(look([spec((1, 32, 48), np.int64)], image=IMAGE))
    thresholds = np.array([0.5, 2.0, 0.5], np.float32)
    counted = decoded(found, IDS[None], thresholds=thresholds).counted
    assert counted.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("one", "first"),
    [
        ((1, 64, 96, 3), None),  # a picture
        ((1, 64, 96, 1), RNG.uniform(0, 900, (1, 64, 96, 1))),  # depth
        ((1, 16, 24, 17), None),  # heat maps of a pose
        ((1, 96, 64), np.full((1, 96, 64), 0.5)),  # lies across
        ((1, 1000, 4), None),
        (spec((1, 32, 48, 1), np.int8, 0.1), None),
    ],
    ids=str,
)
def test_other_grids_are_no_class_maps(one, first):
    found = recognise(look([one], None if first is None else [np.float32(first)], image=IMAGE))
    assert found.kind == "raw"


@pytest.mark.parametrize("channels", [2, 50, 68, 80, 98, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_maps_of_nothing_do_not_add_up_to_1(channels, dtype):
    """Heat maps of faces' points and of centres are 0 nearly everywhere."""
    one = spec((1, 16, 24, channels), dtype, 1 / 256 if dtype == np.uint8 else 0.0)
    assert recognise(look([one], image=IMAGE)).kind == "raw"


SMOOTH = RNG.uniform(0.02, 0.98, (1, 64, 96, 2)).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("stored", ["float", "uint8"])
def test_depth_noise_and_colour_within_0_to_1_are_no_classes(channels, stored):
    first, one = SMOOTH[..., :channels], (1, 64, 96, channels)
    if stored == "uint8":
        first, one = np.rint(first * 255).astype(np.uint8), spec(one, np.uint8, 1 / 255)
    found = recognise(look([one], [first], image=IMAGE))
    assert found.kind == "raw"
    assert '"type": "segment"' in found.why
    labelled = recognise(look([one], [first], image=IMAGE, labels=2))
    assert (labelled.kind, labelled.class_count) == ("segment", 2)


@pytest.mark.parametrize(
    ("shape", "labels", "kind"),
    [
        ((1, 64, 96, 21), 0, "segment"),  # DeepLab without a last operator: Pascal VOC
        ((1, 64, 96, 7), 0, "raw"),
        ((1, 64, 96, 7), 7, "segment"),
        ((1, 32, 48, 21), 0, "raw"),  # points of a hand, perhaps
        ((1, 32, 48, 21), 21, "segment"),
        ((1, 32, 48, 21), 20, "raw"),
    ],
)
def test_logits_are_classes_where_their_number_is_known(shape, labels, kind):
    output = RNG.normal(0, 5, shape).astype(np.float32)
    found = recognise(look([shape], [output], image=IMAGE, labels=labels))
    assert found.kind == kind


@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point"), [(np.int16, 1 / 32768, 0), (np.int8, 1 / 256, -128)]
)
def test_a_sigmoid_is_known_by_its_steps(dtype, scale, zero_point):
    found = recognise(look([spec((1, 32, 48, 1), dtype, scale, zero_point)], image=IMAGE))
    assert found.read_as == {"logits": False}
    output = np.full((1, 32, 48, 1), round(0.6 / scale) + zero_point, dtype)
    assert decoded(found, output, 0.5).class_ids.all()
    assert not decoded(found, output, 0.7).class_ids.any()


@pytest.mark.parametrize("channels", [3, 17])
def test_the_manifest_may_ask_for_it(channels):
    output = RNG.normal(0, 1, (1, 16, 24, channels)).astype(np.float32)
    found = recognise(look([output.shape], [output], image=IMAGE, type="segment"))
    np.testing.assert_array_equal(decoded(found, output).class_ids, output[0].argmax(axis=2))


@given(st.lists(st.floats() | st.integers(-(10**12), 10**12), min_size=1, max_size=40))
def test_any_numbers_in_a_map(values):
    for dtype, file in ((np.float32, made_by(BUILTIN_ARG_MAX)), (np.int64, None)):
        with np.errstate(all="ignore"):
            output = np.resize(np.array(values, float), (1, 8, 12)).astype(dtype)
        found = recognise(look([spec(output.shape, dtype)], image=IMAGE, file=file))
        ids = decoded(found, output).class_ids
        valid = (output[0] >= 0) & (output[0] < 32_000)
        np.testing.assert_array_equal(ids[valid], output[0][valid].astype(np.int64))
        assert (ids[~valid & ~(output[0] >= 32_000)] == NO_CLASS).all()
