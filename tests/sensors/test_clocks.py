"""The processor's clock as the kernel wants it, and as the firmware gives it; and the fan."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_trees import BOARDS, NAMES, chip, expected, grow, identity, identity_of, silent

from agent.sensors.clocks import ClocksReader, parse_clock
from agent.sensors.fan import FanReader
from agent.sensors.files import BoardFiles
from agent.sensors.replay import open_board

POLICY = "sys/devices/system/cpu/cpufreq/policy"
PI = identity("raspberry-pi")


def policy(number, now, most=None, allowed=None):
    values = {"scaling_cur_freq": now, "cpuinfo_max_freq": most, "scaling_max_freq": allowed}
    named = {f"{POLICY}{number}/{name}": value for name, value in values.items()}
    return {path: value for path, value in named.items() if value is not None}


def clocks(root, ask=silent, which=PI):
    return ClocksReader(BoardFiles(root), which, ask)


def arm(hertz):
    return lambda *command, **_: f"frequency(48)={hertz}"


@pytest.mark.parametrize("board", NAMES)
def test_every_board(board):
    opened = open_board(BOARDS / board)
    reader = ClocksReader(opened.files, identity_of(board), opened.ask)
    assert reader.read(0.0) == expected(board).get("clocks_hz")
    fan = expected(board).get("fan")
    if fan is not None:
        fan.pop("note", None)
    assert msgspec.to_builtins(FanReader(opened.files).read()) == fan


def test_the_first_policy_counts(tmp_path):
    grow(tmp_path, policy(10, 1_000_000, 3_000_000) | policy(4, 700_000, 2_000_000))
    assert clocks(tmp_path).read(0.0) == {"cpu": 700_000_000, "cpu_max": 2_000_000_000}


@pytest.mark.parametrize("now", ["<unknown>", "", "-1", "0", str(2**63), None])
def test_a_clock_that_is_not_known(tmp_path, now):
    grow(tmp_path, policy(0, now, None, 1_500_000))
    assert clocks(tmp_path, arm(600_000_000)).read(0.0) == {"cpu_max": 1_500_000_000}


def test_a_board_without_cpufreq(tmp_path):
    assert clocks(tmp_path).read(0.0) is None


@pytest.mark.parametrize(
    ("measured", "reported"),
    [
        (1_500_345_728, None),
        (1_485_000_000, None),
        (1_484_999_999, 1_484_999_999),
        (1_600_000_000, 1_600_000_000),
        (0, None),
    ],
)
def test_what_the_firmware_gives(tmp_path, measured, reported):
    grow(tmp_path, policy(0, 1_500_000, 1_500_000))
    assert clocks(tmp_path, arm(measured)).read(0.0).get("arm_measured") == reported


def test_nobody_but_a_raspberry_pi_is_asked(tmp_path):
    grow(tmp_path, policy(0, 1_500_000))
    reader = clocks(tmp_path, arm(600_000_000), identity("jetson"))
    assert reader.read(0.0) == {"cpu": 1_500_000_000}


def test_a_clock_that_changes_is_not_a_capped_one(tmp_path):
    grow(tmp_path, policy(0, 1_500_000))

    def changing(*command, **_):
        grow(tmp_path, policy(0, 600_000))
        return "frequency(48)=600117184"

    reader = clocks(tmp_path, changing)
    assert reader.read(0.0) == {"cpu": 1_500_000_000}
    assert reader.read(1.0) == {"cpu": 600_000_000}
    grow(tmp_path, policy(0, 1_500_000))
    assert reader.read(2.0) == {"cpu": 1_500_000_000}  # what was measured was another clock


def test_the_firmware_is_asked_seldom(tmp_path):
    grow(tmp_path, policy(0, 1_500_000))
    asked = []
    reader = clocks(tmp_path, lambda *command, **_: asked.append(command) or "frequency(0)=10000")
    for second in range(10):
        assert reader.read(float(second))["arm_measured"] == 10_000
    assert asked == [("vcgencmd", "measure_clock", "arm")] * 2


@given(st.text())
def test_any_answer(answer):
    assert parse_clock(answer) is None or "frequency" in answer


@given(st.integers(0, 99), st.integers(1, 10**11))
def test_any_clock(number, hertz):
    assert parse_clock(f"frequency({number})={hertz}") == hertz


@pytest.fixture
def fan(tmp_path):
    def of(files):
        return msgspec.to_builtins(FanReader(BoardFiles(grow(tmp_path, files))).read())

    return of


R32 = "sys/devices/pwm-fan"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, None),
        (chip(0, "pwmfan", pwm1=0, fan1_input=0), {"rpm": 0, "pwm": 0, "pwm_max": 255}),
        (chip(0, "pwmfan", pwm1=88), {"rpm": None, "pwm": 88, "pwm_max": 255}),
        (chip(0, "pwmfan", pwm1=256), {"rpm": None}),
        (chip(0, "pwmfan", pwm1="garbage", fan1_input=-3), {"rpm": None}),
        (
            chip(4, "pwm_tach", rpm=1786) | chip(11, "pwmfan", pwm1=58),
            {"rpm": 1786, "pwm": 58, "pwm_max": 255},
        ),
        (chip(2, "tach", rpm=0), {"rpm": 0}),
        (chip(2, "tach", rpm=2**63), {"rpm": None}),
        (chip(2, "pwm_tach"), {"rpm": None}),
        (chip(0, "gpio_fan", fan1_input=4500, fan1_target=4500), {"rpm": 4500}),
        (chip(0, "rpipoefan", pwm1=31), {"rpm": None, "pwm": 31, "pwm_max": 255}),
        (
            chip(0, "nvme") | chip(1, "dell_smm", fan1_input=2300, pwm1=128),
            {"rpm": 2300, "pwm": 128, "pwm_max": 255},
        ),
        # AGX Xavier of r32, which has a tachometer in the same folder.
        (
            {f"{R32}/target_pwm": 110, f"{R32}/rpm_measured": 2950},
            {"rpm": 2950, "pwm": 110, "pwm_max": 255},
        ),
        (
            {f"{R32}/cur_pwm": 80, f"{R32}/rpm_measured": 0},
            {"rpm": None, "pwm": 80, "pwm_max": 255},
        ),
        ({R32: None}, {"rpm": None}),
    ],
)
def test_fans(fan, files, said):
    assert fan(files) == said
