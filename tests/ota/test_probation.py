"""When a model may stay: time, frames, acknowledged messages, latency; and what extends it."""

from dataclasses import replace

import pytest

from agent.ota.probation import ENOUGH_FRAMES, FEW_FRAMES, PATIENCE, Probation
from agent.ota.steps import Vitals

START = Vitals(
    frames=500, acknowledged=70, p95_ms=12.0, is_fed=True, is_connected=True, is_throttled=False
)


def lasts(seconds_most=5000, *, probation_s=600.0, budget_ms=20.0, fps=30.0, acks=1, **changes):
    """Look once a second; return after how many seconds which verdict fell.

    changes: a value, or a function of the seconds passed
    """
    probation = Probation(probation_s, budget_ms, began_at=100.0, began_with=START)
    for second in range(1, seconds_most + 1):
        now = {name: value(second) if callable(value) else value for name, value in changes.items()}
        frames = now.pop("frames", START.frames + int(fps * second))
        acknowledged = now.pop("acknowledged", START.acknowledged + acks * second)
        vitals = replace(START, frames=frames, acknowledged=acknowledged, **now)
        verdict = probation.look(100.0 + second, vitals)
        if verdict is not None:
            return second, verdict.code
    return None, probation.waits_for


def test_good_time_and_all_that_goes_with_it():
    assert lasts() == (600, None)
    assert lasts(probation_s=60.0) == (60, None)


def test_frames_are_counted_however_long_they_take():
    seconds, code = lasts(fps=1.0)
    assert (seconds, code) == (ENOUGH_FRAMES, None)


def test_a_slow_camera_gets_its_time_and_no_more_is_asked_of_it():
    assert lasts(fps=0.1) == (PATIENCE * 600, None)
    few = FEW_FRAMES - 10
    seconds, waits = lasts(
        frames=lambda second: START.frames + min(few, second), is_fed=lambda s: s < 25
    )
    assert (seconds, waits) == (None, "a camera")  # fmt: skip


def test_nothing_acknowledged_is_no_proof():
    assert lasts(acks=0)[0] is None
    assert lasts(acknowledged=lambda s: START.acknowledged + (s >= 900)) == (900, None)


@pytest.mark.parametrize(
    ("missing", "waits"),
    [
        ({"is_fed": False}, "a camera"),
        ({"is_connected": False}, "the broker"),
        ({"is_throttled": True}, "the board to cool"),
    ],
)
def test_what_is_not_the_models_fault_extends(missing, waits):
    name, bad = next(iter(missing.items()))
    for_300_s = {name: lambda second: bad if second <= 300 else not bad}
    seconds, code = lasts(**for_300_s)
    assert code is None
    assert 900 <= seconds <= 920
    assert lasts(**missing) == (None, waits)


def test_a_throttled_board_may_be_slow_and_is_given_time_to_recover():
    hot = {
        "is_throttled": lambda s: 100 < s <= 400,
        "p95_ms": lambda s: 55.0 if 100 < s <= 410 else 9,
    }
    seconds, code = lasts(**hot)  # fmt: skip
    assert code is None
    assert 900 <= seconds <= 930


def test_over_its_budget_for_long_enough():
    assert lasts(p95_ms=40.0) == (30, "E_BUDGET")
    assert lasts(p95_ms=40.0, is_throttled=None) == (30, "E_BUDGET")
    assert lasts(p95_ms=40.0, budget_ms=None) == (600, None)
    assert lasts(p95_ms=None) == (600, None)
    assert lasts(p95_ms=24.0) == (600, None)  # beside everything else on the board
    assert lasts(p95_ms=lambda s: 40.0 if s % 40 < 20 else 12.0) == (620, None)  # ends at a dip


def test_fed_and_still_is_a_hang():
    assert lasts(frames=START.frames) == (30, "E_HANG")
    assert lasts(frames=lambda s: START.frames + 30 * min(s, 590)) == (620, "E_HANG")


def test_an_end_comes_in_any_case():
    probation = Probation(600.0, None, began_at=0.0, began_with=START)
    day = range(60, 90_000, 60)
    codes = {
        verdict.code
        for now in day
        if (verdict := probation.look(float(now), replace(START, is_fed=False)))
    }
    assert codes == {"E_UNPROVEN"}


def test_a_process_that_stood_still_proves_nothing():
    probation = Probation(600.0, None, began_at=0.0, began_with=START)
    later = replace(START, frames=10**6, acknowledged=10**6)
    assert probation.look(10_000.0, later) is None
    assert probation.good_s <= 5
    assert probation.progress < 0.01


def test_a_clock_that_goes_back_takes_nothing():
    probation = Probation(600.0, None, began_at=1000.0, began_with=START)
    assert probation.look(10.0, replace(START, frames=600)) is None
    assert probation.good_s == 0.0


@pytest.mark.parametrize(("fps", "half_s"), [(30.0, 300), (1.0, 500), (0.1, 1800)])
def test_progress_is_that_of_what_is_waited_for(fps, half_s):
    """A slow camera's frames take longer than `probation_s`, and it says so."""
    probation = Probation(600.0, None, began_at=0.0, began_with=START)
    for second in range(1, half_s + 1):
        now = replace(START, frames=START.frames + int(fps * second), acknowledged=71)
        assert probation.look(float(second), now) is None
    assert probation.progress == pytest.approx(0.5, abs=0.02)
