"""A bundle: one model folder in one file, a tar archive that can be written in only one way.

    header of manifest.json, its bytes, zeros to 512; the same for every file that it lists, by
    name; 1024 zeros; nothing else

All of a header but name and size is fixed, so a reader need not understand headers: what is not
the very header that is due is refused, and with it links, devices, folders, paths, PAX and GNU
records, sparse files, sizes in base 256 and whatever comes yet. Any tar program unpacks it.
Python's own tarfile cannot be the reader. With 3.11.7 a stream whose 30 MB PAX record holds a
million entries kept it busy for 77 s, a GNU name of 100 MB took 211 MB, a size of 2**87 bytes had
not come to an end after 8 minutes; and it takes what follows the end, or no end at all.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from msgspec import Struct

from agent.contract.manifest import FileEntry
from agent.durable import write_durably
from agent.ota.manifest import (
    MANIFEST,
    MAX_BUNDLE_BYTES,
    MAX_MANIFEST_BYTES,
    BundleManifest,
    encode_manifest,
    parse_manifest,
)
from agent.ota.refusal import RefusalError

BLOCK = 512
END = bytes(2 * BLOCK)
PIECE_BYTES = 256 << 10
# Gets the members in order: a name of those fixed ones, and its bytes in pieces.
Into = Callable[[str, Iterable[bytes]], None]
_OCTAL = re.compile(rb"([0-7]{11})\0")
# Where ustar(5) has the size, the checksum and the type.
_SIZE, _CHECKSUM, _TYPE = slice(124, 136), slice(148, 156), slice(156, 157)
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a pipe",
    b"x": "a PAX record",
    b"g": "a PAX record",
    b"K": "a GNU record",
    b"L": "a GNU record",
    b"S": "a sparse file",
}


class Readable(Protocol):
    """All that is needed of a file."""

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes, none at the end."""


class Bundle(Struct, frozen=True, kw_only=True):
    """What a whole, sound file is."""

    manifest: BundleManifest
    sha256: str
    size: int


def header(name: str, size: int) -> bytes:
    """Return the only header that a member of this name and size can have: ustar(5)."""
    parts = [
        name.encode("ascii").ljust(100, b"\0"),
        b"0000644\0" + b"0000000\0" * 2,  # mode, user, group
        b"%011o\0" % size,
        b"%011o\0" % 0,  # when it was changed
        b" " * 8,
        b"0",  # a regular file
        bytes(100),
        b"ustar\x0000",
        bytes(32 + 32 + 8 + 8 + 155 + 12),
    ]
    block = b"".join(parts)
    return block[: _CHECKSUM.start] + b"%06o\0 " % sum(block) + block[_CHECKSUM.stop :]


def describe(members: Mapping[str, bytes | Path]) -> dict[str, FileEntry]:
    """Return what a manifest says of files.

    Raises:
        OSError: one cannot be read.
    """
    return {name: _entry_of(content) for name, content in sorted(members.items())}


def write_bundle(
    members: Mapping[str, bytes | Path], manifest: BundleManifest, destination: Path
) -> str:
    """Write a bundle; return the sha256 of the file, which depends on what is in it alone.

    members: all files that the manifest lists, and nothing else
    destination: replaced in one step, or left as it was

    Raises:
        RefusalError: what no board would take, such as members that are not those listed.
        OSError: something cannot be read or written.
    """
    raw = encode_manifest(manifest)
    total = _total_bytes(len(raw), manifest)
    listed = {name: manifest.files[name] for name in sorted(manifest.files)}
    if sorted(members) != [*listed]:
        raise RefusalError("E_BUNDLE", f"has {', '.join(sorted(members))}; listed: {[*listed]}")
    digest, count = hashlib.sha256(), 0

    def passing() -> Iterator[bytes]:
        nonlocal count
        for piece in _written(raw, listed, members):
            digest.update(piece)
            count += len(piece)
            yield piece
        if count != total:
            raise RefusalError("E_BUNDLE", f"has {count} bytes instead of {total}")

    write_durably(destination, passing())
    return digest.hexdigest()


def _written(
    raw: bytes, listed: Mapping[str, FileEntry], members: Mapping[str, bytes | Path]
) -> Iterator[bytes]:
    yield header(MANIFEST, len(raw))
    yield raw + _padding(len(raw))
    for name, entry in listed.items():
        yield header(name, entry.size)
        digest = hashlib.sha256()
        for piece in _pieces_of(members[name]):
            digest.update(piece)
            yield piece
        if digest.hexdigest() != entry.sha256:
            raise RefusalError("E_HASH", f"{name}: is not the file that the manifest lists")
        yield _padding(entry.size)
    yield END


def unpack(file: Readable, into: Into, *, size: int | None = None) -> BundleManifest:
    """Read a bundle forward, once, and hand on each member, the manifest first.

    Where a member's bytes are not those that the manifest promises, its last piece is not handed
    on: asking for it raises. What `into` leaves is read, and checked, anyway.

    size: of the whole file, where it is known

    Raises:
        RefusalError: E_BUNDLE, E_HASH, E_SIZE, and as `parse_manifest`; members that were handed
            on before are worth nothing then.
        OSError: the file cannot be read; and whatever `into` raises.
    """
    if size is not None and size > MAX_BUNDLE_BYTES:
        raise RefusalError("E_SIZE", f"the bundle has {size} bytes, the most is {MAX_BUNDLE_BYTES}")
    stream = _Stream(file)
    raw = _manifest_bytes(stream)
    manifest = parse_manifest(raw)
    total = _total_bytes(len(raw), manifest)
    if size not in (None, total):
        raise RefusalError("E_BUNDLE", f"has {size} bytes, but its manifest says {total}")
    into(MANIFEST, iter([raw]))
    for name in sorted(manifest.files):
        entry = manifest.files[name]
        block = stream.take(BLOCK)
        if block != header(name, entry.size):
            raise RefusalError("E_BUNDLE", _difference(block, name, entry.size))
        member = _Member(stream, name, entry)
        into(name, member.pieces())
        for _ in member.pieces():
            pass
        member.require_whole()
        stream.skip_padding(entry.size)
    if stream.take(len(END)) != END or stream.some(1):
        raise RefusalError("E_BUNDLE", "holds more than its manifest lists")
    return manifest


def examine(path: Path) -> Bundle:
    """Read a whole bundle, and check every byte of it.

    Raises:
        RefusalError: as `unpack`.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        passing = _Passing(file)
        manifest = unpack(passing, lambda *_: None, size=os.fstat(file.fileno()).st_size)
    return Bundle(manifest=manifest, sha256=passing.digest.hexdigest(), size=passing.count)


def unpack_into(path: Path, folder: Path) -> Bundle:
    """Unpack a bundle into an empty folder, for commands; boards have `agent.ota.store`.

    Raises:
        RefusalError: as `unpack`.
        OSError: the file cannot be read, or something not be written.
    """

    def into(name: str, pieces: Iterable[bytes]) -> None:
        with (folder / name).open("xb") as member:
            for piece in pieces:
                member.write(piece)

    with path.open("rb") as file:
        passing = _Passing(file)
        manifest = unpack(passing, into, size=os.fstat(file.fileno()).st_size)
    return Bundle(manifest=manifest, sha256=passing.digest.hexdigest(), size=passing.count)


def is_bundle(path: Path) -> bool:
    """Return whether a file begins as a bundle does; what cannot be read does not."""
    try:
        with path.open("rb") as file:
            return file.read(len(MANIFEST) + 1) == MANIFEST.encode() + b"\0"
    except OSError:
        return False


class _Passing:
    """A file read forward once, and the hash of what has passed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.count = 0

    def read(self, size: int, /) -> bytes:
        piece = self._file.read(size)
        self.digest.update(piece)
        self.count += len(piece)
        return piece


class _Stream:
    """A file of which never more is asked than a bundle may have, nor than a piece at once."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._count = 0

    def some(self, most: int) -> bytes:
        """Return up to `most` bytes; none at the end."""
        piece = self._file.read(min(most, PIECE_BYTES))
        self._count += len(piece)
        return piece

    def take(self, count: int) -> bytes:
        """Return exactly `count` bytes."""
        taken = bytearray()
        while len(taken) < count:
            taken += self.next(count - len(taken))
        return bytes(taken)

    def next(self, most: int) -> bytes:
        """Return at least one byte."""
        piece = self.some(most)
        if not piece:
            raise RefusalError("E_BUNDLE", f"ends after {self._count} bytes; copy it again")
        return piece

    def skip_padding(self, size: int) -> None:
        """Pass the zeros behind a member."""
        wanted = _padding(size)
        if self.take(len(wanted)) != wanted:
            raise RefusalError("E_BUNDLE", "has something other than zeros between its members")


class _Member:
    """One member's bytes, on their way out."""

    def __init__(self, stream: _Stream, name: str, entry: FileEntry) -> None:
        self._stream = stream
        self._name = name
        self._entry = entry
        self._digest = hashlib.sha256()
        self._left = entry.size

    def pieces(self) -> Iterator[bytes]:
        """Yield what has not been yielded; the last piece only if all of it is as promised."""
        while self._left:
            piece = self._stream.next(self._left)
            self._digest.update(piece)
            self._left -= len(piece)
            if not self._left:
                self.require_whole()
            yield piece

    def require_whole(self) -> None:
        if self._left or self._digest.hexdigest() != self._entry.sha256:
            raise RefusalError(
                "E_HASH", f"{self._name}: is not the file that the manifest lists; build it anew"
            )


def _manifest_bytes(stream: _Stream) -> bytes:
    block = stream.take(BLOCK)
    found = _OCTAL.fullmatch(block[_SIZE])
    size = int(found[1], 8) if found else 0
    if block != header(MANIFEST, size):
        raise RefusalError("E_BUNDLE", _difference(block, MANIFEST, None))
    if size > MAX_MANIFEST_BYTES:
        raise RefusalError("E_SIZE", f"{MANIFEST}: has more than {MAX_MANIFEST_BYTES} bytes")
    raw = stream.take(size)
    stream.skip_padding(size)
    return raw


def _total_bytes(manifest_bytes: int, manifest: BundleManifest) -> int:
    sizes = [manifest_bytes, *(entry.size for entry in manifest.files.values())]
    total = sum(BLOCK + size + len(_padding(size)) for size in sizes) + len(END)
    if total > MAX_BUNDLE_BYTES:
        raise RefusalError(
            "E_SIZE", f"the bundle has {total} bytes; the most is {MAX_BUNDLE_BYTES}"
        )
    return total


def _difference(block: bytes, name: str, size: int | None) -> str:
    """Say what stands where a member's header is due."""
    due = f"where {name}{'' if size is None else f' of {size} bytes'} is due"
    if not any(block):
        return f"ends {due}"
    found = block[:100].partition(b"\0")[0].decode("ascii", "backslashreplace")
    kind = _KINDS.get(block[_TYPE])
    if kind is not None:
        return f"holds {kind} {found!r} {due}"
    if found != name:
        return f"holds {found!r} {due}"
    return f"has another header than `edge-agent model pack` writes {due}"


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def _entry_of(content: bytes | Path) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    for piece in _pieces_of(content):
        digest.update(piece)
        size += len(piece)
    return FileEntry(sha256=digest.hexdigest(), size=size)


def _pieces_of(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
