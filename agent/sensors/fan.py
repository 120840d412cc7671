"""How fast the fan turns, and how hard it is driven.

In hwmon (Documentation/hwmon/sysfs-interface.rst): `pwmfan` has pwm1 and, where its wiring has a
tachometer, fan1_input; a Jetson's tachometer is a chip of its own with a file `rpm`; the Coral Dev
Board's `gpio_fan` and the Raspberry Pi's PoE HAT stand there too. Jetsons of Linux for Tegra r32
have a folder outside of hwmon (jetson_stats, jtop/core/fan.py). Only ever read: writing 0 to
pwm1_enable stops a Thor's fan.
"""

from __future__ import annotations

from msgspec import UNSET

from agent.contract.reading import Fan
from agent.sensors.files import BoardFiles, Sensor
from agent.sensors.hwmon import Chip, find_chips

DRIVES = ("pwmfan", "gpio_fan", "rpipoefan")
TACHOMETERS = ("pwm_tach", "tach")
OLD_JETSON = "sys/devices/pwm-fan"
PWM_MAX = 255
# Small blowers reach some ten thousand; more is no reading.
MOST_RPM = 100_000


class FanReader:
    """Reads one fan, the board's first."""

    def __init__(self, files: BoardFiles) -> None:
        self._rpm: Sensor | None = None
        self._pwm: Sensor | None = None
        # rpm_measured of r32 is 0 as well where the fan has no tachometer.
        self._is_zero_unknown = False
        chips = find_chips(files)
        drive = _first(chips, DRIVES) or _any_with_fan(files, chips)
        tachometer = _first(chips, TACHOMETERS)
        if drive is not None:
            self._pwm = files.sensor(f"{drive.folder}/pwm1")
            self._rpm = files.sensor(f"{drive.folder}/fan1_input")
        elif files.has(OLD_JETSON):
            self._is_zero_unknown = True
            pwm = "target_pwm" if files.has(f"{OLD_JETSON}/target_pwm") else "cur_pwm"
            self._pwm = files.sensor(f"{OLD_JETSON}/{pwm}")
            self._rpm = files.sensor(f"{OLD_JETSON}/rpm_measured")
        if tachometer is not None:
            self._is_zero_unknown = False
            self._rpm = files.sensor(f"{tachometer.folder}/rpm")

    def read(self) -> Fan | None:
        """Return the fan; None where there is none."""
        if self._rpm is None:
            return None
        rpm = self._rpm.number()
        is_none = rpm == 0 and self._is_zero_unknown
        if rpm is not None and (is_none or not 0 <= rpm <= MOST_RPM):
            rpm = None
        pwm = self._pwm.number() if self._pwm else None
        if pwm is None or not 0 <= pwm <= PWM_MAX:
            return Fan(rpm=rpm, pwm=UNSET, pwm_max=UNSET)
        return Fan(rpm=rpm, pwm=pwm, pwm_max=PWM_MAX)


def _first(chips: list[Chip], names: tuple[str, ...]) -> Chip | None:
    return next((chip for name in names for chip in chips if chip.name == name), None)


def _any_with_fan(files: BoardFiles, chips: list[Chip]) -> Chip | None:
    return next((chip for chip in chips if files.has(f"{chip.folder}/fan1_input")), None)
