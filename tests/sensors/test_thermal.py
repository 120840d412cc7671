"""Temperatures: what is read, what is not, and what no sensor can mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_trees import BOARDS, NAMES, chip, expected, grow, zone

from agent.sensors.files import BoardFiles
from agent.sensors.replay import open_board
from agent.sensors.thermal import ThermalReader, celsius


@pytest.fixture
def read(tmp_path):
    def of(files, failing=None):
        return ThermalReader(BoardFiles(grow(tmp_path, files), failing=failing)).read()

    return of


@pytest.mark.parametrize("board", NAMES)
def test_every_board(board):
    heat = ThermalReader(open_board(BOARDS / board).files).read()
    wanted = expected(board)
    assert heat.temps_c == pytest.approx(wanted["temps_c"])
    assert sorted(heat.unreadable) == sorted(wanted.get("temps_unreadable", []))
    assert heat.ignored == wanted.get("temps_ignored", [])


def test_zones_of_one_type_keep_their_names(read):
    files = zone(0, "acpitz", 30000) | zone(10, "acpitz") | zone(9, "acpitz", 32000)
    heat = read(files | zone(1, "acpitz_2", 33000))
    assert heat.temps_c == {"acpitz": 30.0, "acpitz_2": 33.0, "acpitz_3": 32.0}
    assert heat.unreadable == ["acpitz_4"]


def test_what_fails_now_may_be_read_later(tmp_path):
    reader = ThermalReader(BoardFiles(grow(tmp_path, zone(0, "gpu-thermal"))))
    assert reader.read().unreadable == ["gpu-thermal"]
    grow(tmp_path, zone(0, "gpu-thermal", 41500))
    assert reader.read().temps_c == {"gpu-thermal": 41.5}


@pytest.mark.parametrize("error", ["EAGAIN", "ENODATA", "EACCES", "EIO"])
def test_errors_of_the_kernel(read, error):
    heat = read(zone(0, "cpu", 1) | zone(1, "gpu"), {"sys/class/thermal/thermal_zone1/temp": error})
    assert heat.temps_c == {"cpu": 0.001}
    assert heat.unreadable == ["gpu"]


@pytest.mark.parametrize("text", ["-256000", "-89700", "166050", "", "garbage", "\0", "1" * 400])
def test_what_is_no_temperature(read, text):
    assert read(zone(0, "CV0-therm", text)).unreadable == ["CV0-therm"]


def test_cold_is_a_temperature(read):
    assert read(zone(0, "cpu-thermal", -20500)).temps_c == {"cpu-thermal": -20.5}


def test_a_zone_without_a_type(read):
    assert read({"sys/class/thermal/thermal_zone3/temp": 20000}).temps_c == {"thermal_zone3": 20.0}


def test_chips_that_repeat_a_zone_or_are_no_part_of_the_board(read):
    files = zone(0, "cpu-thermal", 50000) | zone(1, "x86_pkg_temp", 60000)
    files |= chip(0, "cpu_thermal", temp1_input=50000) | chip(1, "coretemp", temp1_input=60000)
    files |= chip(2, "nvme", temp1_input=40000) | chip(3, "tmp451", temp1_input=45000)
    files |= chip(4, "ina238", temp1_input=39000)
    assert read(files).temps_c == {"cpu-thermal": 50.0, "x86_pkg_temp": 60.0}


def test_chips_that_add_something(read):
    files = chip(0, "k10temp", temp1_input=51000) | chip(1, "coretemp", temp2_input=52000)
    files |= chip(10, "coretemp", temp1_input=53000) | chip(2, "cpu_thermal")
    heat = read(files)
    assert heat.temps_c == {"k10temp": 51.0, "coretemp": 52.0, "coretemp_2": 53.0}
    assert heat.unreadable == ["cpu_thermal"]


@pytest.mark.parametrize("state", ["50000", "100000", None])
def test_the_constant_of_a_jetson(read, state):
    heat = read(zone(0, "PMIC-Die", state))
    assert (heat.temps_c, heat.unreadable, heat.ignored) == ({}, [], ["PMIC-Die"])


def test_corals_on_pcie(read):
    files = {"sys/class/apex/apex_0/temp": -87900, "sys/class/apex/apex_1/temp": 49800}
    heat = read(files | {"sys/class/apex/apex_2/status": "ALIVE"})
    assert heat.temps_c == {"apex_1": 49.8}
    assert heat.unreadable == ["apex_0", "apex_2"]


@given(st.integers())
def test_celsius(millidegrees):
    degrees = celsius(millidegrees)
    assert degrees is None or round(degrees * 1000) == millidegrees
    assert (degrees is None) == (not -55_000 <= millidegrees <= 150_000)
