"""A repository's signed metadata (TUF 1.0): read from a folder, held against its roots, signed.

    metadata/1.root.json 2.root.json …   who may sign what; each signed by the one before as well
    metadata/<n>.targets.json            which bundles there are, and their hashes
    metadata/<n>.snapshot.json           which targets.json counts
    metadata/timestamp.json              which snapshot.json counts; replaced by every refresh
    targets/<name>/<sha256>.<version>.tar

The first root is taken as it lies there: whoever may write the folder may also read these lines.
Boards have their own copy of it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal, TypeVar

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, Key, Signature
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from agent.errors import AgentError, UnavailableError
from agent.operator.changes import Write
from agent.operator.keys import KeyRing, name_of

RoleName = Literal["root", "targets", "snapshot", "timestamp"]
ROLES: Final[tuple[RoleName, ...]] = ("root", "targets", "snapshot", "timestamp")
# How long each is good for. Boards that were away for longer only need a fresh timestamp.
LIFETIMES: Final[dict[RoleName, timedelta]] = {
    "root": timedelta(days=730),
    "targets": timedelta(days=365),
    "snapshot": timedelta(days=30),
    "timestamp": timedelta(days=30),
}
MAX_METADATA_BYTES: Final = 5_000_000  # what clients read of targets.json at most
CHANNELS: Final = "x-edge-agent-channels"  # in targets.json, which clients ignore

# It says of each key that did not sign that it did not; `repo status` says so, and in a table.
logging.getLogger("tuf").setLevel(logging.WARNING)

MISSING: Final = "{role}.json is missing; restore it from a copy, such as the web server's"

T = TypeVar("T", Root, Targets, Snapshot, Timestamp)  # the four kinds of metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """The newest metadata of a folder; online roles are None where they were never signed."""

    folder: Path
    roots: list[Metadata[Root]]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot] | None
    timestamp: Metadata[Timestamp] | None
    # As they are on disk: what is signed one level up is the hash of just these bytes.
    targets_raw: bytes
    snapshot_raw: bytes | None

    @property
    def root(self) -> Root:
        """Return the newest root."""
        return self.roots[-1].signed

    def keys(self, role: RoleName) -> list[Key]:
        """Return the keys that may sign for a role."""
        return [self.root.get_key(keyid) for keyid in self.root.roles[role].keyids]

    def signed_by(self, role: RoleName) -> list[Key]:
        """Return those of a role's keys whose signatures on its metadata are good."""
        metadata = self.of(role)
        if metadata is None:
            return []
        signed, signatures = metadata.signed_bytes, metadata.signatures
        return [key for key in self.keys(role) if _is_good(key, signed, signatures.get(key.keyid))]

    def is_signed(self, role: RoleName) -> bool:
        """Return whether enough of them are."""
        return len(self.signed_by(role)) >= self.root.roles[role].threshold

    def of(
        self, role: RoleName
    ) -> Metadata[Root] | Metadata[Targets] | Metadata[Snapshot] | Metadata[Timestamp] | None:
        """Return a role's metadata."""
        if role == "root":
            return self.roots[-1]
        if role == "targets":
            return self.targets
        return self.snapshot if role == "snapshot" else self.timestamp


def read_repository(folder: Path) -> Repository:
    """Read a folder.

    Raises:
        UnavailableError: there is no repository, or it cannot be read.
        AgentError: its roots do not follow from one another, or its targets are not signed.
    """
    require_repository(folder)
    metadata = folder / "metadata"
    roots = _read_roots(metadata)
    number = _newest(metadata, "targets")
    if number is None:
        raise UnavailableError(f"{metadata}: has no targets.json; restore it from a copy")
    targets_raw = _read_bytes(metadata / f"{number}.targets.json")
    snapshot = _newest(metadata, "snapshot")
    snapshot_raw = _read_bytes(metadata / f"{snapshot}.snapshot.json") if snapshot else None
    timestamp = metadata / "timestamp.json"
    repository = Repository(
        folder=folder,
        roots=roots,
        targets=_parse(metadata / f"{number}.targets.json", targets_raw, Targets),
        snapshot=(
            _parse(metadata / f"{snapshot}.snapshot.json", snapshot_raw, Snapshot)
            if snapshot_raw is not None
            else None
        ),
        timestamp=(
            _parse(timestamp, _read_bytes(timestamp), Timestamp) if timestamp.exists() else None
        ),
        targets_raw=targets_raw,
        snapshot_raw=snapshot_raw,
    )
    if not repository.is_signed("targets"):
        raise AgentError(
            f"{metadata / f'{number}.targets.json'}: is not signed by enough of the targets keys"
            f" of {repository.root.version}.root.json"
        )
    return repository


def require_repository(folder: Path) -> None:
    """Look for a first root.

    Raises:
        UnavailableError: there is none.
    """
    if not (folder / "metadata" / "1.root.json").exists():
        raise UnavailableError(
            f"{folder}: holds no repository; make one with `edge-agent repo init`"
        )


def _read_roots(metadata: Path) -> list[Metadata[Root]]:
    roots: list[Metadata[Root]] = []
    while (path := metadata / f"{len(roots) + 1}.root.json").exists():
        root = _parse(path, _read_bytes(path), Root)
        try:
            for before in [*roots[-1:], root]:
                before.signed.verify_delegate("root", root.signed_bytes, root.signatures)
        except RepositoryError as error:
            raise AgentError(f"{path}: does not follow from the one before: {error}") from error
        if root.signed.version != len(roots) + 1:
            raise AgentError(f"{path}: says that it is version {root.signed.version}")
        roots.append(root)
    return roots


def _newest(metadata: Path, role: str) -> int | None:
    pattern = re.compile(rf"([1-9][0-9]{{0,15}})\.{role}\.json")
    found = (pattern.fullmatch(path.name) for path in metadata.iterdir())
    return max((int(match[1]) for match in found if match), default=None)


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_METADATA_BYTES + 1)
    except OSError as error:
        raise UnavailableError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > MAX_METADATA_BYTES:
        raise AgentError(f"{path}: is larger than any client reads ({MAX_METADATA_BYTES} bytes)")
    return raw


def _parse(path: Path, raw: bytes, kind: type[T]) -> Metadata[T]:
    try:
        metadata: Metadata[T] = Metadata.from_bytes(raw)
    except RepositoryError as error:
        raise AgentError(f"{path}: is damaged: {error}; restore it from a copy") from error
    if not isinstance(metadata.signed, kind):
        raise AgentError(f"{path}: is metadata of another kind")
    return metadata


def _is_good(key: Key, signed: bytes, signature: Signature | None) -> bool:
    if signature is None:
        return False
    try:
        key.verify_signature(signature, signed)
    except UnverifiedSignatureError:
        return False
    return True


def sign(payload: T, signers: Sequence[CryptoSigner]) -> Metadata[T]:
    """Sign with each key; clients ignore the signatures of those they do not know."""
    metadata = Metadata(payload)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata


def require(
    role: RoleName, keys: Sequence[Key], threshold: int, ring: KeyRing
) -> list[CryptoSigner]:
    """Return the signers of a role.

    Raises:
        UnavailableError: fewer of its keys are here than it takes.
    """
    signers = ring.signers(keys)
    if len(signers) < threshold:
        have = {signer.public_key.keyid for signer in signers}
        missing = ", ".join(name_of(key) for key in keys if key.keyid not in have)
        raise UnavailableError(
            f"{role}: {len(signers)} of its keys found, and it takes {threshold};"
            f" give the folders of others by --keys ({missing})"
        )
    return signers


def write_of(folder: Path, metadata: Metadata[T], says: str) -> Write:
    """Return the file of signed metadata."""
    kind = metadata.signed.type
    name = f"{kind}.json" if kind == "timestamp" else f"{metadata.signed.version}.{kind}.json"
    return Write(path=folder / "metadata" / name, content=metadata.to_bytes(), says=says)


@dataclass(frozen=True, slots=True, kw_only=True)
class Online:
    """Signs snapshot and timestamp; `renew`: whatever those of now are like, or if there are any.

    With new online keys numbers may start anew: boards that see the new root forget the old ones.
    """

    signers: Sequence[CryptoSigner]
    now: datetime
    renew: bool = False

    def writes(self, repository: Repository, targets: tuple[int, bytes]) -> list[Write]:
        """Return a timestamp, and before it a snapshot where that of now will not do.

        targets: the version and the bytes of the targets.json that is to count

        Raises:
            AgentError: nobody knows which numbers boards have seen.
        """
        for role in ("snapshot", "timestamp"):
            if repository.of(role) is None and not self.renew:
                raise AgentError(
                    f"{repository.folder / 'metadata'}: {MISSING.format(role=role)}, or replace the"
                    " online key by `edge-agent repo rotate-keys`: boards refuse lower numbers than"
                    " they have seen"
                )
        snapshot, writes = self._snapshot(repository, targets)
        before = repository.timestamp
        timestamp = Timestamp(
            version=before.signed.version + 1 if before else 1,
            expires=self.now + LIFETIMES["timestamp"],
            snapshot_meta=_meta(snapshot),
        )
        signed = sign(timestamp, self.signers)
        says = f"timestamp {timestamp.version}, good until {timestamp.expires:%Y-%m-%d}"
        return [*writes, write_of(repository.folder, signed, says)]

    def _snapshot(
        self, repository: Repository, targets: tuple[int, bytes]
    ) -> tuple[tuple[int, bytes], list[Write]]:
        meta = {"targets.json": _meta(targets)}
        before, raw = repository.snapshot, repository.snapshot_raw
        if before is not None and raw is not None and not self.renew:
            left = before.signed.expires - self.now
            is_good = repository.is_signed("snapshot") and left > LIFETIMES["snapshot"] / 2
            if is_good and before.signed.meta == meta:
                return (before.signed.version, raw), []
        snapshot = Snapshot(
            version=before.signed.version + 1 if before else 1,
            expires=self.now + LIFETIMES["snapshot"],
            meta=meta,
        )
        signed = sign(snapshot, self.signers)
        write = write_of(repository.folder, signed, f"snapshot {snapshot.version}")
        return (snapshot.version, signed.to_bytes()), [write]


def _meta(of: tuple[int, bytes]) -> MetaFile:
    version, content = of
    return MetaFile.from_data(version, content, ["sha256"])
