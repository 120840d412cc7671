"""`edge-agent sensors calibrate`: the owner's meter, read at rest and under load.

From a terminal in one go, else in one or two steps: `--idle-w 2.8` keeps what the board said of
itself at rest, and `--load-w 6.1` later makes it busy and fits the line through both.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.contract.reading import Reading
from agent.durable import write_durably
from agent.errors import EXIT_OK, AgentError
from agent.sensors.calibration import (
    FILE_NAME,
    TELLS_NOTHING,
    Calibration,
    Point,
    all_cores_busy,
    check_watts,
    fit,
    observe,
    save_calibration,
)
from agent.sensors.estimate import ESTIMATED
from agent.sensors.reader import BoardReader
from agent.sensors.replay import Board, open_board

AT_REST = "power-calibration-at-rest.json"
# Before the board is watched: until fans, clocks and a meter's own mean follow the load.
SETTLE_S = 5.0
# The daemon has another user than the owner who calibrates with sudo.
READABLE = 0o644
MOST_W = 1000.0


class Rest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first of two steps: the meter's watts, and what the board said of itself meanwhile."""

    board_id: str
    watts: float
    load: float | None
    pmic_w: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Looks at one board for some seconds at a time."""

    board: Board
    reader: BoardReader
    seconds: float
    settle_s: float

    def observe(self, what: str) -> Point:
        """Return what the board says of itself meanwhile; progress goes to stderr."""
        left_s = self.seconds

        def sleep(seconds: float) -> None:
            nonlocal left_s
            _progress(f"{what}: {left_s:.0f} s")
            time.sleep(seconds)
            left_s = max(0.0, left_s - seconds)

        _progress(f"{what}: settling for {self.settle_s:.0f} s")
        time.sleep(self.settle_s)
        point = observe(self.board.files, self.read, self.seconds, sleep=sleep)
        _progress(f"{what}: done\n")
        return point

    def read(self) -> Reading:
        """Return the board's reading of this moment."""
        return self.reader.read().reading


def run_calibrate(
    root: Path,
    state_dir: Path,
    *,
    idle_w: float | None,
    load_w: float | None,
    seconds: float,
    settle_s: float = SETTLE_S,
    ask_watts: Callable[[str], float] | None = None,
) -> int:
    """Fit the estimate to the meter's readings; return the exit code.

    Args:
        root: of the board.
        state_dir: where the calibration is kept.
        idle_w: the meter's reading at rest; None: asked for, or of the step before.
        load_w: the same with all cores busy; None: asked for, or left to the next step.
        seconds: how long each is watched.
        settle_s: how long before that.
        ask_watts: asks a person; None: a terminal, if there is one.

    Raises:
        AgentError: the readings make no line, or it cannot be kept.
    """
    # A service manager may have closed it.
    if ask_watts is None and sys.stdin and sys.stdin.isatty():
        ask_watts = _ask_watts
    if idle_w is None and load_w is None and ask_watts is None:
        raise AgentError("there is no terminal to ask in; give --idle-w, --load-w or both")
    if idle_w is not None and load_w is not None:
        check_watts(idle_w, load_w)
    board = open_board(root)
    with _watch(board, seconds, settle_s) as watch:
        board_id = _estimated_board(watch.read())
        asks = ask_watts if idle_w is None and load_w is None else None
        rest = _rest(watch, board_id, state_dir, idle_w, asks)
        if load_w is None and asks is None:
            _keep(state_dir / AT_REST, msgspec.json.encode(rest))
            print("kept; now make all cores busy, read the meter, and give its watts:")
            print("`edge-agent sensors calibrate --load-w W`")
            return EXIT_OK
        if load_w is not None and idle_w is None:
            check_watts(rest.watts, load_w)
        with all_cores_busy():
            point = watch.observe("all cores busy")
            busy_w = asks("What does the meter show now, in watts? ") if asks else load_w
    assert busy_w is not None  # asked for, or given
    at_rest = Point(load=rest.load, pmic_w=rest.pmic_w)
    today = time.strftime("%Y-%m-%d")
    calibration = fit(board_id, (at_rest, point), (rest.watts, busy_w), today)
    _keep(state_dir / FILE_NAME, calibration)
    (state_dir / AT_REST).unlink(missing_ok=True)
    _tell(calibration, state_dir / FILE_NAME)
    return EXIT_OK


def _estimated_board(reading: Reading) -> str:
    """Return the id of a board whose power is estimated.

    Raises:
        AgentError: a sensor says what it draws, so an estimate would never be shown.
    """
    power = reading.power
    if power.scope not in ESTIMATED:
        what = power.sensor or power.reason
        raise AgentError(f"nothing is estimated here, as there is a sensor of power: {what}")
    return reading.board_id.id


def _rest(
    watch: Watch,
    board_id: str,
    state_dir: Path,
    idle_w: float | None,
    asks: Callable[[str], float] | None,
) -> Rest:
    """Return the reading at rest: made now, or that of the step before."""
    if idle_w is None and asks is None:
        return _kept(state_dir / AT_REST, board_id)
    point = watch.observe("at rest; leave the board alone")
    if point.load is None and point.pmic_w is None:
        raise AgentError(TELLS_NOTHING)
    watts = asks("What does the meter show now, in watts? ") if asks else idle_w
    assert watts is not None  # asked for, or given
    return Rest(board_id=board_id, watts=watts, load=point.load, pmic_w=point.pmic_w)


def _kept(path: Path, board_id: str) -> Rest:
    try:
        rest = msgspec.json.decode(path.read_bytes(), type=Rest)
    except FileNotFoundError:
        raise AgentError("the reading at rest is not there; give --idle-w first") from None
    except (OSError, msgspec.DecodeError) as error:
        raise AgentError(f"{path} cannot be used: {error}; give --idle-w again") from error
    if rest.board_id != board_id:
        raise AgentError(f"{path} is of another board, {rest.board_id}; give --idle-w again")
    return rest


def _keep(path: Path, content: Calibration | bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Calibration):
            save_calibration(path, content)
        else:
            write_durably(path, content)
        path.chmod(READABLE)
    except OSError as error:
        reason = f"{path} cannot be written ({error.strerror}); run this with sudo"
        raise AgentError(f"{reason}, or name another device.state_dir") from error


@contextlib.contextmanager
def _watch(board: Board, seconds: float, settle_s: float) -> Iterator[Watch]:
    reader = BoardReader(board.files.root, ask=board.ask, files=board.files)
    try:
        yield Watch(board=board, reader=reader, seconds=seconds, settle_s=settle_s)
    finally:
        reader.close()


def _tell(calibration: Calibration, path: Path) -> None:
    of = "load (0 to 1)" if calibration.basis == "cpu_load" else "watts of the power chip"
    print(f"{calibration.offset_w:.3f} W + {calibration.slope:.3f} W x {of}, kept in {path}")
    print("the agent uses it from its next start on")


def _ask_watts(question: str) -> float:
    while True:
        print(question, end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline()
        if not answer:
            raise AgentError("the terminal ended before an answer; nothing is kept")
        watts = parse_watts(answer)
        if watts is not None:
            return watts
        print("a number of watts, such as 2.8", file=sys.stderr)


def parse_watts(text: str) -> float | None:
    """Return what a meter may show of a board, written as 2.8, 2,8 or 2.8 W; else None."""
    try:
        watts = float(text.strip().removesuffix("W").replace(",", "."))
    except ValueError:
        return None
    return watts if 0 < watts < MOST_W else None


def _progress(text: str) -> None:
    """Show where things stand: in one line that changes on a terminal, else each in its own."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text.endswith("\n"):
        print(text, end="", file=sys.stderr, flush=True)
