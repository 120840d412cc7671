"""The made models themselves: real files, whose outputs hold exactly what was put in."""

from importlib.util import find_spec

import numpy as np
import pytest
from made_models import MadeInput, MadeSsd, MadeTensor, made_model

from agent.vision.engines import Wish, open_engine
from agent.vision.tflite_file import BUILTIN_LOGISTIC, BUILTIN_SOFTMAX, parse_tflite

RUNTIMES = [
    name
    for name, module in (("litert", "ai_edge_litert"), ("tflite-runtime", "tflite_runtime"))
    if find_spec(module)
]
pytestmark = pytest.mark.parametrize("runtime", RUNTIMES)
DTYPES = ["float32", "float16", "int8", "uint8", "int16", "int32", "int64"]


def opened(data, runtime, **changes):
    return open_engine(
        data, Wish(**{"runtime": runtime, "accelerator": "cpu", "threads": 1, **changes})
    )


def outputs_of(engine, *inputs):
    for position, one in enumerate(inputs):
        engine.load_input(one, position)
    engine.invoke()
    outputs = [np.zeros(spec.shape, spec.dtype) for spec in engine.outputs]
    engine.read_outputs(outputs)
    return outputs


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "int8", "uint8", "int16", "int32", "int64"]
)
@pytest.mark.parametrize("shape", [(1, 6, 9), (4,), (1,), (1, 3, 2, 2, 5)])
def test_outputs_are_the_numbers_given(runtime, dtype, shape):
    if (dtype, runtime) == ("float16", "tflite-runtime"):
        pytest.skip("tflite-runtime 2.14 has no GATHER of float16")
    values = np.random.default_rng(1).integers(0, 100, shape).astype(dtype)
    scale = 0.25 if dtype in ("int8", "uint8") else 0.0
    engine = opened(
        made_model([MadeTensor(values, name="mine", scale=scale, zero_point=3 if scale else 0)]),
        runtime,
    )
    (spec,) = engine.outputs
    assert (spec.name, spec.shape, spec.dtype) == ("mine", shape, np.dtype(dtype))
    assert (spec.scale, spec.zero_point) == ((0.25, 3) if scale else (0.0, 0))
    picture = np.full(engine.inputs[0].shape, 200, np.uint8)
    np.testing.assert_array_equal(outputs_of(engine, picture)[0], values)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
def test_the_first_pixel_picks_the_answer(runtime, dtype):
    values = np.arange(12, dtype=np.float32).reshape(3, 1, 4)
    values[0, 0, 0] = np.nan
    image = MadeInput(shape=(1, 8, 16, 3), dtype=dtype)
    engine = opened(made_model([MadeTensor(values, by_pixel=True)], inputs=[image]), runtime)
    assert engine.inputs[0].shape == (1, 8, 16, 3)
    for pixel, answer in ((0, 0), (1, 1), (2, 2), (100, 2)):
        picture = np.full((1, 8, 16, 3), pixel - 128 if dtype == "int8" else pixel, dtype)
        np.testing.assert_array_equal(outputs_of(engine, picture)[0], values[answer])


def test_operators_at_the_end_and_state(runtime):
    logits = np.array([[1.0, 3.0, 2.0]], np.float32)
    data = made_model(
        [
            MadeTensor(logits, through="softmax", name="soft"),
            MadeTensor(logits, through="logistic", name="logistic"),
            MadeTensor(logits, through="argmax", name="best"),
            MadeTensor(np.ones((1, 2), np.float32), plus="state", name="state_out"),
        ],
        inputs=[MadeInput(), MadeInput(shape=(1, 2), dtype="float32", name="state")],
    )
    file = parse_tflite(data, where="made")
    assert list(file.producers.values())[:2] == [BUILTIN_SOFTMAX, BUILTIN_LOGISTIC]
    engine = opened(data, runtime)
    soft, logistic, best, state = outputs_of(
        engine, np.zeros((1, 320, 320, 3), np.uint8), np.array([[5, 6]], np.float32)
    )
    powers = np.exp(logits)
    np.testing.assert_allclose(soft, powers / powers.sum(), rtol=1e-5)
    np.testing.assert_allclose(logistic, powers / (1 + powers), rtol=1e-5)
    assert best.tolist() == [1]
    assert state.tolist() == [[6, 7]]


def test_the_ssd_operator_and_notes(runtime):
    scores = np.zeros((1, 2, 4), np.float32)
    scores[0, 1, 3] = 0.75
    ssd = MadeSsd(
        boxes=np.zeros((1, 2, 4), np.float32),
        scores=scores,
        anchors=np.array([[0.5, 0.5, 1, 1], [0.5, 0.25, 0.5, 0.25]], np.float32),
        order=(3, 1, 0, 2),
        names=("b", "c", "s", "n"),
    )
    data = made_model([ssd], zip_files={"labels.txt": "a\nb\nc\n"})
    file = parse_tflite(data, where="made")
    assert file.ssd_classes == 3
    assert list(file.label_files.values()) == [("a", "b", "c")]
    engine = opened(data, runtime)
    assert [spec.name for spec in engine.outputs] == ["n", "c", "b", "s"]
    count, classes, boxes, best = outputs_of(engine, np.zeros((1, 320, 320, 3), np.uint8))
    assert (count.tolist(), classes[0, 0], best[0, 0]) == ([1.0], 2.0, 0.75)
    np.testing.assert_allclose(boxes[0, 0], [0.25, 0.125, 0.75, 0.375], atol=1e-6)
