"""Whether the board slows itself down, and for want of what: voltage or cooling.

Raspberry Pi: the firmware's word of flags, `vcgencmd get_throttled`(1), which the downstream
kernel also shows in sysfs, as hex without 0x (drivers/firmware/raspberrypi.c), and, of the
under-voltage alone, every kernel as an alarm of the chip `rpi_volt`
(Documentation/hwmon/raspberrypi-hwmon.rst). Jetson: cooling devices that are alerts, and counters
of over-current events (NVIDIA's tegra234-oc-event driver). A None says that nobody knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.sensors.commands import ask

UNDER_VOLTAGE, CAPPED, THROTTLED, SOFT_LIMIT = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SINCE_BOOT = 16  # the same flags again, this far up: has occurred since boot
ALERTS = ("throttle-alert", "hot-surface-alert")
# soctherm_oc: OC1 is under-voltage of VDD_IN; OC3 counts up in MAXN modes and harms nothing.
UNDER_VOLTAGE_EVENTS = "oc1_event_cnt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttling:
    """What slows a board down; a flag word of the Raspberry Pi's firmware and a Jetson's alerts."""

    flags: int | None = None
    alerts: tuple[str, ...] = ()  # types of cooling devices that are at work now
    under_voltage_events: int | None = None  # since boot

    @property
    def now(self) -> int:
        """Return the flags of this moment."""
        return (self.flags or 0) & 0xF

    @property
    def earlier(self) -> int:
        """Return the flags since boot, at the places of those of this moment."""
        return ((self.flags or 0) >> SINCE_BOOT) & 0xF


def read_throttling(
    root: Path = Path("/"), ask_firmware: Callable[..., str | None] = ask
) -> Throttling:
    """Return what is known; on a board that says nothing, nothing."""
    flags = parse_flags(ask_firmware("vcgencmd", "get_throttled"))
    if flags is None:
        flags = _sysfs_flags(root)
    alarm = _hwmon(root, "rpi_volt", "in0_lcrit_alarm")
    if alarm == "1":  # sticky, so it may be over
        flags = (flags or 0) | UNDER_VOLTAGE << SINCE_BOOT
    elif alarm == "0" and flags is None:
        flags = 0
    events = _hwmon(root, "soctherm_oc", UNDER_VOLTAGE_EVENTS)
    return Throttling(
        flags=flags,
        alerts=tuple(_alerts(root)),
        under_voltage_events=int(events) if events and events.isdecimal() else None,
    )


def parse_flags(answer: str | None) -> int | None:
    """Return the word in `throttled=0x50005`."""
    name, _, value = (answer or "").partition("=")
    try:
        return int(value, 16) if name.strip() == "throttled" else None
    except ValueError:
        return None


def _sysfs_flags(root: Path) -> int | None:
    files = sorted((root / "sys/devices/platform").glob("soc*/soc*:firmware/get_throttled"))
    word = _text(files[0]) if files else None
    return parse_flags(f"throttled={word}")


def _hwmon(root: Path, chip: str, file: str) -> str | None:
    """Return a value of a chip, found by its name: numbers of hwmon move between boots."""
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if _text(folder / "name") == chip:
            return _text(folder / file)
    return None


def _alerts(root: Path) -> list[str]:
    found = []
    for folder in (root / "sys/class/thermal").glob("cooling_device*"):
        kind, state = _text(folder / "type") or "", _text(folder / "cur_state") or ""
        if kind.endswith(ALERTS) and state.isdecimal() and int(state) > 0:
            found.append(kind)
    return sorted(found)


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8", "replace").strip()
    except OSError:
        return None
