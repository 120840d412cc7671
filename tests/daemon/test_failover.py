"""When an accelerator is tried, when it rests, and when it comes back."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.daemon.main_loop import HOT_PLUG_LOOK_S, HotPlug
from agent.daemon.workers.failover import (
    DEATHS_MOST,
    PROBE_FIRST_S,
    PROBE_MOST_S,
    PROVEN_S,
    SETTLE_S,
    WITHIN_S,
    Failover,
)


def on_tpu(failover, now=0.0):
    failover.on_ready(is_accelerated=True, fallbacks=(), now=now)


def on_cpu(failover, reason, now=0.0):
    failover.on_ready(is_accelerated=False, fallbacks=("",), now=now)


def die(failover, now, **how):
    how = {"was_ready": True, "is_hang": False, **how}
    return failover.on_death("SIGABRT", now, **how)


def test_three_deaths_in_five_minutes_are_enough():
    failover = Failover(("edgetpu",))
    for at in (0.0, 100.0):
        on_tpu(failover, at)
        assert not die(failover, at + 1)
    on_tpu(failover, 200.0)
    assert die(failover, WITHIN_S - 1)
    assert failover.avoid == "its worker died 3 times in 5 minutes; last: SIGABRT"


def test_deaths_long_ago_are_forgotten():
    failover = Failover(("edgetpu",))
    for at in (0.0, WITHIN_S + 1, 2 * WITHIN_S + 2, 3 * WITHIN_S + 3):
        on_tpu(failover, at)
        assert not die(failover, at)


def test_a_worker_on_the_processor_dies_for_reasons_of_its_own():
    failover = Failover(("auto",))
    for at in range(10):
        failover.on_ready(is_accelerated=False, fallbacks=(), now=at)
        assert not die(failover, float(at))
    assert not failover.avoid


def test_one_hang_is_enough_as_each_costs_ten_seconds():
    failover = Failover(("edgetpu",))
    on_tpu(failover)
    assert die(failover, 1.0, is_hang=True)
    assert die(Failover(("delegate:/x.so",)), 0.0, was_ready=False, is_hang=True)
    assert not die(Failover(("cpu",)), 0.0, was_ready=False, is_hang=True)


def test_absent_then_plugged_in():
    failover = Failover(("edgetpu",))
    on_cpu(failover, "no Edge TPU is plugged in", 0.0)
    assert not failover.is_probe_due(PROBE_FIRST_S - 0.1)
    assert failover.is_probe_due(PROBE_FIRST_S)
    assert not failover.on_probe("still none", PROBE_FIRST_S)
    assert not failover.is_probe_due(2 * PROBE_FIRST_S)
    later = 4 * PROBE_FIRST_S
    assert failover.is_probe_due(later)
    assert failover.on_probe("", later)
    assert not failover.avoid
    assert not failover.is_probe_due(later + 10 * PROBE_MOST_S)


def test_what_one_model_lacks_is_no_reason_to_avoid_what_another_uses():
    failover = Failover(("edgetpu", "delegate:/absent.so"))
    for at in (0.0, 10.0, 20.0):
        failover.on_ready(is_accelerated=True, fallbacks=("breeds",), now=at)
        assert not failover.avoid
        assert failover.resting == ("breeds",)
        rests_now = die(failover, at + 1)
    assert rests_now, "deaths of the one in use are counted all the same"
    assert "died 3 times" in failover.avoid


def test_one_death_after_a_return_is_enough_until_it_has_proven_itself():
    failover = Failover(("edgetpu",))
    on_cpu(failover, "gone", 0.0)
    failover.on_probe("", 10.0)
    on_tpu(failover, 11.0)
    assert die(failover, 20.0)
    assert "once in 5 minutes" in failover.avoid
    assert not failover.is_probe_due(20.0 + PROBE_FIRST_S), "it has to wait longer now"
    failover.on_probe("", 100.0)
    on_tpu(failover, 101.0)
    assert not die(failover, 100.0 + PROVEN_S + 1)


def test_a_device_that_is_plugged_in_is_looked_at_soon():
    failover = Failover(("edgetpu:usb:0",))
    failover.on_plugged_in(0.0)
    assert not failover.is_probe_due(1e9), "nothing rests"
    on_cpu(failover, "no Edge TPU is plugged in", 0.0)
    for at in (10.0, 30.0, 70.0, 150.0):
        failover.on_probe("none", at)
    assert not failover.is_probe_due(200.0)
    failover.on_plugged_in(200.0)
    assert not failover.is_probe_due(200.0)
    assert failover.is_probe_due(200.0 + SETTLE_S)
    other = Failover(("delegate:/x.so",))
    on_cpu(other, "absent", 0.0)
    other.on_plugged_in(0.5)
    assert not other.is_probe_due(0.5 + SETTLE_S), "a Coral is nothing to another library"


def test_corals_that_come_are_noticed_once(tmp_path):
    hot_plug = HotPlug(tmp_path)
    devices = tmp_path / "sys/bus/usb/devices/2-1"
    assert not hot_plug.has_come(0.0)
    devices.mkdir(parents=True)
    for name, text in {
        "idVendor": "1a6e",
        "idProduct": "089a",
        "busnum": "2",
        "devnum": "5",
    }.items():
        (devices / name).write_text(text + "\n")
    assert not hot_plug.has_come(HOT_PLUG_LOOK_S / 2), "not yet"
    assert hot_plug.has_come(HOT_PLUG_LOOK_S)
    assert not hot_plug.has_come(2 * HOT_PLUG_LOOK_S)
    (devices / "devnum").write_text("6\n")  # it is enumerated anew at each use
    assert not hot_plug.has_come(3 * HOT_PLUG_LOOK_S)


class Any(RuleBasedStateMachine):
    """Whatever happens: rest and probes go together, and waits stay within bounds."""

    def __init__(self):
        super().__init__()
        self.failover = Failover(("edgetpu",))
        self.now = 0.0

    @rule(seconds=st.floats(0, 1000))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def ready(self):
        if self.failover.avoid:
            on_cpu(self.failover, self.failover.avoid, self.now)
        else:
            on_tpu(self.failover, self.now)

    @rule()
    def absent(self):
        on_cpu(self.failover, "absent", self.now)

    @rule(was_ready=st.booleans(), is_hang=st.booleans())
    def death(self, was_ready, is_hang):
        rested = bool(self.failover.avoid)
        rests_now = die(self.failover, self.now, was_ready=was_ready, is_hang=is_hang)
        assert bool(self.failover.avoid) == (rested or rests_now)

    @precondition(lambda self: self.failover.is_probe_due(self.now))
    @rule(is_well=st.booleans())
    def probe(self, is_well):
        assert self.failover.on_probe("" if is_well else "no", self.now) == is_well

    @invariant()
    def a_resting_accelerator_is_probed_in_time(self):
        is_resting = bool(self.failover.avoid) or self.failover._probe_at is not None
        assert self.failover.is_probe_due(self.now + PROBE_MOST_S) == is_resting
        assert len(self.failover._deaths) < DEATHS_MOST


TestAny = Any.TestCase
TestAny.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
