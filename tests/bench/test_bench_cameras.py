"""The bench of cameras asks for the setups it names, and its ratios are those of one round."""

import json

import pytest

from agent.bench import cameras
from agent.bench.cameras import ONE, SETUPS, TWO, TWO_ENGINES, config, figures, summarize, table
from agent.bench.session import Played
from agent.config_file import parse_config
from agent.errors import AgentError

FOUR = SETUPS[2]


def played(**changes):
    values = {
        "arrivals": {}, "elapsed_s": 2.0, "began_s": 5.0, "ended_s": 7.0, "first_result_s": 1.0,
        "cpu_s": 1.5, "pss_mib": 100.0, "status": None,
    }  # fmt: skip
    return Played(**{**values, **changes})


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
def test_the_daemon_reads_each_configuration(setup, tmp_path):
    text = config(setup, ("default", 'a "second".tflite'), "/clips/über.mp4", 1234, tmp_path)
    parsed, warnings = parse_config(text)
    assert warnings == []
    assert parsed.device.state_dir == str(tmp_path / "state")
    assert [camera.name for camera in parsed.camera] == setup.camera_names
    assert {camera.source for camera in parsed.camera} == {"/clips/über.mp4"}
    assert all(camera.loop and not camera.realtime for camera in parsed.camera)
    engines = {camera.model for camera in parsed.camera}
    assert engines == {"", "second"} if setup.engines == 2 else engines == {""}
    assert [parsed.model.threads] + [model.threads for model in parsed.models.values()] == (
        [1] * setup.engines
    )
    if setup.engines == 2:
        assert parsed.models["second"].path == 'a "second".tflite'


def test_names_say_what_was_set_up():
    assert [setup.name for setup in SETUPS] == [
        "1 camera on 1 engine",
        "2 cameras on 1 engine",
        "4 cameras on 1 engine",
        "2 cameras on 2 engines",
    ]


def test_rates_and_spread_of_one_run():
    run = figures({"camera1": 40, "camera2": 50}, played())
    assert run["results_per_s"] == {"camera1": 20.0, "camera2": 25.0}
    assert run["total_per_s"] == 45.0
    assert run["spread"] == pytest.approx(0.25)
    assert run["cpu_ms_per_result"] == pytest.approx(1500 / 90)
    assert figures({"camera1": 0, "camera2": 5}, played())["spread"] is None


def rounds(*totals):
    """Rounds of (one, two, four, two engines) totals, each shared evenly."""
    return [
        {
            setup.name: figures(
                dict.fromkeys(setup.camera_names, total * 2 / setup.cameras), played()
            )
            for setup, total in zip(SETUPS, one, strict=True)
        }
        for one in totals
    ]


def test_ratios_are_taken_within_a_round():
    """The machine is twice as fast in the second round, which must not show in any ratio."""
    summary = summarize(rounds((20, 22, 24, 33), (40, 44, 48, 66), (30, 33, 36, 49.5)))
    assert summary["two_engines_against_one"] == pytest.approx(1.5)
    assert summary["setups"][TWO.name]["of_one_camera"] == pytest.approx(1.1)
    assert summary["setups"][FOUR.name]["of_one_camera"] == pytest.approx(1.2)
    assert summary["setups"][ONE.name]["total_per_s"] == pytest.approx(30)
    assert summary["setups"][FOUR.name]["results_per_s"]["camera4"] == pytest.approx(9)


def test_a_setup_without_figures_keeps_its_row_and_its_reason():
    measured = rounds((20, 22, 24, 33))
    measured[0][TWO_ENGINES.name] = {"error": "the daemon gave no result"}
    summary = summarize(measured)
    assert summary["setups"][TWO_ENGINES.name] == {"error": "the daemon gave no result"}
    assert summary["two_engines_against_one"] is None
    lines = table(summary)
    assert "not measured" in lines[4]
    assert lines[-1].endswith(": -")


def test_the_table_has_a_row_per_setup():
    lines = table(summarize(rounds((20, 22, 24, 33))))
    assert lines[1].split() == [
        "1",
        "camera",
        "on",
        "1",
        "engine",
        "20.0",
        "20.0",
        "1.000",
        "0.000",
    ]
    assert lines[3].split()[-7:] == ["6.0", "6.0", "6.0", "6.0", "24.0", "1.200", "0.000"]
    assert lines[-1] == "two engines against one, two cameras, one thread each: 1.500"


def test_rounds_alternate_and_everything_is_written(tmp_path, capsys, monkeypatch):
    order = []

    def measure(setup, models, clip, seconds, children):
        order.append(setup)
        assert models == ("default", "default")
        if setup is TWO_ENGINES:
            return {"error": "no"}
        return figures(dict.fromkeys(setup.camera_names, 10), played())

    monkeypatch.setattr(cameras, "_measure", measure)
    file = tmp_path / "cameras.json"
    options = {"model": "default", "second": "", "clip": "", "seconds": 1.0, "runs": 2}
    assert cameras.run_cameras(**options, json_file=file) == 1
    assert order == [*SETUPS, *SETUPS[::-1]]
    document = json.loads(file.read_text())
    assert len(document["rounds"]) == 2
    assert document["medians"]["setups"][TWO.name]["total_per_s"] == 10
    assert "1 camera on 1 engine" in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "runs"), [(0, 1), (float("nan"), 1), (1, 0)])
def test_numbers_that_make_no_sense_are_refused(seconds, runs):
    with pytest.raises(AgentError, match="--runs must be above 0"):
        cameras.run_cameras(
            model="default", second="", clip="", seconds=seconds, runs=runs, json_file=None
        )
