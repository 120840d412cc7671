"""A meter's two readings: in one step or two, by a person or by arguments."""

import contextlib
import json
import shutil
import threading

import pytest
from board_readings import BOARDS
from commands import edge_agent

from agent.errors import AgentError
from agent.sensors import calibrate, calibration
from agent.sensors.calibrate import AT_REST, parse_watts, run_calibrate
from agent.sensors.calibration import FILE_NAME, load_calibration
from agent.sensors.command import read_board
from agent.sensors.replay import open_board


class Processor:
    """A board's /proc/stat that goes on: a tenth of the time busy, or nine tenths under load."""

    def __init__(self, board):
        self.is_busy = False
        self._ticks = [0, 0]
        self._file = board / "proc/stat"
        self._file.parent.mkdir(exist_ok=True)
        self._over = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while not self._over.wait(0.01):
            busy = 9 if self.is_busy else 1
            self._ticks = [self._ticks[0] + busy, self._ticks[1] + 10 - busy]
            self._write()

    def _write(self):
        new = self._file.with_name("stat.new")
        new.write_text(f"cpu  {self._ticks[0]:>12} 0 0 {self._ticks[1]:>12} 0 0 0 0 0 0\n")
        # In place, as a reader keeps it open: the same length each time.
        with self._file.open("r+b" if self._file.exists() else "w+b") as file:
            file.write(new.read_bytes())

    def close(self):
        self._over.set()
        self._thread.join()


@pytest.fixture
def board(tmp_path, monkeypatch):
    """A Raspberry Pi 4 whose cores get busy when the command makes them so."""
    copy = tmp_path / "board"
    shutil.copytree(BOARDS / "rpi-4b", copy)
    shutil.rmtree(copy / "samples")
    processor = Processor(copy)

    @contextlib.contextmanager
    def all_cores_busy():
        processor.is_busy = True
        yield
        processor.is_busy = False

    monkeypatch.setattr(calibrate, "all_cores_busy", all_cores_busy)
    monkeypatch.setattr(calibration, "EVERY_S", 0.1)
    yield copy
    processor.close()


def run(board, state, **arguments):
    given = {"idle_w": None, "load_w": None, "ask_watts": None} | arguments
    return run_calibrate(board, state, seconds=0.3, settle_s=0.05, **given)


def line(state):
    calibration, problem = load_calibration(state / FILE_NAME, "rpi-4b")
    assert problem is None
    return calibration


def test_both_at_once(board, tmp_path, capsys):
    state = tmp_path / "state"
    assert run(board, state, idle_w=3.0, load_w=7.0) == 0
    made = line(state)
    # 4 W more for eight tenths more load.
    assert made.slope == pytest.approx(5.0, rel=0.2)
    assert made.offset_w == pytest.approx(2.5, abs=0.3)
    assert (state / FILE_NAME).stat().st_mode & 0o777 == 0o644
    said = capsys.readouterr()
    assert str(state / FILE_NAME) in said.out
    assert "all cores busy: done" in said.err
    estimate = read_board(open_board(BOARDS / "rpi-4b"), made).estimate
    assert estimate.label.startswith("estimated (calibrated ")
    assert estimate.estimate_w == pytest.approx(made.offset_w + made.slope * 0.25, abs=1e-3)


def test_one_after_the_other(board, tmp_path, capsys):
    state = tmp_path / "state"
    with pytest.raises(AgentError, match="give --idle-w first"):
        run(board, state, load_w=7.0)
    assert run(board, state, idle_w=3.0) == 0
    assert "--load-w" in capsys.readouterr().out
    assert not (state / FILE_NAME).exists()
    assert run(board, state, load_w=7.0) == 0
    assert line(state).slope == pytest.approx(5.0, rel=0.2)
    assert not (state / AT_REST).exists()


def test_a_person_is_asked(board, tmp_path):
    answers = iter([3.0, 7.0])
    asked = []

    def ask(question):
        asked.append(question)
        return next(answers)

    assert run(board, tmp_path / "state", ask_watts=ask) == 0
    assert len(asked) == 2
    assert line(tmp_path / "state").slope == pytest.approx(5.0, rel=0.2)


def test_what_cannot_end_well_is_said_before_the_board_is_watched(board, tmp_path, capsys):
    state = tmp_path / "state"
    with pytest.raises(AgentError, match="more under load"):
        run(board, state, idle_w=7.0, load_w=3.0)
    with pytest.raises(AgentError, match="sensor of power: ina3221 VDD_IN"):
        run(BOARDS / "jetson-orin-nano-r36", state, idle_w=7.0)
    assert capsys.readouterr().err == ""
    assert run(board, state, idle_w=7.0) == 0
    capsys.readouterr()
    with pytest.raises(AgentError, match="more under load"):
        run(board, state, load_w=3.0)
    assert capsys.readouterr().err == ""


def test_a_board_that_tells_nothing(tmp_path):
    """Said after the first of two steps, not after the second."""
    with pytest.raises(AgentError, match="tells neither"):
        run(BOARDS / "generic-none", tmp_path / "state", idle_w=3.0)
    assert not (tmp_path / "state").exists()


def test_a_step_of_another_board(board, tmp_path):
    state = tmp_path / "state"
    run(board, state, idle_w=3.0)
    kept = json.loads((state / AT_REST).read_text())
    (state / AT_REST).write_text(json.dumps(kept | {"board_id": "rpi-5"}))
    with pytest.raises(AgentError, match="of another board, rpi-5"):
        run(board, state, load_w=7.0)
    (state / AT_REST).write_text("{")
    with pytest.raises(AgentError, match="cannot be used"):
        run(board, state, load_w=7.0)


def test_nowhere_to_keep_it(board, tmp_path):
    (tmp_path / "state").write_text("a file")
    with pytest.raises(AgentError, match="cannot be written"):
        run(board, tmp_path / "state", idle_w=3.0)


def test_nobody_to_ask(tmp_path):
    config = tmp_path / "agent.toml"
    config.write_text(f'[device]\nstate_dir = "{tmp_path}"\n')
    done = edge_agent("sensors", "calibrate", "--config", config)
    assert done.returncode == 1
    assert "no terminal" in done.stderr
    done = edge_agent("sensors", "calibrate", "--config", config, "--idle-w", "0")
    assert done.returncode == 2
    assert "not a board's power" in done.stderr
    done = edge_agent("sensors", "--config", tmp_path / "none.toml", "calibrate", "--idle-w", "3")
    assert done.returncode == 78


@pytest.mark.parametrize(
    ("text", "watts"),
    [
        ("2.8", 2.8),
        (" 2,8 W\n", 2.8),
        ("6", 6.0),
        ("0", None),
        ("-3", None),
        ("nan", None),
        ("inf", None),
        ("1e9", None),
        ("", None),
        ("three", None),
    ],
)
def test_what_a_meter_shows(text, watts):
    assert parse_watts(text) == watts
