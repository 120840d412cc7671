"""Every file of a board failing, one at a time; run under the library of read_errors.

    python fault_sweep.py FOLDER BOARD...

FOLDER holds the list of read errors, and takes the files of nonsense. Prints as JSON of each board
how many readings were taken, and what was wrong with those not right. Of the boards in THOROUGHLY
the first file of each kind fails in every way; all others fail with one errno each, in turn.
"""

from __future__ import annotations

import errno
import json
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from board_readings import reading_of
from read_errors import ReadErrors

ERRNOS = (errno.EAGAIN, errno.ENODATA, errno.EACCES, errno.EIO, errno.ENXIO)
# Together these have every kind of file that any board has.
THOROUGHLY = (
    "coral-dev-board",
    "generic-battery",
    "generic-ina226",
    "jetson-agx-thor-vin",
    "jetson-nano-r32",
    "jetson-orin-nano-r36",
    "rpi-4b",
    "rpi-4b-poe-hat",
    "rpi-5-load",
    "x86-rapl",
)
# No value can be made of these.
NONSENSE = {
    "empty": b"",
    "binary": bytes(range(256)),
    "nan": b"nan\n",
    "words": b"not available\n",
    "as long as a page": b"7" * 4096,
}
# These are numbers, if not of this board.
STRANGE = {"negative": b"-1\n", "beyond 64 bits": b"9" * 25}
# Files that say which board this is, and which sensor: other words make other readings of it, so
# all that is asked is that nothing breaks and nothing becomes 0.
NAMING = re.compile(
    r"model|compatible|nv_tegra_release|name|type|label|in[0-9]_label|rail_name_[0-9]|"
    r"max_energy_range_uj"
)


def sweep(board: Path, errors: ReadErrors, folder: Path) -> tuple[int, list[str]]:
    """Return how many readings were taken, and what was wrong."""
    healthy = reading_of(board)
    problems: list[str] = []
    count = 0
    for path, what, is_senseless, spoil in _faults(board, errors, folder):
        spoil(path)
        try:
            faulty = reading_of(board)
        except Exception:
            faulty = None
            problems.append(f"{path}: {what}: {traceback.format_exc(limit=-3)}")
        errors.clear()
        count += 1
        if faulty is not None:
            is_name = NAMING.fullmatch(path.name) is not None
            wrong = differs(healthy, faulty, is_strict=is_senseless and not is_name)
            problems += [f"{path.relative_to(board)}: {what}: {line}" for line in wrong]
    if reading_of(board) != healthy:
        problems.append("the board is another one after the faults")
    return count, problems


def differs(healthy: Any, faulty: Any, path: str = "", *, is_strict: bool) -> Iterator[str]:
    """Yield what a faulty reading says and must not.

    Each value must be the healthy one or unknown. Where not `is_strict`, the file says what things
    are called: then all that is asked of those that keep their names is that none becomes 0.
    """
    if isinstance(faulty, dict):
        for key, value in faulty.items():
            is_known = isinstance(healthy, dict) and key in healthy
            if is_known or is_strict:
                before = healthy[key] if is_known else None
                yield from differs(before, value, f"{path}.{key}".lstrip("."), is_strict=is_strict)
    elif isinstance(faulty, int | float) and faulty != healthy:
        is_zero = not faulty and healthy != 0
        is_other = is_strict and not (path.startswith("power.") and _is_near(healthy, faulty))
        if is_zero or is_other:
            yield f"{path} is {faulty!r}, not {healthy!r} or unknown"


def _is_near(healthy: Any, faulty: float) -> bool:
    """Return whether it may be volts times amperes where the chip's own product cannot be read.

    An INA219 counts its product in steps of 20 mW here (ina2xx.rst), an INA3221's is V * A.
    """
    return isinstance(healthy, float) and math.isclose(healthy, faulty, rel_tol=0.005, abs_tol=0.02)


def _faults(
    board: Path, errors: ReadErrors, folder: Path
) -> Iterator[tuple[Path, str, bool, Callable[[Path], None]]]:
    """Yield each file with each fault: path, its name, whether no value is left, what to do."""
    contents = {}
    for number, (what, content) in enumerate({**NONSENSE, **STRANGE}.items()):
        contents[what] = folder / f"content-{number}"
        contents[what].write_bytes(content)
    tried = set()
    for number, path in enumerate(files_read(board)):
        # What is done with words does not depend on which of twelve rails says them.
        kind = kind_of(path)
        is_thorough = board.name in THOROUGHLY and kind not in tried
        tried.add(kind)
        for code in ERRNOS if is_thorough else (ERRNOS[number % len(ERRNOS)],):
            yield path, errno.errorcode[code], True, lambda path, code=code: errors.fail(path, code)
        if is_thorough:
            # In pieces of 3 bytes, as a slow device's file may be read.
            yield path, "pieces", True, lambda path: errors.fail(path, -3)
            for what, other in contents.items():
                yield path, what, what in NONSENSE, lambda path, to=other: errors.replace(path, to)


def kind_of(path: Path | str) -> str:
    """Return what files of the same kind have in common."""
    return re.sub(r"[0-9]+", "", str(path))


def files_read(board: Path) -> list[Path]:
    """Return the files of the board that a reading opens; the others cannot matter to it."""
    opened: set[str] = set()

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str):
            opened.add(arguments[0])

    sys.addaudithook(note)
    reading_of(board)
    # What makes it a recording fails as a file of the user's does, with a sentence.
    not_the_board = (board / "_errors.json", board / "samples/times.json")
    paths = [Path(path) for path in sorted(opened) if path.startswith(f"{board}/")]
    return [path for path in paths if path not in not_the_board and path.is_file()]


if __name__ == "__main__":
    place, *boards = map(Path, sys.argv[1:])
    list_of_errors = ReadErrors(place)
    print(json.dumps({board.name: sweep(board, list_of_errors, place) for board in boards}))
