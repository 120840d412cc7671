"""What a bundle's manifest says is held against itself, before anything else is read."""

import hashlib

import msgspec
import pytest
from made_bundles import MEMBERS, encoded, made_document, made_manifest

from agent.contract.manifest import Budget
from agent.ota.manifest import (
    MAX_MANIFEST_BYTES,
    budget_for,
    encode_manifest,
    parse_manifest,
    require_fit,
)
from agent.ota.refusal import RefusalError
from agent.vision.manifest import parse_manifest as parse_folder_manifest

FILES = made_document()["files"]
ENTRY = FILES["labels.txt"]
GOLDEN = {"file": "golden.npz", "score_tolerance": 0.1, "iou": 0.8}
DROPPED = ...  # its name stands in those of tests, and is the same everywhere


def refused(**changes):
    document = made_document() | changes
    for key, value in changes.items():
        if value is DROPPED:
            del document[key]
    with pytest.raises(RefusalError) as caught:
        parse_manifest(encoded(document))
    assert str(caught.value).startswith("manifest.json: ")
    return caught.value


@pytest.mark.parametrize(
    "changes",
    [
        {"security_floor": 4},
        {"labels": DROPPED},
        {"golden": GOLDEN},
        {"edgetpu": "model_edgetpu.tflite"},
        {"head": {"anchors": "anchors.npy"}},
        {"head": {"anchors": "labels.txt"}},
        {"golden": GOLDEN | {"file": "labels.txt"}},
        {"files": FILES | {"golden.npz": ENTRY}},
        {"files": FILES | {"anchors.npy": ENTRY}},
        {"files": {"labels.txt": ENTRY}},
        {"golden": GOLDEN | {"iou": 1.5}, "files": FILES | {"golden.npz": ENTRY}},
        {"golden": GOLDEN | {"score_tolerance": -0.1}, "files": FILES | {"golden.npz": ENTRY}},
    ],
)
def test_what_contradicts_itself(changes):
    assert refused(**changes).code == "E_BUNDLE"


@pytest.mark.parametrize(
    "changes",
    [
        *({key: DROPPED} for key in ("schema", "name", "version", "release_counter", "files")),
        {"schema": "edge-agent/manifest/2"},
        {"schema": 1},
        {"name": "a.b"},
        {"name": "a/b"},
        {"name": ""},
        {"name": "a\n"},
        {"name": "x" * 65},
        {"version": "../1"},
        {"version": ".1"},
        {"version": "1\n"},
        {"version": None},
        {"release_counter": 0},
        {"release_counter": -1},
        {"release_counter": 2**53 + 1},
        {"release_counter": "3"},
        {"security_floor": -1},
        {"files": {}},
        {"files": FILES | {"../x": ENTRY}},
        {"files": FILES | {"labels.txt\n": ENTRY}},
        {"files": FILES | {"manifest.json": ENTRY}},
        {"files": FILES | {"labels.txt": ENTRY | {"sha256": "0" * 63}}},
        {"files": FILES | {"labels.txt": ENTRY | {"sha256": "0" * 64 + "\n"}}},
        {"files": FILES | {"labels.txt": ENTRY | {"sha256": ENTRY["sha256"].upper()}}},
        {"files": FILES | {"labels.txt": ENTRY | {"mode": 0o4755}}},
        {"model": "labels.txt"},
        {"labels": "model.tflite"},
        {"labels": "/etc/passwd"},
        {"boards": ["rpi-[0-9]"]},
        {"boards": ["*"] * 65},
        {"min_agent": "one"},
        {"min_agent": "9" * 100},
        {"budget": {"*": {"p95_ms": 0, "rss_mib": 1}}},
        {"budget": {"*": {"p95_ms": 1}}},
        {"license": "\x1b]0;x\x07"},
        {"license": "x" * 1001},
        {"provenance": {"a": 1}},
        {"provenance": {"a b": "x"}},
        {"provenance": {"a": {"b": "x"}}},
        {"provenance": {"a": ["\x00"]}},
        {"provenance": {str(number): "x" for number in range(65)}},
        {"hooks": {"after": "sh"}},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_what_cannot_be_said(changes):
    assert refused(**changes).code == "E_JSON"


@pytest.mark.parametrize("name", ["FlexAddV2", "EvilOp", "", "edgetpu-custom-op2"])
def test_operators_that_no_board_has(name):
    """A12: what a delegate of one board brings is not for bundles."""
    assert refused(custom_ops=["TFLite_Detection_PostProcess", name]).code == "E_COMPAT"


@pytest.mark.parametrize(
    ("name", "size", "code"),
    [
        ("labels.txt", 0, "E_SIZE"),
        ("labels.txt", (1 << 20) + 1, "E_SIZE"),
        ("model.tflite", (256 << 20) + 1, "E_SIZE"),
        ("labels.txt", -1, "E_JSON"),
    ],
)
def test_sizes(name, size, code):
    assert refused(files=FILES | {name: FILES[name] | {"size": size}}).code == code


def test_length_is_bounded():
    raw = encode_manifest(made_manifest())
    assert parse_manifest(raw + b" " * (MAX_MANIFEST_BYTES - len(raw))) == made_manifest()
    with pytest.raises(RefusalError) as caught:
        parse_manifest(raw + b" " * (MAX_MANIFEST_BYTES - len(raw) + 1))
    assert caught.value.code == "E_SIZE"
    # What is too long to be read is not written either.
    long = {f"{number}": ("x" * 1000,) * 20 for number in range(10)}
    with pytest.raises(RefusalError):
        encode_manifest(made_manifest(provenance=long))


def test_all_that_can_be_said_is_what_a_folder_can_say():
    entries = {**MEMBERS, "golden.npz": b"g", "anchors.npy": b"a", "model_edgetpu.tflite": b"e"}
    files = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for name, content in entries.items()
    }
    document = made_document() | {
        "files": files,
        "security_floor": 3,
        "boards": ["rpi-*", "jetson-orin-nano"],
        "min_agent": "0.1",
        "task": "detection",
        "head": {"type": "ssd_raw", "anchors": "anchors.npy"},
        "tensors": {"inputs": [{"name": "x", "shape": [1, 0, 3], "dtype": "uint8"}], "outputs": []},
        "edgetpu": "model_edgetpu.tflite",
        "custom_ops": ["edgetpu-custom-op"],
        "golden": GOLDEN,
        "budget": {"rpi-*": {"p95_ms": 40, "rss_mib": 100.5}},
        "license": "MIT, “quoted”, Größe",
        "provenance": {"a": "x", "b": ["y", "z"]},
    }
    manifest = parse_manifest(encoded(document))
    assert parse_manifest(encode_manifest(manifest)) == manifest
    folder = parse_folder_manifest(encoded(document), where="it")
    for field in msgspec.structs.fields(folder):
        if field.name != "provenance":  # lists of a bundle's are tuples
            assert getattr(folder, field.name) == getattr(manifest, field.name)


@pytest.mark.parametrize(
    ("board", "p95_ms"),
    [("rpi-5", 10), ("rpi-4b", 20), ("rpi-zero-2w", 30), ("jetson-orin-nano", 40), ("x86", None)],
)
def test_budget_of_the_closest_name_counts(board, p95_ms):
    budgets = {"rpi-*": 30, "rpi-5": 10, "rpi-4*": 20, "jetson-*": 40}
    budget = {glob: Budget(p95_ms=ms, rss_mib=100) for glob, ms in budgets.items()}
    found = budget_for(made_manifest(budget=budget), board)
    assert (found and found.p95_ms) == p95_ms
    if p95_ms is None:
        everywhere = made_manifest(budget={**budget, "*": Budget(p95_ms=50, rss_mib=100)})
        assert budget_for(everywhere, board).p95_ms == 50


def test_fit():
    manifest = made_manifest(boards=("rpi-*",), min_agent="0.2")
    require_fit(manifest, board="rpi-5", agent="0.2.0")
    require_fit(manifest, board=None, agent="1.0")
    for board, agent in (("x86", "0.2"), ("rpi-5", "0.1.9")):
        with pytest.raises(RefusalError) as caught:
            require_fit(manifest, board=board, agent=agent)
        assert caught.value.code == "E_COMPAT"
