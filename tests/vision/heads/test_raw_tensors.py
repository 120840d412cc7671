"""Outputs nobody reads: their statistics, in a result of bounded size without a NaN."""

import json

import jsonschema
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from looks import limits, look, spec
from made_models import MadeTensor, made_model

from agent.config import ModelConfig
from agent.contract.schema import document
from agent.vision.detect import StillModel
from agent.vision.encode import MAX_TENSORS, statistics_of
from agent.vision.heads.choose import recognise
from agent.vision.heads.raw import hint_for
from agent.vision.model import load_model


class Engine:
    """The part of a model that the statistics look at."""

    def __init__(self, outputs):
        self.outputs = outputs


class FakeModel:
    """A model that only has outputs."""

    head_outputs = ()

    def __init__(self, outputs):
        self.engine = Engine(outputs)


def statistics(*tensors, specs=None):
    specs = specs or [spec(one.shape, one.dtype, name=f"out{at}") for at, one in enumerate(tensors)]
    found = recognise(look(specs, list(tensors), type="raw"))
    rows = statistics_of(found.bind(limits(found))(tensors), FakeModel(specs))
    sent = json.loads(msgspec.json.encode(rows))
    schema = document("detections")
    part = {**schema["$defs"]["TensorStatistics"], "$defs": schema["$defs"]}
    for row in sent:
        jsonschema.Draft202012Validator(part).validate(row)
    return sent


def test_numbers_of_each_output():
    first = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    second = np.array([[3, -4]], np.int64)
    rows = statistics(first, second)
    assert rows[0] == {
        "name": "out0", "shape": [1, 2, 3, 4], "dtype": "float32",
        "min": 0.0, "max": 23.0, "mean": 11.5, "not_finite": 0,
    }  # fmt: skip
    assert rows[1]["values"] == [3.0, -4.0]
    assert (rows[1]["dtype"], rows[1]["mean"]) == ("int64", -0.5)


def test_quantized_numbers_are_real_ones():
    one = spec((1, 3), np.int8, 0.5, -10, name="q")
    (row,) = statistics(np.array([[-10, 0, 10]], np.int8), specs=[one])
    assert (row["dtype"], row["min"], row["max"], row["values"]) == ("int8", 0, 10, [0, 5, 10])


def test_what_is_not_finite_is_counted_and_never_sent():
    values = np.array([np.nan, 1.0, np.inf, -np.inf, 3.0], np.float32)
    (row,) = statistics(values)
    assert row["not_finite"] == 3
    assert (row["min"], row["max"], row["mean"]) == (1.0, 3.0, 2.0)
    assert row["values"] == [None, 1.0, None, None, 3.0]
    (row,) = statistics(np.full((1, 100), np.nan, np.float32))
    assert (row["not_finite"], row["min"], row["max"], row["mean"]) == (100, None, None, None)
    (row,) = statistics(np.full(20, 3e38, np.float32))  # whose float32 sum is infinite
    assert (row["not_finite"], row["mean"]) == (0, pytest.approx(3e38))


@given(st.lists(st.floats(width=32), max_size=40), st.sampled_from([np.float32, np.float16]))
def test_any_numbers(values, dtype):
    with np.errstate(over="ignore"):
        tensor = np.array(values, dtype)
    (row,) = statistics(tensor)
    finite = tensor[np.isfinite(tensor)].astype(np.float64)
    assert row["not_finite"] == len(tensor) - len(finite)
    if len(finite):
        assert row["min"] == pytest.approx(finite.min(), rel=1e-6)
        assert row["max"] == pytest.approx(finite.max(), rel=1e-6)
    assert ("values" in row) == (0 < len(tensor) <= 16)


def test_many_outputs_with_long_names_are_bounded():
    tensors = [np.zeros(16, np.float32)] * 200
    specs = [spec((16,), name="n" * 5000) for _ in tensors]
    rows = statistics(*tensors, specs=specs)
    assert len(rows) == MAX_TENSORS
    assert len(json.dumps(rows)) < 64_000


def test_a_real_file_nobody_can_read(tmp_path):
    path = tmp_path / "odd.tflite"
    path.write_bytes(
        made_model(
            [
                MadeTensor(np.array([[1.5, np.nan]], np.float32), name="a"),
                MadeTensor(np.zeros((1, 7, 9, 2), np.int8), name="b", scale=0.5, zero_point=2),
            ]
        )
    )
    model = load_model(ModelConfig(path=str(path)))
    assert (model.head.kind, model.head.task) == ("raw", "raw")
    findings, _ = StillModel(model).find(np.zeros((40, 60, 3), np.uint8))
    rows = {row.name: row for row in findings.tensors}
    assert (rows["a"].values, rows["a"].not_finite) == ([1.5, None], 1)
    assert (rows["b"].shape, rows["b"].dtype, rows["b"].max) == ([1, 7, 9, 2], "int8", -1.0)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 84, 777), '"type": "yolov8"'),
        ((1, 20, 20, 8), '"type": "segment"'),
        ((1, 20, 20, 17), "heat maps"),
        ((1, 9), '"type": "classify"'),
    ],
)
def test_hint_says_which_head_would_fit_with_what(shape, words):
    assert words in hint_for((1, 320, 320, 3), [spec(shape)])


def test_no_hint_where_there_is_none_to_give():
    assert hint_for((1, 320, 320, 3), [spec((1, 2)), spec((3,)), spec((5,))]) == ""
    found = recognise(look([(1, 20, 20, 8)], type="raw"))
    assert found.why == "raw because the manifest says so"
