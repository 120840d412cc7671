"""Power, heat, memory and what restarts a board, on trees of real boards."""

from pathlib import Path

import pytest
from coral_trees import write

from agent.config import Config
from agent.doctor import board
from agent.doctor.board import (
    check_heat,
    check_memory,
    check_memory_limits,
    check_power,
    check_watchdog,
    examine_board,
)
from agent.sensors.coral import apex_heat
from agent.sensors.throttling import Throttling, read_throttling

BOARDS = Path(__file__).resolve().parent / "boards"


def sound(check):
    assert (check.remedy is None) is (check.state == "ok"), check
    return check


def on(name):
    return read_throttling(BOARDS / name, lambda *_: None)


@pytest.mark.parametrize(
    ("throttling", "state", "said"),
    [
        (Throttling(flags=0), "ok", "enough voltage"),
        (Throttling(), "ok", "does not tell"),
        (Throttling(flags=0x50005), "fail", "at this moment"),
        (Throttling(flags=0x50000), "warn", "has been too low"),
        (Throttling(under_voltage_events=3), "warn", "3 times"),
        (on("rpi-4b"), "ok", "enough voltage"),
        (on("rpi-4b-capped"), "ok", "enough voltage"),
        (on("jetson-orin-nx-throttled"), "ok", "enough voltage"),
    ],
)
def test_power(throttling, state, said):
    check = sound(check_power(throttling))
    assert check.state == state
    assert said in check.message
    assert check.remedy is None or "power supply" in check.remedy


@pytest.mark.parametrize(
    ("throttling", "state", "said"),
    [
        (Throttling(flags=0), "ok", "not slowed down"),
        (Throttling(), "ok", "nothing says"),
        (on("rpi-3b-plus-softlimit"), "warn", "slows itself down at this moment, for heat"),
        (on("rpi-4b-capped"), "warn", "heat has slowed the board down since it was started"),
        (on("jetson-orin-nx-throttled"), "warn", "cpu-throttle-alert, gpu-throttle-alert"),
        (Throttling(flags=0x40000), "warn", "has slowed"),
        (Throttling(flags=0x2), "warn", "holds the processor's clock down"),
        (Throttling(flags=0x3), "ok", "not slowed down"),  # for want of voltage, said elsewhere
    ],
)
def test_heat(throttling, state, said):
    check = sound(check_heat(throttling, []))
    assert check.state == state, check
    assert said in check.message
    assert check.remedy is None or "heat sink" in check.remedy


def test_heat_of_a_pcie_coral(tmp_path):
    assert apex_heat(BOARDS / "coral-dev-board") == []
    device = tmp_path / "sys/class/apex/apex_0"
    write(device / "temp", "86100\n")
    write(device / "trip_point0_temp", "85000\n")
    check = sound(check_heat(Throttling(), apex_heat(tmp_path)))
    assert check.state == "warn"
    assert "apex_0 is at 86 °C and slows itself down from 85 °C on" in check.message


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


@pytest.mark.parametrize("name", sorted(one.name for one in BOARDS.iterdir() if one.is_dir()))
def test_every_board_is_examined(name):
    checks = {check.name: sound(check) for check in examine_board(BOARDS / name)}
    assert list(checks) == ["board", "power", "heat", "memory_limits", "watchdog"]
    assert checks["board"].message not in ("", "it has no name")
    assert "\0" not in checks["board"].message
