"""Rollouts on the operator's disk: one folder each, so that one that was interrupted goes on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from agent.durable import write_durably
from agent.errors import AgentError, UnavailableError
from agent.operator.changes import locked
from agent.operator.rollout import ENDED, Rollout

_DECODER: Final = msgspec.json.Decoder(Rollout)


def state_folder(folder: Path | None) -> Path:
    """Return where rollouts are kept: XDG Base Directory, `XDG_STATE_HOME`."""
    if folder is not None:
        return folder
    home = os.environ.get("XDG_STATE_HOME", "")
    base = Path(home) if Path(home).is_absolute() else Path.home() / ".local" / "state"
    return base / "edge-agent" / "rollouts"


@contextmanager
def held(folder: Path, rollout_id: str) -> Iterator[Path]:
    """Keep a second command from the same rollout; yields its file.

    Raises:
        UnavailableError: another command is at it, or the folder cannot be written.
    """
    place = folder / rollout_id
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(f"{place}: cannot be made: {error.strerror}") from error
    with locked(place):
        yield place / "rollout.json"


def save(file: Path, rollout: Rollout) -> None:
    """Write a rollout down; whatever is done next has been said here before."""
    try:
        write_durably(file, msgspec.json.encode(rollout), mode=0o600)
    except OSError as error:
        raise UnavailableError(f"{file}: cannot be written: {error.strerror}") from error


def find(folder: Path, rollout_id: str) -> Rollout:
    """Read the rollout of an id.

    Raises:
        UnavailableError: there is none.
        AgentError: it is damaged.
    """
    file = folder / rollout_id / "rollout.json"
    if not file.exists():
        newest = sorted((one.parent.name for one in folder.glob("*/rollout.json")), key=_began)
        known = f"; the newest is {newest[-1]}" if newest else ""
        raise UnavailableError(f"{folder}: has no rollout {rollout_id}{known}")
    return load(file)


def _began(rollout_id: str) -> str:
    return rollout_id.partition("-")[2]


def load(file: Path) -> Rollout:
    """Read a rollout.

    Raises:
        UnavailableError: there is none.
        AgentError: it is damaged.
    """
    try:
        return _DECODER.decode(file.read_bytes())
    except OSError as error:
        raise UnavailableError(f"{file}: cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise AgentError(f"{file}: is no rollout of this version: {error}") from error


def unfinished(folder: Path) -> list[Rollout]:
    """Return rollouts that are still to be ended, the newest first."""
    found = []
    for file in folder.glob("*/rollout.json"):
        with contextlib.suppress(AgentError):
            rollout = load(file)
            if rollout.state not in ENDED:
                found.append(rollout)
    return sorted(found, key=lambda rollout: rollout.started_at, reverse=True)


def choose_unfinished(folder: Path, rollout_id: str) -> Rollout:
    """Return the rollout to go on with: the one named, or the only one.

    Raises:
        UnavailableError: there is none, or there are several and none was named.
    """
    if rollout_id:
        return find(folder, rollout_id)
    found = unfinished(folder)
    if not found:
        raise UnavailableError(f"no rollout in {folder} was interrupted")
    if len(found) > 1:
        names = ", ".join(rollout.id for rollout in found)
        raise UnavailableError(f"several rollouts were interrupted; name one: --resume {names}")
    return found[0]
