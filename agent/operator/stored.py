"""Bundles' files in a repository's folder: where each lies, and whether it is whole."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from agent.errors import UnavailableError
from agent.operator.changes import CHUNK_BYTES, OnBytes

FileState = Literal["present", "missing", "damaged"]


def bundle_path(folder: Path, name: str, version: str, sha256: str) -> Path:
    """Return where a bundle lies: TUF 1.0, 7.2, consistent snapshots."""
    return folder / "targets" / name / f"{sha256}.{version}.tar"


def file_state(path: Path, size: int, sha256: str, on_bytes: OnBytes | None) -> FileState:
    """Return how a bundle's file fares; without `on_bytes` only its size is looked at.

    Raises:
        UnavailableError: it cannot be read.
    """
    try:
        if path.stat().st_size != size:
            return "damaged"
        if on_bytes is None:
            return "present"
        return "present" if _hash(path, on_bytes) == sha256 else "damaged"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        raise UnavailableError(f"{path}: cannot be read: {error.strerror}") from error


def _hash(path: Path, on_bytes: OnBytes) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(CHUNK_BYTES):
            digest.update(part)
            on_bytes(len(part))
    return digest.hexdigest()
