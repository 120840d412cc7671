"""Power, heat, memory and what restarts a board, on trees of real boards."""

import pytest
from coral_trees import write
from sensor_trees import BOARDS, NAMES, expected, identity, identity_of, silent

from agent.config import Config
from agent.contract.reading import Throttle
from agent.doctor import board
from agent.doctor.board import (
    check_heat,
    check_memory,
    check_memory_limits,
    check_power,
    check_watchdog,
    examine_board,
)
from agent.sensors.accel import AccelReader
from agent.sensors.files import BoardFiles
from agent.sensors.thermal import ThermalReader
from agent.sensors.throttling import ThrottleReader


def sound(check):
    assert (check.remedy is None) is (check.state == "ok"), check
    return check


def on(name):
    """A board whose firmware does not answer."""
    return ThrottleReader(BoardFiles(BOARDS / name), identity_of(name), silent).read(0.0)


def pi(word):
    """A Raspberry Pi whose firmware says this word."""
    files = BoardFiles(BOARDS / "generic-none")
    answer = f"throttled={word:#x}"
    return ThrottleReader(files, identity("raspberry-pi"), lambda *_, **__: answer).read(0.0)


def alarm(is_on):
    return Throttle(throttled_now=None, hwmon_under_voltage_alarm=is_on)


@pytest.mark.parametrize(
    ("throttle", "state", "said"),
    [
        (pi(0), "ok", "enough voltage"),
        (None, "ok", "does not tell"),
        (pi(0x50005), "fail", "at this moment"),
        (pi(0x50000), "warn", "has been too low"),
        (alarm(True), "warn", "has been too low"),
        (alarm(False), "ok", "enough voltage"),
        (alarm(None), "ok", "does not tell"),
        (Throttle(throttled_now=None, oc_events={"oc1_under_voltage": 3}), "warn", "3 times"),
        (Throttle(throttled_now=None, oc_events={}), "ok", "does not tell"),
        (Throttle(throttled_now=None, oc_events=None), "ok", "does not tell"),
        (on("rpi-4b"), "ok", "enough voltage"),
        (on("rpi-5-load"), "ok", "enough voltage"),
        (on("rpi-4b-capped"), "ok", "enough voltage"),
        (on("rpi-cm4-ina219"), "warn", "has been too low"),
        (on("jetson-orin-nano-r36"), "warn", "1 times"),
        (on("jetson-orin-nx-throttled"), "ok", "enough voltage"),
    ],
)
def test_power(throttle, state, said):
    check = sound(check_power(throttle))
    assert check.state == state
    assert said in check.message
    assert check.remedy is None or "power supply" in check.remedy


@pytest.mark.parametrize(
    ("throttle", "state", "said"),
    [
        (pi(0), "ok", "not slowed down"),
        (None, "ok", "nothing says"),
        (alarm(False), "ok", "nothing says"),
        (on("rpi-3b-plus-softlimit"), "warn", "slows itself down at this moment, for heat"),
        (on("rpi-4b-capped"), "warn", "heat has slowed the board down since it was started"),
        (on("jetson-orin-nx-throttled"), "warn", "cpu-throttle-alert, gpu-throttle-alert"),
        (on("jetson-orin-nano-r36"), "ok", "not slowed down"),
        (on("jetson-nano-r32"), "ok", "nothing says"),
        (pi(0x40000), "warn", "has slowed"),
        (pi(0x2), "warn", "holds the processor's clock down"),
        (pi(0x3), "ok", "not slowed down"),  # for want of voltage, said elsewhere
    ],
)
def test_heat(throttle, state, said):
    check = sound(check_heat(throttle))
    assert check.state == state, check
    assert said in check.message
    assert check.remedy is None or "heat sink" in check.remedy


def edgetpus(root):
    files = BoardFiles(root)
    return AccelReader(files).edgetpus(ThermalReader(files).read().temps_c)


def test_heat_of_a_pcie_coral(tmp_path):
    assert check_heat(None, edgetpus(BOARDS / "coral-dev-board")).state == "ok"
    device = tmp_path / "sys/class/apex/apex_0"
    write(device / "trip_point0_temp", "85000\n")
    write(device / "temp", "86100\n")
    check = sound(check_heat(None, edgetpus(tmp_path)))
    assert check.state == "warn"
    assert "apex_0 is at 86 °C and slows itself down from 85 °C on" in check.message
    write(device / "temp", "-87900\n")
    assert check_heat(None, edgetpus(tmp_path)).state == "ok"


def test_memory(monkeypatch):
    assert sound(check_memory(Config())).state == "ok"
    monkeypatch.setattr(board, "MEMORY_NEEDED_MIB", 1 << 40)
    assert sound(check_memory(Config())).state == "warn"


@pytest.mark.parametrize(
    ("file", "text", "state"),
    [
        ("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n", "ok"),
        ("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n", "warn"),
        ("proc/cgroups", "#subsys_name\thierarchy\tnum\tenabled\nmemory\t0\t1\t1\n", "ok"),
        ("proc/cgroups", "#subsys_name\thierarchy\tnum\tenabled\nmemory\t0\t1\t0\n", "warn"),
        ("proc/cgroups", "#subsys_name\thierarchy\tnum\tenabled\ncpu\t0\t1\t1\n", "ok"),
        ("proc/none", "", "ok"),
    ],
)
def test_memory_limits(tmp_path, file, text, state):
    write(tmp_path / file, text)
    check = sound(check_memory_limits(tmp_path))
    assert check.state == state
    if state == "warn":
        assert "MemoryMax= of the unit does nothing" in check.message
        assert "cgroup_enable=memory" in check.remedy
        assert "kernel's command line" in check.remedy


@pytest.mark.parametrize("file", ["/boot/firmware/cmdline.txt", "/boot/cmdline.txt"])
def test_where_a_raspberry_pi_has_its_command_line(tmp_path, file):
    write(tmp_path / "sys/fs/cgroup/cgroup.controllers", "cpu\n")
    write(tmp_path / file.lstrip("/"), "console=tty1 rootwait\n")
    assert f"in {file}," in check_memory_limits(tmp_path).remedy


@pytest.mark.parametrize(
    ("files", "fed", "state", "said"),
    [
        ({}, None, "ok", "no hardware watchdog"),
        ({"state": "active"}, None, "ok", "watchdog0 restarts the board"),
        ({"state": "inactive"}, "0", "warn", "stays down"),
        ({"identity": "Broadcom BCM2835"}, "1min", "ok", "systemd feeds watchdog0 (1min)"),
        ({"identity": "Broadcom BCM2835"}, None, "warn", "stays down"),
    ],
)
def test_watchdog(tmp_path, files, fed, state, said):
    for name, text in files.items():
        write(tmp_path / "sys/class/watchdog/watchdog0" / name, f"{text}\n")
    check = sound(check_watchdog(tmp_path, lambda *_: fed))
    assert check.state == state
    assert said in check.message
    assert check.remedy is None or "RuntimeWatchdogSec=15" in check.remedy


@pytest.mark.parametrize("name", NAMES)
def test_every_board_is_examined(name):
    checks = {check.name: sound(check) for check in examine_board(BOARDS / name, silent)}
    assert list(checks) == ["board", "power", "heat", "memory_limits", "watchdog"]
    assert checks["board"].message == (expected(name)["board_id"]["model"] or "it has no name")
