"""What a board finds after the power went, for every instant of a sequence of updates.

`python -m ota.power_cuts --help`
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
from dataclasses import asdict, dataclass, field

from msgspec.structs import replace
from ota.crash_disk import CrashDisk
from ota.update_run import AFTER, ORDERS, STATE_DIR, Board, Promises, ready_made

from agent.contract.updates import Floors
from agent.ota.floors import book_of, highest
from agent.ota.slots import Slots, trimmed
from agent.ota.state import Denied, EngineState, State

LONGEST_WALK = 330  # operations of all orders
SHOWN = 20  # of what is bad


class PowerCut(BaseException):
    """The end of a run."""


@dataclass
class Found:
    """Figures of an exploration."""

    instants: int = 0  # before or after each file operation
    states: int = 0  # different contents of the disk after a cut
    carried_on: int = 0  # of those, to the end of the last order
    walks: int = 0  # lives of a board with cut after cut, and kills between them
    walked_cuts: int = 0
    bad: list[str] = field(default_factory=list)


def fat_state() -> State:
    """Return a state of more than one page, so that a write of it can be torn."""
    denied = tuple(
        Denied(sha256=f"{at:064x}", deployment_id=f"earlier-{at}", code="E_CRASH")
        for at in range(30)
    )
    return State(engines={"": EngineState(denied=denied)}, floors=Floors(root_version=3))


def prepared(disk: CrashDisk, *, is_fat: bool) -> tuple[CrashDisk, Promises]:
    """Return a disk as it comes from the factory, or after a long life."""
    promises = Promises()
    ready_made(disk)
    if is_fat:
        promises.kept = Slots(STATE_DIR / "update", disk).write(fat_state())
    return disk, promises


def problems(board: Board, promises: Promises, *, is_finished: bool = False) -> list[str]:
    """Return what is wrong with what a start found."""
    bad = []
    state = board.state
    allowed = [trimmed(one) for one in (promises.kept, promises.tried) if one is not None]
    if replace(state, generation=0) not in [replace(one, generation=0) for one in allowed]:
        bad.append(f"a state that nobody wrote: {state}")
    if highest(book_of(state), book_of(promises.kept)) != book_of(state):
        bad.append(f"floors went down: {book_of(state)} below {book_of(promises.kept)}")
    if board.slots.alarm is not None:
        bad.append(f"alarm: {board.slots.alarm}")
    choice = board.choose()
    if choice.source == "none" or choice.why:
        bad.append(f"{choice.source} runs, because of {choice.why}")
    return bad + (_unfinished(board) if is_finished else [])


def _unfinished(board: Board) -> list[str]:
    bad = []
    runs = board.state.engines[""]
    found = tuple(ref and ref.version for ref in (runs.active, runs.previous))
    if found != AFTER[ORDERS[-1]]:
        bad.append(f"ended with {found} instead of {AFTER[ORDERS[-1]]}")
    models = board.state_dir / "models"
    wanted = [".staging", *sorted(ref.sha256 for ref in (runs.active, runs.previous) if ref)]
    if (left := board.disk.names(models)) != wanted:
        bad.append(f"not collected: {left}")
    if left := board.disk.names(models / ".staging"):
        bad.append(f"not collected: {left}")
    return bad


def carried_on(board: Board) -> list[str]:
    """Carry out all orders, and return what a start finds wrong then."""
    board.run()
    return problems(Board(board.disk), board.promises, is_finished=True)


def explore(
    *,
    most: int,
    carry_on_one_in: int,
    page: int = 4096,
    is_fat: bool = False,
    seed: int = 1,
    stops: bool = False,
    one_in: int = 1,
    disk: CrashDisk | None = None,
) -> Found:
    """Cut the power at every instant of all orders, and look at every outcome.

    most: outcomes of one instant, roughly; one_in: of the instants; stops: at the first bad one
    """
    found, chance = Found(), random.Random(seed)
    disk, promises = prepared(disk or CrashDisk(page=page), is_fat=is_fat)

    def cut(number: int, name: str, path: object) -> None:
        if number % one_in:
            return
        found.instants += 1
        for after in disk.after_power_cuts(most, chance):
            found.states += 1
            what = f"before operation {number}, {name} {path}"
            is_carried_on = found.states % carry_on_one_in == 0
            spare = after.snapshot() if is_carried_on else None
            found.bad += [f"{what}: {one}" for one in problems(Board(after), promises)]
            if spare is not None:
                found.carried_on += 1
                found.bad += [f"{what}, carried on: {one}" for one in carried_on(Board(spare))]
        if found.bad and stops:
            raise PowerCut

    disk.before_op = cut
    try:
        Board(disk, promises=promises).run()
    except PowerCut:
        return found
    disk.before_op = lambda *_: None
    found.bad += problems(Board(disk), promises, is_finished=True)
    return found


def walk(cuts: list[tuple[int, int, bool]], *, page: int = 512, is_fat: bool = True) -> Found:
    """Run, and end after so many operations: by a power cut of that seed, or by a kill.

    Whatever is found then goes on, until the last cut; then all orders are carried out.
    """
    found = Found()
    disk, promises = prepared(CrashDisk(page=page), is_fat=is_fat)
    for after_ops, seed, is_power in cuts:
        end = disk.ops + after_ops

        def stop(number: int, *_: object, end: int = end) -> None:
            if number >= end:
                raise PowerCut

        disk.before_op = stop
        try:
            # What a start has read is kept from then on: it builds on it.
            board = Board(disk, promises=promises)
            promises.kept, promises.tried = board.state, None
            board.run()
        except PowerCut:
            pass
        disk.before_op = lambda *_: None
        if is_power:
            chance = random.Random(seed)
            disk = list(disk.after_power_cuts(12, chance))[-1]
        found.walked_cuts += 1
        found.bad += problems(Board(disk.snapshot()), promises)
    before = book_of(promises.kept)
    board = Board(disk)
    board.run()
    # With three cuts in one trial its model may rightly be gone.
    found.bad += problems(Board(disk), board.promises, is_finished=len(cuts) < 3)
    if highest(before, book_of(board.state)) != book_of(board.state):
        found.bad.append("floors went down")
    return found


def main() -> int:
    """Run the program; print figures as JSON."""
    parser = argparse.ArgumentParser(prog="ota.power_cuts", description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=16, help="outcomes of an instant, roughly")
    parser.add_argument("--page", type=int, default=4096, help="bytes that are written as one")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logging.disable()
    page, most, chance = arguments.page, arguments.most, random.Random(arguments.seed)
    found = explore(
        most=most, carry_on_one_in=20, page=page, is_fat=page < 4096, seed=arguments.seed
    )
    for _ in range(10 * most):
        cuts = [
            (chance.randrange(LONGEST_WALK), chance.randrange(1 << 30), chance.random() < 0.6)
            for _ in range(chance.randint(1, 6))
        ]
        one = walk(cuts, page=page, is_fat=page < 4096)
        found.walks += 1
        found.walked_cuts += one.walked_cuts
        found.bad += [f"after {cuts}: {words}" for words in one.bad]
    found.bad = [words[:2000] for words in found.bad[:SHOWN]]
    print(json.dumps(asdict(found)))
    return 1 if found.bad else 0


if __name__ == "__main__":
    sys.exit(main())
