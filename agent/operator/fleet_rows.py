"""A board's line: what `fleet list` and `fleet watch` show of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec import Struct

from agent.contract.payloads import ModelIdentity
from agent.contract.telemetry import Telemetry
from agent.contract.updates import Desired, Phase, Reported
from agent.operator.boards import Board
from agent.operator.show import Cell
from agent.operator.show import Row as TableRow

UNDER_WAY: Final[frozenset[Phase]] = frozenset(
    {"accepted", "metadata", "downloading", "verify", "selftest", "shadow", "trial", "probation"}
)
WENT_WRONG: Final[frozenset[Phase]] = frozenset({"rolled_back", "refused"})
COLUMNS: Final = (
    "board", "state", "groups", "model", "update", "accelerator", "p99 ms", "power W", "health",
)  # fmt: skip

# What is left out first where a live table does not fit; who it is and how it fares stays.
SPARE_COLUMNS: Final = ("groups", "accelerator", "power W", "p99 ms", "state")


class Power(Struct, frozen=True, kw_only=True):
    """What a board draws; estimated where no sensor measures it."""

    total_w: float | None
    kind: str
    scope: str


class Row(Struct, frozen=True, kw_only=True):
    """A board; the element of `fleet list --json`."""

    device: str
    online: bool | None
    groups: tuple[str, ...]
    board: str | None
    agent_version: str | None
    model: ModelIdentity | None
    accelerator: str | None
    accelerator_reason: str | None
    desired: Desired | None
    reported: Reported | None
    latency_p99_ms: float | None
    power: Power | None
    health: list[str]
    clock_synced: bool | None
    unreadable: int


def row_of(board: Board, engine: str = "") -> Row:
    """Return a board's line, for one of its models."""
    status, telemetry = board.status, board.telemetry
    accelerator = status.accelerator if status else None
    if status is not None and engine:
        named = [one.accelerator for one in status.engines if one.name == engine]
        accelerator = named[0] if named else None
    return Row(
        device=board.device,
        online=board.is_online,
        groups=board.groups,
        board=status.board.model if status else None,
        agent_version=status.agent_version if status else None,
        model=board.model(engine),
        accelerator=accelerator.used if accelerator else None,
        accelerator_reason=accelerator.reason if accelerator else None,
        desired=board.desired,
        reported=board.reported.get(engine),
        latency_p99_ms=_p99(telemetry),
        power=_power(telemetry),
        health=[problem.code for problem in status.health] if status else [],
        clock_synced=status.clock_synced if status else None,
        unreadable=board.unreadable,
    )


def _p99(telemetry: Telemetry | None) -> float | None:
    """Return the worst camera's latency, capture to result, of the last interval."""
    if telemetry is None:
        return None
    totals = [camera.latency_ms.get("total") for camera in telemetry.cameras.values()]
    return max((one.p99 for one in totals if one and one.p99 is not None), default=None)


def _power(telemetry: Telemetry | None) -> Power | None:
    if telemetry is None:
        return None
    power = telemetry.power
    if power.total_w is None and telemetry.estimate is not None:
        return Power(total_w=telemetry.estimate.estimate_w, kind="estimated", scope=power.scope)
    return Power(total_w=power.total_w, kind=power.kind, scope=power.scope)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which boards are wanted; empty: all."""

    groups: Sequence[str] = ()
    model: str = ""
    is_offline: bool = False
    is_wrong: bool = False

    def wants(self, row: Row) -> bool:
        """Return whether a board is one of them."""
        if self.groups and not set(self.groups) & set(row.groups):
            return False
        if self.model and self.model not in (row.model.name if row.model else "", title(row.model)):
            return False
        if self.is_wrong and not is_wrong(row):
            return False
        return not (self.is_offline and row.online)


def is_wrong(row: Row) -> bool:
    """Return whether somebody should look at a board."""
    went_wrong = row.reported is not None and row.reported.phase in WENT_WRONG
    return not row.online or bool(row.health) or went_wrong


def title(model: ModelIdentity | None) -> str:
    """Return name@version, as far as there is one."""
    if model is None:
        return ""
    return f"{model.name}@{model.version}" if model.version else model.name


def update_text(reported: Reported | None) -> Cell:
    """Return how the last order fares: `downloading door@1.4.0 45 %`."""
    if reported is None or reported.phase == "idle":
        return Cell("-")
    if reported.phase in UNDER_WAY:
        share = "" if reported.progress is None else f" {reported.progress * 100:.0f} %"
        return Cell(f"{reported.phase} {reported.candidate or ''}{share}".rstrip(), "busy")
    if reported.phase in WENT_WRONG:
        return Cell(f"{reported.phase.replace('_', ' ')} {reported.code or ''}".rstrip(), "bad")
    return Cell(reported.phase, "good")


def cells(row: Row) -> TableRow:
    """Return a row of the table."""
    state = {True: Cell("online", "good"), False: Cell("offline", "bad"), None: Cell("unknown")}
    pinned = " (pinned)" if row.desired is not None and row.desired.pinned else ""
    watts = row.power.total_w if row.power else None
    estimated = "~" if row.power is not None and row.power.kind == "estimated" else ""
    return (
        row.device,
        state[row.online],
        " ".join(row.groups) or "-",
        (title(row.model) or "-") + pinned,
        update_text(row.reported),
        row.accelerator or "-",
        "-" if row.latency_p99_ms is None else f"{row.latency_p99_ms:.1f}",
        "-" if watts is None else f"{estimated}{watts:.2f}",
        Cell(" ".join(row.health), "bad") if row.health else Cell("ok" if row.online else "-"),
    )


def urgent_first(rows: Iterable[Row]) -> list[Row]:
    """Return what is under way or wrong before the rest."""

    def order(row: Row) -> tuple[bool, bool, str]:
        is_busy = row.reported is not None and row.reported.phase in UNDER_WAY
        return not is_busy, not is_wrong(row), row.device

    return sorted(rows, key=order)


def summary(rows: Sequence[Row]) -> str:
    """Return `200 boards, 198 online, 20 under way, 1 went back, 2 with problems`."""
    phases = [row.reported.phase for row in rows if row.reported is not None]
    counts = (
        (sum(bool(row.online) for row in rows), "online"),
        (sum(phase in UNDER_WAY for phase in phases), "under way"),
        (phases.count("rolled_back"), "went back"),
        (phases.count("refused"), "refused"),
        (sum(bool(row.health) for row in rows), "with problems"),
    )
    said = [f"{count} {what}" for count, what in counts if count or what == "online"]
    boards = "1 board" if len(rows) == 1 else f"{len(rows)} boards"
    return ", ".join([boards, *said])
