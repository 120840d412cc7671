"""A21: what is loaded of an installed bundle is what was installed, whoever swaps a file when."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path

import pytest

from agent.config import ModelConfig
from agent.errors import ModelError
from agent.vision.golden import read_golden
from agent.vision.model import build_model, load_model
from agent.vision.model_files import read_model

DEFAULT = Path(__file__).resolve().parents[2] / "models" / "default"
LABELS = "labels.txt"


@pytest.fixture
def folder(tmp_path):
    """An installed bundle: the files that the manifest lists, and it."""
    place = tmp_path / "bundle"
    place.mkdir()
    manifest = json.loads((DEFAULT / "manifest.json").read_bytes())
    for name in ("manifest.json", *manifest["files"]):
        shutil.copy(DEFAULT / name, place)
    return place


@pytest.fixture
def sha256(folder):
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_it_is_loaded_as_it_was_installed(folder, sha256):
    model = load_model(ModelConfig(path=str(folder)), manifest_sha256=sha256)
    assert model.identity.name == "default"
    entry = json.loads((folder / "manifest.json").read_bytes())["files"]["model.tflite"]
    assert model.identity.sha256 == entry["sha256"]
    assert len(model.labels) == 80


@pytest.mark.parametrize("name", ["manifest.json", "model.tflite", LABELS])
def test_a_file_that_was_swapped_after_it_was_checked_is_refused(folder, sha256, name):
    flip(folder / name)
    with pytest.raises(ModelError, match=name):
        load_model(ModelConfig(path=str(folder)), manifest_sha256=sha256)


def test_so_are_golden_answers(folder, sha256):
    flip(folder / "golden.npz")
    files = read_model(str(folder), manifest_sha256=sha256)
    with pytest.raises(ModelError, match=r"golden\.npz"):
        read_golden(files.manifest.golden, files)


def test_a_file_beside_it_that_was_not_installed_is_not_loaded(folder, sha256):
    shutil.copy(folder / "model.tflite", folder / "model_edgetpu.tflite")
    read_model(str(folder))  # of a folder that somebody made by hand, it is
    with pytest.raises(ModelError, match="not in the manifest that was installed"):
        read_model(str(folder), manifest_sha256=sha256)


@pytest.mark.parametrize("name", ["model.tflite", LABELS, "golden.npz"])
def test_a_manifest_leads_to_everything_that_is_read(folder, name):
    manifest = json.loads((folder / "manifest.json").read_bytes())
    del manifest["files"][name]
    raw = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(raw)
    with pytest.raises(ModelError, match="not in the manifest that was installed"):
        read_model(str(folder), manifest_sha256=hashlib.sha256(raw).hexdigest())


def test_another_whole_bundle_in_its_place_is_refused(folder, sha256):
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["version"] = "0.9"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    read_model(str(folder))
    with pytest.raises(ModelError, match="not the manifest that was installed"):
        read_model(str(folder), manifest_sha256=sha256)


def test_a_bare_file_is_no_bundle(folder, sha256):
    with pytest.raises(ModelError, match="not the folder of a bundle"):
        read_model(str(folder / "model.tflite"), manifest_sha256=sha256)


def test_what_happens_to_the_file_after_it_was_read_changes_nothing(folder, sha256):
    files = read_model(str(folder), manifest_sha256=sha256)
    (folder / "model.tflite").write_bytes(b"something else")
    model = build_model(files, ModelConfig(path=str(folder)))
    assert model.identity.sha256 == files.plain.sha256
    assert model.engine.outputs


def test_whoever_swaps_files_all_the_time_never_has_one_loaded(folder, sha256):
    """The evil file is there about half of the time, by rename, so each read sees one or other."""
    good, evil = folder.parent / "good", folder.parent / "evil"
    model = folder / "model.tflite"
    shutil.copy(model, good)
    shutil.copy(model, evil)
    flip(evil)
    expected = hashlib.sha256(good.read_bytes()).hexdigest()
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            for one in (evil, good):
                shutil.copy(one, folder / "next")
                (folder / "next").replace(model)

    thread = threading.Thread(target=swap)
    thread.start()
    loaded = refused = 0
    try:
        for _ in range(400):
            try:
                files = read_model(str(folder), manifest_sha256=sha256)
            except ModelError:
                refused += 1
            else:
                loaded += 1
                assert hashlib.sha256(files.plain.data).hexdigest() == expected
            if loaded > 4 and refused > 4:
                break
    finally:
        stop.set()
        thread.join()
    assert loaded
    assert refused
