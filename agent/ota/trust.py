"""Whom a board believes: The Update Framework's client, and what it leaves to its user.

python-tuf checks signatures, versions, hashes and expiry. Here is added:

* floors: it keeps what it has seen in files that it never syncs, and believes a repository of
  yesterday once a power cut has emptied them. Versions below the floors are refused whatever the
  files say, and the files are synced.
* the time that metadata are judged by, which is not always that of the board's clock.
* no delegations: the top-level targets role alone says what there is.

Only the update process imports this.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, TargetFile
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from agent.contract.updates import Floors
from agent.ota.jobs import Custom, Target, target_path
from agent.ota.refusal import Code, RefusalError, of_disk
from agent.ota.transport import PIECE_BYTES, StatusError, Transport

if TYPE_CHECKING:
    from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet

HISTORY = "root_history"
FIRST_ROOT = "the file that update.root names"
# NamedTemporaryFile's, as the updater leaves them when it is killed.
UNFINISHED = "tmp*"
DAY_S = 86_400.0
MOST_NEW_ROOTS = 256
# The first that fits: subclasses stand before their parents.
CODES: tuple[tuple[type[Exception], Code], ...] = (
    (UnsignedMetadataError, "E_SIG"),
    (BadVersionNumberError, "E_ROLLBACK"),
    (ExpiredMetadataError, "E_FREEZE"),
    (LengthOrHashMismatchError, "E_HASH"),
    (DeserializationError, "E_JSON"),
    (RepositoryError, "E_SIG"),
    (DownloadLengthMismatchError, "E_SIZE"),
    (DownloadError, "E_NET"),
)


class Fetcher(FetcherInterface):
    """python-tuf's view of a transport: whole small files, in memory, with a cap."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            reply = self._transport.open(url)
        except StatusError as error:
            raise DownloadHTTPError(str(error), error.status) from error
        try:
            while piece := reply.read(PIECE_BYTES):
                yield piece
        finally:
            reply.close()

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Return a file, or raise as soon as it is known to be too long."""
        content = bytearray()
        with contextlib.closing(self._fetch(url)) as pieces:  # type: ignore[type-var]
            for piece in pieces:
                content += piece
                if len(content) > max_length:
                    message = f"{self._transport.name}: {url} has more than {max_length} bytes"
                    raise DownloadLengthMismatchError(message)
        return bytes(content)


class Repository:
    """One mirror's metadata, believed step by step into a folder."""

    def __init__(
        self, folder: Path, transport: Transport, *, root: bytes, at: float, floors: Floors
    ) -> None:
        """Start from the root that came with the configuration; `at` is now, in Unix seconds.

        Raises:
            RefusalError: E_SIG, E_JSON: it is no root; E_SPACE: the folder takes nothing.
        """
        self._folder = folder
        self.name = transport.name
        self.at = at
        self._floors = floors
        self._is_fresh = False
        # python-tuf walks from the first root on each time, and counts those it has seen as well.
        most_roots = floors.root_version + MOST_NEW_ROOTS
        with as_refusals(FIRST_ROOT):  # nothing of the mirror's is read yet
            for unfinished in folder.glob(UNFINISHED):
                unfinished.unlink()
            # The urls that it makes of this base are paths of the transport.
            self.updater = Updater(
                str(folder),
                "metadata/",
                fetcher=Fetcher(transport),
                config=UpdaterConfig(max_root_rotations=most_roots),
                bootstrap=root,
            )
        # python-tuf judges by the clock at this moment and takes no other time. What it keeps it
        # in has a field for it; the one place that reaches for what is not public.
        trusted: TrustedMetadataSet | None = getattr(self.updater, "_trusted_set", None)
        if trusted is None or not isinstance(getattr(trusted, "reference_time", None), datetime):
            raise RefusalError("E_SYSTEM", "this version of tuf keeps its time elsewhere")
        try:
            trusted.reference_time = datetime.fromtimestamp(at, timezone.utc)
        except (ValueError, OverflowError, OSError) as error:
            raise RefusalError("E_CLOCK", f"{at:.0f} s since 1970 is no time") from error
        self._trusted = trusted

    def refresh(self) -> None:
        """Bring all metadata up to date, and the files to disk.

        Raises:
            RefusalError: E_SIG, E_ROLLBACK, E_FREEZE, E_HASH, E_JSON, E_SIZE, E_SLOW, E_NET;
                none of them is final: another mirror, or another day, may do better.
        """
        try:
            with as_refusals(self.name):
                self.updater.refresh()
        finally:
            with as_refusals(self.name):
                sync(self._folder)
        self._check(self._rebased())
        self._is_fresh = True

    def _check(self, floors: Floors) -> None:
        trusted = self._trusted
        for role, version, floor in (
            ("root", trusted.root.version, floors.root_version),
            ("timestamp", trusted.timestamp.version, floors.timestamp_version),
            ("snapshot", trusted.snapshot.version, floors.snapshot_version),
            ("targets", trusted.targets.version, floors.targets_version),
        ):
            if version < floor:
                raise RefusalError(
                    "E_ROLLBACK",
                    f"{self.name}: {role} is version {version}, this board has seen {floor}",
                    is_final=False,
                )

    def _rebased(self) -> Floors:
        """Return the floors as they hold under the root that is believed now.

        A stolen online key can sign version 2**31; the cure is a root with other keys, under which
        versions start anew (TUF specification, 5.3.11). So a floor falls when what was signed under
        the root that it was noted under would not be believed any more. Where that root is not at
        hand, nothing falls.
        """
        now, floors = self._trusted.root, self._floors
        if floors.root_version >= now.version:
            return floors
        if floors.root_version == 0:  # nothing was noted before
            return msgspec.structs.replace(floors, root_version=now.version)
        then = self._root(floors.root_version)
        if then is None:
            return floors
        has_lost_timestamp = _has_lost_its_keys("timestamp", then, now)
        has_lost_snapshot = _has_lost_its_keys("snapshot", then, now)
        return msgspec.structs.replace(
            floors,
            root_version=now.version,
            timestamp_version=0 if has_lost_timestamp else floors.timestamp_version,
            snapshot_version=(
                0 if has_lost_timestamp or has_lost_snapshot else floors.snapshot_version
            ),
            targets_version=0 if has_lost_snapshot else floors.targets_version,
        )

    def _root(self, version: int) -> Root | None:
        """Return a root that was believed once; those since the first one were checked just now."""
        try:
            path = self._folder / HISTORY / f"{version}.root.json"
            kept = Metadata[Root].from_bytes(path.read_bytes())
            kept.verify_delegate("root", kept)
        except (OSError, RepositoryError):
            return None
        return kept.signed if kept.signed.version == version else None

    def raised(self, *, is_clock_trusted: bool) -> Floors:
        """Return the floors with what has been believed so far."""
        floors = self._rebased()
        if not self._is_fresh:
            return floors
        trusted = self._trusted
        return msgspec.structs.replace(
            floors,
            timestamp_version=max(floors.timestamp_version, trusted.timestamp.version),
            snapshot_version=max(floors.snapshot_version, trusted.snapshot.version),
            targets_version=max(floors.targets_version, trusted.targets.version),
            time=max(floors.time, self.at) if is_clock_trusted else floors.time,
        )

    @property
    def expires_at(self) -> float:
        """Unix seconds from which what is believed now will not be believed any more."""
        return min(one.expires.timestamp() for one in self._trusted)

    @property
    def stale_days(self) -> float:
        """For how long the repository's word has expired; 0 where it has not."""
        return max(0.0, (self.at - self.expires_at) / DAY_S)

    def find(self, name: str, version: str) -> Target:
        """Return a bundle that is wanted.

        Raises:
            RefusalError: E_DESIRED, it is not there, which may change; else as `_read`.
        """
        found = self._trusted.targets.targets.get(target_path(name, version))
        if found is None:
            raise RefusalError("E_DESIRED", f"{self.name}: has no {name}@{version}", is_final=False)
        return self._read(found)

    def bundles(self) -> Iterator[Target]:
        """Return all bundles that can be understood."""
        for found in self._trusted.targets.targets.values():
            with contextlib.suppress(RefusalError):
                yield self._read(found)

    def _read(self, found: TargetFile) -> Target:
        try:
            custom = msgspec.convert(found.custom, Custom)
            target = msgspec.convert(
                {"sha256": found.hashes.get("sha256"), "length": found.length, "custom": custom},
                Target,
            )
        except msgspec.ValidationError as error:
            message = f"{self.name}: {found.path} is not for edge-agent: {error}"
            raise RefusalError("E_COMPAT", message) from error
        if found.path != target_path(custom.name, custom.version):
            message = f"{self.name}: {found.path} says it is {custom.name}@{custom.version}"
            raise RefusalError("E_COMPAT", message)
        if not self._trusted.root.consistent_snapshot:
            raise RefusalError("E_COMPAT", f"{self.name}: has no consistent snapshots")
        return target


def _has_lost_its_keys(role: str, then: Root, now: Root) -> bool:
    """Whether what was signed under one root would not be believed under another."""
    still = set(then.roles[role].keyids) & set(now.roles[role].keyids)
    return len(still) < now.roles[role].threshold


@contextlib.contextmanager
def as_refusals(name: str) -> Iterator[None]:
    """Turn python-tuf's errors into refusals; a refusal of a transport passes through."""
    try:
        yield
    except (RepositoryError, DownloadError) as error:
        code = next(code for kind, code in CODES if isinstance(error, kind))
        message = str(error) or type(error).__name__
        if name not in message:
            message = f"{name}: {message}"
        raise RefusalError(code, message[:500], is_final=False) from error
    except OSError as error:
        raise of_disk(error, "metadata") from error


def sync(folder: Path) -> None:
    """Have the disk keep what python-tuf has written: files first, then the names they have."""
    history = folder / HISTORY
    for place in (history, folder):
        if not place.is_dir():
            continue
        for path in place.glob("*.json"):
            if path.is_file() and not path.is_symlink():
                _sync_one(path, os.O_RDONLY)
        _sync_one(place, os.O_RDONLY | os.O_DIRECTORY)


def _sync_one(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
