"""Every board of tests/boards: each field of its reading is what expected.json says."""

import json
from pathlib import Path

import pytest
from board_readings import (
    BOARDS,
    COMMENTARY,
    NAMES,
    copy_with_load,
    differences,
    expected_of,
    reading_of,
)
from commands import edge_agent

from agent.cli import main
from agent.sensors import command
from agent.sensors.command import hints, read_board, run_sensors
from agent.sensors.replay import open_board
from agent.sensors.show import WIDTH, show

# Their expected.json names a load of the processor, and no file of the tree tells one.
NO_LOAD_IN_TREE = ("rpi-3b-plus-softlimit", "rpi-zero-2w")


def test_boards_are_there():
    assert len(NAMES) >= 23


@pytest.mark.parametrize("name", NAMES)
def test_every_field(name):
    expected = expected_of(BOARDS / name)
    if name in NO_LOAD_IN_TREE:
        expected["estimate"] = None
    assert differences(reading_of(BOARDS / name), expected) == []


@pytest.mark.parametrize("name", NO_LOAD_IN_TREE)
def test_an_estimate_once_the_load_is_known(name, tmp_path):
    expected = expected_of(BOARDS / name)
    board = copy_with_load(BOARDS / name, tmp_path, expected["estimate"]["cpu_util"])
    assert differences(reading_of(board), expected) == []


@pytest.mark.parametrize("name", NAMES)
def test_an_estimate_says_what_it_is(name):
    estimate = reading_of(BOARDS / name)["estimate"]
    wanted = expected_of(BOARDS / name).get("estimate")
    if estimate is None:
        assert wanted is None or name in NO_LOAD_IN_TREE
        return
    assert estimate["label"] == "estimated"
    assert "not" in estimate["note"]  # a measurement, or this board's


@pytest.mark.parametrize("name", NAMES)
def test_no_total_has_a_reason(name):
    power = reading_of(BOARDS / name)["power"]
    assert (power["total_w"] is None) == (power["kind"] == "unavailable")
    assert power["total_w"] is not None or power["reason"]
    assert power["total_w"] is None or power["sensor"]


def test_load_between_samples():
    expected = expected_of(BOARDS / "rpi-4b")
    reading = reading_of(BOARDS / "rpi-4b")
    assert reading["estimate"]["cpu_util"] == expected["cpu_util_between_samples"]


def test_what_is_not_compared_is_there():
    """A name in the list that no board has would hide a field under a wrong spelling."""
    said = set()
    for name in NAMES:
        for key, value in expected_of(BOARDS / name).items():
            said.add(key)
            if isinstance(value, dict):
                said.update(f"{key}.{inner}" for inner in value)
    assert set(COMMENTARY) <= said


@pytest.mark.parametrize("name", ["jetson-orin-nano-r36", "generic-none"])
def test_the_command_prints_the_same_and_nothing_else(name):
    done = edge_agent("sensors", "--root", BOARDS / name, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == reading_of(BOARDS / name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rpi-4b", ["unknown", "W, estimated; not a measurement", "48.2 °C", "not now"]),
        ("jetson-orin-nano-r36", ["9.250 W measured", "VDD_IN", "not added", "switched off"]),
        ("jetson-orin-nano-faults", ["VDD_CPU_GPU_CV", "unknown", "ENODATA"]),
        ("x86-rapl-no-permission", ["unknown: permission", "no permission", "chgrp"]),
        ("rpi-4b-poe-hat", ["estimated", "0.577 A"]),
        ("generic-none", ["a board without a name", "unknown"]),
        ("coral-dev-board", ["apex_0", "58.3 °C", "trips at 85, 90, 95 °C"]),
        ("jetson-orin-nx-throttled", ["yes, now: cpu-throttle-alert", "VDD_IN:crit"]),
    ],
)
def test_what_people_read(name, words, capsys):
    assert main(["sensors", "--root", str(BOARDS / name)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    for word in words:
        assert word in said.out
    assert max(map(len, said.out.splitlines())) < 200


@pytest.mark.parametrize("name", NAMES)
def test_lines_fit_and_do_nothing_to_a_terminal(name):
    text = show(read_board(open_board(BOARDS / name)), ["something to do"])
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "to do" in text
    assert all(one.isprintable() for one in text.replace("\n", ""))


def test_words_of_a_strangers_recording(tmp_path):
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"\033]0;mine\007 \033[2J\0")
    text = show(read_board(open_board(tmp_path)), [])
    assert "\033" not in text
    assert "\007" not in text
    assert "?]0;mine?" in text


def test_how_to_let_the_firmware_be_asked(tmp_path, monkeypatch):
    (tmp_path / "vcio").touch()
    monkeypatch.setattr(command, "FIRMWARE", (tmp_path / "none", tmp_path / "vcio"))
    reading = read_board(open_board(BOARDS / "rpi-4b"))
    here = open_board(Path("/"))
    assert hints(reading, here) == []
    monkeypatch.setattr(command.os, "access", lambda *_: False)
    assert "usermod -aG video" in hints(reading, here)[0]
    assert hints(reading, open_board(BOARDS / "rpi-4b")) == []


def test_a_calibration_that_cannot_be_used_is_said(tmp_path, capsys):
    (tmp_path / "power-calibration.json").write_text("{")
    assert run_sensors(Path("/"), as_json_document=False, state_dir=tmp_path) == 0
    assert "is no calibration" in " ".join(capsys.readouterr().out.split())


def test_this_very_machine():
    """Whatever it is: an exit code of 0 and a document of the contract."""
    done = edge_agent("sensors", "--json")
    assert done.returncode == 0, done.stderr
    reading = json.loads(done.stdout)
    assert reading["board_id"]["family"] in ("x86", "raspberry-pi", "jetson", "coral", "generic")
    assert reading["power"]["total_w"] != 0


def test_a_root_that_is_none(tmp_path):
    done = edge_agent("sensors", "--root", tmp_path / "nowhere")
    assert done.returncode == 2
    assert "is not a folder" in done.stderr


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("samples/times.json", '[{"dir": "../..", "t_mono_s": 1}]'),
        ("samples/times.json", "{"),
        ("_errors.json", "[]"),
    ],
)
def test_a_recording_that_makes_no_sense(tmp_path, file, text):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    done = edge_agent("sensors", "--root", tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert file in done.stderr
