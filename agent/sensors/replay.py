"""A board to be looked at: the one we run on, or one whose files were recorded.

A recording is a folder with the board's files at their paths, and beside them what no file has:
`cmd/` with what commands printed there, `_errors.json` with the errno of files that could not be
read, and `samples/` with the same paths at later moments, stamped in `samples/times.json`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from agent.errors import AgentError
from agent.sensors.commands import Ask, ask
from agent.sensors.files import BoardFiles

# Between two looks at a board: counters tell nothing at the first.
APART_S = 1.0
ERRORS = "_errors.json"
TIMES = "samples/times.json"
COMMANDS = "cmd"

T = TypeVar("T")


class Moment(Struct, frozen=True):
    """One folder of samples, and when it was taken, on the monotonic clock."""

    dir: Annotated[str, Meta(pattern=r"^[0-9A-Za-z_-]+\Z")]
    t_mono_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """Where a board's sensors are read, and who answers questions to its tools."""

    files: BoardFiles
    ask: Ask
    is_live: bool
    recorded: tuple[Moment, ...] = ()

    def moments(self, sleep: Callable[[float], None] = time.sleep) -> Iterator[float]:
        """Yield the times at which to look; by then the files are those of that time.

        A live board is looked at twice, APART_S apart; a recorded one at each of its samples,
        without waiting, or once if it has none.
        """
        if self.is_live:
            yield time.monotonic()
            sleep(APART_S)
            yield time.monotonic()
        for moment in self.recorded:
            self.files.lay(self.files.root / "samples" / moment.dir)
            yield moment.t_mono_s
        if not self.is_live and not self.recorded:
            yield time.monotonic()


def open_board(root: Path) -> Board:
    """Return the board below a folder; "/" is the one we run on.

    Another system's folders, mounted somewhere, change as time passes, so they are looked at twice
    as well; but only at "/" are tools run, as those of this system would speak of this board.

    Raises:
        AgentError: the recording cannot be understood.
    """
    here = root.resolve()
    if here == Path("/"):
        return Board(files=BoardFiles(here), ask=ask, is_live=True)
    moments = _decode(here / TIMES, tuple[Moment, ...]) or ()
    failing = _decode(here / ERRORS, dict[str, str]) or {}
    # Nothing is ever recorded from there, and every kernel has it (sysfs(5)).
    is_live = not moments and os.path.isdir(here / "sys/kernel")  # noqa: PTH112 - as in has()
    files = BoardFiles(here, failing=failing)
    return Board(files=files, ask=recorded_answers(here), is_live=is_live, recorded=moments)


def recorded_answers(root: Path) -> Ask:
    """Return what answers commands from the files in `cmd/` below root, and runs none."""
    files = BoardFiles(root)

    def answer(*command: str, **_: object) -> str | None:
        return files.read(f"{COMMANDS}/{command_file(*command)}")

    return answer


def command_file(*command: str) -> str:
    """Return the name of the file with a command's answer."""
    words = (Path(command[0]).name, *command[1:])
    return "_".join(words).replace("/", "_") + ".txt"


def _decode(file: Path, kind: type[T]) -> T | None:
    """Return what a file of the recording says; None where there is no such file."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise AgentError(f"{file} cannot be used: {error}") from error
