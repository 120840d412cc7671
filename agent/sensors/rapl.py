"""RAPL: what Intel's and AMD's processors count of their own energy.

Documentation/power/powercap/powercap.rst: a zone's energy_uj runs from 0 to max_energy_range_uj
and begins again. Top zones are packages (one a socket, or a die), whose core and uncore are inside
them; dram is beside, and psys around all of them, on some machines. Names repeat from socket to
socket, so zones are known by their paths. The same package may be shown a second time as
`intel-rapl-mmio`. Since Linux 5.10 only root may read energy_uj (CVE-2020-8694), and containers
hide it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.contract.reading import Power, Rail
from agent.sensors.board import RAPL_ZONES
from agent.sensors.files import BoardFiles
from agent.sensors.source import EnergyCounter, PowerReading, unavailable

WATCHED = (f"{RAPL_ZONES}/name",)
CLASS = "sys/class/powercap/"
TWICE = f"{CLASS}intel-rapl-mmio:"
WHY_LEFT_OUT = {
    "core": "inside package",
    "uncore": "inside package",
    "dram": "add only if asked",
    "psys": "contains the packages",
}
NO_PERMISSION = "permission: energy_uj is root-only since Linux 5.10 (CVE-2020-8694)"
# What is hidden rather than closed is not there: /sys/devices/virtual/powercap in containers.
FORBIDDEN = ("EACCES", "EPERM", "ENOENT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """One counter; `rail` is its name, and its package's where others are named the same."""

    path: str
    name: str
    rail: str
    counter: EnergyCounter = field(default_factory=EnergyCounter)

    @property
    def is_package(self) -> bool:
        """Return whether the processor's energy is the sum of this one and its like."""
        return self.name.startswith("package")


class Rapl:
    """All zones of a machine."""

    part_of = "a part of the machine"

    def __init__(self, files: BoardFiles, zones: list[Zone]) -> None:
        self._files = files
        self._zones = zones
        self.layout: object = [(zone.path, zone.rail) for zone in zones]
        self._packages = [zone for zone in zones if zone.is_package]

    def read(self, at_s: float) -> PowerReading:
        """Return each zone's mean power since the last look, and that of all packages."""
        watts = {zone.rail: self._step(zone, at_s) for zone in self._zones}
        errors = {zone.rail: self._error(zone) for zone in self._packages}
        if not self._packages or all(error in FORBIDDEN for error in errors.values()):
            why = NO_PERMISSION if self._packages else "no zone of RAPL is a package"
            return PowerReading(power=unavailable(why))
        parts = [watts[zone.rail] for zone in self._packages]
        total = _sum(parts)
        failing = [f"{rail} unreadable: {error}" for rail, error in errors.items() if error]
        reason = ", ".join(failing) or "needs two samples, at most a minute apart"
        packages = [zone.rail for zone in self._packages]
        power = Power(
            kind="unavailable" if total is None else "measured",
            scope="cpu_package" if len(packages) == 1 else "cpu_packages",
            total_w=total,
            rails={rail: Rail(power_w=value) for rail, value in watts.items()},
            in_total=[] if total is None else packages,
            excluded_from_total=[_excluded(zone) for zone in self._zones if not zone.is_package],
            sensor=None if total is None else f"RAPL {' + '.join(packages)}",
            reason=reason if total is None else None,
        )
        energy_j = _sum([zone.counter.energy_j for zone in self._packages])
        return PowerReading(power=power, energy_j=energy_j)

    def _step(self, zone: Zone, at_s: float) -> float | None:
        now_uj = self._files.sensor(f"{zone.path}/energy_uj").number()
        range_uj = self._files.sensor(f"{zone.path}/max_energy_range_uj").number()
        return zone.counter.step(now_uj, at_s, range_uj)

    def _error(self, zone: Zone) -> str | None:
        return self._files.sensor(f"{zone.path}/energy_uj").error


def find_rapl(files: BoardFiles) -> Rapl | None:
    """Return the machine's RAPL zones, None where it has none."""
    found = files.find(RAPL_ZONES)
    paths = [path for path in found if not path.startswith(TWICE)] or found
    names = {path: files.read(f"{path}/name") or _guess(path) for path in paths}
    given = list(names.values())
    zones = []
    for path, name in names.items():
        package = names.get(path.rpartition(":")[0])
        is_unique = given.count(name) == 1
        rail = name if is_unique else f"{package or path.removeprefix(CLASS)}/{name}"
        zones.append(Zone(path=path, name=name, rail=rail))
    return Rapl(files, zones) if zones else None


def _guess(path: str) -> str:
    """Return a name for a zone whose own cannot be read, as where containers hide what it is."""
    number = path.removeprefix(CLASS).partition(":")[2]
    return f"zone {number}" if ":" in number else f"package-{number}"


def _excluded(zone: Zone) -> str:
    return f"{zone.rail} ({WHY_LEFT_OUT.get(zone.name, 'not a package')})"


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
