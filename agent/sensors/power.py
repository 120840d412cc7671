"""What the board draws, by the sensor that covers most of it.

A total comes from one source alone. Others stay visible as rails, left out of the total: supplies
feed one another, and watts of different scope do not add up. Where the source that covers most
cannot be read, the total is unknown; another one's would be another quantity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from agent.contract.reading import BoardIdentity, Power, Rail
from agent.sensors import ina3221, meters, rapl, supplies
from agent.sensors.commands import Ask, ask
from agent.sensors.files import BoardFiles
from agent.sensors.pmic import find_pmic
from agent.sensors.source import PowerReading, PowerSource, add_unique, unavailable

__all__ = ["PowerReader", "PowerReading"]

# Chips come and go (a meter on USB, a driver that is loaded late); to look costs some milliseconds.
LOOK_AGAIN_S = 30.0
NO_SENSOR = "this board has no sensor of power that is known here"
Signature = dict[str, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of sensor; its files are looked for anew when those `watched` say otherwise."""

    find: Callable[[BoardFiles, BoardIdentity, Ask], PowerSource | None]
    watched: tuple[str, ...] = ()


# The one that covers most stands first. An estimate (PoE) comes after all that measure.
KINDS = (
    Kind(find=lambda files, board, _: meters.find_meters(files, board), watched=meters.WATCHED),
    Kind(find=lambda files, _, __: supplies.find_batteries(files), watched=supplies.WATCHED),
    Kind(find=lambda files, board, _: ina3221.find_ina3221(files, board), watched=ina3221.WATCHED),
    Kind(find=lambda _, board, firmware: find_pmic(board, firmware)),
    Kind(find=lambda files, _, __: rapl.find_rapl(files), watched=rapl.WATCHED),
    Kind(find=lambda files, _, __: supplies.find_poe(files), watched=supplies.WATCHED),
)


class PowerReader:
    """Finds a board's sensors of power and reads them; one thread uses it."""

    def __init__(self, files: BoardFiles, identity: BoardIdentity, ask: Ask = ask) -> None:
        self._files = files
        self._identity = identity
        self._ask = ask
        self._found: dict[Kind, tuple[Signature, PowerSource | None]] = {}
        self._looked_at_s: float | None = None
        self._look()

    def read(self, at_s: float) -> PowerReading:
        """Return what the board draws; `at_s` is of the monotonic clock. Nothing is raised."""
        is_changed = False
        if self._looked_at_s is None:
            self._looked_at_s = at_s
        elif at_s - self._looked_at_s >= LOOK_AGAIN_S:
            self._looked_at_s = at_s
            is_changed = self._look()
        sources = [source for _, source in self._found.values() if source is not None]
        reading = merge([(source.part_of, source.read(at_s)) for source in sources])
        # A new counter begins at 0 J, and what lies between is unknown.
        return PowerReading(power=reading.power) if is_changed else reading

    def _look(self) -> bool:
        """Look for sensors whose files may have changed; return whether there are others now."""
        is_changed = False
        for kind in KINDS:
            signature = _signature(self._files, kind.watched)
            before, source = self._found.get(kind, ({}, None))
            if kind in self._found and before == signature:
                continue
            for path in before.keys() - signature.keys():
                self._files.forget(path.rpartition("/")[0])
            found = kind.find(self._files, self._identity, self._ask)
            # A chip of another kind came or went: counters go on.
            if _layout(found) != _layout(source):
                source, is_changed = found, True
            self._found[kind] = (signature, source)
        return is_changed


def merge(readings: list[tuple[str, PowerReading]]) -> PowerReading:
    """Return the first reading that has a total, with the rails of the others left out of it.

    Args:
        readings: what is said of a source's rails where another has the total, and its reading;
            the one that covers most first.
    """
    best = next((one for _, one in readings if one.power.scope != "none"), None)
    reasons = [one.power.reason for _, one in readings if one.power.reason]
    power = best.power if best else unavailable("; ".join(reasons) or NO_SENSOR)
    rails = dict(power.rails)
    excluded = list(power.excluded_from_total)
    unreadable = list(power.rails_unreadable)
    alarms = list(power.alarms)
    input_v = power.input_voltage_v
    for part_of, other in readings:
        if other is best:
            continue
        excluded.extend(_leave_out(rails, other.power, part_of))
        unreadable.extend(other.power.rails_unreadable)
        alarms.extend(other.power.alarms)
        if input_v is msgspec.UNSET:
            input_v = other.power.input_voltage_v
    whole = msgspec.structs.replace(
        power,
        rails=rails,
        excluded_from_total=excluded,
        rails_unreadable=unreadable,
        alarms=alarms,
        input_voltage_v=input_v,
    )
    return PowerReading(power=whole, energy_j=best.energy_j if best else None)


def _leave_out(rails: dict[str, Rail], other: Power, part_of: str) -> list[str]:
    """Add another source's rails to those shown; return what is said of each."""
    said = {text.partition(" (")[0]: text for text in other.excluded_from_total}
    for name, rail in other.rails.items():
        unique = add_unique(rails, name, rail)
        default = f"{unique} ({part_of})" if part_of else unique
        said[name] = said.get(name, default) if name not in other.in_total else default
    return list(said.values())


def _layout(source: PowerSource | None) -> object:
    return None if source is None else source.layout


def _signature(files: BoardFiles, watched: tuple[str, ...]) -> Signature:
    return {path: files.read(path) for pattern in watched for path in files.find(pattern)}
