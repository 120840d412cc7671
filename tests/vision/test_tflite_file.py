"""Reading a model's own words: whatever the bytes are, facts or a sentence."""

import contextlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ModelError
from agent.vision.tflite_file import SSD_CUSTOM_OP, parse_tflite

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
