"""Meters fitted to the supply, batteries, PoE, and which of several sources is the total."""

import pytest
from sensor_trees import chip, grow, identity, silent

from agent.sensors.files import BoardFiles
from agent.sensors.power import LOOK_AGAIN_S, PowerReader

PI = identity("raspberry-pi", "bcm2711")
X86 = identity("x86")
SUPPLY = "sys/class/power_supply"


def reader(root, board=PI, ask=silent):
    return PowerReader(BoardFiles(root), board, ask)


def look(root, board=PI, ask=silent):
    return reader(root, board, ask).read(0.0).power


def supply(name, kind="Battery", **files):
    return {f"{SUPPLY}/{name}/{file}": text for file, text in ({"type": kind} | files).items()}


@pytest.mark.parametrize("name", ["ina219", "ina226", "ina228", "ina237", "ina260", "INA230"])
def test_one_meter_measures_the_board(tmp_path, name):
    files = chip(0, name, in0_input=65, in1_input=5000, curr1_input=600, power1_input=2990000)
    power = look(grow(tmp_path, files))
    assert (power.total_w, power.scope) == (2.99, "board_input")
    assert (power.sensor, power.reason) == (name.lower(), None)
    # in0 is what falls off at the shunt, no supply.
    assert power.rails[name.lower()].volt_v == 5.0


def test_without_a_power_register(tmp_path):
    power = look(grow(tmp_path, chip(0, "ina219", in0_input=65, in1_input=5036, curr1_input=648)))
    assert power.total_w == pytest.approx(3.263328)


def test_a_current_the_other_way_keeps_its_sign(tmp_path):
    """The power register is unsigned (ina2xx: a magnitude)."""
    files = chip(0, "ina226", in1_input=5000, curr1_input=-200, power1_input=1000000)
    assert look(grow(tmp_path, files)).total_w == -1.0


def test_chips_of_other_names_are_left_alone(tmp_path):
    files = chip(0, "amdgpu", power1_input=9000000, power1_average=8000000)
    power = look(grow(tmp_path, files))
    assert (power.scope, power.rails) == ("none", {})


def test_two_meters_of_which_nothing_is_said(tmp_path):
    files = chip(0, "ina219", in1_input=5000, curr1_input=100) | chip(
        1, "ina219", in1_input=12000, curr1_input=100
    )
    power = look(grow(tmp_path, files))
    assert (power.scope, power.total_w) == ("none", None)
    assert set(power.rails) == {"ina219", "ina219 2"}
    assert "ina219, ina219" in power.reason
    grow(tmp_path, {"sys/class/hwmon/hwmon1/label": "12V-input"})
    named = look(tmp_path)
    assert (named.total_w, named.in_total) == (pytest.approx(1.2), ["12V-input"])
    assert named.excluded_from_total == ["ina219 (nothing says what it measures)"]


@pytest.mark.parametrize("label", ["VDD_GPU", "VIN_SYS_5V0", "ina226-u76", "USB"])
def test_a_meter_named_after_something_else(tmp_path, label):
    files = chip(0, "ina226", in1_input=5000, curr1_input=100, label=label)
    power = look(grow(tmp_path, files))
    assert (power.scope, power.total_w) == ("none", None)
    assert power.excluded_from_total == [f"{label} (not the board's input by its name)"]


@pytest.mark.parametrize("label", ["VIN", "VDD_IN", "DC_IN", "POM_5V_IN", "input", "supply"])
def test_a_meter_named_after_the_input(tmp_path, label):
    files = chip(0, "ina226", in1_input=5000, curr1_input=100, label=label)
    assert look(grow(tmp_path, files)).total_w == 0.5


def test_energy_of_a_chip_that_counts(tmp_path):
    counter = tmp_path / "sys/class/hwmon/hwmon0/energy1_input"
    files = chip(0, "ina228", in1_input=5000, curr1_input=600, energy1_input=1000000)
    one = reader(grow(tmp_path, files))
    assert one.read(0.0).energy_j == 0.0
    counter.write_text("4000000\n")
    assert one.read(1.0).energy_j == 3.0
    counter.write_text("500000\n")  # begun anew: what lies between is unknown
    assert one.read(2.0).energy_j is None
    counter.write_text("1500000\n")
    assert one.read(3.0).energy_j == 4.0
    counter.write_text("\n")
    assert one.read(4.0).energy_j is None


def test_a_counter_goes_on_while_other_chips_come(tmp_path):
    folder = "sys/class/hwmon/hwmon3"
    meter = chip(3, "ina228", in1_input=5000, curr1_input=600, energy1_input=1000000)
    one = reader(grow(tmp_path, meter))
    one.read(0.0)
    grow(tmp_path, {f"{folder}/energy1_input": 2000000} | chip(0, "nvme", temp1_input=40000))
    assert one.read(LOOK_AGAIN_S).energy_j == 1.0
    # Another meter under the same name: its counter says nothing of the time before.
    (tmp_path / folder).rename(tmp_path / "sys/class/hwmon/hwmon4")
    assert one.read(2 * LOOK_AGAIN_S).energy_j is None
    grow(tmp_path, {"sys/class/hwmon/hwmon4/energy1_input": 5000000})
    assert one.read(2 * LOOK_AGAIN_S + 1).energy_j == 3.0


def test_several_batteries_give_together(tmp_path):
    files = supply("BAT0", status="Discharging", power_now=6000000) | supply(
        "BAT1", status="Discharging", voltage_now=10000000, current_now=-500000
    )
    power = look(grow(tmp_path, files), X86)
    assert (power.total_w, power.scope) == (11.0, "battery_discharge")
    # Negative by the book, as it leaves the battery; a draw all the same.
    assert power.rails["BAT1"].curr_a == 0.5
    assert power.rails["BAT0"].volt_v is None


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging", "Unknown", None])
def test_a_battery_that_gives_nothing(tmp_path, status):
    files = supply("BAT0", voltage_now=12000000, current_now=900000)
    if status:
        files |= supply("BAT0", status=status)
    power = look(grow(tmp_path, files), X86)
    assert (power.kind, power.scope, power.total_w, power.rails) == (
        "unavailable",
        "none",
        None,
        {},
    )
    assert "BAT0" in power.reason


def test_one_of_two_batteries_rests(tmp_path):
    files = supply("BAT0", status="Discharging", power_now=6000000) | supply("BAT1", status="Full")
    power = look(grow(tmp_path, files), X86)
    assert (power.total_w, power.in_total) == (6.0, ["BAT0"])
    assert power.excluded_from_total == ["BAT1 (full)"]


def test_one_of_two_batteries_cannot_be_read(tmp_path):
    files = supply("BAT0", status="Discharging", power_now=6000000) | supply(
        "BAT1", status="Discharging"
    )
    power = look(grow(tmp_path, files), X86)
    assert (power.total_w, power.scope, power.reason) == (
        None,
        "battery_discharge",
        "BAT1 unreadable",
    )
    assert power.excluded_from_total == ["BAT0"]


def test_a_battery_whose_chip_measures_voltage_alone(tmp_path):
    """As that of many battery HATs; the board's own sensor is the one that counts then."""
    files = supply("max17040", status="Discharging", voltage_now=3900000, capacity=80)
    files |= chip(0, "ina3221", in1_label="VDD_IN", in1_input=5000, curr1_input=1000)
    power = look(grow(tmp_path, files), identity("jetson"))
    assert (power.scope, power.total_w) == ("module_input", 5.0)
    assert power.rails_unreadable == []


def test_a_battery_that_discharges_at_nothing(tmp_path):
    """No machine runs on 0 W: its driver has not measured since the plug was pulled."""
    files = supply("BAT0", status="Discharging", voltage_now=11000000, power_now=0)
    power = look(grow(tmp_path, files), X86)
    assert (power.kind, power.scope, power.total_w) == ("unavailable", "battery_discharge", None)
    assert power.reason == "BAT0 discharges, and says 0 W"


@pytest.mark.parametrize("number", [2**63, -(2**63), 10**8])
def test_more_than_any_board_draws_is_no_reading(tmp_path, number):
    files = chip(0, "ina219", in1_input=5000, curr1_input=number)
    files |= chip(1, "ina3221", in1_label="VDD_IN", in1_input=5000, curr1_input=number)
    power = look(grow(tmp_path, files), identity("jetson"))
    assert (power.scope, power.total_w, power.rails) == ("board_input", None, {})
    assert power.rails_unreadable == ["ina219", "VDD_IN"]


def test_the_battery_of_a_mouse(tmp_path):
    files = supply("hid-1", scope="Device", status="Discharging", power_now=6000000)
    assert look(grow(tmp_path, files), X86).scope == "none"


def test_what_covers_most_is_the_total(tmp_path):
    """A battery gives for the whole machine, the package is a part of it."""
    zone = "sys/class/powercap/intel-rapl:0"
    files = supply("BAT0", status="Discharging", power_now=20000000)
    files |= {f"{zone}/name": "package-0", f"{zone}/energy_uj": 1000000}
    one = reader(grow(tmp_path, files), X86)
    assert one.read(0.0).power.total_w == 20.0
    grow(tmp_path, {f"{zone}/energy_uj": 6000000})
    power = one.read(1.0).power
    assert (power.total_w, power.in_total) == (20.0, ["BAT0"])
    assert power.rails["package-0"].power_w == 5.0
    assert power.excluded_from_total == ["package-0 (a part of the machine)"]
    # On mains it is the package that is left.
    grow(tmp_path, {f"{SUPPLY}/BAT0/status": "Charging", f"{zone}/energy_uj": 11000000})
    package = one.read(2.0)
    assert (package.power.scope, package.power.total_w) == ("cpu_package", 5.0)
    assert package.energy_j == 10.0


def test_a_meter_goes_before_poe(tmp_path):
    files = chip(0, "ina219", in1_input=5000, curr1_input=700, power1_input=3500000)
    files |= supply("rpi-poe", "Mains", current_now=577000, online=1)
    power = look(grow(tmp_path, files))
    assert (power.kind, power.total_w) == ("measured", 3.5)
    assert power.excluded_from_total == ["rpi-poe (what comes in by PoE)"]


def test_a_poe_hat_that_is_not_fed(tmp_path):
    """Then the board lives from its other plug, of which nothing is known."""
    power = look(grow(tmp_path, supply("rpi-poe", "Mains", current_now=0, online=0)))
    assert (power.kind, power.scope, power.total_w) == ("unavailable", "none", None)


def test_a_poe_hat_that_gives_nothing(tmp_path):
    """Fed by the network, while the board takes its power from the other plug."""
    power = look(grow(tmp_path, supply("rpi-poe", "Mains", current_now=0, online=1)))
    assert (power.kind, power.scope, power.total_w) == ("unavailable", "none", None)
    assert "feeds nothing" in power.reason


def test_a_poe_hat_that_cannot_be_read(tmp_path):
    power = look(grow(tmp_path, supply("rpi-poe", "Mains", online=1)))
    assert (power.kind, power.scope, power.total_w) == ("unavailable", "board_input_5v", None)
    assert power.rails_unreadable == ["rpi-poe"]
