"""Reads a TensorFlow.js graph model and replays its nodes as TensorFlow operations.

The graph is a list of named nodes (a GraphDef written as JSON) with constants in binary
shards. Replaying nodes between chosen tensors, instead of importing the whole graph,
leaves out the while-loop pre-processor and the TensorArray post-processor, and
gives every tensor a static shape.

Only the operations found between `Preprocessor/sub` and the prediction heads are known
here; any other is an error, never a guess.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

Weights = dict[str, npt.NDArray[Any]]

# Weight dtypes of the tfjs manifest, little endian as its specification says.
_DTYPES = {"float32": "<f4", "int32": "<i4", "bool": "u1"}


@dataclass(frozen=True, slots=True)
class Node:
    """One operation; `inputs` name the producing tensors, without control edges."""

    name: str
    op: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GraphModel:
    """Nodes and constants by name."""

    nodes: dict[str, Node]
    weights: Weights


def parse_graph_model(model_json: bytes, shards: Mapping[str, bytes]) -> GraphModel:
    """Return the model in `model_json`, with `shards` keyed by the paths it names."""
    document = json.loads(model_json)
    nodes = {
        raw["name"]: Node(
            name=raw["name"],
            op=raw["op"],
            inputs=tuple(ref for ref in raw.get("input", []) if not ref.startswith("^")),
            attributes=raw.get("attr", {}),
        )
        for raw in document["modelTopology"]["node"]
    }
    weights: Weights = {}
    for group in document["weightsManifest"]:
        data = b"".join(shards[path] for path in group["paths"])
        weights.update(_parse_weight_group(group["weights"], data))
    return GraphModel(nodes, weights)


def _parse_weight_group(entries: Iterable[Mapping[str, Any]], data: bytes) -> Weights:
    weights: Weights = {}
    offset = 0
    for entry in entries:
        if "quantization" in entry:
            raise NotImplementedError(f"quantized weight {entry['name']}")
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        count = int(np.prod(entry["shape"], dtype=np.int64))
        flat = np.frombuffer(data, dtype, count, offset)
        offset += flat.nbytes
        weights[entry["name"]] = flat.reshape(entry["shape"])
    if offset != len(data):
        raise ValueError(f"weight manifest covers {offset} of {len(data)} bytes")
    return weights


def restore_residual_adds(model: GraphModel) -> GraphModel:
    """Return the graph with `AddN(conv, residual) + bias` as `(conv + bias) + residual`.

    Grappler re-associates residual additions that way. The converter can neither fuse such
    a bias into its convolution nor quantize AddN, so each would stay a float island.
    """
    nodes = dict(model.nodes)
    for node in model.nodes.values():
        if node.op != "Add":
            continue
        producers = [model.nodes[_node_name(ref)] for ref in node.inputs]
        if {producer.op for producer in producers} != {"Const", "AddN"}:
            continue
        bias, summed = sorted(producers, key=lambda producer: producer.op == "AddN")
        conv, residual = _split_residual(model, summed)
        biased = Node(f"{node.name}/biased", "Add", (conv, bias.name), {})
        nodes[biased.name] = biased
        nodes[node.name] = replace(node, inputs=(biased.name, residual))
    return GraphModel(nodes, model.weights)


def _split_residual(model: GraphModel, summed: Node) -> tuple[str, str]:
    """Return (convolution, other) of a two-input AddN."""
    convs = [ref for ref in summed.inputs if model.nodes[_node_name(ref)].op == "Conv2D"]
    others = [ref for ref in summed.inputs if ref not in convs]
    if len(convs) != 1 or len(others) != 1:
        raise ValueError(f"{summed.name}: expected one convolution and one residual")
    return convs[0], others[0]


def replay(
    model: GraphModel, feeds: Mapping[str, tf.Tensor], fetches: Iterable[str]
) -> list[tf.Tensor]:
    """Rebuild the nodes from `feeds` (node name -> tensor) up to `fetches`, in TensorFlow."""
    fetches = list(fetches)
    values: dict[str, Any] = dict(feeds)
    for name in _evaluation_order(model, feeds, fetches):
        node = model.nodes[name]
        if node.op == "Const":
            values[name] = model.weights[name]
        else:
            operands = [values[_node_name(ref)] for ref in node.inputs]
            values[name] = _operation(node)(node, *operands)
    return [values[name] for name in fetches]


def _evaluation_order(model: GraphModel, feeds: Iterable[str], fetches: Iterable[str]) -> list[str]:
    """Return the nodes `fetches` depend on, producers first, not going above `feeds`."""
    done = set(feeds)
    order: list[str] = []
    # An explicit stack: the network is deeper than Python's recursion limit allows.
    stack = [(name, False) for name in reversed(list(fetches))]
    while stack:
        name, inputs_done = stack.pop()
        if name in done:
            continue
        if inputs_done:
            done.add(name)
            order.append(name)
            continue
        inputs = model.nodes[name].inputs
        if any(":" in ref for ref in inputs):
            raise NotImplementedError(f"{name} reads a secondary output: {inputs}")
        stack.append((name, True))
        stack.extend((ref, False) for ref in reversed(inputs))
    return order


def _node_name(reference: str) -> str:
    return reference.partition(":")[0]


def _operation(node: Node) -> Callable[..., tf.Tensor]:
    try:
        return _OPERATIONS[node.op]
    except KeyError:
        raise NotImplementedError(f"{node.op} ({node.name})") from None


def _conv2d(node: Node, x: tf.Tensor, kernel: npt.NDArray[Any]) -> tf.Tensor:
    return tf.nn.conv2d(
        x,
        kernel,
        strides=_ints(node, "strides"),
        padding=_text(node, "padding"),
        dilations=_ints(node, "dilations"),
    )


def _depthwise_conv2d(node: Node, x: tf.Tensor, kernel: npt.NDArray[Any]) -> tf.Tensor:
    return tf.nn.depthwise_conv2d(
        x,
        kernel,
        strides=_ints(node, "strides"),
        padding=_text(node, "padding"),
        dilations=_ints(node, "dilations")[1:3],
    )


def _batch_norm(node: Node, x: tf.Tensor, *statistics: npt.NDArray[Any]) -> tf.Tensor:
    gamma, beta, mean, variance = statistics
    # As one multiply and one add, which the converter folds into the convolution.
    scale = gamma / np.sqrt(variance + np.float32(node.attributes["epsilon"]["f"]))
    return x * scale + (beta - mean * scale)


_OPERATIONS: dict[str, Callable[..., tf.Tensor]] = {
    "Add": lambda _node, a, b: a + b,
    "BiasAdd": lambda _node, x, bias: tf.nn.bias_add(x, bias),
    "Conv2D": _conv2d,
    "DepthwiseConv2dNative": _depthwise_conv2d,
    "FusedBatchNorm": _batch_norm,
    "Mul": lambda _node, a, b: a * b,
    "Relu6": lambda _node, x: tf.nn.relu6(x),
}


def _ints(node: Node, attribute: str) -> list[int]:
    return [int(value) for value in node.attributes[attribute]["list"]["i"]]


def _text(node: Node, attribute: str) -> str:
    # Written either as base64 or as a list of byte values, depending on the tfjs version.
    raw = node.attributes[attribute]["s"]
    return (bytes(raw) if isinstance(raw, list) else base64.b64decode(raw)).decode("ascii")
