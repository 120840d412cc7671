"""What time it is for signatures, with clocks that are right, wrong, and nobody's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.ota.clock_policy import NOT_BEFORE, WAITS_S, Time, decide, is_local
from agent.ota.refusal import RefusalError

NOW = NOT_BEFORE + 1e6
DAY_S = 86_400.0


def decided(**changed):
    asked = {"now": NOW, "is_synced": True, "floor": 0.0, "waited_s": 0.0, "allow_floor": False}
    return decide(**asked | changed)


def test_a_trusted_clock_is_taken_at_once():
    assert decided() == Time(at=NOW, is_trusted=True)


def test_a06_an_unset_clock_is_waited_for():
    assert decided(is_synced=False, allow_floor=True, waited_s=WAITS_S - 1) is None


def test_a06_then_the_floor_counts_where_that_is_allowed():
    slow = NOW - 60 * DAY_S
    said = decided(now=slow, is_synced=False, floor=NOW, waited_s=WAITS_S, allow_floor=True)
    assert said == Time(at=NOW, is_trusted=False)


def test_a06_or_it_is_refused_for_now():
    with pytest.raises(RefusalError) as refused:
        decided(is_synced=False, waited_s=WAITS_S)
    assert refused.value.code == "E_CLOCK"
    assert not refused.value.is_final


def test_where_nobody_knows_the_clock_is_used_and_raises_no_floor():
    assert decided(is_synced=None) == Time(at=NOW, is_trusted=None)


@given(
    now=st.floats(-1e12, 1e12),
    floor=st.floats(0, 1e10),
    is_synced=st.sampled_from([True, False, None]),
    waited_s=st.floats(0, 1e6),
)
def test_never_before_the_floor(now, floor, is_synced, waited_s):
    said = decide(now=now, floor=floor, is_synced=is_synced, waited_s=waited_s, allow_floor=True)
    assert said is None or said.at >= max(now, floor, NOT_BEFORE)
    assert (said is None) == (is_synced is False and waited_s < WAITS_S)


@pytest.mark.parametrize(
    ("url", "near"),
    [
        ("file:///media/stick", True),
        ("https://updates.example.com/r", False),
        ("http://192.168.1.4/", True),
        ("https://10.0.0.9:8443/r", True),
        ("http://[fd00::1]/", True),
        ("http://8.8.8.8/", False),
        ("http://nas.local/models", True),
        ("http://nas/models", True),
        ("http://nas.home.arpa/", True),
        ("mqtt:", False),
    ],
)
def test_near_by(url, near):
    assert is_local(url) == near
