"""Files of boards that fail while they are read: unknown fields, never an exception, never a 0."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from board_readings import BOARDS, NAMES, differences, expected_of
from fault_sweep import THOROUGHLY, differs, kind_of
from hypothesis import given
from hypothesis import strategies as st
from read_errors import ReadErrors, build

from agent.sensors.files import BoardFiles

TESTS = Path(__file__).resolve().parent.parent
OTHERS = tuple(name for name in NAMES if name not in THOROUGHLY)
FAILING = sorted(path.parent.name for path in BOARDS.glob("*/_errors.json"))


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    built = build(tmp_path_factory.mktemp("read_errors"))
    if built is None:
        pytest.skip("no C compiler (cc, gcc or clang) to build the faults with")
    return built


@pytest.fixture
def errors(tmp_path):
    made = ReadErrors(tmp_path)
    yield made
    made.close()


def run(library, errors, *command):
    environment = {**os.environ, **errors.environment(library)}
    path = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env={**environment, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("name", FAILING)
def test_errors_of_the_board_raised_for_real(name, library, errors, tmp_path):
    """The files are there with a value, and reading them fails as it did on the board."""
    board = tmp_path / name
    shutil.copytree(BOARDS / name, board)
    failing = json.loads((board / "_errors.json").read_text())
    (board / "_errors.json").unlink()
    for path, code in failing.items():
        (board / path).write_text("45000\n")
        errors.fail(board / path, getattr(errno, code))
    done = run(library, errors, "-m", "agent", "sensors", "--root", board, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert differences(json.loads(done.stdout), expected_of(BOARDS / name)) == []
    assert failing
    errors.clear()
    done = run(library, errors, "-m", "agent", "sensors", "--root", board, "--json")
    assert json.loads(done.stdout)["read_errors"] == {}


# Some of them in each process: to start one takes as long as to go through a small board.
HALVES = (THOROUGHLY[::2], THOROUGHLY[1::2])


@pytest.mark.parametrize("names", [*HALVES, OTHERS], ids=["one half", "other half", "others"])
def test_every_file_fails(names, library, errors, tmp_path):
    boards = [BOARDS / name for name in names]
    done = run(library, errors, TESTS / "fault_sweep.py", tmp_path, *boards)
    assert done.returncode == 0, done.stderr
    swept = json.loads(done.stdout)
    assert {name: problems for name, (_, problems) in swept.items() if problems} == {}
    assert [name for name in names if not swept[name][0]] in ([], ["generic-none"])


def test_every_kind_of_file_fails_in_every_way():
    kinds = {
        name: {kind_of(path.name) for path in (BOARDS / name).rglob("*") if path.is_file()}
        for name in NAMES
    }
    thorough = set().union(*(kinds[name] for name in THOROUGHLY))
    assert set().union(*kinds.values()) - thorough == {"loadavg"}  # which nobody reads


def test_a_descriptor_that_is_open_already(library, errors, tmp_path):
    """A sensor fails for a while: unknown meanwhile, and known again after."""
    file = tmp_path / "temp"
    file.write_text("41000\n")
    program = f"""
import errno, sys
from pathlib import Path
from agent.sensors.files import BoardFiles
from read_errors import ReadErrors
errors = ReadErrors(Path({str(tmp_path)!r}))
sensor = BoardFiles(Path({str(tmp_path)!r})).sensor("temp")
print(sensor.number(), sensor.error)
for code in (errno.EAGAIN, errno.EIO, errno.ENODEV, errno.ENXIO, errno.EACCES):
    errors.fail(Path({str(file)!r}), code)
    print(sensor.number(), sensor.error)
    errors.clear()
    print(sensor.number(), sensor.error)
"""
    done = run(library, errors, "-c", program)
    assert done.stderr == ""
    good = "41000 None"
    bad = ["None EAGAIN", "None EIO", "None ENODEV", "None ENXIO", "None EACCES"]
    assert done.stdout.splitlines() == [good, *(line for one in bad for line in (one, good))]


def test_the_sweep_sees_what_it_is_for():
    """It would be worth nothing if it found nothing wrong in a wrong reading."""
    healthy = {"power": {"total_w": 9.2}, "throttle": {"throttled_now": True}, "fan": {"rpm": 0}}
    assert not list(differs(healthy, healthy, is_strict=True))
    assert not list(differs(healthy, {"power": None, "fan": {"rpm": None}}, is_strict=True))
    for wrong in ({"power": {"total_w": 0.0}}, {"throttle": {"throttled_now": False}}):
        assert list(differs(healthy, wrong, is_strict=False))
        assert list(differs(healthy, wrong, is_strict=True))
    assert list(differs(healthy, {"power": {"total_w": 4.5}}, is_strict=True))
    assert list(differs(healthy, {"temps_c": {"cpu": 0.0}}, is_strict=True))


@given(content=st.binary(max_size=5000))
def test_any_content(content, tmp_path_factory):
    folder = tmp_path_factory.mktemp("content")
    (folder / "file").write_bytes(content)
    files = BoardFiles(folder)
    sensor = files.sensor("file")
    number, text = sensor.number(), sensor.text()
    assert isinstance(text, str)
    assert number is None or abs(number) < 1 << 64
    assert number is None or str(abs(number)) in text.replace("_", "").lstrip("-+0") or not number
    assert files.read("file") == text
    assert files.raw("file") == content[:4096]
    assert files.errors() == {}
    files.close()


def test_a_folder_that_cannot_be_listed(tmp_path):
    (tmp_path / "sys/class/hwmon").mkdir(parents=True)
    (tmp_path / "sys/class/thermal").write_text("a file where a folder is expected")
    files = BoardFiles(tmp_path, failing={"sys/class/powercap/intel-rapl:0/energy_uj": "EACCES"})
    assert files.find("sys/class/thermal/*") == []
    assert files.find("sys/class/thermal/thermal_zone*/type") == []
    assert files.find("sys/class/powercap/intel-rapl*") == ["sys/class/powercap/intel-rapl:0"]
    assert files.has("sys/class/powercap/intel-rapl:0/energy_uj")
    assert files.has("sys/class/powercap/intel-rapl:0")
    assert not files.has("sys/class/powercap/intel-rapl:0/name")
    with pytest.raises(PermissionError):
        files.whole("sys/class/powercap/intel-rapl:0/energy_uj")
