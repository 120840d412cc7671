"""Models as they lie on disk: a shipped name, a folder with a manifest, or a bare .tflite file.

Everything is read once and bounded; what is hashed here is what is loaded later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.contract.manifest import FileEntry, Manifest
from agent.errors import ModelError
from agent.shipped import models_folder, place_of
from agent.vision.manifest import MAX_MANIFEST_BYTES, parse_manifest

# Far above any model a board of this kind can run; a wrong path may be a disk image.
MAX_MODEL_BYTES = 512 << 20
PIECE_BYTES = 4 << 20


# Beside the plain model in a bundle; see `Manifest.edgetpu` for another name.
EDGETPU_FILE = "model_edgetpu.tflite"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBytes:
    """One .tflite file: what was hashed is what is loaded."""

    data: bytes
    sha256: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model as it lies on disk, read once."""

    plain: ModelBytes
    manifest: Manifest
    folder: Path
    edgetpu: ModelBytes | None = None  # the same network, compiled

    @property
    def where(self) -> str:
        """The plain model's path, for sentences."""
        return self.plain.where


def read_model(path: str, *, manifest_sha256: str = "") -> ModelFiles:
    """Read model and manifest: `path` is a shipped name, a folder, or a .tflite file.

    manifest_sha256: of an installed bundle's manifest.json; then nothing is read that it does not
        lead to, so the bytes that are loaded are the bytes that were installed

    Raises:
        ModelError: it cannot be read, or is not what its manifest says.
    """
    if not path:
        raise ModelError("model.path is empty: give a name in models/, a folder or a .tflite file")
    try:
        return _read_place(path, place_of(path), manifest_sha256)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error


def _read_place(path: str, place: Path, manifest_sha256: str) -> ModelFiles:
    if not place.exists():
        shipped = sorted(entry.name for entry in models_folder().glob("*") if entry.is_dir())
        raise ModelError(
            f"{path}: there is no such model file or folder; shipped models: {', '.join(shipped)}"
        )
    if not place.is_dir():
        if manifest_sha256:
            raise ModelError(f"{place}: is not the folder of a bundle; install it again")
        return ModelFiles(
            plain=_hashed(place),
            manifest=Manifest(name=_safe_name(place.stem)),
            folder=place.parent,
        )
    manifest_path = place / "manifest.json"
    if not manifest_path.exists():
        raise ModelError(
            f"{place}: the folder has no manifest.json; name the .tflite file itself, or add one"
        )
    raw = read_bounded(manifest_path, MAX_MANIFEST_BYTES)
    if manifest_sha256 and hashlib.sha256(raw).hexdigest() != manifest_sha256:
        raise ModelError(f"{manifest_path}: is not the manifest that was installed")
    manifest = parse_manifest(raw, where=str(manifest_path))
    compiled = manifest.edgetpu
    if compiled is None and (place / EDGETPU_FILE).exists():
        compiled = EDGETPU_FILE
    if manifest_sha256:
        _require_listed(place, manifest, compiled)
    return ModelFiles(
        plain=_verified(place, manifest.model, manifest),
        edgetpu=_verified(place, compiled, manifest) if compiled else None,
        manifest=manifest,
        folder=place,
    )


def _hashed(path: Path) -> ModelBytes:
    data = read_bounded(path, MAX_MODEL_BYTES)
    return ModelBytes(data=data, sha256=hashlib.sha256(data).hexdigest(), where=str(path))


def _verified(folder: Path, name: str, manifest: Manifest) -> ModelBytes:
    data = read_listed(folder / name, MAX_MODEL_BYTES, manifest.files)
    sha256 = hashlib.sha256(data).hexdigest()
    return ModelBytes(data=data, sha256=sha256, where=str(folder / name))


def _require_listed(folder: Path, manifest: Manifest, compiled: str | None) -> None:
    golden = manifest.golden.file if manifest.golden is not None else None
    named = (manifest.model, compiled, manifest.labels, manifest.head.anchors, golden)
    for name in named:
        if name is not None and name not in manifest.files:
            raise ModelError(f"{folder / name}: is not in the manifest that was installed")


def read_listed(path: Path, limit: int, files: Mapping[str, FileEntry]) -> bytes:
    """Read a file of a model folder whole, once; where the manifest lists it, it must be that.

    Raises:
        ModelError: it cannot be read, is larger than `limit`, or another file.
    """
    data = read_bounded(path, limit)
    entry = files.get(path.name)
    if entry is None:
        return data
    sha256 = hashlib.sha256(data).hexdigest()
    if entry.sha256 != sha256 or entry.size != len(data):
        raise ModelError(
            f"{path}: is not the file its manifest names (sha256 {sha256[:12]}…, "
            f"expected {entry.sha256[:12]}…); copy the folder again"
        )
    return data


def _safe_name(stem: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in stem)[:64] or "model"


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a whole file of at most `limit` bytes."""
    try:
        with path.open("rb") as file:
            data = bytearray()
            # In pieces: one read would ask for memory of `limit` bytes, which a process that
            # tries a model under limits may not have.
            while len(data) <= limit and (piece := file.read(min(limit + 1, PIECE_BYTES))):
                data += piece
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise ModelError(f"{path}: is larger than {limit >> 20} MiB, which no model here needs")
    return bytes(data)
