"""How warm the board is: the kernel's thermal zones, Edge TPUs on PCIe, and a few chips more.

Zones (Documentation/driver-api/thermal/sysfs-api.rst) have a `type`, which names them here, and a
`temp` in millidegrees. Zones of a Jetson's power-gated parts answer EAGAIN for as long as these are
off, so nothing is tried twice. A Coral's driver has a file of its own (gasket-driver,
src/apex_driver.c). Of the chips in hwmon only those are read that measure the board and have no
zone: most repeat one, or belong to a disk, a radio or a current sensor.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.sensors.files import BoardFiles, Sensor
from agent.sensors.hwmon import find_chips

# What silicon stands at all; thermal_acpi.c calls firmware's figures below -55 °C bogus too.
# tegrastats knows -256 °C of a part that is off-line. apex_driver.c makes -89.7 °C of an ADC that
# reads all ones, as that of a Coral does that fell off the bus, and 166 °C of one that reads 0.
LOWEST_MC, HIGHEST_MC = -55_000, 150_000
# A Jetson's PMIC-Die is 50 or 100 °C whatever happens (jetson_stats leaves it out as well).
CONSTANT_ZONES = frozenset({"PMIC-Die"})
# Chips to read, with the zones that say the same: RP1, the I/O chip of a Raspberry Pi 5, and
# processors of PCs. A kernel without thermal zones may still have the chip of one.
CHIPS: dict[str, frozenset[str]] = {
    "rp1_adc": frozenset(),
    "k10temp": frozenset(),
    "zenpower": frozenset(),
    "coretemp": frozenset({"x86_pkg_temp"}),
    "cpu_thermal": frozenset({"cpu-thermal", "cpu_thermal"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Temperatures:
    """By zone, in degrees Celsius; `ignored` are constants that are no readings."""

    temps_c: dict[str, float]
    unreadable: list[str]
    ignored: list[str]


class ThermalReader:
    """Reads what was found at the start; the names stay the same for as long as it lives."""

    def __init__(self, files: BoardFiles) -> None:
        self._sensors: dict[str, Sensor] = {}
        self._ignored: list[str] = []
        for folder in files.find("sys/class/thermal/thermal_zone*"):
            kind = files.read(f"{folder}/type") or folder.rpartition("/")[2]
            if kind in CONSTANT_ZONES:
                self._ignored.append(kind)
            else:
                self._add(kind, files.sensor(f"{folder}/temp"))
        zones = frozenset(self._sensors)
        for chip in find_chips(files):
            if chip.name in CHIPS and not CHIPS[chip.name] & zones:
                # coretemp of a processor without a package sensor begins with its second number.
                inputs = files.find(f"{chip.folder}/temp*_input")
                path = inputs[0] if inputs else f"{chip.folder}/temp1_input"
                self._add(chip.name, files.sensor(path))
        for folder in files.find("sys/class/apex/apex_*"):
            self._add(folder.rpartition("/")[2], files.sensor(f"{folder}/temp"))

    def read(self) -> Temperatures:
        """Return what every sensor says now."""
        temps_c: dict[str, float] = {}
        unreadable = []
        for name, sensor in self._sensors.items():
            degrees = celsius(sensor.number())
            if degrees is None:
                unreadable.append(name)
            else:
                temps_c[name] = degrees
        return Temperatures(temps_c=temps_c, unreadable=unreadable, ignored=list(self._ignored))

    def _add(self, name: str, sensor: Sensor) -> None:
        """Name a sensor; of several with one name the second is name_2."""
        free, number = name, 1
        while free in self._sensors:
            number += 1
            free = f"{name}_{number}"
        self._sensors[free] = sensor


def celsius(millidegrees: int | None) -> float | None:
    """Return degrees, or None for what no sensor can mean."""
    if millidegrees is None or not LOWEST_MC <= millidegrees <= HIGHEST_MC:
        return None
    return millidegrees / 1000
