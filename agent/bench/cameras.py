"""`edge-agent bench cameras`: several cameras on one engine, and two engines against one.

Each round plays every setup once, the next round in the opposite order, so that the machine's
drift falls on all of them; ratios are taken within a round, and medians over the rounds are
printed. Every engine has one interpreter thread: with more, one engine uses the cores that a
second one would.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.bench.bench import write_json
from agent.bench.session import DEVICE, STATE_FOLDER, Played, demo_clip, play
from agent.demo.broker import HOST
from agent.demo.children import Children, Interrupted, Signals
from agent.demo.demo import EXIT_SIGNAL, LONGEST_S
from agent.errors import EXIT_FAILURE, EXIT_OK, AgentError


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How many cameras play the clip, on how many engines; cameras go round the engines."""

    cameras: int
    engines: int

    @property
    def name(self) -> str:
        """Return what it is called in the table."""
        parts = ((self.cameras, "camera"), (self.engines, "engine"))
        return " on ".join(f"{number} {what}{'s' * (number > 1)}" for number, what in parts)

    @property
    def camera_names(self) -> list[str]:
        """Return the cameras' names."""
        return [f"camera{number}" for number in range(1, self.cameras + 1)]


ONE = Setup(cameras=1, engines=1)
TWO = Setup(cameras=2, engines=1)
TWO_ENGINES = Setup(cameras=2, engines=2)
SETUPS = (ONE, TWO, Setup(cameras=4, engines=1), TWO_ENGINES)
HEADINGS = ("", "results/s of each", "total", "of one camera", "spread")


def run_cameras(
    *, model: str, second: str, clip: str, seconds: float, runs: int, json_file: Path | None
) -> int:
    """Measure, print tables, and write the figures; 1 where a setup gave none."""
    if runs < 1 or not 0 < seconds <= LONGEST_S:
        raise AgentError(f"--runs must be above 0, --seconds above 0 and up to {LONGEST_S:.0f}")
    clip = str(Path(clip or demo_clip()).resolve())
    models = (model, second or model)
    rounds = []
    with Signals() as signals, tempfile.TemporaryDirectory(prefix="edge-agent-") as folder:
        try:
            for number in range(runs):
                print(f"round {number + 1} of {runs}", file=sys.stderr)
                order = SETUPS if number % 2 == 0 else SETUPS[::-1]
                done = {}
                for setup in order:
                    with Children(Path(folder), signals) as children:
                        done[setup.name] = _measure(setup, models, clip, seconds, children)
                rounds.append(done)
        except Interrupted:
            return EXIT_SIGNAL + signals.last
    summary = summarize(rounds)
    for line in table(summary):
        print(line)
    document = {"models": models, "clip": clip, "seconds": seconds}
    if json_file is not None:
        write_json(json_file, {**document, "rounds": rounds, "medians": summary})
    return EXIT_FAILURE if any("error" in row for row in summary["setups"].values()) else EXIT_OK


def _measure(
    setup: Setup, models: tuple[str, str], clip: str, seconds: float, children: Children
) -> dict[str, Any]:
    """Return one run's figures, or why there are none."""
    try:
        played = play(
            lambda port: config(setup, models, clip, port, children.folder),
            setup.camera_names,
            seconds=seconds,
            children=children,
        )
        _check_engines(setup, played)
    except AgentError as error:
        print(f"edge-agent: {setup.name}: {error}", file=sys.stderr)
        return {"error": str(error)}
    return figures({name: len(there) for name, there in played.arrivals.items()}, played)


def config(setup: Setup, models: tuple[str, str], clip: str, port: int, folder: Path) -> str:
    """Return the configuration: files as fast as they come, every frame a result."""
    state = _quoted(str(folder / STATE_FOLDER))
    lines = ["[device]", f'id = "{DEVICE}"', f"state_dir = {state}"]
    lines += ["[mqtt]", f'url = "mqtt://{HOST}:{port}"']
    names = ("", "second")[: setup.engines]
    for name, path in zip(names, models, strict=False):
        section = f"[models.{name}]" if name else "[model]"
        lines += [section, f"path = {_quoted(path)}", "threads = 1"]
    for at, camera in enumerate(setup.camera_names):
        lines += ["[[camera]]", f'name = "{camera}"', f"source = {_quoted(clip)}", "loop = true"]
        if names[at % len(names)]:
            lines.append(f'model = "{names[at % len(names)]}"')
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Return a TOML string; a JSON one is, as long as nothing outside ASCII is escaped."""
    return json.dumps(text, ensure_ascii=False)


def _check_engines(setup: Setup, played: Played) -> None:
    """Refuse figures of two engines that were one."""
    running = len(played.status.engines) if played.status else 0
    if setup.engines > 1 and running != setup.engines:
        raise AgentError(f"the daemon says it runs {running} engines instead of {setup.engines}")


def figures(counts: dict[str, int], played: Played) -> dict[str, Any]:
    """Return one run's figures from the results of each camera."""
    rates = {name: count / played.elapsed_s for name, count in counts.items()}
    least, most = min(rates.values()), max(rates.values())
    return {
        "results_per_s": rates,
        "total_per_s": sum(rates.values()),
        "spread": most / least - 1 if least else None,
        "cpu_ms_per_result": played.cpu_s / max(1, sum(counts.values())) * 1e3,
        "pss_mib": played.pss_mib,
        "first_result_s": played.first_result_s,
    }


def summarize(rounds: Sequence[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return medians over the rounds; ratios are medians of each round's own."""
    setups: dict[str, dict[str, Any]] = {}
    for setup in SETUPS:
        good = [one[setup.name] for one in rounds if "error" not in one[setup.name]]
        if not good:
            setups[setup.name] = {"error": rounds[-1][setup.name]["error"]}
            continue
        spreads = [one["spread"] for one in good if one["spread"] is not None]
        setups[setup.name] = {
            "results_per_s": {
                name: statistics.median(one["results_per_s"][name] for one in good)
                for name in setup.camera_names
            },
            "total_per_s": statistics.median(one["total_per_s"] for one in good),
            "spread": statistics.median(spreads) if spreads else None,
            "of_one_camera": _ratio(rounds, setup, ONE),
        }
    return {"setups": setups, "two_engines_against_one": _ratio(rounds, TWO_ENGINES, TWO)}


def _ratio(rounds: Sequence[dict[str, dict[str, Any]]], one: Setup, other: Setup) -> float | None:
    totals = [
        (figures[one.name].get("total_per_s"), figures[other.name].get("total_per_s"))
        for figures in rounds
    ]
    ratios = [above / below for above, below in totals if above and below]
    return statistics.median(ratios) if ratios else None


def table(summary: dict[str, Any]) -> list[str]:
    """Return the medians as aligned lines."""
    rows = [HEADINGS]
    for name, row in summary["setups"].items():
        if "error" in row:
            rows.append((name, "not measured", "-", "-", "-"))
            continue
        each = " ".join(f"{rate:.1f}" for rate in row["results_per_s"].values())
        shares = (row["of_one_camera"], row["spread"])
        rows.append((name, each, f"{row['total_per_s']:.1f}", *map(_shown, shares)))
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEADINGS))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]
    ratio = _shown(summary["two_engines_against_one"])
    return [*lines, "", f"two engines against one, two cameras, one thread each: {ratio}"]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
