"""Thresholds: raised once, ended once, and never flapping in between."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.contract.reading import (
    Accel,
    BoardIdentity,
    Power,
    Reading,
    Throttle,
    ThrottleFlags,
)
from agent.telemetry.health import FORGET_S, Health, Observation, Rule
from agent.telemetry.limits import (
    DEADLINE_WINDOW_S,
    DISK_LOW,
    BoardObserver,
    LateShare,
    deadline,
    observe_system,
    too_hot,
)

UPPER = Rule(
    code="hot",
    message="it is hot",
    remedy="cool it",
    unit="°C",
    limit=80.0,
    release=75.0,
    raise_after_s=10.0,
    end_after_s=30.0,
)
LOWER = Rule(
    code="low",
    message="little is left",
    remedy="delete something",
    unit="MiB",
    limit=256.0,
    release=384.0,
    raise_after_s=0.0,
    end_after_s=0.0,
)


def health():
    return Health(clock=lambda: 1_000_000.0)


def follow(one, rule, values, start=0.0, step=1.0):
    """Return at which of the values something changed."""
    changes = []
    for number, value in enumerate(values):
        if one.follow([Observation(rule, value)], start + number * step):
            changes.append(number)
    return changes


def test_raised_after_a_while_and_said_with_value_limit_and_remedy():
    one = health()
    assert follow(one, UPPER, [79.9] + [81.0] * 10 + [82.0] * 2) == [11]
    (problem,) = one.problems(12.0)
    assert (problem.code, problem.value, problem.limit, problem.unit) == ("hot", 82.0, 80.0, "°C")
    assert problem.remedy == "cool it"
    # Since it was at the limit, not since it was raised.
    assert problem.since == pytest.approx(1_000_000.0 - 11.0)


def test_ends_only_well_inside_and_after_a_while():
    one = health()
    values = [81.0] * 11 + [76.0] * 100 + [74.0] * 29 + [75.0] + [74.0] * 31
    assert follow(one, UPPER, values) == [10, 11 + 100 + 29 + 1 + 30]
    assert one.problems(999.0) == []


def test_a_value_that_swings_round_the_limit_says_nothing_new():
    one = health()
    follow(one, UPPER, [85.0] * 11)
    assert follow(one, UPPER, [79.0, 81.0] * 200, start=20.0) == []
    assert [problem.code for problem in one.problems(500.0)] == ["hot"]


def test_a_peak_is_no_state():
    one = health()
    assert follow(one, UPPER, ([90.0] * 9 + [70.0]) * 5) == []


def test_lower_limits():
    one = health()
    assert follow(one, LOWER, [500.0, 256.0, 300.0, 384.0, 385.0]) == [1, 4]


def test_unknown_keeps_what_is_raised_for_a_minute_and_no_longer():
    one = health()
    follow(one, LOWER, [100.0])
    assert one.follow([Observation(LOWER, None)], 30.0) is False
    assert one.problems(30.0)[0].value == 100.0
    assert one.follow([], FORGET_S) is False
    assert one.follow([], FORGET_S + 1) is True
    assert one.problems(62.0) == []


def test_unknown_does_not_count_towards_raising():
    one = health()
    assert follow(one, UPPER, [81.0] * 8 + [None] + [81.0] * 8 + [None]) == []


@given(
    st.lists(
        st.one_of(st.none(), st.floats(60, 100), st.floats(allow_nan=True, allow_infinity=True)),
        max_size=200,
    )
)
def test_between_two_changes_lie_the_times_of_the_rule(values):
    one = health()
    changes = follow(one, UPPER, values)
    gaps = [later - earlier for earlier, later in itertools.pairwise(changes)]
    # Raised after at least 10 s over, ended after at least 30 s well inside or 60 s unknown.
    assert all(gap >= 10 for gap in gaps)
    assert all(gap >= 30 for gap in gaps[::2])
    if changes:
        assert changes[0] >= 10
    assert len(one.problems(float(len(values)))) == len(changes) % 2


def reading(*, temps=None, throttle=None, accel=None, alarms=(), family="raspberry-pi"):
    return Reading(
        board_id=BoardIdentity(id="x", family=family, soc=None, model=None, compatible=[]),
        power=Power(
            kind="measured",
            scope="module_input",
            total_w=4.0,
            rails={},
            in_total=[],
            excluded_from_total=[],
            sensor="ina3221 VDD_IN",
            reason=None,
            alarms=list(alarms),
        ),
        estimate=None,
        temps_c=temps or {},
        temps_unreadable=[],
        temps_ignored=[],
        throttle=throttle,
        clocks_hz=None,
        fan=None,
        accel=accel,
        read_errors={},
    )


def pi_throttle(**now):
    flags = dict.fromkeys(ThrottleFlags.__struct_fields__, False)
    return Throttle(
        throttled_now=any(now.values()),
        now=ThrottleFlags(**{**flags, **now}),
        since_boot=ThrottleFlags(**flags),
    )


def seen(observer, *args, **kwargs):
    return {one.rule.code: one.value for one in observer.observe(reading(*args, **kwargs))}


def test_what_a_look_at_a_raspberry_pi_says():
    values = seen(
        BoardObserver(),
        temps={"cpu-thermal": 81.5},
        throttle=pi_throttle(under_voltage=True),
    )
    assert values == {
        "sensors": 0.0,
        "throttled": 1.0,
        "under_voltage": 1.0,
        "over_current": 0.0,
        "too_hot.cpu-thermal": 81.5,
    }


@pytest.mark.parametrize("alarm", [True, False])
def test_the_kernels_alarm_where_the_firmware_does_not_answer(alarm):
    throttle = Throttle(throttled_now=None, hwmon_under_voltage_alarm=alarm)
    values = seen(BoardObserver(), throttle=throttle)
    assert values["under_voltage"] == float(alarm)
    assert values["throttled"] is None


def test_a_jetson_counts_its_under_voltage():
    observer = BoardObserver()

    def look(count):
        throttle = Throttle(
            throttled_now=False, alerts_active=[], oc_events={"oc1_under_voltage": count}
        )
        return seen(observer, throttle=throttle, alarms=["VDD_IN:crit"], family="jetson")

    assert look(7)["under_voltage"] is None  # since boot: nobody knows when
    assert look(7)["under_voltage"] == 0.0
    assert look(8)["under_voltage"] == 1.0
    assert look(8)["over_current"] == 1.0
    # A look without the counter does not hide what came meanwhile.
    assert seen(observer, throttle=Throttle(throttled_now=False))["under_voltage"] is None
    assert look(9)["under_voltage"] == 1.0


def test_a_board_that_tells_nothing_raises_nothing():
    assert seen(BoardObserver(), throttle=None)["throttled"] is None
    hot_coral = Accel(kind="edgetpu", load_ratio=None, freq_hz=None, throttled=True)
    assert seen(BoardObserver(), accel=hot_coral)["throttled"] == 1.0


def test_sensors_that_hang_are_said_and_nothing_else_is():
    one = Health(clock=lambda: 0.0)
    observer = BoardObserver()
    changed = [one.follow(observer.observe(None), float(second)) for second in range(20)]
    assert changed.index(True) == 15
    assert [problem.code for problem in one.problems(20.0)] == ["sensors"]


def test_late_frames_count_over_half_a_minute():
    late = LateShare()
    shares = [late.note(float(second), 30 * second, 15 * second) for second in range(60)]
    assert shares[: int(DEADLINE_WINDOW_S)] == [None] * int(DEADLINE_WINDOW_S)
    assert set(shares[int(DEADLINE_WINDOW_S) :]) == {0.5}
    assert late.note(61.0, 30 * 59, 15 * 59) is not None
    # A camera that gives nothing for the whole window misses nothing.
    assert late.note(200.0, 30 * 59, 15 * 59) is None


def test_rules_say_where_and_what():
    rule = deadline("door", 40.0)
    assert rule.code == "deadline.door"
    assert "door" in rule.message
    assert "40 ms" in rule.message
    assert too_hot("cpu-thermal", "jetson").limit > too_hot("cpu-thermal", "raspberry-pi").limit
    disk, memory = observe_system(100.0, None)
    assert (disk.rule, disk.value, memory.value) == (DISK_LOW, 100.0, None)
