"""Many runs of a scenario in one row, the table of all rows, and where it was measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sqlite3
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
from brokers import MOSQUITTO
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agent import __version__
from reliability.rig import PROJECT, Outcome

SHOWN_PER_ROW = 4  # sentences about what is bad


@dataclass(slots=True)
class Row:
    """A scenario with the outcomes of its seeds."""

    name: str
    injected: str
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    took_s: float = 0.0

    @property
    def bad(self) -> list[str]:
        """Return what broke a guarantee, each with its seed."""
        return [f"seed {s}: {words}" for s, one in self.outcomes.items() for words in one.bad]

    @property
    def skipped(self) -> str:
        """Return why nothing was run, where nothing was."""
        reasons = {one.skipped for one in self.outcomes.values()}
        return reasons.pop() if len(reasons) == 1 else ""

    @property
    def verdict(self) -> str:
        """Return the last column."""
        if self.bad:
            return "BAD"
        return "skipped" if self.skipped else "good"

    def total(self, name: str) -> int:
        """Return the sum of a finding over all seeds."""
        values = (getattr(one.findings, name) for one in self.outcomes.values())
        return sum(value if isinstance(value, int) else len(value) for value in values)

    @property
    def counts(self) -> dict[str, int]:
        """Return the table's numbers."""
        return {
            "produced": self.total("produced"),
            "received": self.total("received"),
            "lost": self.total("lost"),
            "in_window": self.total("in_window"),
            "duplicated": self.total("duplicates"),
            "out_of_order": self.total("reordered"),
            "named": self.total("named"),
            "unnamed": self.total("unnamed"),
            "wrong": self.total("wrong"),
        }

    @property
    def figures(self) -> dict[str, list[float]]:
        """Return each figure with the values of all seeds."""
        gathered: dict[str, list[float]] = {}
        for one in self.outcomes.values():
            for name, value in one.figures.items():
                gathered.setdefault(name, []).append(value)
        return gathered

    def document(self) -> dict[str, Any]:
        """Return everything, for --json."""
        return {
            "scenario": self.name,
            "injected": self.injected,
            "seeds": list(self.outcomes),
            **self.counts,
            "figures": self.figures,
            "bad": self.bad,
            "skipped": self.skipped,
            "verdict": self.verdict,
            "took_s": round(self.took_s, 1),
        }


def show_table(rows: Sequence[Row], console: Console) -> None:
    """Print the table, and below it what is bad."""
    table = Table(title="reliability", box=box.SIMPLE_HEAD, show_lines=True, expand=True)
    table.add_column("scenario", no_wrap=True)
    table.add_column("seeds", no_wrap=True)
    for name in ("produced", "received", "lost", "dup.", "out of\norder", "named\nby gap"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("injected; other figures", ratio=1)
    for row in rows:
        counts = row.counts
        lost = f"{counts['lost']}"
        if counts["in_window"]:
            lost += f"\n{counts['in_window']} in window"
        numbers = [counts["produced"], counts["received"], lost, counts["duplicated"]]
        numbers += [counts["out_of_order"], counts["named"]]
        colour = {"good": "green", "BAD": "bold red"}.get(row.verdict, "yellow")
        table.add_row(
            row.name,
            _seeds(list(row.outcomes)),
            *(str(number) if number or not row.skipped else "" for number in numbers),
            f"[{colour}]{row.verdict}[/]",
            _text(row),
        )
    console.print(table)
    for row in rows:
        for words in row.bad[:SHOWN_PER_ROW]:
            console.print(f"{row.name}, {words}", markup=False, style="red")
        if len(row.bad) > SHOWN_PER_ROW:
            console.print(f"{row.name}: {len(row.bad) - SHOWN_PER_ROW} more")


def _text(row: Row) -> str:
    figures = "; ".join(f"{name}: {_range(values)}" for name, values in row.figures.items())
    return "\n".join(escape(one) for one in (row.injected, row.skipped, figures) if one)


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return _number(low) if low == high else f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"


def _seeds(seeds: list[int]) -> str:
    if len(seeds) > 1 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ",".join(map(str, seeds))


def host_facts() -> dict[str, str]:
    """Return where and with what this was measured."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_cpu_name()}, "
        f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "kernel": platform.release(),
        "commit": _commit(),
        "edge-agent": __version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "paho-mqtt": importlib.metadata.version("paho-mqtt"),
        "mosquitto": _mosquitto_version(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            for line in file:
                if line.startswith(("model name", "Model")):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return "unknown CPU"


def _commit() -> str:
    git = ["git", "-C", str(PROJECT)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


def _mosquitto_version() -> str:
    if MOSQUITTO is None:
        return "none"
    said = subprocess.run([MOSQUITTO, "-h"], capture_output=True, text=True)
    return said.stdout.splitlines()[0].removeprefix("mosquitto version ")
