"""Read a .tflite file's own words about itself, without running it.

A model is a FlatBuffer (identifier `TFL3`), sometimes with a ZIP of labels appended
(TFLite metadata). Everything read here is bounds-checked, because a damaged or hostile
file must give a sentence, not a crash: some runtimes segfault on truncated models.

Field numbers are those of the published schemas:
  model:    tensorflow/compiler/mlir/lite/schema/schema.fbs
  metadata: tflite_support/metadata/metadata_schema.fbs
  detector: mediapipe/tasks/metadata/object_detector_metadata_schema.fbs
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from flatbuffers import flexbuffers

from agent.errors import ModelError
from agent.vision.exporter_notes import MAX_CLASSES, parse_notes

FILE_IDENTIFIER = b"TFL3"
EDGETPU_CUSTOM_OP = "edgetpu-custom-op"
SSD_CUSTOM_OP = "TFLite_Detection_PostProcess"
# BuiltinOperator values, schema.fbs.
BUILTIN_LOGISTIC, BUILTIN_SOFTMAX, BUILTIN_CUSTOM = 14, 25, 32
BUILTIN_CAST, BUILTIN_ARG_MAX = 53, 56
# Operators that pass numbers on as they are, but for type and shape: DEQUANTIZE, RESHAPE,
# SQUEEZE, CAST, QUANTIZE.
PASSING_ON = frozenset({6, 22, 43, BUILTIN_CAST, 114})
# TensorType values, schema.fbs: FLOAT32, FLOAT16, FLOAT64, BFLOAT16.
FLOAT_TYPES = frozenset({0, 1, 10, 18})
EXPORTER_FILES = ("metadata.json", "meta.txt", "temp_meta.txt")
# Labels of the largest public vocabularies fit many times; a ZIP bomb does not.
MAX_ASSOCIATED_FILE_BYTES = 1 << 20
MAX_ASSOCIATED_FILES = 32
MAX_OPTIONS_BYTES = 1 << 16
MAX_ANCHORS = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorNotes:
    """How MediaPipe says that an SSD's raw outputs are to be decoded."""

    anchors: tuple[tuple[float, float, float, float], ...]  # centre y, centre x, height, width
    scales: tuple[float, float, float, float]  # of y, x, height, width
    has_exponential: bool  # of height and width
    is_sigmoid_left: bool  # to be applied to the scores


@dataclass(frozen=True, slots=True, kw_only=True)
class TfliteFile:
    """What a model file says of itself; tensor numbers are the interpreter's `index`."""

    custom_ops: frozenset[str]
    outputs: tuple[int, ...]
    # Output tensor -> custom op name or builtin code of what makes its numbers; see `_maker`.
    producers: dict[int, str | int]
    ssd_outputs: tuple[int, ...]  # boxes, classes, scores, count; empty without that op
    ssd_classes: int | None  # as that operator counts them
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    name: str | None
    description: str | None
    version: str | None
    label_files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    exporter: dict[str, Any] = field(default_factory=dict)  # see `parse_notes`
    detector: DetectorNotes | None = None
    # Output tensor -> the channels that an ARG_MAX behind it chose among.
    arg_max_classes: dict[int, int] = field(default_factory=dict)


class _Table:
    """One FlatBuffer table: a position and its vtable, every access checked."""

    __slots__ = ("data", "position", "vtable", "vtable_size")

    def __init__(self, data: bytes, position: int) -> None:
        self.data = data
        self.position = position
        self.vtable = position - _unpack("<i", data, position)
        self.vtable_size = _unpack("<H", data, self.vtable)

    def _at(self, number: int) -> int:
        slot = 4 + 2 * number
        if slot + 2 > self.vtable_size:
            return 0
        offset: int = _unpack("<H", self.data, self.vtable + slot)
        return self.position + offset if offset else 0

    def scalar(self, number: int, kind: str, default: int = 0) -> int:
        at = self._at(number)
        return _unpack(kind, self.data, at) if at else default

    def table(self, number: int) -> _Table | None:
        at = self._at(number)
        return _Table(self.data, at + _unpack("<I", self.data, at)) if at else None

    def span(self, number: int, item_bytes: int) -> tuple[int, int]:
        """Return (start, length) of a vector, proven to lie inside the file."""
        at = self._at(number)
        if not at:
            return 0, 0
        start = at + _unpack("<I", self.data, at)
        length: int = _unpack("<I", self.data, start)
        if start + 4 + length * item_bytes > len(self.data):
            raise ValueError("a vector reaches beyond the end of the file")
        return start + 4, length

    def text(self, number: int) -> str | None:
        start, length = self.span(number, 1)
        return self.data[start : start + length].decode("utf-8", "replace") if start else None

    def numbers(self, number: int, kind: str) -> tuple[Any, ...]:
        start, length = self.span(number, struct.calcsize(kind))
        return struct.unpack_from(f"<{length}{kind}", self.data, start) if length else ()

    def tables(self, number: int) -> Iterator[_Table]:
        start, length = self.span(number, 4)
        for at in range(start, start + 4 * length, 4):
            yield _Table(self.data, at + _unpack("<I", self.data, at))


def _unpack(kind: str, data: bytes, at: int) -> Any:
    if at < 0:
        raise ValueError("an offset points before the start of the file")
    return struct.unpack_from(kind, data, at)[0]


def parse_tflite(data: bytes, *, where: str) -> TfliteFile:
    """Parse the structure and metadata of a model file.

    Raises:
        ModelError: empty, a web page, another format, truncated or damaged.
    """
    _refuse_other_formats(data, where)
    try:
        return _parse_model(data)
    except (struct.error, ValueError, IndexError, OverflowError) as error:
        raise ModelError(
            f"{where}: is truncated or damaged ({len(data)} bytes; {error}); copy it again and "
            "compare its sha256"
        ) from error


def _refuse_other_formats(data: bytes, where: str) -> None:
    head = data[:512].lstrip()
    if not data:
        raise ModelError(f"{where}: is empty (0 bytes); copy the model again")
    if head[:1] == b"<":
        raise ModelError(
            f"{where}: is a web page, not a model; the download gave an HTML or XML answer"
        )
    if head.startswith(b"version https://git-lfs"):
        raise ModelError(f"{where}: is a Git LFS pointer, not the model; run `git lfs pull`")
    if data[4:8] != FILE_IDENTIFIER:
        kinds = {
            b"PK": "a ZIP archive",
            b"\x08": "perhaps ONNX or a frozen graph",
            b"\x89H": "HDF5",
        }
        guess = next((f" ({kind})" for magic, kind in kinds.items() if data.startswith(magic)), "")
        raise ModelError(
            f"{where}: is not a TFLite model{guess}: bytes 4 to 8 are not TFL3; convert it with "
            "the TFLite converter"
        )


def _parse_model(data: bytes) -> TfliteFile:
    model = _Table(data, _unpack("<I", data, 0))
    operators = [
        (code.text(1) or "", max(code.scalar(0, "<b"), code.scalar(3, "<i")))
        for code in model.tables(1)
    ]
    buffers = [buffer.span(0, 1) for buffer in model.tables(4)]
    graph = _parse_main_graph(model, operators)
    metadata = None
    for entry in model.tables(6):
        if entry.text(0) == "TFLITE_METADATA":
            start, length = buffers[entry.scalar(1, "<I")]
            metadata = _Table(data[start : start + length], _unpack("<I", data, start))
    mean, std = _normalization(metadata)
    label_files, exporter = _associated_files(data)
    return TfliteFile(
        custom_ops=frozenset(name for name, builtin in operators if builtin == BUILTIN_CUSTOM),
        outputs=graph.outputs,
        producers=graph.producers,
        ssd_outputs=graph.ssd_outputs,
        ssd_classes=graph.ssd_classes,
        arg_max_classes=graph.arg_max_classes,
        mean=mean,
        std=std,
        name=metadata.text(0) if metadata else None,
        description=metadata.text(1) if metadata else None,
        version=metadata.text(2) if metadata else None,
        label_files=label_files,
        exporter=exporter,
        detector=_detector_notes(metadata),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Graph:
    """The fields of `TfliteFile` that come from the operators."""

    outputs: tuple[int, ...]
    producers: dict[int, str | int]
    ssd_outputs: tuple[int, ...]
    ssd_classes: int | None
    arg_max_classes: dict[int, int]


def _parse_main_graph(model: _Table, operators: list[tuple[str, int]]) -> _Graph:
    graph = next(model.tables(2), None)
    if graph is None:
        raise ValueError("it has no graph")
    are_floats, shapes = [], []
    for tensor in graph.tables(0):  # walked for its bounds: truncation shows here
        shapes.append(tensor.numbers(0, "i"))
        tensor.text(3)
        are_floats.append(tensor.scalar(1, "<b") in FLOAT_TYPES)
    outputs = graph.numbers(2, "i")
    makers: dict[int, tuple[str | int, int]] = {}
    ssd: tuple[int, ...] = ()
    ssd_classes = None
    for operator in graph.tables(3):
        name, builtin = operators[operator.scalar(0, "<I")]
        made = operator.numbers(2, "i")
        source = next(iter(operator.numbers(1, "i")), -1)
        makers |= dict.fromkeys(made, (name if builtin == BUILTIN_CUSTOM else builtin, source))
        if name == SSD_CUSTOM_OP and len(made) == 4:
            ssd = made
            start, length = operator.span(5, 1)
            ssd_classes = _class_count(operator.data[start : start + length])
    chosen_among = {one: _arg_max_classes(one, makers, shapes) for one in outputs}
    return _Graph(
        outputs=outputs,
        producers={one: _maker(one, makers, are_floats) for one in outputs if one in makers},
        ssd_outputs=ssd,
        ssd_classes=ssd_classes,
        arg_max_classes={one: count for one, count in chosen_among.items() if count is not None},
    )


def _maker(
    number: int, makers: dict[int, tuple[str | int, int]], are_floats: list[bool]
) -> str | int:
    """Return what makes a tensor's numbers: the operator behind those that pass them on.

    A quantized softmax with float output ends in DEQUANTIZE, one in another shape in RESHAPE.
    A cast of whole numbers stays the maker, because it tells that they are whole.

    makers: tensor -> (custom op name or builtin code, the first tensor it reads)
    """
    operator, source = first, _ = makers[number]
    seen, is_whole = {number}, False
    while operator in PASSING_ON and source in makers and source not in seen:
        is_source_float = not 0 <= source < len(are_floats) or are_floats[source]
        is_whole |= operator == BUILTIN_CAST and not is_source_float
        seen.add(source)
        operator, source = makers[source]
    if is_whole and operator != BUILTIN_ARG_MAX:
        return BUILTIN_CAST
    return first if operator in PASSING_ON else operator


def _arg_max_classes(
    number: int, makers: dict[int, tuple[str | int, int]], shapes: list[tuple[int, ...]]
) -> int | None:
    """Return how many channels the ARG_MAX behind a tensor chose among."""
    seen: set[int] = set()
    while number in makers and number not in seen:
        seen.add(number)
        operator, source = makers[number]
        if operator == BUILTIN_ARG_MAX:
            shape = shapes[source] if 0 <= source < len(shapes) else ()
            return shape[-1] if shape and 0 < shape[-1] <= MAX_CLASSES else None
        number = source if operator in PASSING_ON else -1
    return None


def _class_count(options: bytes) -> int | None:
    """Return `num_classes` of the SSD operator's options, a FlexBuffers map."""
    try:
        count = flexbuffers.Loads(options[:MAX_OPTIONS_BYTES])["num_classes"]
    except Exception:
        return None
    return count if isinstance(count, int) and 0 < count <= MAX_CLASSES else None


def _normalization(
    metadata: _Table | None,
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return mean and std of the first input from `NormalizationOptions`, or None, None."""
    graph = next(metadata.tables(3), None) if metadata else None
    tensor = next(graph.tables(2), None) if graph else None
    for unit in tensor.tables(4) if tensor else ():
        options = unit.table(1)
        if unit.scalar(0, "<B") == 1 and options is not None:  # union: NormalizationOptions
            mean, std = options.numbers(0, "f"), options.numbers(1, "f")
            if mean and std and all(value != 0 for value in std):
                return mean, std
    return None, None


def _detector_notes(metadata: _Table | None) -> DetectorNotes | None:
    """Return the `DETECTOR_METADATA` among a graph's custom metadata, or None."""
    graph = next(metadata.tables(3), None) if metadata else None
    for custom in graph.tables(9) if graph else ():
        start, length = custom.span(1, 1)
        if custom.text(0) != "DETECTOR_METADATA" or not length:
            continue
        data = custom.data[start : start + length]
        options = _Table(data, _unpack("<I", data, 0))
        ssd, decoding = options.table(1), options.table(2)
        schema = ssd.table(0) if ssd else None
        if schema is None or decoding is None or schema.span(0, 4)[1] > MAX_ANCHORS:
            return None
        x, y, width, height = (decoding.scalar(number, "<f") for number in (6, 7, 8, 9))
        anchors = tuple(
            (one.scalar(1, "<f"), one.scalar(0, "<f"), one.scalar(3, "<f"), one.scalar(2, "<f"))
            for one in schema.tables(0)
        )
        finite = all(math.isfinite(value) for anchor in anchors for value in anchor)
        if not finite or not all(math.isfinite(one) and one > 0 for one in (x, y, width, height)):
            return None
        return DetectorNotes(
            anchors=anchors,
            scales=(y, x, height, width),
            has_exponential=bool(decoding.scalar(10, "<B")),
            is_sigmoid_left=bool(decoding.scalar(11, "<B")),
        )
    return None


def _associated_files(data: bytes) -> tuple[dict[str, tuple[str, ...]], dict[str, Any]]:
    """Return label files and exporter notes from the ZIP appended to a model, if there is one."""
    labels: dict[str, tuple[str, ...]] = {}
    exporter: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist()[:MAX_ASSOCIATED_FILES]:
                if info.file_size > MAX_ASSOCIATED_FILE_BYTES or info.is_dir():
                    continue
                with archive.open(info) as file:
                    text = file.read(MAX_ASSOCIATED_FILE_BYTES).decode("utf-8", "replace")
                notes = parse_notes(text)
                if info.filename in EXPORTER_FILES or (notes and notes.get("names")):
                    exporter = notes if notes and not exporter.get("names") else exporter
                else:
                    labels[info.filename] = tuple(text.splitlines())
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError):
        pass  # no ZIP, or one we cannot read: then the file simply says nothing more
    return labels, exporter
