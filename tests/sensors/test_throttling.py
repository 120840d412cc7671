"""Flags of the firmware, alarms and alerts, read from the boards' own files."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_trees import (
    BOARDS,
    NAMES,
    chip,
    cooling,
    expected,
    grow,
    identity,
    identity_of,
    silent,
)

from agent.contract.reading import Accel
from agent.sensors.accel import AccelReader
from agent.sensors.files import BoardFiles
from agent.sensors.replay import open_board
from agent.sensors.thermal import ThermalReader
from agent.sensors.throttling import ThrottleReader, parse_word, split_word

PI = identity("raspberry-pi", "bcm2711")
ORIN = identity("jetson", "tegra234")
XAVIER = identity("jetson", "tegra194")
WORD = "sys/devices/platform/soc/soc:firmware/get_throttled"


class Firmware:
    """Answers like vcgencmd, and counts."""

    def __init__(self, word):
        self.word = word
        self.asked = 0

    def __call__(self, *command, **_):
        assert command == ("vcgencmd", "get_throttled")
        self.asked += 1
        return None if self.word is None else f"throttled={self.word:#x}"


def on(board, ask=None):
    opened = open_board(BOARDS / board)
    accel = AccelReader(opened.files)
    edgetpus = accel.edgetpus(ThermalReader(opened.files).read().temps_c)
    reader = ThrottleReader(opened.files, identity_of(board), ask or opened.ask)
    return reader.read(0.0, edgetpus)


def raw_of(throttle):
    return msgspec.to_builtins(throttle)


@pytest.mark.parametrize("board", NAMES)
def test_every_board(board):
    wanted = expected(board)["throttle"]
    if wanted is not None:
        wanted = {"throttled_now": None} | wanted
    assert raw_of(on(board)) == wanted


@pytest.mark.parametrize("board", ["rpi-4b", "rpi-4b-capped", "rpi-3b-plus-softlimit"])
def test_sysfs_says_the_same_as_the_firmware(board):
    assert on(board, silent) == on(board)


def test_the_alarm_alone(tmp_path):
    """A Raspberry Pi 5 has no file of the firmware's word, and vcgencmd may not be installed."""
    files = BoardFiles(grow(tmp_path, chip(7, "rpi_volt", in0_lcrit_alarm=1)))
    reader = ThrottleReader(files, identity("generic"), silent)
    assert raw_of(reader.read(0.0)) == {"throttled_now": None, "hwmon_under_voltage_alarm": True}


def test_a_board_that_says_nothing(tmp_path):
    for which in (PI, identity("generic"), identity("x86")):
        assert ThrottleReader(BoardFiles(tmp_path), which, silent).read(0.0) is None


def test_what_was_seen_once_stays(tmp_path):
    firmware = Firmware(0xF)
    reader = ThrottleReader(BoardFiles(tmp_path), PI, firmware)
    reader.read(0.0)
    firmware.word = 0
    throttle = reader.read(100.0)
    assert throttle.raw == 0
    assert not throttle.now.throttled
    assert all(msgspec.to_builtins(throttle.since_boot).values())
    later = ThrottleReader(BoardFiles(tmp_path), PI, firmware, seen=reader.seen)
    assert later.read(200.0).since_boot == throttle.since_boot


def test_the_firmware_is_asked_seldom(tmp_path):
    firmware = Firmware(0)
    grow(tmp_path, chip(0, "rpi_volt", in0_lcrit_alarm=0))
    reader = ThrottleReader(BoardFiles(tmp_path), PI, firmware)
    for second in range(20):
        assert reader.read(float(second)).raw == 0
    assert firmware.asked == 4
    grow(tmp_path, chip(0, "rpi_volt", in0_lcrit_alarm=1))
    firmware.word = 0x50005
    throttle = reader.read(19.5)  # an alarm asks at once, but once
    assert (throttle.raw, throttle.hwmon_under_voltage_alarm) == (0x50005, True)
    reader.read(20.5)
    assert firmware.asked == 5


def test_a_silent_firmware_is_asked_more_seldom_still(tmp_path):
    firmware = Firmware(None)
    grow(tmp_path, {WORD: "60002"})
    reader = ThrottleReader(BoardFiles(tmp_path), PI, firmware)
    assert [reader.read(float(second)).raw for second in range(60)] == [0x60002] * 60
    assert firmware.asked == 1
    reader.read(60.0)
    assert firmware.asked == 2


@pytest.mark.parametrize("word", [0x1, 0x10001, 0x70000, 0xF0000])
def test_what_is_not_slowed_down_now(tmp_path, word):
    assert ThrottleReader(BoardFiles(tmp_path), PI, Firmware(word)).read(0.0).throttled_now is False


def test_alerts_by_type_and_not_by_path(tmp_path):
    grow(tmp_path, cooling(2, "tj-throttle-alert", 1) | cooling(10, "cpu-throttle-alert", 2))
    grow(tmp_path, cooling(11, "hot-surface-alert", 1) | cooling(3, "pwm-fan", 4))
    grow(tmp_path, cooling(1, "devfreq-gpu-gpc-0", 18) | cooling(0, "gpu-throttle-alert", 0))
    throttle = ThrottleReader(BoardFiles(tmp_path), XAVIER, silent).read(0.0)
    assert throttle.alerts_active == [
        "cpu-throttle-alert",
        "hot-surface-alert",
        "tj-throttle-alert",
    ]
    assert throttle.throttled_now is True


@pytest.mark.parametrize(
    ("board", "states", "now"),
    [
        (ORIN, [], False),
        (XAVIER, [], None),
        (XAVIER, [0, 0], False),
        (XAVIER, [0, None], None),
        (ORIN, [0, None], None),
        (ORIN, [None, 1], True),
        (ORIN, ["garbage"], None),
    ],
)
def test_whether_a_jetson_is_slowed_down(tmp_path, board, states, now):
    for number, state in enumerate(states):
        grow(tmp_path, cooling(number, f"cv{number}-throttle-alert", state))
    throttle = ThrottleReader(BoardFiles(tmp_path), board, silent).read(0.0)
    assert throttle.throttled_now is now


@pytest.mark.parametrize(
    ("kind", "state", "now"),
    [
        ("cpu-balanced", 1, None),  # slows the board down on r32, and is no alert
        ("cpu-balanced", 0, False),
        ("cpu-balanced", None, None),
        ("", 1, None),  # its type cannot be read
        ("pwm-fan", 3, False),
        ("devfreq-17000000.gpu", 9, False),
        ("thermal-cpufreq-0", 2, False),
    ],
)
def test_what_is_at_work_and_no_alert(tmp_path, kind, state, now):
    grow(tmp_path, cooling(0, "cpu-throttle-alert", 0) | cooling(1, kind, state))
    throttle = ThrottleReader(BoardFiles(tmp_path), ORIN, silent).read(0.0)
    assert (throttle.alerts_active, throttle.throttled_now) == ([], now)


def test_counters_of_which_some_cannot_be_read(tmp_path):
    grow(tmp_path, chip(3, "soctherm_oc", oc1_event_cnt=2, oc3_event_cnt=27390))
    throttle = ThrottleReader(BoardFiles(tmp_path), identity("generic"), silent).read(0.0)
    events = {"oc1_under_voltage": 2, "oc3_instantaneous_over_current": 27390}
    assert raw_of(throttle) == {"throttled_now": None, "alerts_active": [], "oc_events": events}


def test_counters_of_which_none_can_be_read(tmp_path):
    grow(tmp_path, chip(3, "soctherm_oc"))
    assert ThrottleReader(BoardFiles(tmp_path), ORIN, silent).read(0.0).oc_events is None


@pytest.mark.parametrize(("slowed", "now"), [(True, True), (False, False), (None, None)])
def test_the_coral_dev_board(tmp_path, slowed, now):
    apex = Accel(kind="edgetpu", load_ratio=None, freq_hz=None, throttled=slowed)
    reader = ThrottleReader(BoardFiles(tmp_path), identity("coral", "imx8mq"), silent)
    assert reader.read(0.0, [apex]).throttled_now is now
    assert reader.read(0.0).throttled_now is None


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ("throttled=0x50005", 0x50005),
        ("throttled=0x0\n", 0),
        ("throttled=50005", 0x50005),
        ('error=1 error_msg="Command not registered"', None),
        ("throttled=", None),
        ("throttled=-1", None),
        ("throttled=0x100000000", None),
        ("", None),
        (None, None),
    ],
)
def test_words_of_the_firmware(answer, word):
    assert parse_word(answer) == word


@given(st.text())
def test_any_word(answer):
    word = parse_word(f"throttled={answer}")
    assert word is None or 0 <= word < 1 << 32
    parse_word(answer)


@given(st.integers(0, 0xF), st.integers(0, 0xF))
def test_places_of_the_flags(now, earlier):
    assert split_word(earlier << 16 | now) == (now, earlier)
