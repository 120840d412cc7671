"""Whether the board slows itself down, and for want of what: voltage or cooling.

Raspberry Pi: the firmware's word of flags, `vcgencmd get_throttled`(1), which the downstream
kernel also shows in sysfs, as hex without 0x (drivers/firmware/raspberrypi.c), and, of the
under-voltage alone, every kernel as an alarm of the chip `rpi_volt`
(Documentation/hwmon/raspberrypi-hwmon.rst). Jetson: cooling devices that are alerts, and counters
of over-current events (NVIDIA's tegra234-oc-event driver). Coral Dev Board: its Edge TPU, by the
trip points of the driver. A None says that nobody knows.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from agent.contract.reading import Accel, BoardIdentity, Throttle, ThrottleFlags
from agent.sensors.commands import Ask
from agent.sensors.files import BoardFiles, Sensor
from agent.sensors.firmware import SeldomAsked
from agent.sensors.hwmon import find_chips

# vcgencmd(1), get_throttled. Under-voltage alone cuts no clock: the firmware says so itself if it
# does (bit 1 or 2).
UNDER_VOLTAGE, CAPPED, THROTTLED, SOFT_LIMIT = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SLOWS_DOWN = CAPPED | THROTTLED | SOFT_LIMIT
SINCE_BOOT = 16  # the same flags again, this far up: has occurred since boot
# soctherm_oc: OC1 is under-voltage of VDD_IN; OC3 counts up in MAXN modes and harms nothing.
UNDER_VOLTAGE_EVENTS = "oc1_under_voltage"
EVENTS = {
    UNDER_VOLTAGE_EVENTS: "oc1_event_cnt",
    "oc2_average_over_current": "oc2_event_cnt",
    "oc3_instantaneous_over_current": "oc3_event_cnt",
}
# Cooling devices that only tell of throttling: cpu-throttle-alert, hot-surface-alert.
ALERT = "-alert"
# Those that cool, or limit a clock as they always do; they say nothing. Whatever else is at work
# may slow the board down, as r32's `cpu-balanced` does, or may not: then it is unknown.
CONTROLS = ("pwm-fan", "gpio-fan", "cpufreq-", "devfreq-", "thermal-")
# On these, Linux for Tegra always registers alerts, so that none at work means none is needed.
# Older Jetsons have them in some releases only: where there is none, nobody knows.
ALERTS_ALWAYS = ("tegra234", "tegra264")


class ThrottleReader:
    """Reads what this board has of all that; `seen` are flags that earlier looks saw."""

    def __init__(
        self, files: BoardFiles, identity: BoardIdentity, ask: Ask, *, seen: int = 0
    ) -> None:
        self._flags = _Flags(files, identity, ask, seen)
        self._alerts = _Alerts(files, identity)

    @property
    def seen(self) -> int:
        """Return the flags seen so far, to be handed to the next reader of this board."""
        return self._flags.seen

    def read(self, at_s: float, edgetpus: Sequence[Accel] = ()) -> Throttle | None:
        """Return what is known at `at_s` of the monotonic clock; None: no source on this board."""
        if self._flags.exist:
            return self._flags.read(at_s)
        return self._alerts.read(edgetpus) if self._alerts.exist else None


class _Flags:
    """The Raspberry Pi's word, asked for seldom, and the alarm, read every time."""

    def __init__(self, files: BoardFiles, identity: BoardIdentity, ask: Ask, seen: int) -> None:
        self.seen = seen
        self._asked = SeldomAsked(ask, "vcgencmd", "get_throttled")
        words = files.find("sys/devices/platform/soc*/soc*:firmware/get_throttled")
        self._word = files.sensor(words[0]) if words else None
        chip = next((chip for chip in find_chips(files) if chip.name == "rpi_volt"), None)
        self._alarm = files.sensor(f"{chip.folder}/in0_lcrit_alarm") if chip else None
        self._had_alarm = False
        # A container may hide the device tree and still show the alarm.
        self.exist = identity.family == "raspberry-pi" or bool(self._word or self._alarm)

    def read(self, at_s: float) -> Throttle | None:
        number = self._alarm.number() if self._alarm else None
        alarm = None if number is None else number != 0
        raw = self._read_word(at_s, at_once=bool(alarm) and not self._had_alarm)
        self._had_alarm = bool(alarm)
        if raw is None and alarm is None:
            return None
        throttle = _throttle(raw, self.seen, alarm)
        # The kernel's own looks may clear the firmware's flags of the past (get_throttled with a
        # mask, raspberrypi-hwmon.c), so what was seen once is kept here.
        now, earlier = split_word(raw or 0)
        self.seen |= now | earlier | (UNDER_VOLTAGE if alarm else 0)
        return throttle

    def _read_word(self, at_s: float, *, at_once: bool) -> int | None:
        raw = parse_word(self._asked.answer(at_s, at_once=at_once))
        if raw is None and self._word is not None:
            raw = parse_word(f"throttled={self._word.text()}")
        return raw


class _Alerts:
    """A Jetson's alerts and counters, and the Coral Dev Board's Edge TPU."""

    def __init__(self, files: BoardFiles, identity: BoardIdentity) -> None:
        self._is_coral = identity.family == "coral"
        self._always = identity.soc in ALERTS_ALWAYS
        self._alerts: list[tuple[str, Sensor]] = []
        self._others: list[Sensor] = []
        for folder in files.find("sys/class/thermal/cooling_device*"):
            kind = files.read(f"{folder}/type") or ""
            state = files.sensor(f"{folder}/cur_state")
            if kind.endswith(ALERT):
                self._alerts.append((kind, state))
            elif not kind.startswith(CONTROLS):
                self._others.append(state)
        chip = next((chip for chip in find_chips(files) if chip.name == "soctherm_oc"), None)
        self._events = (
            {name: files.sensor(f"{chip.folder}/{file}") for name, file in EVENTS.items()}
            if chip
            else None
        )
        is_known = identity.family in ("jetson", "coral")
        self.exist = is_known or bool(self._alerts) or self._events is not None

    def read(self, edgetpus: Sequence[Accel]) -> Throttle:
        states = [(kind, _is_at_work(sensor.number())) for kind, sensor in self._alerts]
        known = [is_at_work for _, is_at_work in states]
        others = [_is_at_work(sensor.number()) for sensor in self._others]
        known.extend(None for is_at_work in others if is_at_work is not False)
        if self._is_coral:
            slowed = (one.throttled for one in edgetpus)
            known.extend(None if one is UNSET else one for one in slowed)
        events, total = self._read_events()
        return Throttle(
            throttled_now=_any(known, otherwise=False if self._always else None),
            alerts_active=sorted({kind for kind, is_at_work in states if is_at_work}),
            oc_events=events,
            oc_events_total=total,
        )

    def _read_events(self) -> tuple[dict[str, int] | None, int | UnsetType]:
        if self._events is None:
            return None, UNSET
        counts = {name: sensor.number() for name, sensor in self._events.items()}
        known = {name: count for name, count in counts.items() if count is not None and count >= 0}
        if not known:
            return None, UNSET
        return known, sum(known.values()) if len(known) == len(counts) else UNSET


def parse_word(answer: str | None) -> int | None:
    """Return the word in `throttled=0x50005`; None for what is no such word."""
    name, _, value = (answer or "").partition("=")
    try:
        word = int(value, 16) if name.strip() == "throttled" else None
    except ValueError:
        return None
    return word if word is not None and 0 <= word < 1 << 32 else None


def split_word(word: int) -> tuple[int, int]:
    """Return the flags of this moment, and those since boot at the same places."""
    return word & 0xF, (word >> SINCE_BOOT) & 0xF


def _throttle(raw: int | None, seen: int, alarm: bool | None) -> Throttle:
    """Put together what is known, `seen` as flags since boot."""
    if raw is None:
        return Throttle(throttled_now=None, hwmon_under_voltage_alarm=alarm)
    now, earlier = split_word(raw)
    return Throttle(
        raw=raw,
        raw_hex=f"{raw:#x}",
        now=_named(now),
        since_boot=_named(earlier | seen),
        throttled_now=bool(now & SLOWS_DOWN),
        hwmon_under_voltage_alarm=alarm,
    )


def _named(flags: int) -> ThrottleFlags:
    return ThrottleFlags(
        under_voltage=bool(flags & UNDER_VOLTAGE),
        freq_capped=bool(flags & CAPPED),
        throttled=bool(flags & THROTTLED),
        soft_temp_limit=bool(flags & SOFT_LIMIT),
    )


def _is_at_work(state: int | None) -> bool | None:
    return None if state is None or state < 0 else state > 0


def _any(known: Sequence[bool | None], *, otherwise: bool | None) -> bool | None:
    """Return whether any is true, None if that depends on an unknown one; of none `otherwise`."""
    if any(known):
        return True
    if not known:
        return otherwise
    return None if None in known else False
