"""New keys for old ones, without a moment in which boards would refuse what is served.

While keys change, old and new ones sign together: a board that knows only the old root and one
that knows the new are both content. So what the new root asks for is there before the new root.
Where the old key is lost that cannot be; then the new root comes first, and boards that ask in
the seconds between try again.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import Root

from agent.errors import AgentError
from agent.operator.changes import Write
from agent.operator.keys import KeyRing, NewKey, make_key, name_of
from agent.operator.metadata import (
    LIFETIMES,
    Online,
    Repository,
    RoleName,
    require,
    sign,
    write_of,
)
from agent.operator.repo import REFRESH_NEXT, write_key

KeyRole = Literal["root", "targets", "online"]
SIGNED_BY: Final[dict[KeyRole, tuple[RoleName, ...]]] = {
    "root": ("root",),
    "targets": ("targets",),
    "online": ("snapshot", "timestamp"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """Which keys go, and what comes in their place."""

    role: KeyRole
    going: Sequence[Key]
    coming: Sequence[NewKey]


def plan(
    repository: Repository, role: KeyRole, replace: Sequence[str], passphrase: bytes | None
) -> Rotation:
    """Make as many new keys of a role as go: those named, or all of them."""
    keys = repository.keys(SIGNED_BY[role][0])
    names = {name_of(key): key for key in keys}
    unknown = [name for name in replace if name not in names]
    if unknown:
        raise AgentError(f"--replace {unknown[0]}: {role} has {', '.join(names)}")
    going = [names[name] for name in replace] if replace else keys
    number = 1 + max(
        _number(name_of(key)) for root in repository.roots for key in root.signed.keys.values()
        if name_of(key).startswith(f"{role}-")
    )  # fmt: skip
    locked = None if role == "online" else passphrase
    coming = [make_key(f"{role}-{number + index}", locked) for index in range(len(going))]
    return Rotation(role=role, going=going, coming=coming)


def _number(name: str) -> int:
    found = re.search(r"-([0-9]{1,6})$", name)
    return int(found[1]) if found else 0


def rotate(
    repository: Repository, rotation: Rotation, ring: KeyRing, new_keys: Path, now: datetime
) -> tuple[list[Write], list[str]]:
    """Return the files of a new root, and of what it asks for.

    Raises:
        UnavailableError: fewer root keys are here than it takes.
    """
    root = copy.deepcopy(repository.root)
    root.version += 1
    root.expires = now + LIFETIMES["root"]
    for role in SIGNED_BY[rotation.role]:
        for key in rotation.going:
            root.revoke_key(key.keyid, role)
        for new in rotation.coming:
            root.add_key(new.signer.public_key, role)
    renewed = write_of(
        repository.folder, sign(root, _root_signers(repository, root, rotation, ring)),
        f"root {root.version}: " + ", ".join(new.name for new in rotation.coming),
    )  # fmt: skip
    below, notes, is_seamless = _below(repository, rotation, ring, now)
    files = [*below, renewed] if is_seamless else [renewed, *below]
    return [*(write_key(new_keys, new) for new in rotation.coming), *files], notes


def _root_signers(
    repository: Repository, root: Root, rotation: Rotation, ring: KeyRing
) -> list[CryptoSigner]:
    """Return enough signers for the root before and the new one: TUF 1.0, 5.3.4."""
    old = require("root", repository.keys("root"), repository.root.roles["root"].threshold, ring)
    new = [key.signer for key in rotation.coming] if rotation.role == "root" else []
    have = {signer.public_key.keyid for signer in [*old, *new]}
    role = root.roles["root"]
    if len(have & set(role.keyids)) < role.threshold:
        raise AgentError(
            f"root: of its new keys {role.threshold} must sign, and too few of them are here;"
            " give the folders of those that stay by --keys"
        )
    return [*old, *new]


def _below(
    repository: Repository, rotation: Rotation, ring: KeyRing, now: datetime
) -> tuple[list[Write], list[str], bool]:
    """Return what is signed with new keys; what to say; whether the old ones sign it as well."""
    if rotation.role == "root":
        return [], [], True
    new = [key.signer for key in rotation.coming]
    going = ring.signers(rotation.going)
    if rotation.role == "online":
        online = Online(signers=[*new, *going], now=now, renew=True)
        content = (repository.targets.signed.version, repository.targets_raw)
        return online.writes(repository, content), [], bool(going)
    staying = ring.signers([key for key in repository.keys("targets") if key not in rotation.going])
    payload = copy.deepcopy(repository.targets.signed)
    payload.version += 1
    payload.expires = now + LIFETIMES["targets"]
    signed = sign(payload, [*new, *staying, *going])
    is_seamless = len(staying) + len(going) >= repository.root.roles["targets"].threshold
    writes = [write_of(repository.folder, signed, f"targets {payload.version}: same models")]
    signers = ring.signers(repository.keys("timestamp"))
    if not signers:
        stay = {signer.public_key.keyid for signer in staying}
        signed_now = {key.keyid for key in repository.signed_by("targets")}
        if len(stay & signed_now) >= repository.root.roles["targets"].threshold:
            return writes, [f"the new ones count after, {REFRESH_NEXT}"], True
        return writes, [f"at once, {REFRESH_NEXT}; until then boards get nothing new"], False
    content = (payload.version, signed.to_bytes())
    online = Online(signers=signers, now=now)
    return [*writes, *online.writes(repository, content)], [], is_seamless
