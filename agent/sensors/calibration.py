"""Two readings of an owner's meter, and the line through them that replaces published figures.

On a board without sensors the line is over the processor's load, cpu_util * f/f_max; on one that
measures a part of itself (the Raspberry Pi 5's PMIC), over that part. It is kept in one small file,
and belongs to the board it was measured on: a card that moves to another board brings it along.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from agent.contract.reading import Reading
from agent.durable import write_durably
from agent.errors import AgentError
from agent.sensors.files import BoardFiles
from agent.sensors.load import CpuLoad, freq_ratio

FILE_NAME = "power-calibration.json"
MOST_BYTES = 4096
EVERY_S = 1.0
# Two points closer than this give a line that is mostly the meter's last digit.
LEAST_APART = {"cpu_load": 0.25, "pmic_sum": 0.5}
TELLS_NOTHING = "this board tells neither its processor's load and clock nor a part of its power"
# A busy core that does nothing else.
BUSY = "while True: pass"

Basis = Literal["cpu_load", "pmic_sum"]


class CalibrationError(AgentError):
    """The readings make no line."""


class Calibration(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """P = offset_w + slope * x; x is load (0..1), then slope is W, or watts of a part."""

    schema: Literal["edge-agent/power-calibration/1"] = "edge-agent/power-calibration/1"
    board_id: Annotated[str, Meta(max_length=64)]
    basis: Basis
    offset_w: Annotated[float, Meta(ge=-10, le=1000)]
    slope: Annotated[float, Meta(gt=0, le=1000)]
    date: Annotated[str, Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")]

    @property
    def label(self) -> str:
        """Return what an estimate made with it is called."""
        return f"estimated (calibrated {self.date})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What the board said of itself while the meter was read, as means; None: nothing."""

    load: float | None  # cpu_util * f/f_max
    pmic_w: float | None


def observe(
    files: BoardFiles,
    read: Callable[[], Reading],
    seconds: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Point:
    """Watch the board for some seconds, EVERY_S apart, and return the means.

    Args:
        files: the board's files; no other thread uses them meanwhile.
        read: looks at the board, for its clocks and its PMIC.
        seconds: how long, at least one look.
        sleep: waits.
        clock: the monotonic clock.
    """
    loads: list[float] = []
    sums: list[float] = []
    cpu = CpuLoad(files)
    cpu.step()
    until = clock() + seconds
    while True:
        sleep(EVERY_S)
        reading = read()
        util, ratio = cpu.step(), freq_ratio(reading.clocks_hz)
        if util is not None and ratio is not None:
            loads.append(util * ratio)
        if reading.power.scope == "pmic_rails_sum" and reading.power.total_w is not None:
            sums.append(reading.power.total_w)
        if clock() >= until:
            break
    return Point(load=_mean(loads), pmic_w=_mean(sums))


def fit(
    board_id: str, points: tuple[Point, Point], watts: tuple[float, float], date: str
) -> Calibration:
    """Return the line through two readings of a meter, at rest and with all cores busy.

    Args:
        board_id: of BoardIdentity.
        points: what the board said, at rest and busy.
        watts: what the meter showed, in the same order.
        date: as 2026-11-21.

    Raises:
        CalibrationError: they make no line, and why.
    """
    basis: Basis
    if points[0].pmic_w is not None and points[1].pmic_w is not None:
        basis, low, high = "pmic_sum", points[0].pmic_w, points[1].pmic_w
    elif points[0].load is not None and points[1].load is not None:
        basis, low, high = "cpu_load", points[0].load, points[1].load
    else:
        raise CalibrationError(TELLS_NOTHING)
    check_watts(*watts)
    least = LEAST_APART[basis]
    if high - low < least:
        what = "load of the processor" if basis == "cpu_load" else "watts of the PMIC"
        raise CalibrationError(
            f"rest and load are too much alike: {what} {low:.2f} and {high:.2f}, at least "
            f"{least:g} apart; end other programs, and load all cores"
        )
    slope = (watts[1] - watts[0]) / (high - low)
    made = {
        "board_id": board_id,
        "basis": basis,
        "offset_w": round(watts[0] - slope * low, 6),
        "slope": round(slope, 6),
        "date": date,
    }
    try:
        return msgspec.convert(made, Calibration)
    except msgspec.ValidationError as error:
        raise CalibrationError(
            f"the readings make no line that a board could have: {error}"
        ) from None


def check_watts(idle_w: float, load_w: float) -> None:
    """Check what the meter showed.

    Raises:
        CalibrationError: no board draws less under load.
    """
    if not 0 < idle_w < load_w:
        raise CalibrationError(
            f"the meter must show more under load ({load_w:g} W) than at rest ({idle_w:g} W), "
            "and more than 0 W"
        )


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write the file, whole or not at all.

    Raises:
        OSError: the disk took nothing.
    """
    write_durably(path, msgspec.json.format(msgspec.json.encode(calibration)) + b"\n")


def load_calibration(path: Path, board_id: str) -> tuple[Calibration | None, str | None]:
    """Return the board's calibration, and why a file that is there is not used."""
    try:
        content = _read(path)
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"{path} cannot be read: {error.strerror}"
    if len(content) > MOST_BYTES:
        return None, f"{path} is larger than a calibration"
    try:
        calibration = msgspec.json.decode(content, type=Calibration)
    except (msgspec.DecodeError, RecursionError) as error:
        return None, f"{path} is no calibration: {error}"
    if calibration.board_id != board_id:
        return None, f"{path} was measured on another board: {calibration.board_id}"
    return calibration, None


@contextlib.contextmanager
def all_cores_busy() -> Iterator[None]:
    """Keep all cores busy that this process may use, each with a process of its own."""
    busy: list[subprocess.Popen[bytes]] = []
    try:
        for _ in os.sched_getaffinity(0):
            busy.append(subprocess.Popen([sys.executable, "-c", BUSY]))  # noqa: PERF401 - ended below
        yield
    finally:
        for process in busy:
            process.kill()
        for process in busy:
            process.wait()


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "no regular file")
        return os.read(descriptor, MOST_BYTES + 1)
    finally:
        os.close(descriptor)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
