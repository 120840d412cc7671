"""Real processes that update without a pause, and are killed: `python -m ota.kill_farm --help`.

    at random   kill -9 after a random time, half of them just before a random fsync or rename
    everywhere  each file operation in turn is the last one of a process; of a write, half is done

After each kill the same disk is started from again, and looked at. One thread only, as it forks.
"""

from __future__ import annotations

import argparse
import json
import logging
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec
from ota.power_cuts import problems
from ota.update_run import ORDERS, Board, Promises, ready_made
from ota.watched_disk import CHANGES, WatchedDisk

from agent.ota.disk import RealDisk
from agent.ota.rules import ENDS, phase_of
from agent.ota.state import State

# What one run of a process gets to do, seconds; half of them end at an operation instead.
LONGEST_S = 0.25
ENDLESS = ORDERS * 100_000
COUNT = struct.Struct("=q")
SHOWN = 20  # of what is bad


@dataclass
class Figures:
    """What came of it."""

    rounds: int = 0
    landed: int = 0  # kills in the middle of an update
    in_write: int = 0  # of those, while the state was being written
    phases: dict[str, int] = field(default_factory=dict)  # of those, by the phase they fell into
    bad: list[str] = field(default_factory=list)
    took_s: float = 0.0


class Noted(Promises):
    """Promises that outlive who made them: each is one write to a file, whole or not there."""

    def __init__(self, path: Path, kept: State | None = None) -> None:
        fresh = path.with_name("notes.new")
        self._number = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC)
        super().__init__(kept=kept or State())
        fresh.rename(path)

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name in ("kept", "tried"):
            os.write(self._number, name.encode() + b" " + msgspec.json.encode(value) + b"\n")


def read_notes(path: Path) -> Promises:
    """Return the last promises that were noted."""
    promises = Promises()
    if not path.exists():  # killed at once
        return promises
    for line in path.read_bytes().splitlines(keepends=True):
        name, _, state = line.partition(b" ")
        if line.endswith(b"\n"):
            setattr(promises, name.decode(), msgspec.json.decode(state, type=State | None))
    return promises


class Farm:
    """One disk, and the processes that update on it, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.state_dir, self.factory = folder / "state", folder / "factory"
        ready_made(RealDisk(), self.state_dir, self.factory)
        self._notes = folder / "notes"
        self._shared = mmap.mmap(-1, COUNT.size)

    @property
    def ops(self) -> int:
        """What the process under way has begun."""
        return COUNT.unpack_from(self._shared)[0]

    def start(self, orders: tuple[str, ...], last_op: int = -1) -> int:
        """Fork a process that updates; return its id. It kills itself at an operation's number."""
        COUNT.pack_into(self._shared, 0, 0)
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            self._update(orders, last_op)
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)

    def _update(self, orders: tuple[str, ...], last_op: int) -> None:
        done = 0

        def note(name: str, _path: Path, part: object) -> None:
            nonlocal done
            if name not in CHANGES:
                return
            COUNT.pack_into(self._shared, 0, done + 1)
            if done == last_op:
                part()
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1

        board = self.board(WatchedDisk(RealDisk(), note))
        board.promises = Noted(self._notes, board.state)
        board.run(orders)

    def board(self, disk: object = None) -> Board:
        """Start on the disk, here."""
        return Board(disk or RealDisk(), state_dir=self.state_dir, factory=self.factory)

    def look(self, figures: Figures, what: str) -> None:
        """Look at what a killed process has left, as a start does."""
        promises = read_notes(self._notes)
        board = self.board()
        figures.bad += [f"{what}: {one}"[:2000] for one in problems(board, promises)]
        phase = phase_of(promises.kept)
        if phase not in ENDS or promises.tried is not None:
            figures.landed += 1
            figures.in_write += promises.tried is not None
            figures.phases[phase] = figures.phases.get(phase, 0) + 1


def end_of(child: int) -> int:
    """Wait; return the exit code, or the signal as a negative number."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_random(folder: Path, kills: int, seed: int) -> Figures:
    """Kill until so many kills have landed in the middle of an update."""
    farm, chance, figures = Farm(folder), random.Random(seed), Figures()
    while figures.landed < kills and figures.rounds < 3 * kills + 10:
        figures.rounds += 1
        child = farm.start(ENDLESS)
        if chance.random() < 0.5:
            time.sleep(chance.uniform(0, LONGEST_S))
        else:
            after, until = chance.randrange(300), time.monotonic() + 10 * LONGEST_S
            while farm.ops < after and time.monotonic() < until:
                time.sleep(0)
        os.kill(child, signal.SIGKILL)
        if (code := end_of(child)) != -signal.SIGKILL:
            figures.bad.append(f"round {figures.rounds}: ended by itself with {code}")
        farm.look(figures, f"round {figures.rounds}")
    return figures


def everywhere(folder: Path, one_in: int, first: int = 0) -> Figures:
    """End a process at each operation; then let another one carry on to the end of the orders."""
    figures, number, is_over = Figures(), first, False
    while not is_over:
        place = folder / f"op-{number}"
        place.mkdir()
        farm = Farm(place)
        code = end_of(farm.start(ORDERS, number))
        is_over = code == 0  # there was no operation of that number
        if not is_over:
            figures.rounds += 1
            if code != -signal.SIGKILL:
                figures.bad.append(f"operation {number}: exit code {code}")
            farm.look(figures, f"operation {number}")
            if end_of(farm.start(ORDERS)) != 0:
                figures.bad.append(f"operation {number}: could not be carried on")
            board = farm.board()
            kept = Promises(kept=board.state)
            figures.bad += [
                f"operation {number}, carried on: {one}"
                for one in problems(board, kept, is_finished=True)
            ]
        shutil.rmtree(place)
        number += one_in
    return figures


def main() -> int:
    """Run the program; print figures as JSON."""
    parser = argparse.ArgumentParser(prog="ota.kill_farm", description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=["at-random", "everywhere"])
    parser.add_argument("--folder", type=Path, help="on the disk to use; default: a temporary one")
    parser.add_argument("--kills", type=int, default=1000, help="that must land; default 1000")
    parser.add_argument("--one-in", type=int, default=1, help="operations; default 1: each")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logging.disable()
    folder = Path(tempfile.mkdtemp(prefix="kill-farm-", dir=arguments.folder))
    began = time.monotonic()
    if arguments.mode == "at-random":
        figures = at_random(folder, arguments.kills, arguments.seed)
    else:
        figures = everywhere(folder, arguments.one_in, arguments.seed % arguments.one_in)
    figures.took_s = time.monotonic() - began
    if not figures.bad:
        shutil.rmtree(folder)
    figures.bad = figures.bad[:SHOWN]
    print(json.dumps(asdict(figures)))
    return 1 if figures.bad else 0


if __name__ == "__main__":
    sys.exit(main())
