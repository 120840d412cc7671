"""Engines on made and shipped models, for the tests beside this file."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from made_models import _Graph, _serialized

from agent.vision.engines import Wish, open_engine

RUNTIMES = [
    name
    for name, module in (("litert", "ai_edge_litert"), ("tflite-runtime", "tflite_runtime"))
    if find_spec(module)
]
DEFAULT = Path(__file__).resolve().parents[3] / "models" / "default"


def opened(data, runtime, accelerator="cpu", *, options=None, **changes):
    """An engine on one thread."""
    wish = {"threads": 1, **changes}
    return open_engine(
        data,
        Wish(runtime=runtime, accelerator=accelerator, delegate_options=options or {}, **wish),
    )


def run(engine, *inputs):
    """One run; returns copies of all outputs."""
    for position, one in enumerate(inputs):
        engine.load_input(one, position)
    engine.invoke()
    outputs = [np.zeros(spec.shape, spec.dtype) for spec in engine.outputs]
    engine.read_outputs(outputs)
    return outputs


def compiled_model():
    """A model whose one operator only an Edge TPU runs; the stand-in copies input to output."""
    graph = _Graph()
    image = graph.tensor("image", (1, 8, 8, 3), "uint8", 1.0, 0)
    made = graph.tensor("output", (1, 8, 8, 3), "uint8", 1.0, 0)
    graph.run("edgetpu-custom-op", [image], [made], b"compiled")
    return _serialized(graph, [image], [made], "compiled")


def unpreparable_model(monkeypatch):
    """int8 weights whose products come to 1000 steps of the output: XNNPACK allows 256.

    (XNNPACK, src/operators/fully-connected-nc.c: "requantization scale must be below 256".)
    """
    monkeypatch.setitem(__import__("made_models").OPTIONS, 9, 8)  # FullyConnectedOptions
    graph = _Graph()
    image = graph.tensor("input", (1, 4), "int8", 1.0, 0)
    weights = graph.constant(np.eye(3, 4, dtype=np.int8), 1.0, 0)
    bias = graph.constant(np.zeros(3, np.int32), 1.0, 0)
    made = graph.step(9, [image, weights, bias], [1, 3], "int8", 0.001, 0, "output")
    return _serialized(graph, [image], [made], "unpreparable")
