"""Rewrites the converter's flatbuffer: smaller, aligned, with the classic SSD interface.

The graph, its weights and its quantization stay as they are. What changes:

- outputs stand in the order of the PostProcess operator (boxes, classes, scores, count),
  under the names every TFLite SSD carries;
- all-zero zero-point vectors, 8 bytes per weight channel, are stored once;
- constant buffers start on 16-byte borders, so the file can be used mapped in place;
- names of inner tensors, long and unused, become numbers;
- TFLite metadata with the label list is added.
"""

from __future__ import annotations

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

POST_PROCESS = "TFLite_Detection_PostProcess"
OUTPUT_NAMES = (
    POST_PROCESS,
    f"{POST_PROCESS}:1",
    f"{POST_PROCESS}:2",
    f"{POST_PROCESS}:3",
)
INPUT_NAME = "image"

_FILE_IDENTIFIER = b"TFL3"
# force_align of Buffer.data in tensorflow/compiler/mlir/lite/schema/schema.fbs
_BUFFER_ALIGNMENT = 16
# Name the TFLite metadata specification reserves for its buffer.
_METADATA_NAME = "TFLITE_METADATA"
_INITIAL_BUILDER_BYTES = 8 << 20


class _SharedQuantization(schema.QuantizationParametersT):
    """Quantization parameters that write equal zero-point vectors only once."""

    written: dict[tuple[int, ...], int]

    def Pack(self, builder: flatbuffers.Builder) -> int:  # noqa: N802 (overrides generated code)
        scale = zero_point = None
        if self.scale is not None and len(self.scale):
            scale = builder.CreateNumpyVector(np.asarray(self.scale, np.float32))
        if self.zeroPoint is not None and len(self.zeroPoint):
            key = tuple(int(value) for value in self.zeroPoint)
            if key not in self.written:
                vector = np.asarray(self.zeroPoint, np.int64)
                self.written[key] = builder.CreateNumpyVector(vector)
            zero_point = self.written[key]
        schema.QuantizationParametersStart(builder)
        if scale is not None:
            schema.QuantizationParametersAddScale(builder, scale)
        if zero_point is not None:
            schema.QuantizationParametersAddZeroPoint(builder, zero_point)
        schema.QuantizationParametersAddQuantizedDimension(builder, self.quantizedDimension)
        return schema.QuantizationParametersEnd(builder)


class _AlignedBuffer(schema.BufferT):
    """A constant buffer that starts on a 16-byte border of the file."""

    def Pack(self, builder: flatbuffers.Builder) -> int:  # noqa: N802 (overrides generated code)
        data = None
        if self.data is not None and len(self.data):
            raw = np.asarray(self.data, np.uint8).tobytes()
            # The builder writes backwards: pad so that the vector, once written, is aligned.
            builder.Prep(_BUFFER_ALIGNMENT, len(raw))
            data = builder.CreateByteVector(raw)
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


def finish(tflite: bytes, description: str, metadata: bytes) -> bytes:
    """Return the final flatbuffer for a converted SSD model.

    Args:
        tflite: converter output holding exactly one PostProcess operator.
        description: one line for the model's `description` field.
        metadata: a TFLite ModelMetadata flatbuffer.
    """
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(tflite), 0))
    model.description = description
    _set_interface(model)
    _add_metadata(model, metadata)
    written: dict[tuple[int, ...], int] = {}
    for tensor in model.subgraphs[0].tensors:
        if tensor.quantization is not None:
            tensor.quantization = _retyped(tensor.quantization, _SharedQuantization)
            tensor.quantization.written = written
    model.buffers = [_retyped(buffer, _AlignedBuffer) for buffer in model.buffers]
    builder = flatbuffers.Builder(_INITIAL_BUILDER_BYTES)
    builder.Finish(model.Pack(builder), _FILE_IDENTIFIER)
    return bytes(builder.Output())


def _set_interface(model: schema.ModelT) -> None:
    """Order and name the inputs and outputs; number every other tensor."""
    graph = model.subgraphs[0]
    (post_process,) = (
        operator
        for operator in graph.operators
        if model.operatorCodes[operator.opcodeIndex].customCode == POST_PROCESS.encode()
    )
    graph.outputs = [int(index) for index in post_process.outputs]
    for index, tensor in enumerate(graph.tensors):
        tensor.name = f"t{index}"
    graph.tensors[graph.inputs[0]].name = INPUT_NAME
    for index, name in zip(graph.outputs, OUTPUT_NAMES, strict=True):
        graph.tensors[index].name = name
    # The signature pairs names with tensors in the converter's alphabetical order.
    roles = dict(zip(graph.outputs, ("boxes", "classes", "scores", "count"), strict=True))
    for signature in model.signatureDefs:
        for output in signature.outputs:
            output.name = roles[output.tensorIndex]


def _add_metadata(model: schema.ModelT, metadata: bytes) -> None:
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(metadata, np.uint8)
    model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name = _METADATA_NAME
    entry.buffer = len(model.buffers) - 1
    model.metadata = [*(model.metadata or []), entry]


def _retyped(source: object, target: type) -> object:
    """Return an instance of `target`, a subclass of the source's type, with equal fields."""
    copy = target()
    vars(copy).update(vars(source))
    return copy
