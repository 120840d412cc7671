"""Real .tflite files with known answers, written here byte by byte: no converter, no download.

`made_model` gives the file's bytes. Each output holds the numbers it was made with, yet is
computed from the input: the image's first value, made 0, picks the row of a constant table
(GATHER), so that the file is a network like any other and no bit of the answer is rounded.
With `by_pixel` the first pixel's value picks among several answers instead.

    data = made_model([MadeTensor(boxes, name="boxes"), MadeTensor(scores, scale=1 / 256)])

Layout: tensorflow/compiler/mlir/lite/schema/schema.fbs. Field numbers below are those of its
tables; operator codes and type codes are those of its enums.
"""

import io
import zipfile
from dataclasses import dataclass, field

import flatbuffers
import numpy as np
from flatbuffers import flexbuffers

TENSOR_TYPES = {
    "float32": 0,
    "float16": 1,
    "int32": 2,
    "uint8": 3,
    "int64": 4,
    "bool": 6,
    "int16": 7,
    "int8": 9,
}
ADD, LOGISTIC, MUL, RESHAPE, SOFTMAX, CUSTOM, GATHER = 0, 14, 18, 22, 25, 32, 36
CAST, MAXIMUM, ARG_MAX, MINIMUM, SLICE = 53, 55, 56, 57, 65
DEQUANTIZE, QUANTIZE = 6, 114
OPTIONS = {ADD: 11, SOFTMAX: 9, ARG_MAX: 40}  # the union `BuiltinOptions`
THROUGH = {"logistic": LOGISTIC, "softmax": SOFTMAX, "argmax": ARG_MAX}


@dataclass(frozen=True, kw_only=True)
class MadeInput:
    """One input; the first one is the image that the outputs depend on."""

    shape: tuple[int, ...] = (1, 320, 320, 3)
    dtype: str = "uint8"
    scale: float = 0.0
    zero_point: int = 0
    name: str = "image"
    signature: tuple[int, ...] = ()  # with -1 for sizes left open, of which `shape` has 1


@dataclass(frozen=True)
class MadeTensor:
    """One output and the stored numbers it always gives, in the dtype they are given in.

    values: any shape; with `by_pixel`, [answers, *shape], of which the first pixel picks one
    through: the operator that makes the output from the values ("softmax", "logistic" of
        float32 over the last axis; "argmax" over the last axis, int64); without: the values
    after: what then passes the numbers on, in order: "quantize" (int8 in steps of 1/256 from 0),
        "dequantize", "cast" (to float32), "flatten" (to [1, n])
    plus: the name of a float32 input of the same shape that is added, for recurrent state
    """

    values: np.ndarray
    name: str = "output"
    scale: float = 0.0
    zero_point: int = 0
    by_pixel: bool = False
    through: str = ""
    after: tuple[str, ...] = ()
    plus: str = ""


@dataclass(frozen=True, kw_only=True)
class MadeSsd:
    """What goes into TFLite_Detection_PostProcess; its four outputs are the model's.

    boxes float32[1, n, 4] encoded (y, x, h, w), scores float32[1, n, classes + 1] with a
    background column first, anchors float32[n, 4] y, x, h, w of the centres. The outputs come
    in `order` (positions among boxes, classes, scores, count) and are called `names`.
    """

    boxes: np.ndarray
    scores: np.ndarray
    anchors: np.ndarray
    order: tuple[int, ...] = (0, 1, 2, 3)
    max_detections: int = 10
    names: tuple[str, ...] = ("boxes", "classes", "scores", "count")


@dataclass
class _Graph:
    """A model in the making: tensors, operators, and the constants they use."""

    tensors: list = field(default_factory=list)
    operators: list = field(default_factory=list)
    codes: list = field(default_factory=list)
    buffers: list = field(default_factory=lambda: [b""])
    signatures: dict = field(default_factory=dict)  # of tensors by number

    def tensor(self, name, shape, dtype, scale=0.0, zero_point=0, constant=None):
        buffer = 0
        if constant is not None:
            self.buffers.append(np.ascontiguousarray(constant).tobytes())
            buffer = len(self.buffers) - 1
        self.tensors.append((name, tuple(shape), str(dtype), scale, zero_point, buffer))
        return len(self.tensors) - 1

    def constant(self, values, scale=0.0, zero_point=0):
        values = np.asarray(values)
        return self.tensor("", values.shape, values.dtype, scale, zero_point, constant=values)

    def run(self, code, inputs, outputs, custom=b""):
        """Add an operator: a code of the enum, or the name of a custom operator."""
        key = (CUSTOM, code) if isinstance(code, str) else (code, "")
        if key not in self.codes:
            self.codes.append(key)
        self.operators.append((self.codes.index(key), code, inputs, outputs, custom))

    def step(self, code, inputs, shape, dtype, scale=0.0, zero_point=0, name=""):
        made = self.tensor(name, shape, dtype, scale, zero_point)
        self.run(code, inputs, [made])
        return made


def made_model(outputs, *, inputs=(MadeInput(),), zip_files=None, description="made", metadata=b""):
    """Return a .tflite file: `outputs` are MadeTensor, or one MadeSsd.

    zip_files: name -> text, appended as a ZIP as TFLite metadata and Ultralytics do it
    metadata: a FlatBuffer of TFLite's ModelMetadata; see `made_detector_notes`
    """
    graph = _Graph()
    made_inputs = {
        one.name: graph.tensor(one.name, one.shape, one.dtype, one.scale, one.zero_point)
        for one in inputs
    }
    pixel = _first_value(graph, made_inputs[inputs[0].name], len(inputs[0].shape))
    numbers = []
    for one in outputs:
        if isinstance(one, MadeSsd):
            numbers += _add_ssd(graph, one, pixel)
        else:
            numbers.append(_add_output(graph, one, pixel, made_inputs))
    graph.signatures = {made_inputs[one.name]: one.signature for one in inputs if one.signature}
    data = _serialized(graph, list(made_inputs.values()), numbers, description, metadata)
    if not zip_files:
        return data
    stream = io.BytesIO(data)
    with zipfile.ZipFile(stream, "a") as archive:
        for name, text in zip_files.items():
            archive.writestr(name, text)
    return stream.getvalue()


def _first_value(graph, image, rank):
    """Return int32[1]: the byte of the image's first pixel (int8 is the byte minus 128)."""
    begin, size = graph.constant(np.zeros(rank, np.int32)), graph.constant(np.ones(rank, np.int32))
    _, _, dtype, scale, zero_point, _ = graph.tensors[image]
    first = graph.step(SLICE, [image, begin, size], [1] * rank, dtype, scale, zero_point)
    flat = graph.constant(np.array([1], np.int32))
    first = graph.step(RESHAPE, [first, flat], [1], dtype, scale, zero_point)
    number = graph.step(CAST, [first], [1], "int32")
    if dtype == "int8":
        shift = graph.constant(np.array([128], np.int32))
        number = graph.step(ADD, [number, shift], [1], "int32")
    # A runtime's first run may come before there is a picture: whatever lies there is a row.
    return graph.step(MAXIMUM, [number, graph.constant(np.zeros(1, np.int32))], [1], "int32")


def _picked(graph, values, pixel, scale, zero_point, *, by_pixel, name=""):
    """Return a tensor that holds `values`, or those of them that the pixel picks."""
    shape = values.shape[1:] if by_pixel else values.shape
    table = values.reshape(len(values) if by_pixel else 1, -1)
    last = np.array([len(table) - 1], np.int32)
    row = graph.step(MINIMUM, [pixel, graph.constant(last)], [1], "int32")
    if len(table) == 1:
        row = graph.step(MUL, [row, graph.constant(np.zeros(1, np.int32))], [1], "int32")
    flat = graph.step(
        GATHER,
        [graph.constant(table, scale, zero_point), row],
        [1, table.shape[1]],
        values.dtype,
        scale,
        zero_point,
    )
    to = graph.constant(np.array(shape, np.int32))
    return graph.step(RESHAPE, [flat, to], shape, values.dtype, scale, zero_point, name)


def _add_output(graph, one, pixel, made_inputs):
    values = np.asarray(one.values)
    has_more = bool(one.through or one.plus or one.after)
    made = _picked(
        graph,
        values,
        pixel,
        one.scale,
        one.zero_point,
        by_pixel=one.by_pixel,
        name="" if has_more else one.name,
    )
    shape = graph.tensors[made][1]
    if one.plus:
        return graph.step(ADD, [made, made_inputs[one.plus]], shape, "float32", name=one.name)
    name = "" if one.after else one.name
    if one.through == "argmax":
        axis = graph.constant(np.array([len(shape) - 1], np.int32))
        made = graph.step(ARG_MAX, [made, axis], shape[:-1], "int64", name=name)
    elif one.through:
        made = graph.step(THROUGH[one.through], [made], shape, "float32", name=name)
    for at, passing in enumerate(one.after, 1):
        made = _passed_on(graph, made, passing, one.name if at == len(one.after) else "")
    return made


def _passed_on(graph, made, passing, name):
    _, shape, dtype, scale, zero_point, _ = graph.tensors[made]
    if passing == "quantize":
        return graph.step(QUANTIZE, [made], shape, "int8", 1 / 256, -128, name)
    if passing == "flatten":
        flat = (1, int(np.prod(shape)))
        to = graph.constant(np.array(flat, np.int32))
        return graph.step(RESHAPE, [made, to], flat, dtype, scale, zero_point, name)
    return graph.step({"dequantize": DEQUANTIZE, "cast": CAST}[passing], [made], shape, "float32",
                      name=name)  # fmt: skip


def _add_ssd(graph, one, pixel):
    boxes = _picked(graph, np.float32(one.boxes), pixel, 0.0, 0, by_pixel=False)
    scores = _picked(graph, np.float32(one.scores), pixel, 0.0, 0, by_pixel=False)
    anchors = graph.constant(np.float32(one.anchors))
    rows = one.max_detections
    shapes = [(1, rows, 4), (1, rows), (1, rows), (1,)]
    made = [
        graph.tensor(name, shape, "float32") for name, shape in zip(one.names, shapes, strict=True)
    ]
    options = {
        "max_detections": rows,
        "max_classes_per_detection": 1,
        "num_classes": one.scores.shape[2] - 1,
        "nms_score_threshold": 0.1,
        "nms_iou_threshold": 0.5,
        "y_scale": 10.0,
        "x_scale": 10.0,
        "h_scale": 5.0,
        "w_scale": 5.0,
    }
    graph.run(
        "TFLite_Detection_PostProcess",
        [boxes, scores, anchors],
        made,
        bytes(flexbuffers.Dumps(options)),
    )
    return [made[at] for at in one.order]


class _Builder(flatbuffers.Builder):
    """Tables as {field number: (kind, value)}; children are written before their parents."""

    def table(self, count, fields):
        self.StartObject(count)
        for number, (kind, value) in fields.items():
            getattr(self, f"Prepend{kind}Slot")(number, value, 0)
        return self.EndObject()

    def vector(self, values, dtype):
        # As numpy's bytes: one copy, aligned for the runtimes that use constants in place.
        raw = np.asarray(values, dtype)
        self.StartVector(raw.itemsize, raw.size, 16)
        self.head = self.Head() - raw.nbytes
        self.Bytes[self.Head() : self.Head() + raw.nbytes] = raw.tobytes()
        return self.EndVector()

    def offsets(self, offsets):
        self.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.PrependUOffsetTRelative(offset)
        return self.EndVector()


REF = "UOffsetTRelative"


def made_detector_notes(anchors, scales, *, has_exponential=True, is_sigmoid_left=False):
    """Return ModelMetadata as MediaPipe writes it for an SSD: anchors float[n, 4] y, x, h, w.

    mediapipe/tasks/metadata/{metadata_schema,object_detector_metadata_schema}.fbs
    """
    to = _Builder(1 << 16)
    made = [
        to.table(4, {0: ("Float32", x), 1: ("Float32", y), 2: ("Float32", w), 3: ("Float32", h)})
        for y, x, h, w in np.asarray(anchors, float).tolist()
    ]
    schema = to.table(1, {0: (REF, to.offsets(made))})
    y, x, h, w = scales
    numbers = {6: ("Float32", x), 7: ("Float32", y), 8: ("Float32", w), 9: ("Float32", h)}
    flags = {10: ("Bool", has_exponential), 11: ("Bool", is_sigmoid_left)}
    decoding = to.table(12, {**numbers, **flags})
    ssd = to.table(1, {0: (REF, schema)})
    to.Finish(to.table(3, {1: (REF, ssd), 2: (REF, decoding)}), file_identifier=b"V001")
    data = bytes(to.Output())
    to = _Builder(1 << 16)
    name, vector = to.CreateString("DETECTOR_METADATA"), to.vector(list(data), np.uint8)
    custom = to.offsets([to.table(2, {0: (REF, name), 1: (REF, vector)})])
    graphs = to.offsets([to.table(10, {9: (REF, custom)})])
    to.Finish(to.table(8, {3: (REF, graphs)}), file_identifier=b"M001")
    return bytes(to.Output())


def _serialized(graph, inputs, outputs, description, metadata=b""):
    to = _Builder(1 << 16)
    if metadata:
        graph.buffers.append(metadata)
    buffers = to.offsets([_buffer(to, raw) for raw in graph.buffers])
    codes = to.offsets([_operator_code(to, *one) for one in graph.codes])
    tensors = to.offsets(
        [_tensor(to, *one, graph.signatures.get(at)) for at, one in enumerate(graph.tensors)]
    )
    operators = to.offsets([_operator(to, *one) for one in graph.operators])
    ends = to.vector(inputs, np.int32), to.vector(outputs, np.int32)
    subgraph = {0: (REF, tensors), 1: (REF, ends[0]), 2: (REF, ends[1]), 3: (REF, operators)}
    subgraphs = to.offsets([to.table(5, subgraph)])
    text = to.CreateString(description)
    model = {0: ("Uint32", 3), 1: (REF, codes), 2: (REF, subgraphs), 3: (REF, text)}
    if metadata:
        name = to.CreateString("TFLITE_METADATA")
        entry = to.table(2, {0: (REF, name), 1: ("Uint32", len(graph.buffers) - 1)})
        model[6] = (REF, to.offsets([entry]))
    to.Finish(to.table(8, {**model, 4: (REF, buffers)}), file_identifier=b"TFL3")
    return bytes(to.Output())


def _buffer(to, raw):
    data = {0: (REF, to.vector(np.frombuffer(raw, np.uint8), np.uint8))} if raw else {}
    return to.table(1, data)


def _operator_code(to, code, custom):
    name = {1: (REF, to.CreateString(custom))} if custom else {}
    return to.table(4, {**name, 0: ("Int8", code), 2: ("Int32", 1), 3: ("Int32", code)})


def _tensor(to, name, shape, dtype, scale, zero_point, buffer, signature=None):
    fields = {0: (REF, to.vector(shape, np.int32)), 3: (REF, to.CreateString(name))}
    if signature:
        fields[7] = (REF, to.vector(signature, np.int32))
    if scale:
        scales, zeros = to.vector([scale], np.float32), to.vector([zero_point], np.int64)
        fields[4] = (REF, to.table(7, {2: (REF, scales), 3: (REF, zeros)}))
    return to.table(8, {**fields, 1: ("Int8", TENSOR_TYPES[dtype]), 2: ("Uint32", buffer)})


def _operator(to, number, code, inputs, outputs, custom):
    fields = {1: (REF, to.vector(inputs, np.int32)), 2: (REF, to.vector(outputs, np.int32))}
    if custom:
        fields[5] = (REF, to.vector(np.frombuffer(custom, np.uint8), np.uint8))
    if code in OPTIONS:
        own = {SOFTMAX: {0: ("Float32", 1.0)}, ARG_MAX: {0: ("Int8", TENSOR_TYPES["int64"])}}
        fields[4] = (REF, to.table(1, own.get(code, {})))
        fields[3] = ("Uint8", OPTIONS[code])
    return to.table(7, {**fields, 0: ("Uint32", number)})
