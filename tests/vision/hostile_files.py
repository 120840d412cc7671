"""Model files that are damaged or mean harm, each from a seed, so that a failure can be repeated.

`truncated`, `flipped` and `restructured` damage a good file; the last one knows the format and
changes what a parser follows: offsets, lengths, shapes, types, operator and buffer numbers. The
`made_…` functions write files that are whole, and bad all the same.
"""

import io
import random
import struct
import zipfile

import numpy as np
from made_models import (
    ADD,
    CAST,
    REF,
    RESHAPE,
    MadeInput,
    MadeTensor,
    _Builder,
    _Graph,
    _operator_code,
    _serialized,
    made_model,
)
from made_models import _buffer as made_buffer
from made_models import _first_value as first_value
from made_models import _operator as made_operator
from made_models import _tensor as made_tensor

SMALL_IMAGE = (1, 8, 8, 3)
# schema.fbs, enum BuiltinOperator and union BuiltinOptions.
TILE, EQUAL, WHILE = 69, 71, 119
WHILE_OPTIONS = 93

# Tables of schema.fbs by field number: what a field holds. Names in capitals are tables.
SCHEMA = {
    "MODEL": {0: "u32", 1: ["CODE"], 2: ["GRAPH"], 3: "text", 4: ["BUFFER"], 6: ["METADATA"]},
    "CODE": {0: "i8", 1: "text", 2: "i32", 3: "i32"},
    "GRAPH": {0: ["TENSOR"], 1: "numbers", 2: "numbers", 3: ["OPERATOR"], 4: "text"},
    "TENSOR": {0: "numbers", 1: "i8", 2: "u32", 3: "text", 4: "QUANTIZATION"},
    "QUANTIZATION": {0: "numbers", 1: "numbers", 2: "numbers", 3: "longs", 6: "i32"},
    "OPERATOR": {0: "u32", 1: "numbers", 2: "numbers", 3: "i8", 4: "OPTIONS", 5: "bytes"},
    "OPTIONS": dict.fromkeys(range(8), "i32"),
    "BUFFER": {0: "bytes"},
    "METADATA": {0: "text", 1: "u32"},
}
SIZES = {"i8": 1, "u32": 4, "i32": 4, "numbers": 4, "longs": 8, "text": 1, "bytes": 1}
INTERESTING = (0, 1, 2, 3, 4, 7, 8, 127, 128, 255, 256, 0x7FFF, 0xFFFF, 0x10000, 1 << 20, 1 << 24)
INTERESTING += (0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 0x40000000, 0x3FFFFFFF)


def truncated(data, seed):
    """Return the file's beginning."""
    return data[: random.Random(seed).randrange(len(data))]


def flipped(data, seed):
    """Return the file with one to eight bits flipped."""
    rng = random.Random(seed)
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def restructured(data, places, seed):
    """Return the file with one or two of its `places` (of `structure`) changed."""
    rng = random.Random(seed)
    damaged = bytearray(data)
    kinds = sorted({kind for kind, _, _ in places})
    believed = [kind for kind in kinds if "." in kind and not kind.endswith("offset")]
    for _ in range(rng.randint(1, 2)):
        # By kind first: there are far more offsets than types. And often what is only believed,
        # because a broken offset hides what lies behind it.
        wanted = rng.choice(rng.choice((kinds, believed)))
        _, at, size = rng.choice([place for place in places if place[0] == wanted])
        old = int.from_bytes(damaged[at : at + size], "little")
        near = old + rng.choice((-4, -2, -1, 1, 2, 4, 8))
        new = rng.choice((near, rng.choice(INTERESTING), rng.getrandbits(8 * size)))
        damaged[at : at + size] = (new % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(damaged)


def structure(data):
    """Return every (kind, position, size) of a good file that a parser follows or believes."""
    places = [("root", 0, 4)]
    _walk(data, struct.unpack_from("<I", data, 0)[0], "MODEL", places, set())
    return places


def _walk(data, table, name, places, seen):
    if table in seen:
        return
    seen.add(table)
    vtable = table - struct.unpack_from("<i", data, table)[0]
    places += [("vtable", table, 4), ("vtable size", vtable, 2)]
    slots = (struct.unpack_from("<H", data, vtable)[0] - 4) // 2
    for number, kind in SCHEMA[name].items():
        if number >= slots:
            continue
        slot = vtable + 4 + 2 * number
        offset = struct.unpack_from("<H", data, slot)[0]
        if not offset:
            continue
        places.append((f"{name} slot", slot, 2))
        at = table + offset
        if kind in ("i8", "u32", "i32"):
            # Options are of many shapes; whatever lies there is theirs.
            places.append((f"{name}.{number}", at, SIZES[kind]))
            continue
        places.append((f"{name}.{number} offset", at, 4))
        target = at + struct.unpack_from("<I", data, at)[0]
        if isinstance(kind, str) and kind in SCHEMA:
            _walk(data, target, kind, places, seen)
            continue
        places.append((f"{name}.{number} length", target, 4))
        length = struct.unpack_from("<I", data, target)[0]
        for index in range(length if not isinstance(kind, str) else min(length, 16)):
            item = target + 4 + index * (4 if not isinstance(kind, str) else SIZES[kind])
            if isinstance(kind, str):
                places.append((f"{name}.{number} item", item, SIZES[kind]))
            else:
                places.append((f"{name}.{number} item", item, 4))
                _walk(data, item + struct.unpack_from("<I", data, item)[0], kind[0], places, seen)


def made_boxes(values=None):
    """Return a small detector in the manner of YOLOv8: float32[1, 84, 21] for 32x32 pixels."""
    if values is None:
        values = np.random.default_rng(1).random((1, 84, 21), np.float32)
    return made_model([MadeTensor(values)], inputs=[MadeInput(shape=(1, 32, 32, 3))])


def made_classifier(classes=10):
    """Return a small quantized classifier."""
    values = np.arange(classes, dtype=np.uint8)[None]
    image = MadeInput(shape=SMALL_IMAGE)
    return made_model([MadeTensor(values, scale=1 / 256)], inputs=[image])


def made_nan():
    """Return a detector that gives nothing but NaN."""
    return made_boxes(np.full((1, 84, 21), np.nan, np.float32))


def made_half_nan():
    """Return a detector with NaN and infinities among its numbers."""
    values = np.random.default_rng(2).random((1, 84, 21), np.float32)
    values[:, :, ::3] = np.nan
    values[:, :4, 1::3] = np.inf
    return made_boxes(values)


def made_giant(items=1 << 40):
    """Return a model of a few hundred bytes whose output is far larger than any memory."""
    graph = _Graph()
    image = graph.tensor("image", SMALL_IMAGE, "uint8")
    pixel = first_value(graph, image, 4)
    cube = graph.constant(np.ones(3, np.int32))
    pixel = graph.step(RESHAPE, [pixel, cube], (1, 1, 1), "int32")
    shape = (1, 1 << 14, items >> 14)
    wanted = graph.constant(np.array(shape, np.int32))
    made = graph.step(TILE, [pixel, wanted], shape, "int32", name="giant")
    return _serialized(graph, [image], [made], "giant")


def made_endless(*, is_nested=False):
    """Return a model that never finishes a run: WHILE something that is always true.

    With `is_nested` the loop's body is the graph that holds the loop.
    """
    main, condition, body = _Graph(), _Graph(), _Graph()
    main.codes = condition.codes = body.codes = []
    image = main.tensor("image", SMALL_IMAGE, "uint8")
    pixel = first_value(main, image, 4)
    looped = main.tensor("", (1,), "int32")
    main.run(WHILE, [pixel], [looped])
    made = main.step(CAST, [looped], (1,), "float32", name="never")
    number = condition.tensor("x", (1,), "int32")
    is_same = condition.step(EQUAL, [number, number], (1,), "bool")
    counted = body.tensor("x", (1,), "int32")
    if is_nested:
        more = body.tensor("", (1,), "int32")
        body.run(WHILE, [counted], [more])
    else:
        more = body.step(ADD, [counted, body.constant(np.ones(1, np.int32))], (1,), "int32")
    return _many_graphs(
        [(main, [image], [made]), (condition, [number], [is_same]), (body, [counted], [more])]
    )


def _many_graphs(graphs):
    to = _Builder(1 << 16)
    raw = [b""]
    made_graphs = []
    for graph, inputs, outputs in graphs:
        shift = len(raw) - 1
        raw += graph.buffers[1:]
        tensors = to.offsets(
            [made_tensor(to, *one[:5], one[5] + shift if one[5] else 0) for one in graph.tensors]
        )
        operators = to.offsets([_operator(to, *one) for one in graph.operators])
        ends = to.vector(inputs, np.int32), to.vector(outputs, np.int32)
        fields = {0: (REF, tensors), 1: (REF, ends[0]), 2: (REF, ends[1]), 3: (REF, operators)}
        made_graphs.append(to.table(5, fields))
    buffers = to.offsets([made_buffer(to, one) for one in raw])
    codes = to.offsets([_operator_code(to, *one) for one in graphs[0][0].codes])
    model = {0: ("Uint32", 3), 1: (REF, codes), 2: (REF, to.offsets(made_graphs))}
    to.Finish(to.table(8, {**model, 4: (REF, buffers)}), file_identifier=b"TFL3")
    return bytes(to.Output())


def _operator(to, number, code, inputs, outputs, custom):
    if code != WHILE:
        return made_operator(to, number, code, inputs, outputs, custom)
    ends = to.vector(inputs, np.int32), to.vector(outputs, np.int32)
    options = to.table(2, {0: ("Int32", 1), 1: ("Int32", 2)})
    fields = {0: ("Uint32", number), 1: (REF, ends[0]), 2: (REF, ends[1])}
    return to.table(7, {**fields, 3: ("Uint8", WHILE_OPTIONS), 4: (REF, options)})


def with_archive(data, files):
    """Return a model with a ZIP of files appended, as TFLite metadata has it."""
    stream = io.BytesIO(data)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def with_lying_archive(data):
    """Return a model whose archive unpacks to far more than it says."""
    lines = 0x3ABCDEF  # a size whose bytes stand nowhere else
    archive = with_archive(data, {"labels.txt": b"a\n" * lines})[len(data) :]
    size = struct.pack("<I", 2 * lines)
    assert archive.count(size) == 2  # before the file and in the directory
    return data + archive.replace(size, struct.pack("<I", 1000))
