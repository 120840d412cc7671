"""Energy counters: RAPL's zones, and what a counter that runs through tells."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_trees import grow, identity, silent

from agent.sensors.files import BoardFiles
from agent.sensors.power import PowerReader
from agent.sensors.source import LONGEST_S, MOST_W, EnergyCounter

X86 = identity("x86")
RANGE_UJ = 262143328850


def zone(number, name, energy_uj, range_uj=RANGE_UJ, control="intel-rapl"):
    path = f"sys/class/powercap/{control}:{number}"
    files = {f"{path}/name": name, f"{path}/max_energy_range_uj": range_uj}
    return files | ({} if energy_uj is None else {f"{path}/energy_uj": energy_uj})


class Machine:
    """Looks at a made tree each second."""

    def __init__(self, root, *zones, failing=None):
        self.root = root
        self.at_s = 100.0
        self.show(*zones)
        self.reader = PowerReader(BoardFiles(root, failing=failing), X86, silent)

    def show(self, *zones):
        for one in zones:
            grow(self.root, one)

    def look(self, *zones, after_s=1.0):
        self.show(*zones)
        self.at_s += after_s
        return self.reader.read(self.at_s)


def test_the_first_look_tells_nothing_yet(tmp_path):
    first = Machine(tmp_path, zone(0, "package-0", 5000000)).look()
    assert (first.power.kind, first.power.scope) == ("unavailable", "cpu_package")
    assert first.power.reason == "needs two samples, at most a minute apart"
    assert first.energy_j == 0.0
    assert first.power.rails["package-0"].power_w is None


def test_it_wraps(tmp_path):
    machine = Machine(tmp_path, zone(0, "package-0", RANGE_UJ - 4000000))
    machine.look()
    look = machine.look(zone(0, "package-0", 8500000), after_s=2.0)
    assert (look.power.total_w, look.energy_j) == (6.25, 12.5)


def test_two_sockets_with_psys(tmp_path):
    """Names repeat, psys is around all, and each socket runs through on its own."""
    before = [
        zone("0", "package-0", 1000000),
        zone("0:0", "core", 1000000),
        zone("0:1", "dram", 1000000),
        zone("1", "package-1", RANGE_UJ - 1000000),
        zone("1:0", "core", 1000000),
        zone("1:1", "dram", 1000000),
        zone("2", "psys", 1000000),
    ]
    machine = Machine(tmp_path, *before)
    machine.look()
    look = machine.look(
        zone("0", "package-0", 11000000),
        zone("0:0", "core", 7000000),
        zone("0:1", "dram", 3000000),
        zone("1", "package-1", 19000000),
        zone("1:0", "core", 13000000),
        zone("1:1", "dram", 4000000),
        zone("2", "psys", 51000000),
    )
    power = look.power
    assert (power.scope, power.in_total) == ("cpu_packages", ["package-0", "package-1"])
    assert (power.total_w, look.energy_j) == (30.0, 30.0)
    assert {name: rail.power_w for name, rail in power.rails.items()} == {
        "package-0": 10.0,
        "package-0/core": 6.0,
        "package-0/dram": 2.0,
        "package-1": 20.0,
        "package-1/core": 12.0,
        "package-1/dram": 3.0,
        "psys": 50.0,
    }
    assert power.excluded_from_total == [
        "package-0/core (inside package)",
        "package-0/dram (add only if asked)",
        "package-1/core (inside package)",
        "package-1/dram (add only if asked)",
        "psys (contains the packages)",
    ]


def test_one_socket_that_fails_takes_the_total_along(tmp_path):
    machine = Machine(tmp_path, zone(0, "package-0", 1000000), zone(1, "package-1", "?"))
    machine.look()
    look = machine.look(zone(0, "package-0", 2000000))
    assert (look.power.total_w, look.energy_j) == (None, None)
    assert look.power.rails["package-0"].power_w == 1.0
    again = machine.look(zone(0, "package-0", 3000000), zone(1, "package-1", 1000000))
    assert again.power.total_w is None
    assert machine.look(zone(1, "package-1", 6000000)).power.total_w == 5.0


def test_the_same_package_shown_twice(tmp_path):
    zones = [
        zone(0, "package-0", 1000000),
        zone(0, "package-0", 1000000, control="intel-rapl-mmio"),
    ]
    machine = Machine(tmp_path, *zones)
    machine.look()
    look = machine.look(
        zone(0, "package-0", 2000000), zone(0, "package-0", 2000000, control="intel-rapl-mmio")
    )
    assert (look.power.total_w, list(look.power.rails)) == (1.0, ["package-0"])


def test_only_the_second_way_is_there(tmp_path):
    machine = Machine(tmp_path, zone(0, "package-0", 1000000, control="intel-rapl-mmio"))
    machine.look()
    again = zone(0, "package-0", 2000000, control="intel-rapl-mmio")
    assert machine.look(again).power.total_w == 1.0


def test_psys_alone_is_no_package(tmp_path):
    machine = Machine(tmp_path, zone(0, "psys", 1000000))
    machine.look()
    power = machine.look(zone(0, "psys", 2000000)).power
    assert (power.scope, power.total_w, power.reason) == (
        "none",
        None,
        "no zone of RAPL is a package",
    )


@pytest.mark.parametrize("errno", ["EACCES", "EPERM"])
def test_who_may_not_read(tmp_path, errno):
    path = "sys/class/powercap/intel-rapl:0/energy_uj"
    machine = Machine(tmp_path, zone(0, "package-0", None), failing={path: errno})
    machine.look()
    power = machine.look().power
    assert (power.kind, power.scope, power.rails) == ("unavailable", "none", {})
    assert power.reason == "permission: energy_uj is root-only since Linux 5.10 (CVE-2020-8694)"


def test_a_read_that_fails_otherwise(tmp_path):
    path = "sys/class/powercap/intel-rapl:0/energy_uj"
    machine = Machine(tmp_path, zone(0, "package-0", None), failing={path: "EIO"})
    assert machine.look().power.reason == "package-0 unreadable: EIO"


def test_links_that_lead_nowhere(tmp_path):
    """/sys/devices/virtual/powercap is masked in containers, /sys/class/powercap is not."""
    folder = tmp_path / "sys/class/powercap"
    folder.mkdir(parents=True)
    for name in ("intel-rapl", "intel-rapl:0", "intel-rapl:0:0"):
        (folder / name).symlink_to(f"../../devices/virtual/powercap/{name}")
    power = Machine(tmp_path).look().power
    assert (power.total_w, power.reason.partition(":")[0]) == (None, "permission")


def test_after_sleep_it_began_anew(tmp_path):
    machine = Machine(tmp_path, zone(0, "package-0", 9000000))
    machine.look()
    slept = machine.look(zone(0, "package-0", 1000))
    assert (slept.power.total_w, slept.energy_j) == (None, None)
    assert machine.look(zone(0, "package-0", 5001000)).power.total_w == 5.0


def test_looks_too_far_apart(tmp_path):
    machine = Machine(tmp_path, zone(0, "package-0", 0))
    machine.look()
    late = machine.look(zone(0, "package-0", 1000000), after_s=LONGEST_S + 1)
    assert (late.power.total_w, late.energy_j) == (None, None)
    soon = machine.look(zone(0, "package-0", 3000000))
    assert (soon.power.total_w, soon.energy_j) == (2.0, 2.0)


def test_two_looks_at_one_time(tmp_path):
    machine = Machine(tmp_path, zone(0, "package-0", 0))
    machine.look()
    assert machine.look(zone(0, "package-0", 1000000), after_s=0.0).power.total_w is None


@given(
    range_uj=st.integers(10**9, 2**62),
    start=st.integers(min_value=0),
    steps=st.lists(st.tuples(st.floats(0.01, LONGEST_S - 1), st.floats(0, 500)), max_size=30),
)
def test_a_counter_that_runs_through_loses_nothing(range_uj, start, steps):
    """What it tells is the true energy, wherever it begins and wraps, at most once a step."""
    counter = EnergyCounter()
    at_s, true_uj = 0.0, start % range_uj
    counter.step(true_uj, at_s, range_uj)
    first_uj = true_uj
    for seconds, watts in steps:
        at_s += seconds
        grown_uj = min(round(seconds * watts * 1e6), range_uj - 1)
        true_uj += grown_uj
        told = counter.step(true_uj % range_uj, at_s, range_uj)
        assert told == pytest.approx(grown_uj / 1e6 / seconds, rel=1e-6, abs=1e-6)
    assert counter.energy_j == pytest.approx((true_uj - first_uj) / 1e6)


@given(
    values=st.lists(
        st.tuples(
            st.none() | st.integers(-(2**64), 2**64),
            st.floats(-1e3, 1e3),
            st.none() | st.integers(-(2**64), 2**64),
        )
    )
)
def test_any_counter(values):
    counter = EnergyCounter()
    for value, at_s, range_uj in values:
        watts = counter.step(value, at_s, range_uj)
        assert watts is None or 0 <= watts <= MOST_W
        assert counter.energy_j is None or counter.energy_j >= 0
