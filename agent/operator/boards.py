"""The fleet as its topics tell it: a record for each board that ever said anything.

A board may say anything about itself on its own topics, and only there; what cannot be read is
counted, and the board is known all the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

import msgspec

from agent.config import NAME_PATTERN
from agent.contract.payloads import ModelIdentity, Status
from agent.contract.telemetry import Telemetry
from agent.contract.updates import MOST_DESIRED_BYTES, Desired, Reported
from agent.operator.exchange import Message

_STATUS = msgspec.json.Decoder(Status)
_REPORTED = msgspec.json.Decoder(Reported)
_TELEMETRY = msgspec.json.Decoder(Telemetry)
_DESIRED = msgspec.json.Decoder(Desired)
_NAME = re.compile(NAME_PATTERN)
MOST_BOARDS: Final = 100_000


@dataclass(slots=True)
class Board:
    """What is known of a board; `engines` has its last report of each, the first model's as ""."""

    device: str
    is_online: bool | None = None
    status: Status | None = None
    reported: dict[str, Reported] = field(default_factory=dict)
    telemetry: Telemetry | None = None
    desired: Desired | None = None
    unreadable: int = 0

    def model(self, engine: str = "") -> ModelIdentity | None:
        """Return what runs."""
        reported = self.reported.get(engine)
        if reported is not None and reported.model is not None:
            return reported.model
        if self.status is None:
            return None
        found = [one.model for one in self.status.engines if one.name == engine]
        return found[0] if found else None if engine else self.status.model

    def has_engine(self, engine: str) -> bool:
        """Return whether it has a model of that name in [models]; it tells of one at a time."""
        named = self.status.engines if self.status is not None else []
        return engine in self.reported or any(one.name == engine for one in named)

    def is_pinned(self, engine: str) -> bool:
        """Return whether its own last order says that groups do not count."""
        desired = self.desired
        return desired is not None and desired.engine == engine and desired.pinned

    @property
    def groups(self) -> tuple[str, ...]:
        """Return the groups that it says it is in."""
        return self.status.groups if self.status else ()

    @property
    def kind(self) -> str:
        """Return what board it is, for telling kinds apart."""
        return (self.status.board.model or self.status.board.machine) if self.status else ""


class Fleet:
    """All boards below a prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.boards: dict[str, Board] = {}
        self.groups: dict[str, Desired] = {}  # what groups are asked for

    def filters(self, *, telemetry: bool = False) -> list[str]:
        """Return what to subscribe to."""
        tails = ["availability", "status", "model/reported", "model/desired"]
        tails += ["telemetry"] * telemetry
        own = [f"{self.prefix}/+/{tail}" for tail in tails]
        return [*own, group_topic(self.prefix, "+")]

    def note(self, message: Message) -> Board | None:
        """Take in a message; return whose it is."""
        tail = message.topic.removeprefix(f"{self.prefix}/")
        first, _, rest = tail.partition("/")
        if first == "group":
            self._note_group(rest.partition("/")[0], message.payload)
            return None
        board = self._board(first)
        if board is not None:
            try:
                _note(board, rest, message.payload)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                board.unreadable += 1
        return board

    def newer_order(self, device: str, engine: str, counter: int) -> Desired | None:
        """Return the order with a higher counter that a board goes by, if there is one."""
        board = self.boards.get(device)
        if board is None:
            return None
        groups = () if board.is_pinned(engine) else board.groups
        known = [board.desired, *(self.groups.get(group) for group in groups)]
        newer = [one for one in known if one and one.engine == engine and one.counter > counter]
        return max(newer, key=lambda one: one.counter, default=None)

    def _board(self, device: str) -> Board | None:
        if device not in self.boards:
            if len(self.boards) >= MOST_BOARDS or not is_name(device):
                return None
            self.boards[device] = Board(device)
        return self.boards[device]

    def _note_group(self, group: str, payload: bytes) -> None:
        self.groups.pop(group, None)
        if payload and is_name(group):
            try:
                self.groups[group] = _DESIRED.decode(payload[: MOST_DESIRED_BYTES + 1])
            except msgspec.MsgspecError:
                return


def _note(board: Board, what: str, payload: bytes) -> None:
    if what == "availability":
        board.is_online = payload == b"online"
    elif what == "status":
        board.status = _STATUS.decode(payload) if payload else None
    elif what == "telemetry":
        board.telemetry = _TELEMETRY.decode(payload)
    elif what == "model/desired":
        board.desired = None
        board.desired = _DESIRED.decode(payload) if payload else None
    elif what == "model/reported":
        if not payload:
            board.reported.clear()
            return
        reported = _REPORTED.decode(payload)
        board.reported[reported.engine] = reported


def is_name(text: str) -> bool:
    """Return whether a text can be a device or a group."""
    return _NAME.match(text) is not None


def desired_topic(prefix: str, device: str) -> str:
    """Return where a board is asked for a model."""
    return f"{prefix}/{device}/model/desired"


def group_topic(prefix: str, group: str) -> str:
    """Return where a group is."""
    return f"{prefix}/group/{group}/model/desired"
