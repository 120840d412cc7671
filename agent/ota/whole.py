"""Whether a model folder is what its manifest says, byte by byte.

The chain: the state knows the manifest's hash, the manifest those of all other files. Whoever
loads a model follows it again on the very bytes that are loaded.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.ota.disk import READ_BYTES, Disk, read_bounded
from agent.ota.refusal import RefusalError

MANIFEST = "manifest.json"
MOST_MANIFEST_BYTES = 1 << 20
DAMAGED = "is not the file it was"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Entry(Struct, frozen=True):
    """One file, as a manifest lists it."""

    sha256: str
    size: int


class Listing(Struct, frozen=True):
    """The part of a manifest that tells damage from content."""

    files: dict[str, Entry] = {}


def check_folder(
    disk: Disk,
    folder: Path,
    *,
    manifest_sha256: str | None,
    besides: Collection[str] | None = (),
    breathe: Callable[[], object] = lambda: None,
) -> None:
    """Read every file of a model folder and compare.

    manifest_sha256: None where nobody knows it, as of a model that came with the program
    besides: names that the folder may hold and the manifest not; None: any
    breathe: called between reads, at least once a second on a disk that works

    Raises:
        RefusalError: E_HASH with what is wrong; E_SYSTEM what cannot be read.
    """
    try:
        _, listing = _read_manifest(disk, folder, manifest_sha256)
        if besides is not None:
            extra = set(disk.names(folder)) - {MANIFEST, *listing.files, *besides}
            if extra:
                raise RefusalError("E_HASH", f"{folder / min(extra)}: does not belong here")
        for name, entry in listing.files.items():
            _check_file(disk, folder / name, entry, breathe)
    except OSError as error:
        raise refused(error, folder) from error


def read_member(disk: Disk, folder: Path, name: str, *, manifest_sha256: str) -> bytes:
    """Return a file of a model folder, the manifest or one that it lists, once it is checked.

    Raises:
        RefusalError: as `check_folder`.
    """
    try:
        raw, listing = _read_manifest(disk, folder, manifest_sha256)
        if name == MANIFEST:
            return raw
        entry = listing.files.get(name)
        if entry is None:
            raise RefusalError("E_HASH", f"{folder / name}: is not in its manifest")
        content = read_bounded(disk, folder / name, entry.size)
    except OSError as error:
        raise refused(error, folder / name) from error
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise RefusalError("E_HASH", f"{folder / name}: {DAMAGED}")
    return content


def refused(error: OSError, place: Path) -> RefusalError:
    """Return the refusal that says what the file system said."""
    said = f"{error.filename or place}: {error.strerror or error}"
    if error.errno in NO_SPACE:
        return RefusalError("E_SPACE", said)
    if isinstance(error, FileNotFoundError):
        return RefusalError("E_HASH", f"{error.filename or place}: is missing")
    return RefusalError("E_SYSTEM", said)


def _read_manifest(disk: Disk, folder: Path, sha256: str | None) -> tuple[bytes, Listing]:
    raw = read_bounded(disk, folder / MANIFEST, MOST_MANIFEST_BYTES)
    if sha256 is not None and hashlib.sha256(raw).hexdigest() != sha256:
        raise RefusalError("E_HASH", f"{folder / MANIFEST}: {DAMAGED}")
    try:
        return raw, msgspec.json.decode(raw, type=Listing)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RefusalError("E_HASH", f"{folder / MANIFEST}: {error}") from error


def _check_file(disk: Disk, path: Path, entry: Entry, breathe: Callable[[], object]) -> None:
    digest, count = hashlib.sha256(), 0
    with disk.open(path) as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
            count += len(piece)
            breathe()
            if count > entry.size:
                break
    if (digest.hexdigest(), count) != (entry.sha256, entry.size):
        raise RefusalError("E_HASH", f"{path}: {DAMAGED}")
