"""Writes TFLite metadata, so that model.tflite also explains itself without its manifest.

A `ModelMetadata` flatbuffer names the tensors, their colour order and normalization, and
the label file. The label file itself sits in a zip archive appended to the model, which is
where the TFLite metadata specification puts associated files. Field numbers below are
positions in TensorFlow Lite Support's metadata_schema.fbs.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence

import flatbuffers

LABELS_FILE = "labels.txt"

_FILE_IDENTIFIER = b"M001"
_MIN_PARSER_VERSION = "1.0.0"
_TENSOR_VALUE_LABELS = 3  # AssociatedFileType
_IMAGE_PROPERTIES = 2  # ContentProperties union
_NORMALIZATION_OPTIONS = 1  # ProcessUnitOptions union
_RGB = 1  # ColorSpaceType
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # earliest a zip can hold: no build time in the file

# A field writer adds one slot to the table being built.
_Field = Callable[[flatbuffers.Builder], None]


def model_metadata(*, name: str, version: str, description: str, licence: str) -> bytes:
    """Return the ModelMetadata flatbuffer of the default detector."""
    builder = flatbuffers.Builder(1024)
    inputs = _offsets(builder, [_input_tensor(builder)])
    outputs = _offsets(
        builder,
        [
            _output_tensor(builder, "location", "boxes: ymin, xmin, ymax, xmax as shares"),
            _output_tensor(builder, "category", "class ids", labels=LABELS_FILE),
            _output_tensor(builder, "score", "scores, best first"),
            _output_tensor(builder, "number of detections", "valid rows of the others"),
        ],
    )
    subgraph = _table(builder, 10, [_offset(2, inputs), _offset(3, outputs)])
    subgraphs = _offsets(builder, [subgraph])
    texts = [
        _offset(slot, builder.CreateString(text))
        for slot, text in (
            (0, name),
            (1, description),
            (2, version),
            (5, licence),
            (7, _MIN_PARSER_VERSION),
        )
    ]
    builder.Finish(_table(builder, 8, [*texts, _offset(3, subgraphs)]), _FILE_IDENTIFIER)
    return bytes(builder.Output())


def append_labels(model: bytes, labels: str) -> bytes:
    """Return the model followed by a zip archive that holds the label list.

    Zip readers search from the end of a file and TFLite reads from its start, so
    the same bytes are both. Offsets in the archive count from the start of the model.
    """
    combined = io.BytesIO(model)
    with zipfile.ZipFile(combined, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(LABELS_FILE, _ZIP_DATE), labels)
    return combined.getvalue()


def _input_tensor(builder: flatbuffers.Builder) -> int:
    properties = _table(builder, 2, [_int8(0, _RGB)])
    content = _table(builder, 2, [_uint8(0, _IMAGE_PROPERTIES), _offset(1, properties)])
    # Pixel bytes go in as they are; this is what the float network saw: (px - 127.5) / 127.5.
    mean, std = _floats(builder, [127.5]), _floats(builder, [127.5])
    options = _table(builder, 2, [_offset(0, mean), _offset(1, std)])
    unit = _table(builder, 2, [_uint8(0, _NORMALIZATION_OPTIONS), _offset(1, options)])
    units = _offsets(builder, [unit])
    stats = _table(
        builder,
        2,
        [_offset(0, _floats(builder, [255.0])), _offset(1, _floats(builder, [0.0]))],
    )
    fields = [
        _offset(0, builder.CreateString("image")),
        _offset(1, builder.CreateString("RGB picture, stretched to 300x300")),
        _offset(3, content),
        _offset(4, units),
        _offset(5, stats),
    ]
    return _table(builder, 7, fields)


def _output_tensor(
    builder: flatbuffers.Builder, name: str, description: str, labels: str | None = None
) -> int:
    fields = [
        _offset(0, builder.CreateString(name)),
        _offset(1, builder.CreateString(description)),
    ]
    if labels is not None:
        file_name = builder.CreateString(labels)
        file = _table(builder, 5, [_offset(0, file_name), _int8(2, _TENSOR_VALUE_LABELS)])
        fields.append(_offset(6, _offsets(builder, [file])))
    return _table(builder, 7, fields)


def _table(builder: flatbuffers.Builder, slots: int, fields: Sequence[_Field]) -> int:
    builder.StartObject(slots)
    for write in fields:
        write(builder)
    return builder.EndObject()


def _offset(slot: int, value: int) -> _Field:
    return lambda builder: builder.PrependUOffsetTRelativeSlot(slot, value, 0)


def _int8(slot: int, value: int) -> _Field:
    return lambda builder: builder.PrependInt8Slot(slot, value, 0)


def _uint8(slot: int, value: int) -> _Field:
    return lambda builder: builder.PrependUint8Slot(slot, value, 0)


def _offsets(builder: flatbuffers.Builder, values: Sequence[int]) -> int:
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependUOffsetTRelative(value)
    return builder.EndVector()


def _floats(builder: flatbuffers.Builder, values: Sequence[float]) -> int:
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependFloat32(value)
    return builder.EndVector()
