"""Power meters that somebody fitted to a board's supply: INA219 and its relatives.

Documentation/hwmon/ina2xx.rst and ina238.rst: in0 is the voltage over the shunt and in1 that of
the bus, both in mV; curr1 in mA, power1 in microwatts and without a sign, energy1 in microjoules
where the chip counts them. A chip's own `label` comes from the device tree
(Documentation/ABI/testing/sysfs-class-hwmon). Chips of other names may measure anything, so they
are left alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.contract.reading import BoardIdentity, Power, Rail
from agent.sensors.files import BoardFiles
from agent.sensors.hwmon import find_chips
from agent.sensors.source import EnergyCounter, PowerReading, add_unique, per, rail_of

CHIPS = (
    *("ina209", "ina219", "ina220", "ina226", "ina230", "ina231", "ina234", "ina260", "sy24655"),
    *("ina228", "ina237", "ina238", "ina700", "ina780", "sq52206"),
)
WATCHED = ("sys/class/hwmon/hwmon*/name", "sys/class/hwmon/hwmon*/label")
# A label that says "the whole board", such as VIN, VDD_IN, DC_IN, 12V-input.
_INPUT = re.compile(r"(.*[^A-Z])?V?_?IN(PUT)?|.*(SUPPLY|TOTAL).*", re.IGNORECASE)
# Carrier boards with an unlabelled INA219 of their own: IGX Orin (tegra234-p3740-0002.dtsi).
_OWN_METERS = ("p3740", "p3701-0008")


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """One chip, and its own name if the device tree gives it one."""

    folder: str
    chip: str
    label: str | None
    has_power: bool
    has_energy: bool

    @property
    def name(self) -> str:
        """Return what its rail is called."""
        return self.label or self.chip


class Meters:
    """All such chips of a board; `chosen` measures its input."""

    part_of = ""

    def __init__(self, files: BoardFiles, meters: list[Meter], chosen: Meter | None) -> None:
        self._files = files
        self._meters = meters
        self._chosen = chosen
        self._counter = EnergyCounter()
        self.layout: object = (meters, chosen)

    def read(self, at_s: float) -> PowerReading:
        """Return what all of them measure, and the board's input if one of them does that."""
        rails: dict[str, Rail] = {}
        unreadable: list[str] = []
        excluded: list[str] = []
        total: tuple[str, Rail] | None = None
        for meter in self._meters:
            rail = self._read(meter)
            if rail is None:
                unreadable.append(meter.name)
                continue
            name = add_unique(rails, meter.name, rail)
            if meter is self._chosen:
                total = (name, rail)
            elif meter.label:
                excluded.append(f"{name} (not the board's input by its name)")
            else:
                excluded.append(f"{name} (nothing says what it measures)")
        power = Power(
            kind="measured" if total else "unavailable",
            scope="board_input" if self._chosen else "none",
            total_w=total[1].power_w if total else None,
            rails=rails,
            in_total=[total[0]] if total else [],
            excluded_from_total=excluded,
            sensor=_sensor(self._chosen) if total and self._chosen else None,
            reason=None if total else self._why_none(),
            rails_unreadable=unreadable,
        )
        return PowerReading(power=power, energy_j=self._energy(at_s))

    def _why_none(self) -> str:
        if self._chosen:
            return f"{self._chosen.name} unreadable"
        names = ", ".join(meter.name for meter in self._meters)
        return f"nothing says that one of the meters ({names}) measures the board's input"

    def _read(self, meter: Meter) -> Rail | None:
        volt_mv = self._files.sensor(f"{meter.folder}/in1_input").number()
        curr_ma = self._files.sensor(f"{meter.folder}/curr1_input").number()
        power_uw = (
            self._files.sensor(f"{meter.folder}/power1_input").number() if meter.has_power else None
        )
        if power_uw is not None and (curr_ma or 0) < 0:
            # The chip's register has no sign; a current the other way round is the same power.
            power_uw = -abs(power_uw)
        return rail_of(per(volt_mv, 1e3), per(curr_ma, 1e3), per(power_uw, 1e6))

    def _energy(self, at_s: float) -> float | None:
        if self._chosen is None or not self._chosen.has_energy:
            return None
        sensor = self._files.sensor(f"{self._chosen.folder}/energy1_input")
        self._counter.step(sensor.number(), at_s)
        return self._counter.energy_j


def _sensor(meter: Meter) -> str:
    return f"{meter.chip} {meter.label}" if meter.label else meter.chip


def find_meters(files: BoardFiles, identity: BoardIdentity) -> Meters | None:
    """Return the board's meters, None where there are none."""
    meters = [
        Meter(
            folder=chip.folder,
            chip=chip.name.lower(),
            label=files.read(f"{chip.folder}/label") or None,
            has_power=files.has(f"{chip.folder}/power1_input"),
            has_energy=files.has(f"{chip.folder}/energy1_input"),
        )
        for chip in find_chips(files)
        if chip.name.lower() in CHIPS
    ]
    return Meters(files, meters, _choose(meters, identity)) if meters else None


def _choose(meters: list[Meter], identity: BoardIdentity) -> Meter | None:
    """Return the meter of the board's input: the one named so, else the only one without a name."""
    inputs = [meter for meter in meters if meter.label and _INPUT.fullmatch(meter.label)]
    if not inputs and not any(part in text for text in identity.compatible for part in _OWN_METERS):
        inputs = [meter for meter in meters if not meter.label]
    return inputs[0] if len(inputs) == 1 else None
