"""Scenarios of models over the air: killed, or without power, at any instant of an update."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from reliability.rig import TESTS, Outcome, Rig, child_environment
from reliability.scenario import Scenario

MEMORY = Path("/dev/shm")
FULL_KILLS, QUICK_KILLS = 1000, 8
QUICK_ONE_IN = 48  # of some 330 operations


def kills(rig: Rig, seed: int) -> Outcome:
    """Kill -9 at random times, on the disk that holds the temporary folder."""
    wanted = QUICK_KILLS if rig.is_quick else FULL_KILLS
    found = _run(
        "kill_farm", "at-random", "--folder", rig.folder, "--kills", wanted, "--seed", seed
    )
    outcome = Outcome(bad=found["bad"])
    outcome.figures["kills"] = found["rounds"]
    outcome.figures["of them mid-update"] = found["landed"]
    outcome.figures["of them while the state was written"] = found["in_write"]
    outcome.expect(found["landed"] >= wanted, f"{found['landed']} kills landed, not {wanted}")
    return outcome


def every_operation(rig: Rig, _seed: int) -> Outcome:
    """Kill -9 at each file operation of five orders, and start again."""
    folder = MEMORY if MEMORY.is_dir() else rig.folder  # a kill asks nothing of a disk
    one_in = QUICK_ONE_IN if rig.is_quick else 1
    found = _run("kill_farm", "everywhere", "--folder", folder, "--one-in", one_in)
    outcome = Outcome(bad=found["bad"])
    outcome.figures["operations that were the last"] = found["rounds"]
    return outcome


def power_cuts(rig: Rig, seed: int) -> Outcome:
    """Every instant of five orders on a file system that forgets what was not waited for."""
    most = 2 if rig.is_quick else 48
    outcome = Outcome()
    for page in (4096,) if rig.is_quick else (4096, 512):
        rig.say(f"pages of {page}")
        found = _run("power_cuts", "--most", most, "--page", page, "--seed", seed)
        outcome.bad += found["bad"]
        for name in ("instants", "states", "carried_on", "walks", "walked_cuts"):
            told = name.replace("_", " ")
            outcome.figures[told] = outcome.figures.get(told, 0) + found[name]
    return outcome


def _run(module: str, *arguments: object) -> dict:
    """Run a program of tests/ota; return the figures that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"ota.{module}", *map(str, arguments)],
        cwd=TESTS,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=3600,
    )
    if not done.stdout.startswith("{"):
        return {"bad": [done.stderr.strip()[-2000:]]}
    return json.loads(done.stdout)


SCENARIOS = (
    Scenario(
        name="update-kill",
        injected=f"kill -9 until {FULL_KILLS} (quick: {QUICK_KILLS}) landed in the middle of an "
        "update, half at random times, half at a random file operation",
        run=kills,
        alone=True,
    ),
    Scenario(
        name="update-kill-each",
        injected=f"kill -9 at every file operation of five orders (quick: one in {QUICK_ONE_IN}), "
        "of a write with half of it done",
        run=every_operation,
        alone=True,
    ),
    Scenario(
        name="update-power",
        injected="power cut before every file operation of five orders: writes and names that "
        "were not waited for lost, kept, reordered, torn; then carried on, and cut again",
        run=power_cuts,
        alone=True,
    ),
)
