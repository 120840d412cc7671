"""How a rollout is shown: a bar for each wave on a terminal, else a line when something happens."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from agent.operator.rollout import BAD, RUNS_IT, Rollout
from agent.operator.rollout_run import View
from agent.operator.show import Cell, has_rich, print_table, printable, say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_EVERY_S: Final = 10.0
MOST_LISTED: Final = 20


class Lines:
    """See `View`: lines on stderr."""

    def __init__(self) -> None:
        self._said_at = 0.0
        self._said = ""

    def show(self, rollout: Rollout, *, is_heard: bool) -> None:
        """Print a line now and then, if it is another one."""
        if not rollout.waves:
            return
        line = state_line(rollout, is_heard=is_heard)
        if line != self._said and time.monotonic() - self._said_at > LINE_EVERY_S:
            self._said, self._said_at = line, time.monotonic()
            say(line)

    def event(self, text: str) -> None:
        """Print it."""
        say(printable(text))


class Bars:
    """See `View`: drawn on stderr by rich."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[int, TaskID] = {}

    def show(self, rollout: Rollout, *, is_heard: bool) -> None:
        """Move the bars."""
        for wave in range(rollout.waves):
            boards = rollout.of_wave(wave)
            ended = sum(order.result not in ("planned", "ordered") for order in boards)
            bad = sum(order.result in BAD for order in boards)
            if wave not in self._tasks:
                self._tasks[wave] = self._progress.add_task(f"wave {wave + 1}", state="")
            note = f"[red]{bad} went wrong[/red]" if bad else ""
            if wave == rollout.wave and not is_heard:
                note = "[yellow]the broker is away[/yellow]"
            self._progress.update(self._tasks[wave], total=len(boards), completed=ended, state=note)

    def event(self, text: str) -> None:
        """Print it above the bars."""
        from rich.text import Text

        self._progress.console.print(Text(printable(text)))


@contextmanager
def view() -> Iterator[View]:
    """Return bars on a terminal that can, else lines."""
    if not has_rich(sys.stderr):
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as progress:
        yield Bars(progress)


def state_line(rollout: Rollout, *, is_heard: bool) -> str:
    """Return `wave 2 of 3: 20 of 200 boards asked, 17 done, 2 under way, 1 failed`."""
    counts = rollout.counts()
    asked = len(rollout.boards) - counts["planned"]
    parts = [f"{asked} of {len(rollout.boards)} boards asked", f"{counts['done']} done"]
    others = (
        (counts["ordered"], "under way"),
        (counts["failed"], "failed"),
        (counts["silent"], "silent"),
    )
    parts += [f"{count} {word}" for count, word in others if count]
    wave = min(rollout.wave + 1, rollout.waves)
    away = "" if is_heard else " (the broker is away)"
    return f"wave {wave} of {rollout.waves}: {', '.join(parts)}{away}"


def print_plan(rollout: Rollout, kinds: dict[str, str]) -> None:
    """Print which boards each wave asks."""
    rows = []
    for wave in range(rollout.waves):
        boards = rollout.of_wave(wave)
        of_kinds: dict[str, int] = {}
        for order in boards:
            kind = kinds.get(order.device) or "unknown"
            of_kinds[kind] = of_kinds.get(kind, 0) + 1
        shown = ", ".join(f"{count} {kind}" for kind, count in sorted(of_kinds.items()))
        names = " ".join(order.device for order in boards[:MOST_LISTED])
        more = "" if len(boards) <= MOST_LISTED else f" … {len(boards) - MOST_LISTED} more"
        rows.append((str(wave + 1), str(len(boards)), shown, names + more))
    print_table(("wave", "boards", "kinds", "which"), rows)
    for device, why in sorted(rollout.skipped.items()):
        say(printable(f"not asked: {device}: {why}"))
    if rollout.away:
        say(printable(f"offline, asked last: {' '.join(rollout.away)}"))
    if rollout.left:
        say(f"{rollout.left} boards are behind the last wave and not asked")


def print_outcome(rollout: Rollout) -> None:
    """Print what came of it, board by board where it went wrong."""
    if not rollout.boards:
        say(f"{rollout.title}: {_without_boards(rollout)}")
        _print_skipped(rollout)
        return
    bad = [order for order in rollout.boards if order.result in BAD]
    if bad:
        print_table(
            ("board", "ran", "result", "code", ""),
            [
                (
                    order.device,
                    order.before,
                    Cell((order.phase or order.result).replace("_", " "), "bad"),
                    order.code or "-",
                    order.message or "",
                )
                for order in bad[:MOST_LISTED]
            ],
        )
    _print_skipped(rollout)
    counts = rollout.counts()
    took = (rollout.ended_at or rollout.started_at) - rollout.started_at
    say(
        f"{rollout.title}: {counts['done']} of {len(rollout.boards)} boards in {took:.1f} s;"
        f" {counts['failed']} failed, {counts['silent']} silent, {counts['planned']} not asked,"
        f" {len(rollout.away)} offline; {rollout.messages_sent} messages sent,"
        f" {rollout.messages_received} received"
    )
    if rollout.state == "halted":
        say(f"halted: {rollout.why}")
        if counts["done"]:
            say(f"back on all of them: edge-agent fleet rollback --rollout {rollout.id}")
    with contextlib.suppress(ValueError):
        sys.stderr.flush()


def _without_boards(rollout: Rollout) -> str:
    """Return what became of a rollout for which no board was there that had to be asked."""
    parts = []
    runs_it = list(rollout.skipped.values()).count(RUNS_IT)
    if runs_it:
        parts.append(f"{_boards(runs_it)} run{'s' * (runs_it == 1)} it already")
    away = len(rollout.away)
    if away:
        be = "is" if away == 1 else "are"
        parts.append(f"{_boards(away)} {be} offline, and asked on coming back")
    return ", ".join(parts)


def _boards(count: int) -> str:
    return "1 board" if count == 1 else f"{count} boards"


def _print_skipped(rollout: Rollout) -> None:
    skipped = {device: why for device, why in rollout.skipped.items() if why != RUNS_IT}
    for device, why in sorted(skipped.items())[:MOST_LISTED]:
        say(printable(f"not asked: {device}: {why}"))
    if len(skipped) > MOST_LISTED:
        say(f"not asked: {len(skipped) - MOST_LISTED} more")
