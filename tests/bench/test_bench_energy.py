"""Energy of the real daemon, by the sensor of a board that is simulated with files."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from remembered import remember
from simulated_board import REST_UW, WORK_UW

from agent.bench import energy as module
from agent.bench.energy import first_power, measure_energy, run_energy, sensor_interval_s
from agent.bench.energy_report import Measured, Plan, Rest, as_document, lines, notes
from agent.bench.session import STATE_FOLDER
from agent.choices import Choice
from agent.cli import main
from agent.daemon.instance import acquire
from agent.demo.children import Signals
from agent.errors import AgentError, UnavailableError
from agent.sensors.files import BoardFiles
from agent.sensors.reader import BoardReader
from agent.sensors.replay import open_board
from agent.telemetry.baseline import read_baseline
from agent.telemetry.integral import Energy

BOARDS = Path(__file__).resolve().parents[1] / "boards"
REST_W, WORK_W = REST_UW / 1e6, WORK_UW / 1e6
SHORT = Plan(model="default", clip="", seconds=2.5, idle_s=1.0, every_s=0.02, settle_s=0.5)
CHOICE = Choice(
    runtime="litert", xnnpack=True, threads=1, invoke_ms=5.0, candidates=(), measured_at=1.7e9
)


@pytest.fixture
def board(tmp_path):
    root = tmp_path / "board"
    shutil.copytree(BOARDS / "generic-ina226", root)
    (chip,) = (path.parent for path in root.glob("sys/class/hwmon/*/power1_input"))
    writer = subprocess.Popen(
        [
            sys.executable,
            str(Path(__file__).with_name("simulated_board.py")),
            chip,
            str(os.getpid()),
        ]
    )
    yield root
    writer.kill()
    writer.wait()


def test_a_simulated_board_gives_the_watts_that_were_put_into_it(board, tmp_path, monkeypatch):
    folder = tmp_path / "work"
    # To tune it takes long, and is the same for every bench: test_bench_session.py runs it.
    remember(folder / STATE_FOLDER)
    monkeypatch.setattr(module, "tuned", lambda model, folder: CHOICE)
    with Signals() as signals:
        _, measured = measure_energy(replace(SHORT, root=board), folder, signals)
    assert measured.why_invalid is None
    assert measured.board == "generic"
    work = measured.work
    assert work.source == "trapezoid"
    assert work.mean_w == pytest.approx(WORK_W, abs=1e-6)
    assert work.gross_j == pytest.approx(WORK_W * work.seconds, rel=1e-6)
    assert measured.idle_w == pytest.approx(REST_W, abs=1e-6)
    assert measured.drift_w == pytest.approx(0.0, abs=1e-6)
    assert work.net_j(measured.idle_w) == pytest.approx((WORK_W - REST_W) * work.seconds, rel=1e-6)
    assert measured.inferences > 0
    assert work.seconds == pytest.approx(SHORT.seconds, abs=0.5)


# --- without a daemon ---------------------------------------------------------------------------


def energy(watts=5.0, seconds=60.0, **changed):
    fields = {
        "source": "trapezoid", "scope": "board_input", "sensor": "ina226 ina226",
        "start_s": 100.0, "end_s": 100.0 + seconds, "gross_j": watts * seconds,
        "samples": int(10 * seconds) + 1, "largest_gap_s": 0.11, "coverage": 1.0,
        "why_invalid": None,
    }  # fmt: skip
    return Energy(**{**fields, **changed})


def measured(**changed):
    fields = {
        "board": "generic-ina226", "every_s": 0.1,
        "before": Rest(energy=energy(2.9, 10.0), busy_percent=1.0),
        "work": energy(), "after": Rest(energy=energy(3.1, 10.0), busy_percent=1.0),
        "inferences": 1200, "throttled": None, "sampler_cpu_ms": 0.4,
    }  # fmt: skip
    return Measured(**{**fields, **changed})


PLAN = Plan(model="default", clip="", seconds=60.0, idle_s=10.0)


def test_figures_of_a_whole_measurement():
    document = as_document(PLAN, CHOICE, measured())
    assert document["valid"]
    assert document["gross_j"] == pytest.approx(300.0)
    assert document["idle_w"] == pytest.approx(3.0)
    assert document["drift_w"] == pytest.approx(0.2)
    assert document["net_j"] == pytest.approx(120.0)
    assert document["gross_mj_per_inference"] == pytest.approx(250.0)
    assert document["net_mj_per_inference"] == pytest.approx(100.0)
    json.dumps(document)
    text = "\n".join(lines(document))
    for said in ("ina226", "board_input", "250.000 mJ", "100.000 mJ", "601", "0.110 s", "valid"):
        assert said in text
    assert "no MLPerf figure" in text


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"work": energy(why_invalid="no sample for 2 s")}, "at work: no sample for 2 s"),
        (
            {"after": Rest(energy=energy(3.0, 10.0, why_invalid="too few"), busy_percent=0.0)},
            "at rest after: too few",
        ),
        (
            {"before": Rest(energy=energy(3.0, 10.0, sensor="x"), busy_percent=0.0)},
            "at rest before another sensor measured: x",
        ),
        ({"inferences": 0}, "no result came"),
    ],
)
def test_an_invalid_measurement_has_no_figures(changed, why, tmp_path, capsys):
    one = measured(**changed)
    document = as_document(PLAN, CHOICE, one)
    assert (document["valid"], document["why_invalid"]) == (False, why)
    figures = [name for name in document if name.endswith(("_j", "_w", "_mj_per_inference"))]
    assert {document[name] for name in figures} == {None}
    assert f"no: {why}" in "\n".join(lines(document))
    assert module._keep_baseline(tmp_path, one) is None
    assert read_baseline(tmp_path) == (None, None)


@pytest.mark.parametrize(
    ("plan", "changed", "note"),
    [
        (replace(PLAN, seconds=20.0), {}, "a window of 20 s"),
        (replace(PLAN, root=Path("/mnt")), {}, "below /mnt"),
        (PLAN, {"throttled": True}, "was throttled"),
        (PLAN, {"before": Rest(energy=energy(3.0, 10.0), busy_percent=40.0)}, "busy for 40 %"),
        (PLAN, {"after": Rest(energy=energy(3.6, 10.0), busy_percent=1.0)}, "changed by +0.700 W"),
    ],
)
def test_what_weakens_the_figures_is_said(plan, changed, note):
    assert note in "\n".join(notes(plan, measured(**changed)))
    assert note not in "\n".join(notes(PLAN, measured()))


def test_the_rest_is_kept_for_the_daemon(tmp_path, capsys):
    assert module._keep_baseline(tmp_path / "state", measured())
    kept, why = read_baseline(tmp_path / "state")
    assert why is None
    assert kept.idle_w == pytest.approx(3.0)
    assert (kept.board, kept.sensor, kept.samples) == ("generic-ina226", "ina226 ina226", 202)
    assert "next start" in capsys.readouterr().out


def test_a_board_that_was_busy_was_not_at_rest(tmp_path, capsys):
    busy = measured(before=Rest(energy=energy(4.0, 10.0), busy_percent=80.0))
    assert module._keep_baseline(tmp_path, busy) is None
    assert read_baseline(tmp_path) == (None, None)
    assert "busy for 80 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("board", "why"),
    [
        ("generic-none", "no sensor of power"),
        ("rpi-4b-poe-hat", "estimated only"),
        ("x86-rapl-no-permission", "permission"),
    ],
)
def test_without_a_sensor_there_is_nothing_to_measure(board, why, capsys):
    said = []
    for command in (["bench", "energy"], ["bench", "--energy"]):
        assert main([*command, "--root", str(BOARDS / board)]) == 69
        said.append(capsys.readouterr().err)
    assert why in said[0]
    assert ("INA219" in said[0]) == (why != "permission")
    assert said[0] == said[1]


def test_a_laptop_on_mains_whose_counter_belongs_to_root(tmp_path):
    """There is a sensor, so none has to be fitted."""
    board = tmp_path / "board"
    shutil.copytree(BOARDS / "x86-rapl-no-permission", board)
    battery = board / "sys/class/power_supply/BAT0"
    battery.mkdir(parents=True)
    for name, text in (("type", "Battery"), ("status", "Charging"), ("power_now", "7000000")):
        (battery / name).write_text(f"{text}\n")
    with pytest.raises(UnavailableError, match="Run it as root"):
        first_power(BoardReader(files=open_board(board).files))


def test_no_rest_is_measured_while_an_agent_runs(tmp_path):
    lock = acquire(tmp_path)
    with pytest.raises(UnavailableError, match="another edge-agent"):
        run_energy(PLAN, state_dir=tmp_path, save=False, json_file=None)
    lock.release()


@pytest.mark.parametrize("changed", [{"seconds": 0.0}, {"seconds": 1e9}, {"idle_s": 2.0}])
def test_times_that_make_no_sense_are_refused(tmp_path, changed):
    with pytest.raises(AgentError, match="--seconds must be"):
        run_energy(replace(PLAN, **changed), state_dir=tmp_path, save=False, json_file=None)


def test_no_sensor_is_asked_faster_than_it_measures(tmp_path):
    chip = tmp_path / "sys/class/hwmon/hwmon3"
    chip.mkdir(parents=True)
    (chip / "name").write_text("ina226\n")
    files = BoardFiles(tmp_path)
    assert sensor_interval_s(files, "ina226 VIN") == 0.0
    (chip / "update_interval").write_text("250\n")
    assert sensor_interval_s(files, "ina226 VIN") == 0.25
    assert sensor_interval_s(files, "ina3221 VDD_IN") == sensor_interval_s(files, None) == 0.0


def test_a_counter_of_energy_is_waited_for(tmp_path):
    shutil.copytree(BOARDS / "x86-rapl", tmp_path / "board")
    power = first_power(BoardReader(tmp_path / "board"))
    assert power.sensor == "RAPL package-0"
