"""A model's figure where no sensor is, and the owner's own readings that replace it."""

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_trees import expected, grow, identity, identity_of, silent

from agent.contract.reading import BoardIdentity, Reading
from agent.sensors.calibration import (
    Calibration,
    CalibrationError,
    Point,
    all_cores_busy,
    fit,
    load_calibration,
    observe,
    save_calibration,
)
from agent.sensors.estimate import Estimator
from agent.sensors.files import BoardFiles
from agent.sensors.load import CpuLoad, freq_ratio, parse_times
from agent.sensors.power import PowerReader
from agent.sensors.source import unavailable

PI_4 = BoardIdentity(id="rpi-4b", family="raspberry-pi", soc="bcm2711", model=None, compatible=[])
FULL = {"cpu": 1500000000, "cpu_max": 1500000000}
NOTHING = unavailable("no sensor")
OWN = Calibration(board_id="rpi-4b", basis="cpu_load", offset_w=3.1, slope=4.0, date="2026-11-21")


def stat(root, busy, idle, iowait=0):
    """Write ticks since the start; `busy` is user's alone."""
    return grow(root, {"proc/stat": f"cpu  {busy} 0 0 {idle} {iowait} 0 0 0 0 0\ncpu0 1 1 1"})


def at_half_load(root, board, calibration=None):
    """Return an estimator that is about to see the processors busy half of the time."""
    stat(root, 100, 100)
    estimator = Estimator(BoardFiles(root), board, calibration)
    assert estimator.estimate(NOTHING, FULL) is None  # one look tells no load
    stat(root, 150, 140, 10)
    return estimator


@pytest.mark.parametrize("board", ["rpi-4b", "rpi-3b-plus-softlimit", "rpi-zero-2w"])
def test_published_figures(board, tmp_path):
    """The same numbers as in the fixture, at the load that it names."""
    wanted = expected(board)["estimate"]
    stat(tmp_path, 0, 0)
    estimator = Estimator(BoardFiles(tmp_path), identity_of(board))
    clocks = expected(board)["clocks_hz"]
    assert estimator.estimate(NOTHING, clocks) is None
    stat(tmp_path, round(1000 * wanted["cpu_util"]), 1000 - round(1000 * wanted["cpu_util"]))
    assert msgspec.to_builtins(estimator.estimate(NOTHING, clocks)) == wanted


def test_waiting_for_a_disk_is_no_work(tmp_path):
    estimate = at_half_load(tmp_path, PI_4).estimate(NOTHING, FULL)
    assert (estimate.cpu_util, estimate.estimate_w) == (0.5, 4.55)


@pytest.mark.parametrize(
    "board", ["rpi-cm4", "rpi-cm5", "coral-dev-board", "jetson-nano", "rpi-500"]
)
def test_no_figures_no_estimate(tmp_path, board):
    family = {"r": "raspberry-pi", "c": "coral", "j": "jetson"}[board[0]]
    its = msgspec.structs.replace(PI_4, id=board, family=family)
    assert at_half_load(tmp_path, its).estimate(NOTHING, FULL) is None


@pytest.mark.parametrize(
    "power",
    [
        unavailable("ina219 unreadable", "board_input"),
        msgspec.structs.replace(NOTHING, kind="measured", scope="board_input", total_w=3.0),
        msgspec.structs.replace(NOTHING, kind="estimated", scope="board_input_5v", total_w=2.9),
    ],
)
def test_a_sensor_goes_before_any_model(tmp_path, power):
    assert at_half_load(tmp_path, PI_4, OWN).estimate(power, FULL) is None


@pytest.mark.parametrize(
    ("clocks", "ratio"),
    [
        (None, None),
        ({}, None),
        ({"cpu": 1000}, None),
        ({"cpu_max": 1000}, None),
        ({"cpu": 500, "cpu_max": 1000}, 0.5),
        ({"cpu": 1100, "cpu_max": 1000}, 1.0),
        # What the firmware caps shows in the measured clock alone.
        ({"cpu": 1000, "cpu_max": 1000, "arm_measured": 760}, 0.76),
        ({"cpu": 600, "cpu_max": 1000, "arm_measured": 601}, 0.6),
        ({"cpu_max": 1000, "arm_measured": 400}, 0.4),
    ],
)
def test_clocks(clocks, ratio):
    assert freq_ratio(clocks) == ratio


def test_unknown_clocks_or_load(tmp_path):
    assert at_half_load(tmp_path, PI_4).estimate(NOTHING, None) is None
    estimator = at_half_load(tmp_path, PI_4)
    (tmp_path / "proc/stat").write_text("cpu what\n")
    assert estimator.estimate(NOTHING, FULL) is None


@pytest.mark.parametrize(
    ("kilobytes", "idle_w"), [("2014228", 2.4), ("4131088", 3.3), ("8129216", 3.3), (None, 3.3)]
)
def test_a_pi_5_whose_pmic_does_not_answer(tmp_path, kilobytes, idle_w):
    if kilobytes:
        grow(tmp_path, {"proc/meminfo": f"MemTotal:        {kilobytes} kB\nMemFree: 1 kB"})
    its = msgspec.structs.replace(PI_4, id="rpi-5", soc="bcm2712")
    estimator = at_half_load(tmp_path, its)
    power = PowerReader(BoardFiles(tmp_path), its, silent).read(0.0).power
    assert estimator.estimate(power, FULL).p_idle_w == idle_w


@given(st.lists(st.lists(st.integers(-(2**65), 2**65), max_size=12), max_size=6))
def test_any_ticks(tmp_path_factory, lines):
    root = tmp_path_factory.getbasetemp() / "any-ticks"
    load = CpuLoad(BoardFiles(root))
    for ticks in lines:
        grow(root, {"proc/stat": " ".join(["cpu", *map(str, ticks)])})
        share = load.step()
        assert share is None or 0 <= share <= 1


@given(st.text(max_size=100))
def test_any_stat(text):
    times = parse_times(text)
    assert times is None or 0 <= times[0] <= times[1]


def test_own_readings_replace_published_ones(tmp_path):
    estimate = at_half_load(tmp_path, PI_4, OWN).estimate(NOTHING, FULL)
    assert estimate.label == "estimated (calibrated 2026-11-21)"
    assert (estimate.estimate_w, estimate.p_idle_w, estimate.p_load_w) == (5.1, 3.1, 7.1)
    assert "own" not in estimate.figures_source
    assert "meter" in estimate.figures_source


def test_own_readings_where_nobody_published_any(tmp_path):
    its = msgspec.structs.replace(PI_4, id="rpi-cm4")
    assert at_half_load(tmp_path, its, OWN).estimate(NOTHING, FULL).estimate_w == 5.1


def test_own_readings_over_a_part_that_is_measured(tmp_path):
    part = msgspec.structs.replace(NOTHING, kind="measured", scope="pmic_rails_sum", total_w=2.0)
    line = msgspec.structs.replace(OWN, basis="pmic_sum", offset_w=0.9, slope=1.2)
    estimate = Estimator(BoardFiles(tmp_path), PI_4, line).estimate(part, None)
    assert estimate.estimate_w == pytest.approx(3.3)
    assert estimate.label == "estimated (calibrated 2026-11-21)"
    # A line over the load says nothing of that part.
    assert Estimator(BoardFiles(tmp_path), PI_4, OWN).estimate(part, None).label == "estimated"


@given(
    low=st.floats(0, 0.5),
    apart=st.floats(0.3, 1.0),
    idle_w=st.floats(0.2, 20),
    more_w=st.floats(0.5, 50),
)
def test_the_line_goes_through_both_points(low, apart, idle_w, more_w):
    points = (Point(load=low, pmic_w=None), Point(load=low + apart, pmic_w=None))
    try:
        line = fit("rpi-4b", points, (idle_w, idle_w + more_w), "2026-11-21")
    except CalibrationError as error:
        assert "no line that a board could have" in str(error)
        assert idle_w - more_w / apart * low < -10
        return
    assert line.offset_w + line.slope * low == pytest.approx(idle_w, abs=1e-5)
    assert line.offset_w + line.slope * (low + apart) == pytest.approx(idle_w + more_w, abs=1e-5)


def test_a_part_that_is_measured_goes_before_the_load():
    points = (Point(load=0.0, pmic_w=2.0), Point(load=1.0, pmic_w=6.0))
    line = fit("rpi-5", points, (3.0, 8.0), "2026-11-21")
    assert (line.basis, line.slope, line.offset_w) == ("pmic_sum", 1.25, 0.5)


@pytest.mark.parametrize(
    ("loads", "watts", "why"),
    [
        ((0.0, 1.0), (5.0, 4.0), "more under load"),
        ((0.0, 1.0), (0.0, 4.0), "more than 0 W"),
        ((0.0, 1.0), (float("nan"), 4.0), "more than 0 W"),
        ((0.5, 0.6), (3.0, 4.0), "too much alike"),
        ((0.9, 0.1), (3.0, 4.0), "too much alike"),
        ((None, 1.0), (3.0, 4.0), "neither"),
        ((0.0, 1.0), (3.0, 4000.0), "no line that a board could have"),
    ],
)
def test_readings_that_make_no_line(loads, watts, why):
    points = tuple(Point(load=load, pmic_w=None) for load in loads)
    with pytest.raises(CalibrationError, match=why):
        fit("rpi-4b", points, watts, "2026-11-21")


def test_it_is_kept(tmp_path):
    path = tmp_path / "power-calibration.json"
    assert load_calibration(path, "rpi-4b") == (None, None)
    save_calibration(path, OWN)
    assert load_calibration(path, "rpi-4b") == (OWN, None)
    calibration, reason = load_calibration(path, "rpi-5")
    assert calibration is None
    assert "another board: rpi-4b" in reason


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b"[" * 4000,
        b" " * 5000,
        msgspec.json.encode(OWN)[:-5],
        msgspec.json.encode(OWN).replace(b"4.0", b"1e999"),
        msgspec.json.encode(OWN).replace(b"4.0", b"NaN"),
        msgspec.json.encode(OWN).replace(b"4.0", b"-4.0"),
        msgspec.json.encode(OWN).replace(b"4.0", b'"4.0"'),
        msgspec.json.encode(OWN).replace(b"2026-11-21", b"2026-11-21\\n<b>"),
        msgspec.json.encode(OWN).replace(b"cpu_load", b"moon"),
        msgspec.json.encode(OWN).replace(b'"date"', b'"when":1,"date"'),
    ],
)
def test_files_that_are_none(tmp_path, content):
    path = tmp_path / "power-calibration.json"
    path.write_bytes(content)
    calibration, reason = load_calibration(path, "rpi-4b")
    assert calibration is None
    assert str(path) in reason


def test_what_is_no_file(tmp_path):
    """Reading a pipe that nobody writes to would never end."""
    path = tmp_path / "power-calibration.json"
    os.mkfifo(path)
    assert load_calibration(path, "rpi-4b")[0] is None
    path.unlink()
    path.mkdir()
    assert "cannot be read" in load_calibration(path, "rpi-4b")[1]


def reading(clocks, power=NOTHING):
    return Reading(
        board_id=identity("raspberry-pi"),
        power=power,
        estimate=None,
        temps_c={},
        temps_unreadable=[],
        temps_ignored=[],
        throttle=None,
        clocks_hz=clocks,
        fan=None,
        accel=None,
        read_errors={},
    )


class Bench:
    """Time that passes only by waiting; each second the processors work `busy` of 100 ticks."""

    def __init__(self, root, busy):
        self.root, self.busy, self.seconds = root, busy, 0
        stat(root, 0, 0)

    def sleep(self, seconds):
        assert seconds == 1.0
        self.seconds += 1
        stat(self.root, self.busy * self.seconds, (100 - self.busy) * self.seconds)

    def clock(self):
        return 50.0 + self.seconds


def test_watching_the_board(tmp_path):
    bench = Bench(tmp_path, 80)
    part = msgspec.structs.replace(NOTHING, kind="measured", scope="pmic_rails_sum", total_w=2.0)
    looks = iter([reading(FULL, part), reading({"cpu": 750000000, "cpu_max": 1500000000})] * 2)
    point = observe(
        BoardFiles(tmp_path), lambda: next(looks), 4.0, sleep=bench.sleep, clock=bench.clock
    )
    assert point == Point(load=pytest.approx(0.6), pmic_w=2.0)
    assert bench.seconds == 4


def test_watching_a_board_that_tells_nothing(tmp_path):
    bench = Bench(tmp_path, 80)
    (tmp_path / "proc/stat").unlink()
    files = BoardFiles(tmp_path / "nothing")
    point = observe(files, lambda: reading(None), 0.0, sleep=bench.sleep, clock=bench.clock)
    assert point == Point(load=None, pmic_w=None)


def test_all_cores_are_made_busy_and_let_go():
    own = os.getpid()

    def children():
        return set(Path(f"/proc/{own}/task/{own}/children").read_text().split())

    before = children()
    with all_cores_busy():
        assert len(children() - before) == len(os.sched_getaffinity(0))
    assert children() == before
