"""Reading a model's own words: whatever the bytes are, facts or a sentence."""

import contextlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_models import MadeTensor, made_model

from agent.errors import ModelError
from agent.vision.exporter_notes import parse_notes
from agent.vision.labels import counts_inside
from agent.vision.tflite_file import (
    BUILTIN_ARG_MAX,
    BUILTIN_CAST,
    BUILTIN_LOGISTIC,
    BUILTIN_SOFTMAX,
    SSD_CUSTOM_OP,
    parse_tflite,
)

MODEL = Path(__file__).resolve().parents[2] / "models" / "default" / "model.tflite"
DATA = MODEL.read_bytes()


def test_default_model():
    file = parse_tflite(DATA, where="model")
    assert file.custom_ops == {SSD_CUSTOM_OP}
    assert file.ssd_outputs == file.outputs
    assert len(file.outputs) == 4
    labels = next(iter(file.label_files.values()))
    assert labels[0] == "person"
    assert len(labels) == 80


@given(st.integers(0, len(DATA) - 1))
@settings(max_examples=150, deadline=None)
def test_every_truncation_is_refused(length):
    """A cut may only spare the model itself where it falls into the labels' archive."""
    archive = DATA.rindex(b"PK\x03\x04")
    if length >= archive:
        parse_tflite(DATA[:length], where="model")
    else:
        with pytest.raises(ModelError, match="model: "):
            parse_tflite(DATA[:length], where="model")


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
@settings(max_examples=150, deadline=None)
def test_damage_gives_facts_or_a_sentence(seed, flips):
    rng = np.random.default_rng(seed)
    data = bytearray(DATA[:60_000])  # the structure is at both ends; a short tail is damage too
    for _ in range(flips):
        data[rng.integers(0, len(data))] ^= 1 << rng.integers(0, 8)
    try:
        parse_tflite(bytes(data), where="model")
    except ModelError as error:
        assert str(error).startswith("model: ")


@given(st.binary(max_size=200))
def test_any_bytes(data):
    for content in (data, b"\x18\0\0\0TFL3" + data):
        with contextlib.suppress(ModelError):
            parse_tflite(content, where="x")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(50), "a ZIP archive"),
        (b"\x89HDF" + bytes(50), "HDF5"),
        (bytes(100), "not a TFLite model"),
        (b"\x18\0\0\0TFL3", "truncated or damaged"),
    ],
)
def test_other_files(content, sentence):
    with pytest.raises(ModelError, match=sentence):
        parse_tflite(content, where="x")


def with_archive(tmp_path, files):
    path = tmp_path / "model.tflite"
    path.write_bytes(DATA[: DATA.rindex(b"PK\x03\x04")])
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path.read_bytes()


def test_exporter_notes_are_parsed_and_never_run(tmp_path):
    notes = "{'task': 'detect', 'names': {0: 'person', 1: 'it''s'}}"
    file = parse_tflite(with_archive(tmp_path, {"temp_meta.txt": notes}), where="x")
    assert file.exporter["task"] == "detect"
    hostile = "__import__('os').abort()"
    assert (
        parse_tflite(with_archive(tmp_path, {"temp_meta.txt": hostile}), where="x").exporter == {}
    )
    deep = "[" * 100_000
    assert parse_tflite(with_archive(tmp_path, {"metadata.json": deep}), where="x").exporter == {}


def test_archive_bomb_is_not_unpacked(tmp_path):
    bomb = with_archive(tmp_path, {"labels.txt": b"a\n" * (64 << 20)})
    assert len(bomb) < len(DATA) + (1 << 20)
    assert parse_tflite(bomb, where="x").label_files == {}


@pytest.mark.parametrize("name", ["meta.txt", "temp_meta.txt", "metadata.json", "notes", "a.json"])
@pytest.mark.parametrize(
    "notes",
    [
        "{'stride': 32, 'names': ['cat', 'dog']}",
        "{'stride': 32, 'names': {1: 'dog', 0: 'cat'}}",
        '{"names": {"0": "cat", "1": "dog"}}',
        '\ufeff\n{"names": ["cat", "dog"]}',
    ],
)
def test_notes_with_names_are_the_exporters_by_any_name(tmp_path, name, notes):
    """YOLOv5 calls its notes meta.txt; older ones list the names."""
    file = parse_tflite(with_archive(tmp_path, {name: notes}), where="x")
    assert file.exporter["names"] == {0: "cat", 1: "dog"}
    assert file.label_files == {}
    assert counts_inside(file) == {2}


def test_notes_beside_labels(tmp_path):
    files = {"labels.txt": "a\nb", "meta.txt": "{'names': ['c']}", "metadata.json": "{}"}
    file = parse_tflite(with_archive(tmp_path, files), where="x")
    assert file.exporter == {"names": {0: "c"}}
    assert file.label_files == {"labels.txt": ("a", "b")}
    damaged = parse_tflite(with_archive(tmp_path, {"meta.txt": "{'names': ["}), where="x")
    assert (damaged.exporter, damaged.label_files) == ({}, {})


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ("{0: 'a', 2: 'c'}", {0: "a", 1: "", 2: "c"}),
        ("{0: 'a', '²': 'b', -1: 'c', 2.5: 'd', None: 'e', (1, 2): 'f', True: 'g'}", {0: "a"}),
        ("{0: 7, 1: True, 2: None, 3: [], 4: 1.5}", {0: "7", 1: "True", 2: "", 3: "", 4: "1.5"}),
        ("{0x" + "f" * 9000 + ": 'a', 1: 0x" + "f" * 9000 + "}", {0: "", 1: ""}),
        ("{0: '\\ud800'}", {0: "?"}),
        ("{99999999: 'a'}", {}),
        ("'cat'", {}),
        ("[[[]]]", {0: ""}),
    ],
)
def test_odd_names(tmp_path, names, labels):
    notes = "{'task': ['a'], 3: 4, 'names': " + names + "}"
    file = parse_tflite(with_archive(tmp_path, {"meta.txt": notes}), where="x")
    assert file.exporter == {"names": labels}


def test_a_huge_literal_is_not_read(tmp_path):
    notes = "{'names': [" + "'a'," * 200_000 + "]}"
    file = parse_tflite(with_archive(tmp_path, {"meta.txt": notes}), where="x")
    assert (file.exporter, file.label_files) == ({}, {})


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.integers() | st.text(max_size=3) | st.none(), inner, max_size=4)
    ),
    max_leaves=10,
)
KEYS = st.sampled_from(["names", "task", "kpt_shape", "args", "end2end", "license"]) | st.text()


@given(st.dictionaries(KEYS | st.integers(), ANYTHING, max_size=6))
def test_any_notes_give_labels_that_can_be_sent(notes):
    found = parse_notes(repr(notes)) or {}
    assert all(isinstance(key, str) for key in found)
    assert isinstance(found.get("task", ""), str)
    names = found.get("names", {})
    assert list(names) == list(range(len(names)))
    for name in names.values():
        name.encode()


CHAINS = [
    ("softmax", (), BUILTIN_SOFTMAX),
    ("softmax", ("quantize",), BUILTIN_SOFTMAX),
    ("softmax", ("quantize", "dequantize"), BUILTIN_SOFTMAX),
    ("logistic", ("quantize", "dequantize", "flatten"), BUILTIN_LOGISTIC),
    ("argmax", ("cast",), BUILTIN_ARG_MAX),
    ("argmax", ("flatten", "cast"), BUILTIN_ARG_MAX),
]


@pytest.mark.parametrize(("through", "after", "maker"), CHAINS)
def test_what_makes_an_output_is_known_behind_what_passes_it_on(through, after, maker):
    made = MadeTensor(np.zeros((1, 1, 5), np.float32), through=through, after=after)
    file = parse_tflite(made_model([made]), where="x")
    assert [file.producers[one] for one in file.outputs] == [maker]


def test_a_cast_of_whole_numbers_says_that_they_are_whole():
    whole = MadeTensor(np.zeros((1, 5), np.int32), after=("cast", "flatten"))
    file = parse_tflite(made_model([whole]), where="x")
    assert [file.producers[one] for one in file.outputs] == [BUILTIN_CAST]
