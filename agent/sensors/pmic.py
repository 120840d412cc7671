"""The power chip of the Raspberry Pi 5 and its kin, which measures twelve of its supplies.

`vcgencmd pmic_read_adc` (vcgencmd(1)) is the only way to its currents; no kernel file has them.
Its lines are `NAME_A current(i)=x A` and `NAME_V volt(j)=x V`; the numbers i and j differ, so pairs
are found by name. What is on the 5 V supply itself (USB, HATs) and what the converters lose is not
in the sum, and small currents read as exactly 0. EXT5V is the voltage that comes in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec import UNSET

from agent.contract.reading import BoardIdentity, Power, Rail, Scope
from agent.sensors.commands import Ask
from agent.sensors.source import PowerReading, unavailable

COMMAND = ("vcgencmd", "pmic_read_adc")
# Those before have no such chip; asking them costs a call and answers an error.
WITHOUT = ("bcm2835", "bcm2836", "bcm2837", "bcm2711")
INPUT = "EXT5V"
# Where nothing answers, it is asked this seldom: it may be for want of a group or a device.
SILENT_FOR_S = 60.0
_LINE = re.compile(
    r"\s*(\S{1,32})_([AV]) (?:current|volt)\([0-9]{1,3}\)=(-?[0-9]{1,6}\.?[0-9]{0,12})[AV]\s*"
)


class Pmic:
    """The power chip, by the firmware."""

    part_of = "a part of the board"

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._asks_at_s = float("-inf")
        self._has_answered = False
        self.layout: object = COMMAND

    def read(self, at_s: float) -> PowerReading:
        """Return its supplies and their sum; not all the board draws."""
        if at_s < self._asks_at_s:
            return self._silent()
        amps, volts = parse(self._ask(*COMMAND))
        if not amps:
            self._asks_at_s = at_s + SILENT_FOR_S
            return self._silent()
        self._has_answered = True
        return PowerReading(power=_sum_up(amps, volts))

    def _silent(self) -> PowerReading:
        reason = "the firmware does not answer pmic_read_adc"
        if not self._has_answered:
            reason += ": the agent needs /dev/vcio_gencmd or /dev/vcio, of the group video"
        scope: Scope = "pmic_rails_sum" if self._has_answered else "none"
        return PowerReading(power=unavailable(reason, scope))


def find_pmic(identity: BoardIdentity, ask: Ask) -> Pmic | None:
    """Return the power chip, None on boards that have none."""
    if identity.family != "raspberry-pi" or identity.soc in WITHOUT:
        return None
    return Pmic(ask)


def parse(answer: str | None) -> tuple[dict[str, float], dict[str, float]]:
    """Return amperes and volts by name; what is no such line is left out."""
    values: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    for line in (answer or "").splitlines():
        found = _LINE.fullmatch(line)
        if found:
            values[found[2]][found[1]] = float(found[3])
    return values["A"], values["V"]


def _sum_up(amps: Mapping[str, float], volts: Mapping[str, float]) -> Power:
    rails = {
        name: Rail(volt_v=volts[name], curr_a=amps[name], power_w=volts[name] * amps[name])
        for name in amps
        if name in volts
    }
    # A current without its voltage: the answer was cut off, and a sum would be too low.
    halves = [name for name in amps if name not in volts]
    return Power(
        kind="unavailable" if halves else "measured",
        scope="pmic_rails_sum",
        total_w=None if halves else sum(rail.power_w or 0.0 for rail in rails.values()),
        rails=rails,
        in_total=[] if halves else sorted(rails),
        excluded_from_total=[f"{name} (no current)" for name in volts if name not in amps]
        + (sorted(rails) if halves else []),
        sensor=None if halves else "PMIC (pmic_read_adc)",
        reason=f"{', '.join(halves)}: a current without its voltage" if halves else None,
        rails_unreadable=halves,
        input_voltage_v=volts.get(INPUT) or UNSET,
    )
