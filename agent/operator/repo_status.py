"""How a repository fares: what is in it, who signed, how long it is good for, what to do."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct

from agent.operator.changes import OnBytes
from agent.operator.keys import KeyRing, name_of
from agent.operator.metadata import MISSING, ROLES, Repository, RoleName
from agent.operator.repo import channels_of, models
from agent.operator.stored import FileState, bundle_path, file_state

# Of timestamp and snapshot a third of their life: ten missed nights of a daily refresh.
SOON: Final[dict[RoleName, timedelta]] = {
    "root": timedelta(days=60),
    "targets": timedelta(days=60),
    "snapshot": timedelta(days=10),
    "timestamp": timedelta(days=10),
}
REMEDIES: Final[dict[RoleName, str]] = {
    "root": "edge-agent repo refresh --also root",
    "targets": "edge-agent repo refresh --also targets",
    "snapshot": "edge-agent repo refresh, as a timer",
    "timestamp": "edge-agent repo refresh, as a timer",
}


class KeyStatus(Struct, frozen=True, kw_only=True):
    """A key of a role; `here`: its file is in one of the folders that were given."""

    name: str
    id: str
    signed: bool
    here: bool


class RoleStatus(Struct, frozen=True, kw_only=True):
    """A role and its newest metadata."""

    role: RoleName
    version: int | None
    expires: str | None
    days_left: float | None
    threshold: int
    keys: list[KeyStatus]
    is_met: bool


class ModelStatus(Struct, frozen=True, kw_only=True):
    """A published bundle."""

    name: str
    version: str
    release_counter: int
    security_floor: int
    boards: list[str]
    min_agent: str | None
    channels: list[str]
    size: int
    sha256: str
    file: FileState


class RepositoryStatus(Struct, frozen=True, kw_only=True):
    """The document that `--json` prints."""

    ok: bool
    problems: list[str]
    soon: list[str]
    roles: list[RoleStatus]
    models: list[ModelStatus]


def status_of(
    repository: Repository, ring: KeyRing, now: datetime, on_bytes: OnBytes | None
) -> RepositoryStatus:
    """Examine a repository; with `on_bytes` each bundle is read and held against its hash."""
    roles = [_role(repository, role, ring, now) for role in ROLES]
    found = _models(repository, on_bytes)
    problems = [*_signatures(repository), *_chain(repository)]
    problems += [
        f"{role.role} expired {-role.days_left:.0f} days ago, and boards refuse it:"
        f" {REMEDIES[role.role]}"
        for role in roles
        if role.days_left is not None and role.days_left <= 0
    ]
    problems += [
        f"{model.name}@{model.version}: its file is {model.file}; publish it again from the bundle"
        for model in found
        if model.file != "present"
    ]
    soon = [
        f"{role.role} expires in {role.days_left:.0f} days: {REMEDIES[role.role]}"
        for role in roles
        if role.days_left is not None and 0 < role.days_left <= SOON[role.role] / timedelta(days=1)
    ]
    return RepositoryStatus(
        ok=not problems, problems=problems, soon=soon, roles=roles, models=found
    )


def _role(repository: Repository, role: RoleName, ring: KeyRing, now: datetime) -> RoleStatus:
    metadata = repository.of(role)
    signed = {key.keyid for key in repository.signed_by(role)}
    left = (metadata.signed.expires - now) / timedelta(days=1) if metadata else None
    return RoleStatus(
        role=role,
        version=metadata.signed.version if metadata else None,
        expires=metadata.signed.expires.isoformat() if metadata else None,
        days_left=None if left is None else round(left, 2),
        threshold=repository.root.roles[role].threshold,
        keys=[
            KeyStatus(
                name=name_of(key),
                id=key.keyid,
                signed=key.keyid in signed,
                here=ring.path(key) is not None,
            )
            for key in repository.keys(role)
        ],
        is_met=repository.is_signed(role),
    )


def _signatures(repository: Repository) -> list[str]:
    return [
        MISSING.format(role=role)
        if repository.of(role) is None
        else f"{role} is not signed by {repository.root.roles[role].threshold} of its keys:"
        " edge-agent repo refresh"
        for role in ROLES
        if not repository.is_signed(role)
    ]


def _chain(repository: Repository) -> list[str]:
    """Return where one file does not name the next as it is."""
    problems = []
    snapshot, timestamp = repository.snapshot, repository.timestamp
    if snapshot is not None:
        named = snapshot.signed.meta["targets.json"]
        digest = hashlib.sha256(repository.targets_raw).hexdigest()
        if named.version < repository.targets.signed.version:
            problems.append(
                f"boards do not see targets {repository.targets.signed.version} yet:"
                " edge-agent repo refresh"
            )
        elif (named.hashes or {}).get("sha256") != digest:
            problems.append("targets.json is not what snapshot names; restore it from a copy")
        if timestamp is not None and timestamp.signed.snapshot_meta.version != (
            snapshot.signed.version
        ):
            problems.append("timestamp does not name the newest snapshot: edge-agent repo refresh")
    return problems


def _models(repository: Repository, on_bytes: OnBytes | None) -> list[ModelStatus]:
    targets = repository.targets.signed
    channels = channels_of(targets)
    found = []
    for custom, target in zip(models(targets), targets.targets.values(), strict=True):
        path = bundle_path(repository.folder, custom.name, custom.version, target.hashes["sha256"])
        found.append(
            ModelStatus(
                name=custom.name,
                version=custom.version,
                release_counter=custom.release_counter,
                security_floor=custom.security_floor,
                boards=custom.boards,
                min_agent=custom.min_agent,
                channels=sorted(
                    name
                    for name, version in channels.get(custom.name, {}).items()
                    if version == custom.version
                ),
                size=target.length,
                sha256=target.hashes["sha256"],
                file=file_state(path, target.length, target.hashes["sha256"], on_bytes),
            )
        )
    return sorted(found, key=lambda model: (model.name, model.release_counter))
