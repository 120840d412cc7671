"""Drives a rollout: orders, waits, halts or goes on; any number of times from the start.

What is to be done follows from the rollout's record and from what boards last said alone, and the
record is written before an order is given. So a killed command, a broker that went away or a laptop
that slept changes nothing but when it ends: orders are given again, which boards know, and time in
which nobody listened does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import msgspec
from msgspec.structs import replace

from agent.contract.updates import Desired
from agent.operator.boards import Board, Fleet, desired_topic, group_topic
from agent.operator.exchange import QUIET_S, Exchange, Message
from agent.operator.rollout import (
    BoardOrder,
    Rollout,
    judge,
    overtake,
    reason_to_halt,
    way_back,
)

TICK_S: Final = 0.2
SAVES_EVERY_S: Final = 1.0
# What got lost on the way from a board comes again with everything that is retained.
ASKS_AGAIN_S: Final = 120.0
# A board that is offline when it is its turn may just be connecting again.
ABSENT_FOR_S: Final = 60.0

Save = Callable[[Rollout], None]


class View(Protocol):
    """Shows how it goes."""

    def show(self, rollout: Rollout, *, is_heard: bool) -> None:
        """Show the state; called a few times a second."""

    def event(self, text: str) -> None:
        """Say what happened."""


class Drive:
    """One rollout from where it is to its end."""

    def __init__(
        self,
        rollout: Rollout,
        exchange: Exchange,
        fleet: Fleet,
        *,
        save: Save,
        view: View,
        boards_a_second: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._rollout = rollout
        self._exchange = exchange
        self._fleet = fleet
        self._save = save
        self._view = view
        self._rate = boards_a_second
        self._clock = clock
        self._wall_clock = wall_clock
        self._orders = {order.device: order for order in rollout.boards}
        self._at = clock()
        self._allowance = max(1.0, boards_a_second)
        self._absent_s = 0.0
        self._saved_at = self._asked_at = self._at
        self._sessions = 0  # of the exchange, whose retained messages have all come
        self._is_changed = False
        self._told: set[tuple[str | None, str | None]] = set()  # why boards try again
        self._sent_before = rollout.messages_sent
        self._received_before = rollout.messages_received

    def run(self) -> Rollout:
        """Return the rollout once it is finished or halted.

        Raises:
            BrokerError: it does not let us give orders.
        """
        rollout = self._rollout
        for board in self._fleet.boards.values():
            self._judge(board)
        while rollout.state == "running":
            self._tick()
        self._write_down()  # before the orders that end it
        if rollout.state == "halting":
            self._take_back()
        elif rollout.state == "finishing":
            self._ask_the_rest()
        self._exchange.flush()
        rollout.state = "halted" if rollout.state in ("halting", "halted") else "finished"
        rollout.ended_at = self._wall_clock()
        self._write_down()
        return rollout

    def _tick(self) -> None:
        rollout = self._rollout
        for message in self._exchange.drain(TICK_S):
            self._note(message)
        self._exchange.settle()
        now = self._clock()
        # A laptop's sleep is no listening either, though some clocks go on in it.
        passed, self._at = min(now - self._at, 5 * TICK_S), now
        is_heard = self._is_heard()
        self._view.show(rollout, is_heard=is_heard)
        if is_heard:
            self._go_on(passed)
        if self._is_changed and now - self._saved_at > SAVES_EVERY_S:
            self._write_down()
        if now - self._asked_at > ASKS_AGAIN_S:
            self._asked_at = now
            self._exchange.subscribe_again()

    def _is_heard(self) -> bool:
        """Return whether boards' words of now are known: connected, and all retained has come."""
        if not self._exchange.is_connected:
            return False
        if self._sessions != self._exchange.sessions:
            if self._exchange.quiet_s < QUIET_S:
                return False
            self._sessions = self._exchange.sessions
            # A broker that was started anew may have forgotten what was retained.
            self._give(order for order in self._rollout.boards if order.result == "ordered")
        return True

    def _note(self, message: Message) -> None:
        board = self._fleet.note(message)
        if board is not None and message.topic.endswith("/reported"):
            self._judge(board)

    def _judge(self, board: Board) -> None:
        rollout, order = self._rollout, self._orders.get(board.device)
        if order is None or rollout.state != "running":
            return
        was_failed = order.result == "failed"
        reported, newer = board.reported.get(rollout.engine), self._newer(order.device)
        is_at_newer = newer and reported and reported.deployment_id == newer.deployment_id
        if newer is not None and is_at_newer and order.result == "ordered":
            overtake(order, newer)
        elif not judge(order, reported, rollout.id, self._wall_clock()):
            return
        self._is_changed = True
        trouble = (order.phase, order.code)
        is_new = order.code is not None and trouble not in self._told
        # What may pass is told of the first board alone that waits for it.
        is_told = is_new if order.result == "ordered" else not was_failed
        if order.result in ("ordered", "failed") and is_told:
            self._told.add(trouble)
            text = f"{order.device}: {(order.phase or '').replace('_', ' ')} {order.code or ''}"
            self._view.event(f"{text.rstrip()}  {order.message or ''}".rstrip())

    def _go_on(self, passed: float) -> None:
        rollout = self._rollout
        rollout.why = reason_to_halt(rollout)
        if rollout.why is not None:
            rollout.state = "halting"
            return
        boards = rollout.of_wave(rollout.wave)
        planned = [order for order in boards if order.result == "planned"]
        there = [order for order in planned if self._is_online(order.device)]
        pending = [order for order in boards if order.result == "ordered"]
        if there:
            self._order_some(there, passed)
        elif pending:
            self._wait_for(pending, passed)
        elif planned:
            self._wait_for_absent(planned, passed)
        else:
            self._next_wave()

    def _newer(self, device: str) -> Desired | None:
        """Return the order of somebody else that came after ours, and stands."""
        return self._fleet.newer_order(device, self._rollout.engine, self._rollout.counter)

    def _is_online(self, device: str) -> bool:
        board = self._fleet.boards.get(device)
        return board is not None and bool(board.is_online)

    def _order_some(self, there: list[BoardOrder], passed: float) -> None:
        """Order a second's worth of boards, or all that are left, once it is time for them."""
        self._absent_s = 0.0
        most = max(1.0, self._rate)
        self._allowance = min(self._allowance + passed * self._rate, most)
        # By the second, as the record is written before each batch: megabytes for 10000 boards.
        if self._allowance < min(len(there), int(most)):
            return
        going = there[: int(self._allowance)]
        self._allowance -= len(going)
        for order in going:
            order.result, order.ordered_at = "ordered", self._wall_clock()
            newer = self._newer(order.device)
            if newer is not None:
                overtake(order, newer)
                self._view.event(f"{order.device}: {order.code}  {order.message}")
        self._rollout.listened_s = 0.0  # a wave's time begins with its last order
        self._write_down()
        self._give(order for order in going if order.result == "ordered")

    def _wait_for(self, pending: list[BoardOrder], passed: float) -> None:
        """Wait for boards that were asked, as long as a wave may take."""
        rollout = self._rollout
        rollout.listened_s += passed
        if rollout.listened_s < rollout.wait_s:
            return
        for order in pending:
            order.result = "silent"
        self._is_changed = True
        names = ", ".join(order.device for order in pending[:10])
        more = f" and {len(pending) - 10} more" if len(pending) > 10 else ""
        self._view.event(f"nothing final within {rollout.wait_s:g} s: {names}{more}")

    def _wait_for_absent(self, planned: list[BoardOrder], passed: float) -> None:
        """Wait a little for boards that went offline, as all do with the broker; then go on."""
        self._absent_s += passed
        if self._absent_s < ABSENT_FOR_S:
            return
        rollout = self._rollout
        gone = {order.device for order in planned}
        rollout.boards = [order for order in rollout.boards if order.device not in gone]
        self._orders = {order.device: order for order in rollout.boards}
        rollout.away += sorted(gone)
        self._is_changed = True
        self._view.event(f"offline by now, and asked last: {', '.join(sorted(gone)[:10])}")

    def _next_wave(self) -> None:
        rollout = self._rollout
        boards = rollout.of_wave(rollout.wave)
        if boards:
            done = sum(order.result == "done" for order in boards)
            self._view.event(f"wave {rollout.wave + 1}: {done} of {len(boards)} boards are done")
        rollout.wave += 1
        rollout.listened_s = self._absent_s = 0.0
        self._is_changed = True
        if rollout.wave >= rollout.waves:
            rollout.state = "finishing"

    def _give(self, orders: Iterable[BoardOrder]) -> None:
        """Publish orders; a board that knows its order already takes no notice of it."""
        for order in orders:
            self._publish(order.device, replace(self._wanted(), pinned=order.pinned))

    def _wanted(self) -> Desired:
        rollout = self._rollout
        return Desired(
            deployment_id=rollout.id,
            counter=rollout.counter,
            action=rollout.action,
            engine=rollout.engine,
            name=rollout.name,
            version=rollout.version,
        )

    def _publish(self, device: str, desired: Desired | None) -> None:
        """Have an order, or none, retained for a board, unless somebody else's is newer."""
        if self._newer(device) is None:
            topic = desired_topic(self._fleet.prefix, device)
            self._exchange.publish(topic, msgspec.json.encode(desired) if desired else b"")

    def _ask_the_rest(self) -> None:
        """Ask the boards that are away, and those that join the groups later."""
        rollout = self._rollout
        for device in rollout.away:
            board = self._fleet.boards.get(device)
            is_pinned = board is not None and board.is_pinned(rollout.engine)
            self._publish(device, replace(self._wanted(), pinned=is_pinned))
        if rollout.left:
            return
        for group in rollout.groups:
            newest = self._fleet.groups.get(group)
            if newest is not None and newest.counter > rollout.counter:
                continue  # somebody else's
            # One step back is no order for a board that joins: it would leave what it came with.
            order = msgspec.json.encode(self._wanted()) if rollout.action == "run" else b""
            self._exchange.publish(group_topic(self._fleet.prefix, group), order)

    def _take_back(self) -> None:
        """Take back the orders of the boards that do not run it; the others keep it."""
        counter = max(self._rollout.counter + 1, int(self._wall_clock() * 1000))
        for order in self._rollout.boards:
            if order.result in ("planned", "done"):
                continue
            back = way_back(order, self._rollout)
            self._publish(order.device, back and replace(back, counter=counter))

    def _write_down(self) -> None:
        rollout = self._rollout
        rollout.messages_sent = self._sent_before + self._exchange.sent
        rollout.messages_received = self._received_before + self._exchange.received
        self._save(rollout)
        self._saved_at, self._is_changed = self._clock(), False
