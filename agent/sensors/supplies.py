"""What the kernel calls power supplies: batteries, and the Raspberry Pi's PoE HATs.

Documentation/ABI/testing/sysfs-class-power: microvolts, microamperes, microwatts. A battery's
current is negative while it discharges, by the book, and positive with many drivers, so only its
size counts. What a battery gives while `status` is Discharging is what the machine draws; while it
charges nothing is known. A battery with `scope` Device is a mouse's, not the machine's, and
one whose chip measures the voltage alone, as max17040 does, tells nothing of power.
PoE: drivers/power/supply/rpi_poe_power.c of raspberrypi/linux gives a current without a voltage.
"""

from __future__ import annotations

from agent.contract.reading import Power, Rail
from agent.sensors.files import BoardFiles
from agent.sensors.source import PowerReading, per, rail_of, unavailable

SUPPLIES = "sys/class/power_supply/*"
WATCHED = (f"{SUPPLIES}/type", f"{SUPPLIES}/scope")
POE = "sys/class/power_supply/rpi-poe"
POE_V = 5.0  # what the HAT makes for the board; nobody measures it


class Batteries:
    """The machine's batteries; several may discharge at a time."""

    part_of = "the battery's share"

    def __init__(self, files: BoardFiles, paths: list[str]) -> None:
        self._files = files
        self._paths = paths
        self.layout: object = paths

    def read(self, at_s: float) -> PowerReading:  # noqa: ARG002 - as every source
        """Return what those that discharge give together."""
        rails: dict[str, Rail] = {}
        unreadable: list[str] = []
        resting: list[str] = []
        for path in self._paths:
            name = path.rpartition("/")[2]
            status = self._files.sensor(f"{path}/status").text()
            if status != "Discharging":
                resting.append(f"{name} ({(status or 'status unknown').lower()})")
                continue
            rail = self._read(path)
            if rail is None:
                unreadable.append(name)
            else:
                rails[name] = rail
        discharging = [*rails, *unreadable]
        total = sum(rail.power_w or 0.0 for rail in rails.values())
        reason = None
        if unreadable:
            reason = f"{', '.join(unreadable)} unreadable"
        elif not rails:
            reason = f"no battery discharges, which would tell what is drawn: {', '.join(resting)}"
        elif not total:  # it has just begun to, and its driver has not measured since
            reason = f"{', '.join(rails)} discharges, and says 0 W"
        power = Power(
            kind="unavailable" if reason else "measured",
            scope="battery_discharge" if discharging else "none",
            total_w=None if reason else total,
            rails=rails,
            in_total=[] if reason else list(rails),
            excluded_from_total=[*(rails if reason else ()), *(resting if discharging else ())],
            sensor=None if reason else " + ".join(rails),
            reason=reason,
            rails_unreadable=unreadable,
        )
        return PowerReading(power=power)

    def _read(self, path: str) -> Rail | None:
        volt_uv = self._number(path, "voltage_now")
        curr_ua = self._number(path, "current_now")
        power_uw = self._number(path, "power_now")
        return rail_of(per(volt_uv, 1e6), per(curr_ua, 1e6), per(power_uw, 1e6))

    def _number(self, path: str, name: str) -> int | None:
        if not self._files.has(f"{path}/{name}"):
            return None
        number = self._files.sensor(f"{path}/{name}").number()
        return None if number is None else abs(number)


class Poe:
    """A PoE HAT: a measured current, and watts only if it makes the 5 V that it should."""

    part_of = "what comes in by PoE"

    def __init__(self, files: BoardFiles) -> None:
        self._files = files
        self.layout: object = POE

    def read(self, at_s: float) -> PowerReading:  # noqa: ARG002 - as every source
        """Return the HAT's output, as an estimate; nothing while it is not fed itself."""
        is_fed = self._files.sensor(f"{POE}/online").number() != 0
        curr_ua = self._files.sensor(f"{POE}/current_now").number()
        name = POE.rpartition("/")[2]
        if not is_fed:
            return PowerReading(power=unavailable(f"{name} is not fed by the network"))
        if curr_ua is None:
            return PowerReading(power=unavailable(f"{name} unreadable", "board_input_5v", name))
        if curr_ua <= 0:
            return PowerReading(power=unavailable(f"{name} feeds nothing into the board"))
        power = Power(
            kind="estimated",
            scope="board_input_5v",
            total_w=curr_ua / 1e6 * POE_V,
            rails={name: Rail(volt_v=None, curr_a=curr_ua / 1e6, power_w=None)},
            in_total=[name],
            excluded_from_total=[],
            sensor=name,
            reason="no sensor measures the voltage",
            label=f"measured current x assumed {POE_V} V: estimated",
            voltage_assumed_v=POE_V,
        )
        return PowerReading(power=power)


def find_batteries(files: BoardFiles) -> Batteries | None:
    """Return the machine's batteries, None where it has none."""
    paths = [
        path
        for path in files.find(SUPPLIES)
        if files.read(f"{path}/type") == "Battery" and files.read(f"{path}/scope") != "Device"
    ]
    values = (f"{path}/{name}" for path in paths for name in ("power_now", "current_now"))
    return Batteries(files, paths) if any(map(files.has, values)) else None


def find_poe(files: BoardFiles) -> Poe | None:
    """Return the PoE HAT, None where there is none."""
    return Poe(files) if files.has(POE) else None
