"""Flags of the firmware, alarms and alerts, read from the boards' own files."""

from pathlib import Path

import pytest

from agent.sensors.board import read_board_model
from agent.sensors.throttling import (
    CAPPED,
    SOFT_LIMIT,
    THROTTLED,
    UNDER_VOLTAGE,
    Throttling,
    parse_flags,
    read_throttling,
)

BOARDS = Path(__file__).resolve().parent.parent / "boards"


def silent(*command):
    """A board without vcgencmd."""


def firmware(board):
    answer = (BOARDS / board / "cmd/vcgencmd_get_throttled.txt").read_text()
    return lambda *command: answer if command == ("vcgencmd", "get_throttled") else None


@pytest.mark.parametrize(
    ("board", "flags"),
    [("rpi-4b", 0), ("rpi-4b-capped", 0x60002), ("rpi-3b-plus-softlimit", 0x80008)],
)
def test_sysfs_and_firmware_say_the_same(board, flags):
    assert read_throttling(BOARDS / board, silent).flags == flags
    assert read_throttling(BOARDS / board, firmware(board)).flags == flags


def test_the_alarm_alone(tmp_path):
    """A Raspberry Pi 5 has no file of the firmware's word, and vcgencmd may not be installed."""
    assert read_throttling(BOARDS / "rpi-5-load", silent).flags == 0
    chip = tmp_path / "sys/class/hwmon/hwmon7"
    chip.mkdir(parents=True)
    (chip / "name").write_text("rpi_volt\n")
    (chip / "in0_lcrit_alarm").write_text("1\n")
    throttling = read_throttling(tmp_path, silent)
    assert (throttling.now, throttling.earlier) == (0, UNDER_VOLTAGE)


def test_an_alarm_adds_to_what_the_firmware_says(tmp_path):
    chip = tmp_path / "sys/class/hwmon/hwmon0"
    chip.mkdir(parents=True)
    (chip / "name").write_text("rpi_volt\n")
    (chip / "in0_lcrit_alarm").write_text("1\n")
    throttling = read_throttling(tmp_path, lambda *_: "throttled=0x60002")
    assert (throttling.now, throttling.earlier) == (CAPPED, UNDER_VOLTAGE | CAPPED | THROTTLED)


def test_places_of_the_flags():
    throttling = Throttling(flags=0x80008)
    assert (throttling.now, throttling.earlier) == (SOFT_LIMIT, SOFT_LIMIT)
    assert (Throttling().now, Throttling().earlier) == (0, 0)


def test_jetson():
    throttling = read_throttling(BOARDS / "jetson-orin-nx-throttled", silent)
    assert throttling.flags is None
    assert throttling.alerts == ("cpu-throttle-alert", "gpu-throttle-alert")
    assert throttling.under_voltage_events == 0


def test_a_board_that_says_nothing(tmp_path):
    assert read_throttling(tmp_path, silent) == Throttling()


@pytest.mark.parametrize(
    ("answer", "flags"),
    [
        ("throttled=0x50005", 0x50005),
        ("throttled=0x0\n", 0),
        ("throttled=50005", 0x50005),
        ('error=1 error_msg="Command not registered"', None),
        ("throttled=", None),
        ("", None),
        (None, None),
    ],
)
def test_words_of_the_firmware(answer, flags):
    assert parse_flags(answer) == flags


def test_names():
    assert read_board_model(BOARDS / "rpi-4b").startswith("Raspberry Pi 4 Model B")
