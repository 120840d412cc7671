"""How fast the processor runs: what the kernel asked for, and what the firmware really gives.

cpufreq (Documentation/admin-guide/pm/cpufreq.rst, kHz): `cpu` is scaling_cur_freq and `cpu_max`
cpuinfo_max_freq, both of the first policy, as a share of two clusters' clocks would mean nothing.
A Raspberry Pi's firmware caps the clock behind the kernel's back, and scaling_cur_freq does not
show it; `vcgencmd measure_clock arm` does. So `arm_measured` is reported where it differs from
`cpu` by more than 1 %, which is more than the firmware's rounding (345,728 Hz in 1.5 GHz); where
both agree it would say nothing. It is left out while the kernel is just changing the clock.
"""

from __future__ import annotations

import re

from agent.contract.reading import BoardIdentity
from agent.sensors.commands import Ask
from agent.sensors.files import BoardFiles, Sensor
from agent.sensors.firmware import SeldomAsked

POLICIES = "sys/devices/system/cpu/cpufreq/policy*"
DIFFERS_BY = 0.01
# No processor of a board runs faster; more is no reading.
MOST_HZ = 10_000_000_000
# The number in parentheses differs between firmwares: 0 on a Raspberry Pi 5, 45 or 48 before.
_CLOCK = re.compile(r"frequency\([0-9]+\)=([0-9]{1,12})")


class ClocksReader:
    """Reads the clocks of the first policy."""

    def __init__(self, files: BoardFiles, identity: BoardIdentity, ask: Ask) -> None:
        policies = files.find(POLICIES)
        self._now = self._most = self._allowed = None
        if policies:
            self._now = files.sensor(f"{policies[0]}/scaling_cur_freq")
            self._most = files.sensor(f"{policies[0]}/cpuinfo_max_freq")
            self._allowed = files.sensor(f"{policies[0]}/scaling_max_freq")
        is_raspberry_pi = identity.family == "raspberry-pi"
        self._arm = (
            SeldomAsked(ask, "vcgencmd", "measure_clock", "arm") if is_raspberry_pi else None
        )
        self._arm_hz: int | None = None
        self._measured_at_hz: int | None = None  # what the kernel wanted at that time

    def read(self, at_s: float) -> dict[str, int] | None:
        """Return clocks in Hz by name, without those that are unknown; None: none is known."""
        cpu, most = _hertz(self._now), _hertz(self._most)
        if most is None:
            most = _hertz(self._allowed)
        clocks = {"cpu": cpu, "cpu_max": most, "arm_measured": self._measured(cpu, at_s)}
        known = {name: value for name, value in clocks.items() if value is not None}
        return known or None

    def _measured(self, cpu_hz: int | None, at_s: float) -> int | None:
        if self._arm is None or cpu_hz is None:
            return None
        if self._arm.is_due(at_s):
            self._arm_hz = parse_clock(self._arm.answer(at_s))
            self._measured_at_hz = _hertz(self._now)
        if self._arm_hz is None or self._measured_at_hz != cpu_hz:
            return None
        return self._arm_hz if abs(self._arm_hz - cpu_hz) > DIFFERS_BY * cpu_hz else None


def parse_clock(answer: str | None) -> int | None:
    """Return the Hz in `frequency(48)=1141118000`; 0 is no clock of a processor that answers."""
    found = _CLOCK.search(answer or "")
    return int(found[1]) or None if found else None


def _hertz(sensor: Sensor | None) -> int | None:
    kilohertz = sensor.number() if sensor else None
    return kilohertz * 1000 if kilohertz and 0 < kilohertz * 1000 <= MOST_HZ else None
