"""How long stages may be silent, and cameras that hang again and again."""

import pytest

from agent.daemon.workers.stage_limits import (
    CAPTURE_STUCK_MOST_S,
    CAPTURE_STUCK_S,
    OPEN_STUCK_S,
    STAGE_STUCK_S,
    StageLimits,
)


@pytest.mark.parametrize(
    ("stage", "limit_s"),
    [("inference", STAGE_STUCK_S), ("capture.a", CAPTURE_STUCK_S), ("opening", OPEN_STUCK_S)],
)
def test_limits(stage, limit_s):
    limits = StageLimits()
    assert limits.stuck({stage: limit_s, "other": 0.0}) is None
    assert limits.stuck({stage: limit_s + 1}) == stage


def test_where_another_worker_would_hang_too_a_camera_is_no_reason():
    limits = StageLimits()
    ages_s = {"capture.a": 1e6, "inference": STAGE_STUCK_S + 1}
    assert limits.stuck(ages_s, but_cameras=True) == "inference"
    assert limits.stuck({"capture.a": 1e6}, but_cameras=True) is None


def test_a_camera_may_hang_for_years():
    limits = StageLimits()
    for _ in range(2000):
        assert limits.stuck({"capture.a": CAPTURE_STUCK_MOST_S + 1}) == "capture.a"


def test_a_camera_that_hangs_costs_the_others_less_and_less():
    limits = StageLimits()
    hour_s, replaced, age_s = 0.0, 0, 0.0
    while hour_s < 24 * 3600:
        hour_s, age_s = hour_s + 1, age_s + 1
        if limits.stuck({"capture.a": age_s, "capture.b": 0.1}):
            replaced, age_s = replaced + 1, 0.0
    assert replaced <= 7 + 24 * 3600 / CAPTURE_STUCK_MOST_S
    assert limits.stuck({"capture.b": CAPTURE_STUCK_S + 1}), "another one has its own limit"
    limits.note_online("a")
    assert limits.stuck({"capture.a": CAPTURE_STUCK_S + 1})
