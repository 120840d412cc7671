"""Classifiers: which vectors are scores, and what they are before they are probabilities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from looks import limits, look, spec, tflite_file

from agent.errors import ModelError
from agent.vision.heads.choose import recognise
from agent.vision.tflite_file import BUILTIN_LOGISTIC, BUILTIN_SOFTMAX

LOGITS = np.array([1.0, 4.0, 2.0, -3.0, 0.5], np.float32)
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum()
SIGMOID = 1 / (1 + np.exp(-LOGITS))
# BuiltinOperator values, schema.fbs.
MEAN, AVERAGE_POOL, FULLY_CONNECTED, DIV = 40, 1, 9, 42


def made_by(operator):
    return tflite_file(producers={1: operator})


def scores_of(found, output, score=0.0, **changes):
    scores = found.bind(limits(found, score, **changes))([output])
    return dict(zip(scores.class_ids.tolist(), scores.scores.tolist(), strict=True))


@pytest.mark.parametrize("shape", [(1, 5), (5,), (1, 1, 1, 5), (1, 5, 1, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_logits_get_a_softmax(shape, dtype):
    output = LOGITS.astype(dtype).reshape(shape)
    found = recognise(look([spec(shape, dtype)], [output], labels=5))
    assert (found.kind, found.task, found.class_count) == ("classify", "classification", 5)
    assert "logits because" in found.why
    best = scores_of(found, output)
    assert list(best) == [1, 2, 0]
    assert best[1] == pytest.approx(SOFTMAX[1], abs=1e-3)


@pytest.mark.parametrize(
    ("values", "file", "first"),
    [
        (SOFTMAX, made_by(BUILTIN_SOFTMAX), np.zeros(5)),
        (SOFTMAX, None, SOFTMAX),
        (SIGMOID, made_by(BUILTIN_LOGISTIC), SIGMOID),
    ],
    ids=["softmax", "adds up to 1", "several labels at once"],
)
def test_probabilities_stay_as_they_are(values, file, first):
    found = recognise(look([(1, 5)], [np.float32(first)[None]], file=file, labels=5))
    assert "probabilities because" in found.why
    best = scores_of(found, values[None])
    assert list(best) == [1, 2, 0]
    assert list(best.values()) == pytest.approx(values[[1, 2, 0]], abs=1e-6)


@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point", "is_probability"),
    [
        (np.uint8, 1 / 256, 0, True),
        (np.int8, 1 / 256, -128, True),
        (np.int16, 1 / 32768, 0, True),
        (np.uint8, 0.06, 100, False),
        (np.int8, 0.06, -20, False),
        (np.int16, 0.001, 0, False),
    ],
)
def test_quantized_ranges(dtype, scale, zero_point, is_probability):
    real = SOFTMAX if is_probability else LOGITS
    limit = np.iinfo(dtype)
    output = np.clip(np.rint(real / scale) + zero_point, limit.min, limit.max).astype(dtype)
    found = recognise(look([spec((1, 5), dtype, scale, zero_point)], [output[None]], labels=5))
    assert ("probabilities because" in found.why) == is_probability
    best = scores_of(found, output[None])
    assert list(best) == [1, 2, 0]
    assert best[1] == pytest.approx(SOFTMAX[1], abs=0.03)


def test_the_manifest_has_the_last_word():
    found = recognise(look([(1, 5)], labels=5, logits=False))
    assert scores_of(found, SIGMOID[None])[1] == pytest.approx(SIGMOID[1], abs=1e-6)
    alone = recognise(look([(1, 1)], type="classify", logits=False))
    assert scores_of(alone, np.array([[0.7]], np.float32)) == {0: pytest.approx(0.7)}
    with pytest.raises(ModelError, match="a classify head does not fit"):
        recognise(look([spec((1, 5), np.int64)], type="classify"))


def test_top_k_thresholds_and_ties():
    found = recognise(look([(1, 5)], labels=5, logits=False))
    output = np.array([[0.2, 0.6, 0.6, 0.1, 0.4]], np.float32)
    assert list(scores_of(found, output, top_k=5)) == [1, 2, 4, 0, 3]
    assert list(scores_of(found, output, top_k=1)) == [1]
    assert list(scores_of(found, output, 0.5, top_k=5)) == [1, 2]
    thresholds = np.array([0.0, 2.0, 0.7, 0.0, 0.0], np.float32)
    assert list(scores_of(found, output, thresholds=thresholds, top_k=2)) == [4, 0]


@pytest.mark.parametrize("operator", [MEAN, AVERAGE_POOL])
def test_a_feature_vector_is_not_taken_for_scores(operator):
    found = recognise(look([(1, 1280)], file=made_by(operator)))
    assert found.kind == "raw"
    assert '"type": "classify"' in found.why
    told = recognise(look([(1, 1280)], file=made_by(operator), type="classify"))
    assert told.class_count == 1280


@pytest.mark.parametrize("shape", [(1, 4), (1, 128), (1, 136), (1, 1, 1, 5), (1, 1, 512)])
@pytest.mark.parametrize("values", [0, 0.3, 1])
def test_a_vector_alone_may_be_anything(shape, values):
    """Boxes, embeddings and landmarks are such vectors too."""
    first = np.linspace(0, values, shape[-1], dtype=np.float32).reshape(shape)
    found = recognise(look([shape], [first]))
    assert found.kind == "raw"
    assert f'say "type": "classify" or give their {shape[-1]} labels' in found.why


NAMED = {"names": dict(enumerate("abcde"))}


@pytest.mark.parametrize(
    "seen",
    [
        {"labels": 5},
        {"file": tflite_file(exporter=NAMED)},
        {"file": tflite_file(exporter={"names": list("abcde")})},
        {"file": tflite_file(exporter={"task": "classify"})},
        {"file": tflite_file(label_files={"labels.txt": tuple("abcde")})},
        {"file": tflite_file(label_files={"labels.txt": ("background", *"abcde")})},
        {"file": made_by(BUILTIN_SOFTMAX)},
        {"file": made_by(BUILTIN_LOGISTIC)},
        {"type": "classify"},
    ],
    ids=str,
)
def test_what_says_that_a_vector_is_scores(seen):
    found = recognise(look([(1, 5)], **seen))
    assert (found.kind, found.class_count) == ("classify", 5)


@pytest.mark.parametrize(
    ("one", "kind"),
    [
        (spec((1, 7), np.uint8, 1 / 256), "classify"),
        (spec((1, 7), np.uint8, 1 / 255), "classify"),
        (spec((1, 7), np.int8, 1 / 256, -128), "classify"),
        (spec((1, 7), np.int16, 1 / 32768), "classify"),
        (spec((1, 7), np.int8, 1 / 128), "raw"),  # -1 to 1, as of an embedding
        (spec((1, 7), np.uint8, 6 / 255), "raw"),
        (spec((1, 7), np.uint8, 1 / 256, 128), "raw"),
        (spec((1, 1000)), "classify"),
        (spec((1, 1001), np.int8, 0.1, 3), "classify"),
        (spec((1, 1024)), "raw"),
    ],
    ids=str,
)
def test_ranges_of_scores_and_imagenet(one, kind):
    assert recognise(look([one])).kind == kind


SIGMOIDS = np.array([0.1, 0.9, 0.8, 0.0, 0.3], np.float32)


@pytest.mark.parametrize(
    ("first", "operator", "are_logits"),
    [
        (SIGMOIDS, DIV, False),
        (SIGMOIDS, FULLY_CONNECTED, False),  # five logits do not lie there by chance
        (SIGMOIDS[:3], DIV, False),
        (SIGMOIDS[:3], FULLY_CONNECTED, True),
        (np.float32([0.25, 0.75]), FULLY_CONNECTED, False),
        (np.zeros(5), DIV, True),
        (np.full(5, np.nan), DIV, True),
        (SIGMOIDS * 2, DIV, True),
        (SIGMOIDS - 0.1, DIV, True),
    ],
)
def test_scores_within_0_to_1_are_probabilities(first, operator, are_logits):
    count = len(first)
    found = recognise(
        look([(1, count)], [np.float32(first)[None]], file=made_by(operator), labels=count)
    )
    assert ("logits because" in found.why) == are_logits
    assert found.read_as == {"logits": are_logits}


def test_a_single_logit_gets_a_sigmoid():
    found = recognise(look([(1, 1)], type="classify", logits=True))
    assert scores_of(found, np.array([[0.7]], np.float32)) == {0: pytest.approx(0.668, abs=1e-3)}


@pytest.mark.parametrize("shape", [(1, 1), (1, 2, 5), (2, 5)])
def test_other_shapes_are_no_scores(shape):
    assert recognise(look([shape])).kind == "raw"


@given(
    st.lists(st.floats(width=32), min_size=2, max_size=40),
    st.booleans(),
)
def test_any_numbers(values, are_logits):
    output = np.array([values], np.float32)
    found = recognise(look([output.shape], type="classify", logits=are_logits))
    scores = found.bind(limits(found, 0.0, top_k=100))([output])
    assert ((scores.scores >= 0) & (scores.scores <= 1)).all()
    assert (np.diff(scores.scores) <= 0).all()
    assert len(set(scores.class_ids.tolist())) == len(scores.class_ids)
