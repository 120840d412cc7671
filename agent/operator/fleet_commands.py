"""`edge-agent fleet list` and `watch`."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Final

import msgspec

from agent.config import MqttConfig
from agent.errors import EXIT_OK
from agent.operator.boards import Board, Fleet
from agent.operator.exchange import Exchange, gather
from agent.operator.fleet_rows import (
    COLUMNS,
    SPARE_COLUMNS,
    Filter,
    Row,
    cells,
    row_of,
    summary,
    title,
    update_text,
    urgent_first,
)
from agent.operator.show import (
    fitted,
    has_rich,
    print_json,
    print_table,
    printable,
    rich_table,
    say,
)

REDRAWS_EVERY_S: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Which boards to look at, and by which broker."""

    mqtt: MqttConfig
    filter: Filter
    engine: str = ""
    as_json: bool = False


def run_list(look: Look, *, wait_s: float) -> int:
    """Show all boards; latency and power are of their next telemetry, waited for so long."""
    fleet = Fleet(look.mqtt.prefix)
    with Exchange(look.mqtt, fleet.filters(telemetry=wait_s > 0)) as exchange:
        gather(exchange, fleet.note)
        _wait_for_telemetry(exchange, fleet, wait_s)
    rows = _rows(fleet, look)
    if look.as_json:
        print_json(rows)
        return EXIT_OK
    print_table(COLUMNS, [cells(row) for row in rows])
    say(summary(rows) if rows else _nobody(fleet))
    return EXIT_OK


def _nobody(fleet: Fleet) -> str:
    if fleet.boards:
        return f"none of the {len(fleet.boards)} boards below {fleet.prefix}/ is like that"
    return f"no board below {fleet.prefix}/ ever said a word"


def _rows(fleet: Fleet, look: Look) -> list[Row]:
    boards = sorted(fleet.boards.values(), key=lambda board: board.device)
    rows = [row_of(board, look.engine) for board in boards]
    return [row for row in rows if look.filter.wants(row)]


def _wait_for_telemetry(exchange: Exchange, fleet: Fleet, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    said = False
    while (left := deadline - time.monotonic()) > 0:
        silent = [
            board for board in fleet.boards.values() if board.is_online and not board.telemetry
        ]
        if not silent:
            return
        if not said and sys.stderr.isatty():
            say(f"waiting up to {wait_s:g} s for telemetry (--wait 0: not at all)")
            said = True
        for message in exchange.drain(min(left, 0.2)):
            fleet.note(message)


def run_watch(look: Look, *, seconds: float | None) -> int:
    """Show all boards as they change, until Ctrl-C: drawn on a terminal, else a line per change."""
    fleet = Fleet(look.mqtt.prefix)
    ends = float("inf") if seconds is None else time.monotonic() + seconds
    with Exchange(look.mqtt, fleet.filters(telemetry=True)) as exchange:
        gather(exchange, fleet.note)
        try:
            if has_rich() and not look.as_json:
                _draw(exchange, fleet, look, ends)
            else:
                _tell(exchange, fleet, look, ends)
        except KeyboardInterrupt:
            return EXIT_OK  # the way out
    return EXIT_OK


def _draw(exchange: Exchange, fleet: Fleet, look: Look, ends: float) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, screen=True, vertical_overflow="crop") as live:
        drawn_at = 0.0
        while (now := time.monotonic()) < ends:
            for message in exchange.drain(REDRAWS_EVERY_S):
                fleet.note(message)
            if now - drawn_at < REDRAWS_EVERY_S:
                continue
            drawn_at = now
            rows = _rows(fleet, look)
            shown = urgent_first(rows)[: max(1, console.height - 3)]
            head = summary(rows) if exchange.is_connected else "the broker is away"
            fits = fitted(COLUMNS, [cells(row) for row in shown], console.width, SPARE_COLUMNS)
            table = rich_table(*fits)
            live.update(Group(Text(head, style="bold"), Text(), table), refresh=True)


def _tell(exchange: Exchange, fleet: Fleet, look: Look, ends: float) -> None:
    """Print a line when a board comes, goes, or gets on with an update; with --json the row."""
    said: dict[str, tuple[object, ...]] = {}
    for known in fleet.boards.values():
        said[known.device] = _gist(known, look.engine)
    say(summary(_rows(fleet, look)))
    while (left := ends - time.monotonic()) > 0:
        for message in exchange.drain(min(left, 0.5)):
            board = fleet.note(message)
            if board is None or said.get(board.device) == _gist(board, look.engine):
                continue
            said[board.device] = _gist(board, look.engine)
            row = row_of(board, look.engine)
            if not look.filter.wants(row):
                continue
            print(msgspec.json.encode(row).decode() if look.as_json else _line(row), flush=True)


def _gist(board: Board, engine: str) -> tuple[object, ...]:
    row = row_of(board, engine)
    reported = row.reported
    update = (reported.phase, reported.code, reported.candidate) if reported else None
    return row.online, update, row.model, tuple(row.health)


def _line(row: Row) -> str:
    state = {True: "online", False: "offline", None: "unknown"}[row.online]
    parts = [row.device, state, title(row.model) or "-", update_text(row.reported).text]
    if row.reported is not None and row.reported.message:
        parts.append(row.reported.message)
    return printable("  ".join([*parts, *row.health]))
