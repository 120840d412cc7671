"""Recurrent models: which input is the image, what is fed back, and what is remembered."""

import re
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_models import MadeInput, MadeTensor, made_model

from agent.errors import ModelError
from agent.vision.engines import TensorSpec, Wish, open_engine
from agent.vision.recurrent import State, Wiring, wire

RUNTIMES = [
    name
    for name, module in (("litert", "ai_edge_litert"), ("tflite-runtime", "tflite_runtime"))
    if find_spec(module)
]


def spec(name, shape, dtype="float32", scale=0.0, zero_point=0, *, is_dynamic=False):
    return TensorSpec(
        index=0,
        name=name,
        shape=tuple(shape),
        dtype=np.dtype(dtype),
        scale=scale,
        zero_point=zero_point,
        is_dynamic=is_dynamic,
    )


IMAGE = spec("image", (1, 64, 64, 3), "uint8")
BOXES = spec("boxes", (1, 10, 4))
H_IN, H_OUT = spec("h_in", (1, 16)), spec("h_out", (1, 16))
C_IN, C_OUT = spec("c_in", (1, 16)), spec("c_out", (1, 16))


def test_one_input_is_the_image():
    assert wire([IMAGE], [BOXES], {}) == Wiring(image=0, feedback=(), outputs=(0,))
    odd = spec("x", (7,))
    assert wire([odd], [BOXES], {}).image == 0  # what it may be is said by `require_image`


def test_the_only_output_of_a_shape():
    found = wire([spec("a", (1, 16)), IMAGE], [BOXES, spec("b", (1, 16))], {})
    assert found == Wiring(image=1, feedback=((0, 1),), outputs=(0,))


def test_names_tell_states_of_one_shape_apart():
    found = wire([H_IN, IMAGE, C_IN], [C_OUT, BOXES, H_OUT], {})
    assert found == Wiring(image=1, feedback=((0, 2), (2, 0)), outputs=(1,))


@pytest.mark.parametrize(
    ("names", "outputs"),
    [
        (("serving_default_h_in:0", "serving_default_c_in:0"), ("h_out", "c_out")),
        (("state_in_0", "state_in_1"), ("state_out_0", "state_out_1")),
        (("prev_h", "prev_c"), ("next_h", "next_c")),
        (("input.h", "input.c"), ("h_new", "c_new")),
        (("h", "c"), ("h", "c")),
    ],
)
def test_ways_to_name_them(names, outputs):
    inputs = [IMAGE, *(spec(name, (1, 8)) for name in names)]
    found = wire(inputs, [spec(name, (1, 8)) for name in outputs] + [BOXES], {})
    assert found.feedback == ((1, 0), (2, 1))


def test_an_image_may_be_remembered():
    """The picture is the image-shaped input that no output resembles."""
    last = spec("last", (1, 64, 64, 3))
    found = wire([last, IMAGE], [BOXES, spec("now", (1, 64, 64, 3))], {})
    assert (found.image, found.feedback) == (1, ((0, 1),))


def test_where_all_is_fed_back_all_is_published():
    assert wire([IMAGE, H_IN], [H_OUT], {}) == Wiring(image=0, feedback=((1, 0),), outputs=(0,))


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        ([IMAGE, H_IN], [BOXES], ["h_in", "float32 [1, 16]", "boxes", "head.state"]),
        ([IMAGE, H_IN], [], ["h_in", "none are left"]),
        ([IMAGE, H_IN], [spec("h_out", (1, 16), "int8")], ["h_in", "int8 [1, 16]"]),
        ([IMAGE, H_IN], [spec("h_out", (1, 16), "float32", 0.5)], ["scale 0.5"]),
        (
            [IMAGE, H_IN, C_IN],
            [
                spec("StatefulPartitionedCall:0", (1, 16)),
                spec("StatefulPartitionedCall:1", (1, 16)),
            ],
            ["h_in", "StatefulPartitionedCall:1"],
        ),
        ([IMAGE, H_IN, C_IN], [H_OUT], ["c_in"]),
        ([IMAGE, spec("h", (1, 16), is_dynamic=True)], [spec("h", (1, 16))], ['"h"']),
        ([H_IN, C_IN], [H_OUT, C_OUT], ["h_in", "c_in", "none of them is the image"]),
        ([IMAGE, spec("right", (1, 64, 64, 3))], [BOXES], ["right", "more than one of them"]),
        ([], [BOXES], ["0 inputs"]),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(inputs, outputs, said):
    with pytest.raises(ModelError) as caught:
        wire(inputs, outputs, {})
    for text in said:
        assert text in str(caught.value)


def test_the_manifest_decides():
    inputs, outputs = [IMAGE, H_IN, C_IN], [H_OUT, BOXES, C_OUT]
    crossed = wire(inputs, outputs, {"h_in": "c_out", "c_in": "h_out"})
    assert crossed.feedback == ((1, 2), (2, 0))
    assert wire(inputs, outputs, {"h_in": "h_out"}).feedback == ((1, 0), (2, 2))


def test_the_manifest_may_leave_out_what_exporters_add():
    inputs = [IMAGE, spec("serving_default_x:0", (1, 16)), C_IN]
    outputs = [spec("StatefulPartitionedCall:1", (1, 16)), BOXES, C_OUT]
    found = wire(inputs, outputs, {"x": "StatefulPartitionedCall"})
    assert found.feedback == ((1, 0), (2, 2))


def test_the_manifest_makes_the_other_image_the_picture():
    inputs = [IMAGE, spec("right", (1, 64, 64, 3), "uint8")]
    outputs = [spec("kept", (1, 64, 64, 3), "uint8"), BOXES]
    found = wire(inputs, outputs, {"image": "kept"})
    assert (found.image, found.feedback) == (1, ((0, 0),))


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"g_in": "h_out"}, 'no input "g_in"; it has "image", "h_in", "c_in"'),
        ({"h_in": "g_out"}, 'no output "g_out"'),
        ({"h_in": "boxes"}, "must be the same"),
        ({"h_in": "h_out", "c_in": "h_out"}, "one output into two inputs"),
    ],
)
def test_a_manifest_that_does_not_fit(named, said):
    with pytest.raises(ModelError, match=re.escape(said)):
        wire([IMAGE, H_IN, C_IN], [H_OUT, BOXES, C_OUT], named)


SPECS = st.builds(
    spec,
    st.sampled_from(["image", "h_in", "h_out", "h", "c_in", "c", "", "x:0"]),
    st.sampled_from([(1, 16), (1, 8), (1, 64, 64, 3), (), (1, 64, 64, 1)]),
    st.sampled_from(["float32", "uint8"]),
    is_dynamic=st.booleans(),
)


@given(st.lists(SPECS, max_size=4), st.lists(SPECS, max_size=4))
def test_wired_or_refused(inputs, outputs):
    """Each input is fed once, each output at most once, from a tensor of the same kind."""
    try:
        found = wire(inputs, outputs, {})
    except ModelError:
        return
    fed = [at for at, _ in found.feedback]
    assert sorted([found.image, *fed]) == list(range(len(inputs)))
    read = [to for _, to in found.feedback]
    assert len(set(read)) == len(read)
    assert set(found.outputs) | set(read) == set(range(len(outputs)))
    for at, to in found.feedback:
        assert inputs[at].shape == outputs[to].shape
        assert inputs[at].dtype == outputs[to].dtype


# On a real interpreter


def adder(step, size=4):
    """A model whose output is its state plus `step`: it counts its runs."""
    return made_model(
        [
            MadeTensor(np.full((1, size), step, np.float32), name="sum_out", plus="sum_in"),
            MadeTensor(np.uint8([[7]]), name="seven"),
        ],
        inputs=(
            MadeInput(shape=(1, 32, 32, 3)),
            MadeInput(shape=(1, size), dtype="float32", name="sum_in"),
        ),
    )


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_each_camera_has_a_memory_of_its_own(runtime):
    engine = open_engine(adder(2.5), Wish(runtime=runtime, accelerator="cpu", threads=1))
    found = wire(engine.inputs, engine.outputs, {})
    assert found == Wiring(image=0, feedback=((1, 0),), outputs=(1,))
    outputs = [np.zeros(one.shape, one.dtype) for one in engine.outputs]
    cameras = {name: State(engine, found.feedback) for name in ("door", "yard")}
    seen = []
    for name in ("door", "door", "yard", "door", "yard"):
        engine.load_input(np.zeros((1, 32, 32, 3), np.uint8), found.image)
        cameras[name].feed(engine)
        engine.invoke()
        engine.read_outputs(outputs)
        cameras[name].keep(outputs)
        seen.append((name, float(outputs[0][0, 0])))
    assert seen == [("door", 2.5), ("door", 5.0), ("yard", 2.5), ("door", 7.5), ("yard", 5.0)]


def test_memory_begins_at_real_zero():
    class Engine:
        inputs = (IMAGE, spec("h", (1, 3), "int8", 0.5, -7))
        fed = None

        def load_input(self, tensor, position):
            self.fed = (position, tensor.copy())

    engine = Engine()
    state = State(engine, [(1, 0)])
    state.feed(engine)
    assert engine.fed[0] == 1
    assert engine.fed[1].tolist() == [[-7, -7, -7]]
    assert engine.fed[1].dtype == np.int8
    outputs = [np.int8([[1, 2, 3]])]
    state.keep(outputs)
    outputs[0][:] = 0  # the pipeline's buffers go round
    state.feed(engine)
    assert engine.fed[1].tolist() == [[1, 2, 3]]
