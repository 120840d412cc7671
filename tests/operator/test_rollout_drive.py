"""How a rollout is driven, with a made-up broker and a clock that is a number."""

from __future__ import annotations

import msgspec
import pytest
from test_rollout_rules import a_report, a_status

from agent.contract.updates import Desired
from agent.operator.boards import Fleet
from agent.operator.exchange import Message
from agent.operator.rollout import Rollout, plan_boards
from agent.operator.rollout_run import TICK_S, Drive
from agent.operator.rollout_show import print_outcome


class Exchange:
    """Each `drain` takes as long as the test says, and a board may say something in it."""

    def __init__(self, turns, *, connected=lambda now: True):
        self.now, self.sent, self.received, self.sessions = 0.0, 0, 0, 1
        self.turns, self.orders, self.quiet_s = turns, [], 10.0
        self._connected = connected

    @property
    def is_connected(self):
        return self._connected(self.now)

    def drain(self, wait_s):
        took_s, messages = next(self.turns, (wait_s, []))
        self.now += took_s
        return messages

    def publish(self, topic, payload, **_):
        self.orders.append((round(self.now, 1), topic, payload))

    def settle(self):
        return False

    def flush(self):
        pass

    def subscribe_again(self):
        pass


class View:
    def __init__(self):
        self.events = []

    def show(self, rollout, *, is_heard):
        pass

    def event(self, text):
        self.events.append(text)


def says(device, what):
    if isinstance(what, bytes):
        return Message(f"edge/{device}/availability", what, retained=True)
    tail = "status" if type(what).__name__ == "Status" else "model/reported"
    return Message(f"edge/{device}/{tail}", msgspec.json.encode(what), retained=True)


@pytest.fixture
def drive():
    """Return how to drive a rollout to some boards, all in one wave."""

    def run(exchange, *devices, wait_s=4.0, groups=()):
        fleet = Fleet("edge")
        for device in devices:
            for what in (b"online", a_status(), a_report("idle", order=None)):
                fleet.note(says(device, what))
        boards = plan_boards(list(fleet.boards.values()), [len(devices)], "", "r1")
        rollout = Rollout(
            id="r1", counter=7, action="run", name="door", version="2", engine="",
            groups=list(groups), broker="b", prefix="edge", halt_on=1.0, wait_s=wait_s,
            started_at=0.0, boards=boards, away=[], skipped={},
        )  # fmt: skip
        view = View()
        Drive(
            rollout, exchange, fleet, save=lambda _: None, view=view, boards_a_second=20.0,
            clock=lambda: exchange.now, wall_clock=lambda: exchange.now,
        ).run()  # fmt: skip
        return rollout, view

    return run


def test_a_board_that_says_nothing_is_silent_after_the_wait(drive):
    exchange = Exchange(iter([]))
    rollout, view = drive(exchange, "porch")
    assert [order.result for order in rollout.boards] == ["silent"]
    assert rollout.state == "halted"
    assert 4.0 <= exchange.now < 4.0 + 5 * TICK_S
    assert view.events == ["nothing final within 4 s: porch"]


def test_a_board_that_comes_back_late_has_its_time(drive):
    """It went away as the others were asked, and comes when one of them has run out of time."""
    done = says("gate", a_report(order="r1"))
    turns = [(TICK_S, [says("yard", b"offline")]), *[(TICK_S, [])] * 20, (TICK_S, [done])]
    turns += [(TICK_S, [says("yard", b"online")]), *[(TICK_S, [])] * 5]
    turns += [(TICK_S, [says("yard", a_report(order="r1"))])]
    rollout, _ = drive(Exchange(iter(turns)), "porch", "gate", "yard")
    results = {order.device: order.result for order in rollout.boards}
    assert results == {"porch": "silent", "gate": "done", "yard": "done"}


def test_a_group_that_was_asked_for_something_newer_is_left_alone(drive):
    newer = Desired(deployment_id="other", counter=8, name="door", version="3")
    group = Message("edge/group/porches/model/desired", msgspec.json.encode(newer), retained=True)
    turns = iter([(TICK_S, []), (TICK_S, [group, says("porch", a_report(order="r1"))])])
    exchange = Exchange(turns)
    rollout, _ = drive(exchange, "porch", groups=["porches", "yards"])
    assert rollout.state == "finished"
    assert [topic for _, topic, _ in exchange.orders] == [
        "edge/porch/model/desired", "edge/group/yards/model/desired",
    ]  # fmt: skip


def test_a_laptop_that_sleeps_does_not_count(drive):
    """It sleeps ten hours in the second tick; then the board has its four seconds all the same."""
    done = says("porch", a_report(order="r1"))
    turns = iter([(TICK_S, []), (36_000.0, []), *[(TICK_S, [])] * 12, (TICK_S, [done])])
    rollout, _ = drive(Exchange(turns), "porch")
    assert [order.result for order in rollout.boards] == ["done"]
    assert rollout.state == "finished"


def test_a_broker_that_is_away_does_not_count(drive):
    """It is away for an hour, of which nothing is listening."""
    done = says("porch", a_report(order="r1"))
    turns = iter([*[(TICK_S, [])] * 5, *[(1.0, [])] * 3600, *[(TICK_S, [])] * 3, (TICK_S, [done])])
    exchange = Exchange(turns, connected=lambda now: not 1.0 < now < 3600.5)
    rollout, _ = drive(exchange, "porch")
    assert [order.result for order in rollout.boards] == ["done"]


def test_a_broker_that_forgot_is_told_again(drive):
    """A new session means that retained orders may be gone: those under way are given again."""
    exchange = Exchange(iter([]))
    drain = exchange.drain

    def forget(wait_s):
        if len(exchange.orders) == 1 and exchange.now > 1:
            exchange.sessions = 2
        return drain(wait_s)

    exchange.drain = forget
    drive(exchange, "porch")
    given = [topic for _, topic, payload in exchange.orders if b'"counter":7' in payload]
    assert given == ["edge/porch/model/desired"] * 2


def test_why_boards_try_again_is_said_once(drive):
    """A version that no repository has is seen by who asked for it, not after half an hour."""
    again = {"phase": "metadata", "code": "E_DESIRED", "message": "tried again: no door@2"}
    words = [says(device, a_report(order="r1", **again)) for device in ("porch", "yard")]
    turns = iter([(TICK_S, []), (TICK_S, []), (TICK_S, words), (TICK_S, words)])
    rollout, view = drive(Exchange(turns), "porch", "yard")
    assert [order.result for order in rollout.boards] == ["silent", "silent"]
    assert view.events[0] == "porch: metadata E_DESIRED  tried again: no door@2"
    assert len(view.events) == 2


def test_boards_that_were_not_asked_are_named(drive, capsys):
    done = says("porch", a_report(order="r1"))
    rollout, _ = drive(Exchange(iter([(TICK_S, []), (TICK_S, [done])])), "porch")
    rollout.skipped = {"yard": "is pinned", "gate": "runs it already"}
    print_outcome(rollout)
    said = capsys.readouterr().err
    assert "not asked: yard: is pinned" in said
    assert "gate" not in said
