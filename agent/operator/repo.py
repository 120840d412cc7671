"""The repository of signed models: made, filled, and kept fresh.

Each function reads, checks and signs, and returns what is to be written; nothing is changed here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from agent.errors import AgentError
from agent.operator.bundles import Bundle
from agent.operator.changes import Copy, Write
from agent.operator.keys import KEY_FILE_MODE, KeyRing, NewKey, make_key
from agent.operator.metadata import (
    CHANNELS,
    LIFETIMES,
    Online,
    Repository,
    RoleName,
    require,
    sign,
    write_of,
)
from agent.operator.stored import bundle_path, file_state
from agent.ota.jobs import Custom

# How many keys a role has, and how many of them must sign.
ROOT_KEYS: Final = (3, 2)
TARGETS_KEYS: Final = (2, 1)
# What is said where the online key is elsewhere, as it should be.
REFRESH_NEXT: Final = "where the online key is: edge-agent repo refresh"


def init(
    folder: Path, keys: Path, passphrase: bytes | None, now: datetime
) -> tuple[list[Write], list[NewKey]]:
    """Return a new repository without models, and its keys; the online one has no passphrase."""
    if (folder / "metadata").exists():
        raise AgentError(f"{folder}: holds a repository already")
    if keys.resolve().is_relative_to(folder.resolve()):
        raise AgentError(f"--keys {keys}: lies in the repository, which is served to everybody")
    if any(keys.glob("*.key")):
        raise AgentError(f"--keys {keys}: holds keys already; name another folder")
    roots = [make_key(f"root-{number + 1}", passphrase) for number in range(ROOT_KEYS[0])]
    targets = [make_key(f"targets-{number + 1}", passphrase) for number in range(TARGETS_KEYS[0])]
    online = make_key("online-1", None)
    root = Root(version=1, expires=now + LIFETIMES["root"], consistent_snapshot=True)
    for role, owners, threshold in (
        ("root", roots, ROOT_KEYS[1]),
        ("targets", targets, TARGETS_KEYS[1]),
        ("snapshot", [online], 1),
        ("timestamp", [online], 1),
    ):
        for key in owners:
            root.add_key(key.signer.public_key, role)
        root.roles[role].threshold = threshold
    first = Targets(version=1, expires=now + LIFETIMES["targets"])
    signed = sign(first, [key.signer for key in targets])
    signed_root = sign(root, [key.signer for key in roots])
    made = [*roots, *targets, online]
    empty = Repository(
        folder=folder,
        roots=[signed_root],
        targets=signed,
        snapshot=None,
        timestamp=None,
        targets_raw=signed.to_bytes(),
        snapshot_raw=None,
    )
    writes = [
        *(write_key(keys, key) for key in made),
        write_of(folder, signed_root, "root 1: 2 of 3 keys"),
        write_of(folder, signed, "targets 1: no models yet"),
        *Online(signers=[online.signer], now=now, renew=True).writes(empty, (1, signed.to_bytes())),
    ]
    return writes, made


def write_key(folder: Path, key: NewKey) -> Write:
    """Return the file of a new key."""
    path = folder / f"{key.name}.key"
    says = f"key {key.signer.public_key.keyid[:8]}"
    return Write(path=path, content=key.content, says=says, mode=KEY_FILE_MODE)


def publish(
    repository: Repository, bundle: Bundle, ring: KeyRing, now: datetime, channel: str | None
) -> tuple[list[Write], list[str]]:
    """Return what adds a bundle, and what to say about it; nothing if it is there already.

    A published bundle whose file is missing or damaged gets it back; nothing is signed for that.

    Raises:
        AgentError: the version is there with other content, or the counter does not grow.
    """
    payload = copy.deepcopy(repository.targets.signed)
    known = payload.targets.get(bundle.target_path)
    place = bundle_path(repository.folder, bundle.name, bundle.version, bundle.sha256)
    content = Copy(source=bundle.path, sha256=bundle.sha256, size=bundle.size)
    file = Write(path=place, content=content, says=bundle.title)
    if known is not None:
        if known.hashes.get("sha256") != bundle.sha256:
            raise AgentError(
                f"{bundle.title} is published already with other content"
                f" ({known.hashes.get('sha256', '')[:12]}); give this one another version"
            )
        found = file_state(place, bundle.size, bundle.sha256, lambda _: None)
        restored = [file] if found != "present" else []
        notes = [f"{bundle.title} is published already; its file was {found}"] if restored else []
        if channel is None:
            return restored, notes or [f"{bundle.title} is published already"]
        writes, more = promote(repository, bundle.name, bundle.version, channel, ring, now)
        return [*restored, *writes], [*notes, *more]
    _check_counter(payload, bundle)
    payload.targets[bundle.target_path] = TargetFile(
        length=bundle.size,
        hashes={"sha256": bundle.sha256},
        path=bundle.target_path,
        unrecognized_fields={"custom": msgspec.to_builtins(bundle.custom)},
    )
    if channel is not None:
        _set_channel(payload, bundle.name, channel, bundle.version)
    writes, notes = with_targets(
        repository, payload, ring, now, f"{bundle.title}, release {bundle.custom.release_counter}"
    )
    return [file, *writes], notes


def _check_counter(targets: Targets, bundle: Bundle) -> None:
    of_this_name = [custom for custom in models(targets) if custom.name == bundle.name]
    newest = max(of_this_name, key=lambda custom: custom.release_counter, default=None)
    if newest is not None and bundle.custom.release_counter <= newest.release_counter:
        raise AgentError(
            f"{bundle.title}: its release_counter {bundle.custom.release_counter} is not above"
            f" {newest.release_counter} of {newest.version}, so boards would take it for an old"
            " one; pack it with a higher one"
        )


def models(targets: Targets) -> list[Custom]:
    """Return what the repository says of each of its bundles.

    Raises:
        AgentError: it holds what this program did not publish.
    """
    try:
        return [msgspec.convert(target.custom, Custom) for target in targets.targets.values()]
    except msgspec.ValidationError as error:
        raise AgentError(f"targets.json: holds what is no bundle of ours: {error}") from error


def promote(
    repository: Repository, name: str, version: str, channel: str, ring: KeyRing, now: datetime
) -> tuple[list[Write], list[str]]:
    """Return what makes a channel, such as stable, mean a version; boards do not see channels."""
    payload = copy.deepcopy(repository.targets.signed)
    if f"{name}/{version}.tar" not in payload.targets:
        raise AgentError(f"{name}@{version} is not published here")
    if f"{name}/{channel}.tar" in payload.targets:
        raise AgentError(f"--to {channel}: is a version of {name}, so it cannot be a channel")
    before = channels_of(payload).get(name, {}).get(channel)
    if before == version:
        return [], [f"{name}@{channel} means {version} already"]
    _set_channel(payload, name, channel, version)
    says = f"{name}@{channel}: {before or 'nothing'} -> {version}"
    return with_targets(repository, payload, ring, now, says)


def channels_of(targets: Targets) -> dict[str, dict[str, str]]:
    """Return what each channel of each model means."""
    found: dict[str, dict[str, str]] = targets.unrecognized_fields.get(CHANNELS, {})
    return found


def _set_channel(targets: Targets, name: str, channel: str, version: str) -> None:
    channels: dict[str, dict[str, str]] = targets.unrecognized_fields.setdefault(CHANNELS, {})
    channels.setdefault(name, {})[channel] = version


def with_targets(
    repository: Repository, payload: Targets, ring: KeyRing, now: datetime, says: str
) -> tuple[list[Write], list[str]]:
    """Sign a changed targets.json, and all above it where the online key is here."""
    threshold = repository.root.roles["targets"].threshold
    signers = require("targets", repository.keys("targets"), threshold, ring)
    payload.version += 1
    payload.expires = now + LIFETIMES["targets"]
    signed = sign(payload, signers)
    writes = [write_of(repository.folder, signed, f"targets {payload.version}: {says}")]
    online = ring.signers(repository.keys("timestamp"))
    if not online:
        return writes, [f"boards see this after, {REFRESH_NEXT}"]
    content = (payload.version, signed.to_bytes())
    return [*writes, *Online(signers=online, now=now).writes(repository, content)], []


def refresh(
    repository: Repository, ring: KeyRing, now: datetime, roles: Sequence[str] = ()
) -> tuple[list[Write], list[str]]:
    """Return a new timestamp, and a new snapshot where one is due; also root and targets anew.

    What `publish` signed elsewhere and was copied here counts from now on.
    """
    writes: list[Write] = []
    targets = (repository.targets.signed.version, repository.targets_raw)
    if "targets" in roles:
        payload = copy.deepcopy(repository.targets.signed)
        payload.version += 1
        payload.expires = now + LIFETIMES["targets"]
        signed = sign(payload, _required(repository, "targets", ring))
        targets = (payload.version, signed.to_bytes())
        writes.append(write_of(repository.folder, signed, f"targets {payload.version}"))
    if "root" in roles:
        root = copy.deepcopy(repository.root)
        root.version += 1
        root.expires = now + LIFETIMES["root"]
        renewed = sign(root, _required(repository, "root", ring))
        writes.append(write_of(repository.folder, renewed, f"root {root.version}, same keys"))
    online = repository.keys("timestamp")
    signers = ring.signers(online) if writes else require("timestamp", online, 1, ring)
    if not signers:
        return writes, [f"boards see this after, {REFRESH_NEXT}"] if "targets" in roles else []
    return [*writes, *Online(signers=signers, now=now).writes(repository, targets)], []


def _required(repository: Repository, role: RoleName, ring: KeyRing) -> list[CryptoSigner]:
    return require(role, repository.keys(role), repository.root.roles[role].threshold, ring)


def resolve(targets: Metadata[Targets], name: str, version: str) -> str:
    """Return the version that `name@version` means, which may be a channel of the repository."""
    if f"{name}/{version}.tar" in targets.signed.targets:
        return version
    found = channels_of(targets.signed).get(name, {}).get(version)
    if found is None:
        raise AgentError(f"{name}@{version} is neither a version nor a channel of the repository")
    return found
