"""When the watchdog is fed, and what is said of loops that hang."""

from __future__ import annotations

import logging
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.daemon.liveness import Liveness, Watchdog

WATCHDOG_S = 30.0


class Loops:
    """Two loops whose last turns the test sets."""

    def __init__(self) -> None:
        self.ticked = {"mqtt": 0.0, "outbox": 0.0}
        self.liveness = Liveness()
        self.liveness.watch("mqtt", 5.0, lambda: self.ticked["mqtt"])
        self.liveness.watch("outbox", 20.0, lambda: self.ticked["outbox"])


def test_a_loop_is_stuck_after_the_time_that_it_may_take():
    loops = Loops()
    assert loops.liveness.stuck(5.0) == []
    assert loops.liveness.stuck(5.1) == ["mqtt"]
    assert loops.liveness.stuck(20.1) == ["mqtt", "outbox"]
    loops.ticked["mqtt"] = 20.0
    assert loops.liveness.stuck(20.1) == ["outbox"]


def test_a_loop_that_need_not_turn_now_is_not_stuck():
    loops = Loops()
    loops.ticked.update(mqtt=math.inf, outbox=math.inf)
    assert loops.liveness.stuck(1e9) == []


def test_each_change_is_said_once(caplog):
    loops = Loops()
    with caplog.at_level(logging.INFO):
        for now in (6.0, 7.0, 8.0):
            loops.liveness.stuck(now)
        loops.ticked["mqtt"] = 8.0
        loops.liveness.stuck(9.0)
        loops.liveness.stuck(10.0)
        loops.liveness.stuck(14.0)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [
        ("ERROR", "loop is stuck name=mqtt silent_s=6"),
        ("INFO", "loop turns again name=mqtt"),
        ("ERROR", "loop is stuck name=mqtt silent_s=6"),
    ]


def test_who_asks_from_elsewhere_is_told_and_takes_no_word_from_the_log(caplog):
    loops = Loops()
    with caplog.at_level(logging.INFO):
        assert loops.liveness.silent(5.0) == []
        assert loops.liveness.silent(6.0) == ["loop mqtt has not turned for 6 s"]
        assert loops.liveness.silent(20.4) == [
            "loop mqtt has not turned for 20 s",
            "loop outbox has not turned for 20 s",
        ]
        assert not caplog.records
        assert loops.liveness.stuck(6.0) == ["mqtt"]
        loops.ticked.update(mqtt=6.0, outbox=math.inf)
        assert loops.liveness.silent(7.0) == []
    assert [record.getMessage() for record in caplog.records] == [
        "loop is stuck name=mqtt silent_s=6"
    ]


def test_the_first_turn_feeds():
    fed = []
    due_s = Watchdog(Liveness(), WATCHDOG_S, lambda: fed.append(1)).turn(100.0)
    assert fed == [1]
    assert 0 < due_s <= WATCHDOG_S / 2


def test_without_a_watchdog_loops_are_looked_at_all_the_same(caplog):
    loops = Loops()
    watchdog = Watchdog(loops.liveness, None, lambda: False)
    assert watchdog.turn(100.0) > 0
    assert "loop is stuck name=mqtt" in caplog.text


@given(steps=st.lists(st.tuples(st.floats(0.01, 9.0), st.booleans(), st.booleans()), max_size=200))
def test_it_is_fed_in_time_exactly_while_every_loop_turns(steps):
    """Drive the main loop with any pace up to 9 s, loops that turn and loops that hang."""
    loops = Loops()
    fed = []
    now = 0.0
    watchdog = Watchdog(loops.liveness, WATCHDOG_S, lambda: fed.append(now))
    due_at = 0.0
    for wait_s, mqtt_turns, outbox_turns in steps:
        now += wait_s
        loops.ticked["mqtt"] = now if mqtt_turns else loops.ticked["mqtt"]
        loops.ticked["outbox"] = now if outbox_turns else loops.ticked["outbox"]
        count = len(fed)
        due_s = watchdog.turn(now)
        assert 0 < due_s <= WATCHDOG_S / 2
        is_stuck = bool(loops.liveness.stuck(now))
        assert len(fed) - count == (1 if now >= due_at and not is_stuck else 0)
        if now >= due_at:
            due_at = now + due_s
    gaps = [after - before for before, after in pairwise(fed)]
    if not any(gap > 0 for gap in gaps):
        return
    # Where nothing was stuck in between, the next word comes before systemd loses its patience.
    if all(mqtt and outbox for _, mqtt, outbox in steps):
        assert max(gaps) <= WATCHDOG_S / 2 + 9.0 < WATCHDOG_S


@pytest.mark.parametrize("watchdog_s", [0.3, 2.0, 30.0, 600.0])
def test_it_is_fed_at_least_twice_in_the_time_that_systemd_waits(watchdog_s):
    fed = []
    watchdog = Watchdog(Liveness(), watchdog_s, lambda: fed.append(1))
    now, end = 0.0, 10 * watchdog_s
    while now < end:
        now += watchdog.turn(now)
    assert len(fed) >= 20
