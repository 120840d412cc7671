"""What the manifest of a bundle must say: all that a folder's may, and what boards decide by.

An unpacked bundle is a model folder. Only a few names of files are possible in it, so nothing that
a bundle says becomes a path.
"""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field

from agent import __version__
from agent.contract.manifest import BoardGlob, Budget, FileEntry, Manifest
from agent.contract.updates import Name, Version
from agent.ota.compat import is_at_least, is_for_board
from agent.ota.refusal import RefusalError
from agent.ota.strict_json import decode

MANIFEST = "manifest.json"
MODEL, EDGETPU, LABELS = "model.tflite", "model_edgetpu.tflite", "labels.txt"
GOLDEN, ANCHORS = "golden.npz", "anchors.npy"
MAX_MANIFEST_BYTES = 64 << 10
MAX_BUNDLE_BYTES = 256 << 20  # a model of that size takes a board's whole memory
# What a bundle may hold beside its manifest, and the most bytes of each that a model folder may
# have: agent/vision/{labels,golden}.py and agent/vision/heads/anchors.py.
MOST_BYTES = {
    ANCHORS: 8_392_704,
    GOLDEN: 64 << 20,
    LABELS: 1 << 20,
    MODEL: MAX_BUNDLE_BYTES,
    EDGETPU: MAX_BUNDLE_BYTES,
}
# Those that runtimes bring with them. A board may know others by a delegate of its own, but a
# bundle is for many boards, and an operator from anywhere is code from anywhere.
CUSTOM_OPS = frozenset({"TFLite_Detection_PostProcess", "edgetpu-custom-op"})

# No control characters: people read these on terminals.
Text = Annotated[str, Meta(max_length=1000, pattern=r"^[^\x00-\x1f\x7f-\x9f]*\Z")]
Member = Annotated[
    str, Meta(pattern=r"^(anchors\.npy|golden\.npz|labels\.txt|model(_edgetpu)?\.tflite)\Z")
]
Key = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")]


class BundleManifest(Manifest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """manifest.json of a bundle: nothing left open that a board decides by."""

    schema: Literal["edge-agent/manifest/1"]
    name: Name
    version: Version
    release_counter: Annotated[int, Meta(ge=1, le=2**53)]
    boards: Annotated[tuple[BoardGlob, ...], Meta(max_length=64)] = ()
    model: Literal["model.tflite"] = "model.tflite"
    edgetpu: Literal["model_edgetpu.tflite"] | None = None
    labels: Literal["labels.txt"] | None = None
    custom_ops: Annotated[tuple[Text, ...], Meta(max_length=16)] = ()
    budget: Annotated[dict[BoardGlob, Budget], Meta(max_length=64)] = field(default_factory=dict)
    license: Text | None = None
    provenance: Annotated[
        dict[Key, Text | Annotated[tuple[Text, ...], Meta(max_length=64)]], Meta(max_length=64)
    ] = field(default_factory=dict)
    files: Annotated[dict[Member, FileEntry], Meta(min_length=1)]


def parse_manifest(raw: bytes) -> BundleManifest:
    """Parse a bundle's manifest.json, and hold what it says against itself.

    Raises:
        RefusalError: E_SIZE, E_JSON; E_BUNDLE what it says cannot be; E_COMPAT its operators.
    """
    manifest = decode(raw, BundleManifest, most_bytes=MAX_MANIFEST_BYTES, where=MANIFEST)
    check_manifest(manifest)
    return manifest


def check_manifest(manifest: BundleManifest) -> None:
    """Hold what a manifest says against itself.

    Raises:
        RefusalError: see `parse_manifest`.
    """
    if manifest.security_floor > manifest.release_counter:
        raise _wrong(
            f"security_floor {manifest.security_floor} is above release_counter "
            f"{manifest.release_counter}, so that no board could run it"
        )
    _check_files(manifest)
    unknown = sorted(set(manifest.custom_ops) - CUSTOM_OPS)
    if unknown:
        raise RefusalError(
            "E_COMPAT", f"{MANIFEST}: needs the custom operator {unknown[0]}, which boards have not"
        )
    golden = manifest.golden
    if golden is not None:
        numbers = golden.score_tolerance, golden.iou
        if not all(math.isfinite(each) and 0 <= each <= 1 for each in numbers):
            raise _wrong("golden.score_tolerance and golden.iou are shares, from 0 to 1")


def _check_files(manifest: BundleManifest) -> None:
    """Every file is named by a key that says what it is for, and every key's file is there."""
    golden, anchors = manifest.golden, manifest.head.anchors
    named = {
        "model": manifest.model,
        "edgetpu": manifest.edgetpu,
        "labels": manifest.labels,
        "golden.file": golden.file if golden else None,
        "head.anchors": anchors,
    }
    usual = {"golden.file": GOLDEN, "head.anchors": ANCHORS}
    for key, name in named.items():
        if name is not None and name != usual.get(key, name):
            raise _wrong(f"{key} is {name}; in a bundle it can only be {usual[key]}")
        if name is not None and name not in manifest.files:
            raise _wrong(f"{key} is {name}, which is not among `files`")
    for name, entry in manifest.files.items():
        if name not in named.values():
            raise _wrong(f"{name} is among `files`, but nothing says what it is for")
        if not 1 <= entry.size <= MOST_BYTES[name]:
            raise RefusalError(
                "E_SIZE", f"{MANIFEST}: {name} has {entry.size} bytes of {MOST_BYTES[name]}"
            )


def _wrong(what: str) -> RefusalError:
    return RefusalError("E_BUNDLE", f"{MANIFEST}: {what}")


def encode_manifest(manifest: BundleManifest) -> bytes:
    """Return manifest.json: the same bytes for the same manifest, for people to read.

    Raises:
        RefusalError: what no reader would take; see `parse_manifest`.
    """
    said = _without_unsaid(msgspec.to_builtins(manifest, order="deterministic"))
    said = {key: value for key, value in said.items() if value not in ([], ())}
    raw = msgspec.json.format(msgspec.json.encode(said), indent=2) + b"\n"
    parse_manifest(raw)
    return raw


def _without_unsaid(value: Any) -> Any:  # noqa: ANN401 # JSON
    """Leave out keys that say nothing: null, and tables without entries."""
    if not isinstance(value, dict):
        return value
    said = {key: _without_unsaid(item) for key, item in value.items()}
    return {key: item for key, item in said.items() if item not in (None, {})}


def budget_for(manifest: Manifest, board: str) -> Budget | None:
    """Return what a board may spend: of the globs that name it the longest counts; None: no word.

    The longest leaves the least open: `rpi-5` before `rpi-*` before `*`.
    """
    fitting = [glob for glob in manifest.budget if fnmatchcase(board, glob)]
    # Of two of one length, one and the same on every board.
    best = max(fitting, key=lambda glob: (glob == board, len(glob), glob), default=None)
    return None if best is None else manifest.budget[best]


def require_fit(manifest: BundleManifest, *, board: str | None, agent: str = __version__) -> None:
    """Check that a bundle is for this program, and for a board where one is given.

    Raises:
        RefusalError: E_COMPAT.
    """
    title = f"{manifest.name}@{manifest.version}"
    if manifest.min_agent is not None and not is_at_least(agent, manifest.min_agent):
        raise RefusalError(
            "E_COMPAT", f"{title} needs edge-agent {manifest.min_agent}; this is {agent}"
        )
    if board is not None and not is_for_board(manifest.boards, board):
        raise RefusalError(
            "E_COMPAT", f"{title} is for {', '.join(manifest.boards)[:200]}; this is {board}"
        )
