"""A rollout: which boards are asked for what, in which order, and when it is stopped. Pure.

Everything is judged by what boards last said, never by what was seen happening, so a rollout goes
on after any pause as if there had been none.

    planned ─▶ ordered ─▶ done          committed, it runs
                   ├────▶ failed        refused, or back on what ran before
                   └────▶ silent        nothing final in time
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from agent.contract.updates import Action, Desired, Reported
from agent.operator.boards import Board
from agent.operator.fleet_rows import title

Result = Literal["planned", "ordered", "done", "failed", "silent"]
# Of those that were asked, these count against the limit.
BAD: Final = ("failed", "silent")
ENDED: Final = ("halted", "finished")
RUNS_IT: Final = "runs it already"


class BoardOrder(Struct, kw_only=True):
    """One board's part in it."""

    device: str
    wave: int
    before: str  # what ran, for people
    pinned: bool = False  # and stays so
    undo: Desired | None  # asks for what ran before; None: nobody knows what that was
    result: Result = "planned"
    phase: str | None = None
    code: str | None = None
    message: str | None = None
    ordered_at: float | None = None  # Unix seconds
    took_s: float | None = None


class Rollout(Struct, kw_only=True):
    """Everything about it, as it is kept in a file.

    halt_on: share of the boards that were asked so far; from this many bad ones on it is stopped
    wait_s: how long a wave may take after its last order, while the broker is there
    listened_s: how much of that has passed
    """

    schema: Literal["edge-agent/rollout/1"] = "edge-agent/rollout/1"
    id: str
    counter: int  # one for all: then a group's order is no news to a board that had its own
    action: Action
    name: str | None
    version: str | None
    engine: str
    groups: list[str]
    broker: str
    prefix: str
    halt_on: float
    wait_s: float
    started_at: float
    boards: list[BoardOrder]
    away: list[str]  # offline when it was their turn: asked last, not waited for
    skipped: dict[str, str]  # device: why
    left: int = 0  # boards behind the last wave, also of those that are away; they are not asked
    wave: int = 0
    listened_s: float = 0.0
    state: Literal["running", "halting", "halted", "finishing", "finished"] = "running"
    why: str | None = None
    ended_at: float | None = None
    messages_sent: int = 0
    messages_received: int = 0

    @property
    def title(self) -> str:
        """Return what is asked for."""
        model = f"{self.name}@{self.version}"
        if self.action == "run":
            return model
        return f"{self.action} from {model}" if self.name else self.action

    @property
    def waves(self) -> int:
        """Return how many waves there are."""
        return 1 + max((order.wave for order in self.boards), default=-1)

    def of_wave(self, wave: int) -> list[BoardOrder]:
        """Return the boards of a wave."""
        return [order for order in self.boards if order.wave == wave]

    def counts(self) -> dict[Result, int]:
        """Return how many boards have come to what."""
        counts: dict[Result, int] = dict.fromkeys(
            ("planned", "ordered", "done", "failed", "silent"), 0
        )
        for order in self.boards:
            counts[order.result] += 1
        return counts


def in_turn(boards: Iterable[Board], rollout_id: str) -> list[Board]:
    """Return boards in the order in which they are asked.

    Every kind of board comes early, as a model may be bad on one of them alone; within a kind the
    order is another one in each rollout, so that it is not always the same ones that go first.
    """
    kinds: dict[str, list[Board]] = {}
    for board in boards:
        kinds.setdefault(board.kind, []).append(board)
    places = []
    for of_kind in kinds.values():
        drawn = sorted(of_kind, key=lambda board: _draw(rollout_id, board.device))
        places += [(place, _draw(rollout_id, board.device), board)
                   for place, board in enumerate(drawn)]  # fmt: skip
    return [board for *_, board in sorted(places, key=lambda found: found[:2])]


def _draw(rollout_id: str, device: str) -> bytes:
    return hashlib.sha256(f"{rollout_id}/{device}".encode()).digest()


def undo_of(board: Board, engine: str, rollout_id: str) -> Desired | None:
    """Return the order that asks for what a board runs now; its counter is set when it is given.

    None: that is not known, or on trial there, and would be tried anew if it had to go back.
    """
    order = Desired(
        deployment_id=f"{rollout_id}-undo",
        counter=1,
        engine=engine,
        pinned=board.is_pinned(engine),
    )
    reported, model = board.reported.get(engine), board.model(engine)
    if reported is not None and reported.source == "factory":
        return replace(order, action="factory")
    if reported is None or reported.source == "candidate" or model is None:
        return None
    return replace(order, name=model.name, version=model.version) if model.version else None


def way_back(order: BoardOrder, rollout: Rollout) -> Desired | None:
    """Return the order that takes a board's order back; None: it is taken back by an empty one.

    Who did not come to an end may have it on trial. Only an order to leave it ends that at once,
    and needs no repository; any model to run waits until the trial has ended.
    """
    if order.result == "failed" or order.before == rollout.title:
        return order.undo
    return Desired(
        deployment_id=f"{rollout.id}-undo",
        counter=1,
        action="rollback",
        engine=rollout.engine,
        name=rollout.name,
        version=rollout.version,
        pinned=order.pinned,
    )


def plan_boards(
    boards: Sequence[Board], ends: Sequence[int], engine: str, rollout_id: str
) -> list[BoardOrder]:
    """Give each board its wave; those behind the last one are not asked."""
    planned = []
    for place, board in enumerate(boards[: ends[-1] if ends else 0]):
        wave = next(number for number, end in enumerate(ends) if place < end)
        planned.append(
            BoardOrder(
                device=board.device,
                wave=wave,
                before=title(board.model(engine)) or "unknown",
                pinned=board.is_pinned(engine),
                undo=undo_of(board, engine, rollout_id),
            )
        )
    return planned


def judge(order: BoardOrder, reported: Reported | None, rollout_id: str, at: float) -> bool:
    """Hold what a board last said against its order; return whether that changed anything."""
    if order.result == "planned" or reported is None:
        return False
    before = (order.result, order.phase, order.code)
    ignored = reported.ignored
    if reported.deployment_id == rollout_id:
        order.phase, order.code, order.message = reported.phase, reported.code, reported.message
        if reported.phase == "committed":
            order.result = "done"
        elif reported.phase in ("refused", "rolled_back"):
            order.result = "failed"
    elif ignored is not None and ignored.deployment_id == rollout_id and order.result != "done":
        order.result, order.phase = "failed", "refused"
        order.code, order.message = ignored.code, ignored.message
    if order.took_s is None and order.result in ("done", "failed") and order.ordered_at:
        order.took_s = round(max(0.0, at - order.ordered_at), 3)
    return (order.result, order.phase, order.code) != before


def overtake(order: BoardOrder, newer: Desired) -> None:
    """Note that somebody else asked the board for something later, which stands."""
    order.result, order.phase, order.code = "failed", "refused", "E_REPLAY"
    order.message = f"{newer.deployment_id} was asked for meanwhile"


def reason_to_halt(rollout: Rollout) -> str | None:
    """Return why no more boards are to be asked."""
    counts = rollout.counts()
    asked = len(rollout.boards) - counts["planned"]
    bad = sum(counts[result] for result in BAD)
    if not bad or bad / asked < rollout.halt_on:
        return None
    codes = sorted({order.code or order.result for order in rollout.boards if order.result in BAD})
    return (
        f"{bad} of {asked} boards asked went wrong ({', '.join(codes)}); the limit is"
        f" {rollout.halt_on * 100:g} %"
    )
