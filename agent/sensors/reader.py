"""One look at the whole board: every reader's part, put together.

What there is to read is found once. A list of devices that changes (a Coral that comes or falls off
its bus, a driver that is loaded late) is noticed within LOOK_AGAIN_S, and what measures heat is
found anew; what measures power looks after itself, as its counters go on. One thread uses a reader,
and nothing is opened before its first look.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from agent.contract.reading import BoardIdentity, Reading
from agent.sensors.accel import AccelReader
from agent.sensors.board import identify
from agent.sensors.calibration import Calibration
from agent.sensors.clocks import ClocksReader
from agent.sensors.commands import Ask, ask
from agent.sensors.estimate import Estimator
from agent.sensors.fan import FanReader
from agent.sensors.files import BoardFiles
from agent.sensors.mailbox import Mailbox, through_mailbox
from agent.sensors.power import PowerReader
from agent.sensors.thermal import ThermalReader
from agent.sensors.throttling import ThrottleReader

LOOK_AGAIN_S = 30.0
DEVICE_LISTS = (
    "sys/class/hwmon",
    "sys/class/thermal",
    "sys/class/apex",
    "sys/class/devfreq",
)
# Not there: that is no failure, boards differ.
ABSENT = "ENOENT"

Devices = frozenset[tuple[str, str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A reading, and when it began."""

    reading: Reading
    energy_j: float | None  # of a counter, as agent.sensors.source.PowerReading says
    at_s: float  # of the monotonic clock


@dataclass(frozen=True, slots=True, kw_only=True)
class _Board:
    """What is found once."""

    identity: BoardIdentity
    power: PowerReader
    estimator: Estimator


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heat:
    """What is found anew when devices come and go."""

    thermal: ThermalReader
    throttle: ThrottleReader
    clocks: ClocksReader
    fan: FanReader
    accel: AccelReader


class BoardReader:
    """Looks at the board below `root`, or at that of `files`."""

    def __init__(
        self,
        root: Path = Path("/"),
        ask: Ask = ask,
        calibration: Calibration | None = None,
        *,
        files: BoardFiles | None = None,
    ) -> None:
        self._files = files or BoardFiles(root)
        self._mailbox = Mailbox(self._files.root)
        self._ask = through_mailbox(ask, self._mailbox)
        self._calibration = calibration
        self._board: _Board | None = None
        self._heat: _Heat | None = None
        self._devices: Devices = frozenset()
        self._look_again_s = 0.0

    def read(self, at_s: float | None = None) -> Look:
        """Return one look, taken at `at_s` of the monotonic clock; None: now."""
        at_s = time.monotonic() if at_s is None else at_s
        board = self._board = self._board or self._find_board()
        # Power first: the look's time is what energy is computed with.
        power = board.power.read(at_s)
        heat = self._find_heat(board.identity, at_s)
        clocks = heat.clocks.read(at_s)
        temperatures = heat.thermal.read()
        temps_c = temperatures.temps_c
        reading = Reading(
            board_id=board.identity,
            power=power.power,
            estimate=board.estimator.estimate(power.power, clocks),
            temps_c=temps_c,
            temps_unreadable=temperatures.unreadable,
            temps_ignored=temperatures.ignored,
            throttle=heat.throttle.read(at_s, heat.accel.edgetpus(temps_c)),
            clocks_hz=clocks,
            fan=heat.fan.read(),
            accel=heat.accel.read(temps_c),
            read_errors={
                path: error for path, error in self._files.errors().items() if error != ABSENT
            },
        )
        return Look(reading=reading, energy_j=power.energy_j, at_s=at_s)

    def close(self) -> None:
        """Let go of all files; the next look finds everything anew."""
        self._board = self._heat = None
        self._files.close()
        self._mailbox.close()

    def _find_board(self) -> _Board:
        files, identity = self._files, identify(self._files)
        return _Board(
            identity=identity,
            power=PowerReader(files, identity, self._ask),
            estimator=Estimator(files, identity, self._calibration),
        )

    def _find_heat(self, identity: BoardIdentity, at_s: float) -> _Heat:
        """Return the readers of the devices that are there now."""
        heat = self._heat
        if heat is not None and at_s < self._look_again_s:
            return heat
        self._look_again_s = at_s + LOOK_AGAIN_S
        devices = list_devices(self._files.root)
        if heat is None or devices != self._devices:
            self._devices = devices
            self._files.forget_gone()
            seen = heat.throttle.seen if heat else 0
            files, ask = self._files, self._ask
            heat = self._heat = _Heat(
                thermal=ThermalReader(files),
                throttle=ThrottleReader(files, identity, ask, seen=seen),
                clocks=ClocksReader(files, identity, ask),
                fan=FanReader(files),
                accel=AccelReader(files),
            )
        return heat


def list_devices(root: Path) -> Devices:
    """Return all entries of the lists of devices; one that was replaced has another number."""
    return frozenset(entry for folder in DEVICE_LISTS for entry in _entries(root, folder))


def _entries(root: Path, folder: str) -> list[tuple[str, str, int]]:
    try:
        with os.scandir(root / folder) as entries:
            return [(folder, entry.name, entry.inode()) for entry in entries]
    except OSError:
        return []
