"""Where bundles lie once they are taken in: `models/<sha256 of the bundle's file>/`.

A folder appears under that name only when it is whole and on the disk, by one rename, and goes
away by one; nothing in it is ever changed. What lies under a hash is therefore all of that bundle
or damaged by something else, and that is looked for at every load. What is under way is in
`.staging`, on the same file system, and may be thrown away at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec

from agent.ota.bundle import Readable, unpack
from agent.ota.checked import seal, unseal
from agent.ota.disk import (
    READ_BYTES,
    Disk,
    RealDisk,
    make_folder_durably,
    read_bounded,
    remove_tree,
    write_through,
)
from agent.ota.refusal import RefusalError
from agent.ota.state import BundleRef
from agent.ota.whole import MANIFEST, check_folder, read_member, refused

STAGING = ".staging"
# What this bundle is called, and its manifest's hash; not of the bundle, so no member's name.
NOTE = "bundle.ref"
KIND = "bundle"
MOST_NOTE_BYTES = 64 << 10
# Never taken for a bundle: state, outbox and the repository's metadata need room as well.
RESERVE_BYTES = 4 << 20
HASH = re.compile(r"[0-9a-f]{64}")
MEMBER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Into = Callable[[str, Iterable[bytes]], None]


class Said(Protocol):
    """What a bundle's manifest says of it."""

    @property
    def name(self) -> str:
        """The model's."""

    @property
    def version(self) -> str:
        """The model's."""

    @property
    def release_counter(self) -> int:
        """See `BundleRef`."""

    @property
    def security_floor(self) -> int:
        """See `BundleRef`."""


class Unpack(Protocol):
    """Takes a bundle apart, as `agent.ota.bundle.unpack` does."""

    def __call__(self, file: Readable, into: Into, /, *, size: int) -> Said:
        """Give each member to a function, in order; RefusalError if it is no bundle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What was thrown away."""

    removed: tuple[str, ...]  # hashes
    fault: str | None = None  # why not all of it


class Store:
    """The folder of bundles. One process at a time; `put` may run beside reading."""

    def __init__(self, folder: Path, disk: Disk | None = None, unpack: Unpack = unpack) -> None:
        self._folder = folder
        self._staging = folder / STAGING
        self._unpack = unpack
        self._disk = disk or RealDisk()
        self._is_made = False

    def path(self, ref: BundleRef) -> Path:
        """Return where a bundle lies, a model folder; whether it does is another matter."""
        return self._folder / ref.sha256

    def part(self, sha256: str) -> Path:
        """Return where the file of a bundle is fetched to; names that go on from it are kept too.

        Raises:
            OSError: there can be no such place.
        """
        self._make()
        return self._staging / f"{sha256}.part"

    def has(self, ref: BundleRef) -> bool:
        """Return whether a bundle lies here, by its name alone; never raises."""
        with contextlib.suppress(OSError):
            return self._disk.is_folder(self.path(ref))
        return False

    def known(self, sha256: str) -> BundleRef | None:
        """Return what the bundle of this hash was noted as when it was taken in; never raises."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            note = read_bounded(self._disk, self._folder / sha256 / NOTE, MOST_NOTE_BYTES)
            whole = unseal(KIND, note)
            ref = msgspec.json.decode(whole[1], type=BundleRef) if whole else None
            return ref if ref is not None and ref.sha256 == sha256 else None
        return None

    def free_bytes(self) -> int:
        """Return what the file system can take.

        Raises:
            OSError: it does not say.
        """
        place = self._folder if self._disk.is_folder(self._folder) else self._folder.parent
        return self._disk.free_bytes(place)

    def require_space(self, size: int, have: int = 0) -> None:
        """Refuse a bundle that does not fit: its file, of which `have` is there, and its members.

        Raises:
            RefusalError: E_SPACE.
        """
        needed = (size - have + size) * 11 // 10 + RESERVE_BYTES
        try:
            free = self.free_bytes()
        except OSError as error:
            raise refused(error, self._folder) from error
        if free < needed:
            raise RefusalError(
                "E_SPACE",
                f"{self._folder}: has {free >> 20} MiB free, but this bundle needs "
                f"{(needed >> 20) + 1} MiB with its reserve; free some",
            )

    def put(self, part: Path, wanted: BundleRef) -> BundleRef:
        """Take in a fetched file; return what to load it by. May be repeated at any time.

        Where the bundle is here already and whole, the file is not needed.

        Raises:
            RefusalError: E_HASH it is not the file that was promised, or there is none and what is
                here is damaged: either is thrown away, to be fetched again; E_BUNDLE the manifest
                is not what was promised; E_SPACE; E_SYSTEM; what `unpack` finds.
        """
        try:
            known = self._whole(wanted.sha256)
            if known is None:
                return self._take_in(part, wanted)
        except OSError as error:
            raise refused(error, self._folder) from error
        _require_promised(known, wanted)
        return known

    def verify(self, ref: BundleRef, breathe: Callable[[], object] = lambda: None) -> None:
        """Read every byte of a bundle and compare; `breathe` as in `check_folder`.

        Raises:
            RefusalError: E_HASH, with what is wrong; E_SYSTEM where it cannot be read.
        """
        check_folder(
            self._disk,
            self.path(ref),
            manifest_sha256=ref.manifest_sha256,
            besides=(NOTE,),
            breathe=breathe,
        )

    def read(self, ref: BundleRef, name: str) -> bytes:
        """Return a member's bytes, checked: `manifest.json`, or one that it lists.

        Raises:
            RefusalError: E_HASH, E_SYSTEM.
        """
        return read_member(self._disk, self.path(ref), name, manifest_sha256=ref.manifest_sha256)

    def collect(self, keep: Collection[str], keep_staged: Collection[str] = ()) -> Collected:
        """Throw away all bundles but those of `keep`, and what is staged but for `keep_staged`.

        Both are hashes. Never raises: what is left over goes the next time.
        """
        removed: list[str] = []
        try:
            self._make()
            for name in self._disk.names(self._folder):
                if HASH.fullmatch(name) and name not in keep:
                    self._set_aside(name)
                    removed.append(name)
            if removed:
                self._disk.sync_folder(self._folder)
            for name in self._disk.names(self._staging):
                sha256, _, kind = name.partition(".")
                if sha256 not in keep_staged or not kind.startswith("part"):
                    remove_tree(self._disk, self._staging / name)
        except OSError as error:
            return Collected(removed=tuple(removed), fault=f"{self._folder}: {error}")
        return Collected(removed=tuple(removed))

    def _whole(self, sha256: str) -> BundleRef | None:
        """Return the bundle if it is here and whole; throw it away if it is here and is not."""
        self._make()
        place = self._folder / sha256
        if not self._disk.is_folder(place):
            self._disk.remove(place)
            return None
        known = self.known(sha256)
        with contextlib.suppress(RefusalError):
            if known is not None:
                self.verify(known)
                # Whoever gave it this name may have been killed before the disk had it.
                self._disk.sync_folder(self._folder)
                return known
        self._set_aside(sha256)
        self._disk.sync_folder(self._folder)
        return None

    def _take_in(self, part: Path, wanted: BundleRef) -> BundleRef:
        fresh = self._staging / f"{wanted.sha256}.new"
        remove_tree(self._disk, fresh)
        try:
            with self._disk.open(part) as file:
                known = self._unpack_into(fresh, file, wanted)
        except FileNotFoundError as error:
            message = f"{wanted.title}: is not here whole, and has to be fetched again"
            raise RefusalError("E_HASH", message, is_final=False) from error
        except (OSError, RefusalError) as error:
            # Room is what a disk that has just run full needs most.
            with contextlib.suppress(OSError):
                remove_tree(self._disk, fresh)
                if isinstance(error, RefusalError):
                    self._disk.remove(part)
            raise
        # The order of fsync(2): what the folder names, then the folder, then its own name.
        self._disk.sync_folder(fresh)
        self._disk.rename(fresh, self._folder / wanted.sha256)
        self._disk.sync_folder(self._folder)
        self._disk.sync_folder(self._staging)
        return known

    def _unpack_into(self, fresh: Path, file: BinaryIO, wanted: BundleRef) -> BundleRef:
        # All of it first: not a byte that nobody signed is taken apart.
        first = _Passing(file)
        if first.rest() != wanted.sha256:
            message = f"{wanted.title}: these are not its bytes; they are fetched again"
            raise RefusalError("E_HASH", message, is_final=False)
        file.seek(0)
        self._disk.make_folder(fresh)
        members, second = _Members(self._disk, fresh), _Passing(file)
        said = self._unpack(second, members.take, size=first.count)
        if second.rest() != wanted.sha256:
            raise RefusalError("E_HASH", f"{wanted.title}: its file was changed while it was read")
        _require_promised(said, wanted)
        known = msgspec.structs.replace(wanted, manifest_sha256=members.manifest_sha256)
        write_through(self._disk, fresh / NOTE, seal(KIND, 0, msgspec.json.encode(known)), "new")
        check_folder(self._disk, fresh, manifest_sha256=known.manifest_sha256, besides=(NOTE,))
        return known

    def _set_aside(self, sha256: str) -> None:
        """Take a bundle's name away at once, so that half of one is never under its hash."""
        aside = self._staging / f"{sha256}.old"
        remove_tree(self._disk, aside)
        self._disk.rename(self._folder / sha256, aside)

    def _make(self) -> None:
        # Somebody who needs room may have removed it since.
        if not (self._is_made and self._disk.is_folder(self._staging)):
            make_folder_durably(self._disk, self._folder)
            make_folder_durably(self._disk, self._staging)
            self._is_made = True


class _Members:
    """Writes members into a new folder, each waited for."""

    def __init__(self, disk: Disk, folder: Path) -> None:
        self._disk = disk
        self._folder = folder
        self._names: set[str] = set()
        self.manifest_sha256 = ""

    def take(self, name: str, pieces: Iterable[bytes]) -> None:
        """Write one member."""
        if not MEMBER.fullmatch(name) or name == NOTE or name in self._names:
            raise RefusalError(
                "E_BUNDLE", f"a member may not be called {name[:80]!r}, or not twice"
            )
        self._names.add(name)
        digest = hashlib.sha256()
        sink = self._disk.sink(self._folder / name, "new")
        try:
            for piece in pieces:
                digest.update(piece)
                sink.write(piece)
            sink.sync()
        finally:
            sink.close()
        if name == MANIFEST:
            self.manifest_sha256 = digest.hexdigest()


class _Passing:
    """A file read forward once, and the hash of what has passed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.count = 0

    def read(self, count: int, /) -> bytes:
        """Return at most `count` bytes, fewer only at the end."""
        piece = self._file.read(count)
        self._digest.update(piece)
        self.count += len(piece)
        return piece

    def rest(self) -> str:
        """Read what is left; return the hash of everything."""
        while self.read(READ_BYTES):
            pass
        return self._digest.hexdigest()


def _require_promised(said: Said, wanted: BundleRef) -> None:
    for name in ("name", "version", "release_counter", "security_floor"):
        found, promised = getattr(said, name), getattr(wanted, name)
        if found != promised:
            raise RefusalError(
                "E_BUNDLE",
                f"{wanted.title}: its {name} is {found!r}, in the repository {promised!r}",
            )
