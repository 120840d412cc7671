"""`scripts/reliability`: run the scenarios, show how far they are, print one table."""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from reliability import (
    disk,
    exceptions,
    frozen,
    limits,
    network,
    outage,
    soak,
    stopping,
    updates,
)
from reliability.rig import Outcome, Rig
from reliability.scenario import Scenario
from reliability.table import Row, host_facts, show_table

MODULES = (outage, network, limits, exceptions, frozen, stopping, disk, updates, soak)
SCENARIOS: tuple[Scenario, ...] = tuple(one for module in MODULES for one in module.SCENARIOS)
# Scenarios mostly wait; those that measure rates run alone.
SIDE_BY_SIDE = 4
FILE_WIDTH = 150  # of the table where it goes to no terminal
Say = Callable[[Scenario, int, str], None]


def run_seed(scenario: Scenario, seed: int, *, quick: bool, soak_s: float, say: Say) -> Outcome:
    """Run one seed in a folder of its own, which stays if anything is bad."""
    folder = Path(tempfile.mkdtemp(prefix=f"reliability-{scenario.name}-{seed}-"))
    try:
        with Rig(
            folder, is_quick=quick, soak_s=soak_s, say=lambda words: say(scenario, seed, words)
        ) as rig:
            outcome = scenario.run(rig, seed)
    except Exception as error:
        (folder / "scenario.txt").write_text(traceback.format_exc())
        outcome = Outcome(bad=[f"{type(error).__name__}: {error}"])
    if outcome.bad:
        outcome.bad.append(f"logs are in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def run_all(
    scenarios: Sequence[Scenario],
    *,
    quick: bool,
    seeds: range | None = None,
    soak_s: float = 300.0,
    say: Say = lambda *_: None,
    done: Callable[[Scenario], None] = lambda _: None,
) -> list[Row]:
    """Run all seeds of all scenarios; return a row for each that has any."""
    rows = {}
    jobs: list[tuple[Scenario, int]] = []
    for scenario in scenarios:
        wanted = seeds or (scenario.quick_seeds if quick else scenario.seeds)
        if wanted:
            rows[scenario.name] = Row(scenario.name, scenario.injected)
            jobs += [(scenario, seed) for seed in wanted]
    lock = threading.Lock()

    def run(job: tuple[Scenario, int]) -> None:
        scenario, seed = job
        began = time.monotonic()
        outcome = run_seed(scenario, seed, quick=quick, soak_s=soak_s, say=say)
        with lock:
            rows[scenario.name].outcomes[seed] = outcome
            rows[scenario.name].took_s += time.monotonic() - began
        done(scenario)

    # Those with few seeds take longest each, so they begin.
    jobs.sort(key=lambda job: len(seeds or (job[0].quick_seeds if quick else job[0].seeds)))
    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        list(pool.map(run, (job for job in jobs if not job[0].alone)))
    for job in jobs:
        if job[0].alone:
            run(job)
    for row in rows.values():
        row.outcomes = dict(sorted(row.outcomes.items()))
    return list(rows.values())


def parse_seeds(text: str) -> range:
    """Return the range that "3" or "1-50" means."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the arguments."""
    names = [one.name for one in SCENARIOS]
    parser = argparse.ArgumentParser(
        prog="scripts/reliability",
        description="Injects faults into the real components, and prints what came of it. "
        "Exit code 1 if a guarantee was broken.",
    )
    parser.add_argument("--quick", action="store_true", help="a few seeds of each, for CI")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--seeds", type=parse_seeds, metavar="A-B", help="instead of each one's own"
    )
    parser.add_argument("--soak-seconds", type=float, default=300.0, help="default 300")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures of all seeds")
    return parser.parse_args(argv)


def main() -> int:
    """Run the command."""
    arguments = parse()
    chosen = [one for one in SCENARIOS if not arguments.only or one.name in arguments.only]
    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    columns = (
        TextColumn("{task.description:>16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[doing]}"),
    )
    began = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks = {
            one.name: progress.add_task(
                one.name,
                total=len(arguments.seeds or (one.quick_seeds if arguments.quick else one.seeds)),
                start=False,
                doing="",
            )
            for one in chosen
        }

        def say(scenario: Scenario, seed: int, words: str) -> None:
            progress.start_task(tasks[scenario.name])
            progress.update(tasks[scenario.name], doing=f"seed {seed}: {words}")

        rows = run_all(
            chosen,
            quick=arguments.quick,
            seeds=arguments.seeds,
            soak_s=arguments.soak_seconds,
            say=say,
            done=lambda scenario: progress.update(tasks[scenario.name], advance=1, doing=""),
        )
    facts = host_facts()
    show_table(rows, console)
    console.print("; ".join(f"{name}: {value}" for name, value in facts.items()), highlight=False)
    console.print(f"took {time.monotonic() - began:.0f} s", highlight=False)
    if arguments.json:
        document = {"host": facts, "scenarios": [row.document() for row in rows]}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if any(row.bad for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
