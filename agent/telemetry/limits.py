"""What is held against limits, and how: the rules of `health`, and the values of one look.

A rule that holds for a yes or no has the limit 1 and the unit "yes": raised while it is so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from agent.contract.reading import Family, Reading, Throttle, ThrottleFlags
from agent.telemetry.health import Observation, Rule

COOLING = "add a heat sink or a fan, or move the board to where air passes"
SUPPLY = "use the maker's power supply and its cable, and power USB devices from a hub of their own"
# Where a processor begins to be slowed down. Raspberry Pi's documentation, frequency management:
# from 80 °C on; NVIDIA's Jetson developer guide, thermal specifications: software throttling at
# 97 to 99 °C on Xavier and Orin; on others the kernel's usual passive trip point.
HOT_C: dict[Family, float] = {"raspberry-pi": 80.0, "jetson": 95.0, "coral": 85.0, "x86": 95.0}
HOT_ELSEWHERE_C = 85.0
COOLER_BY_C = 5.0
# The kernel, the outbox's transactions and a model's update need some room; what is in the outbox
# already is not counted.
DISK_LOW_MIB, DISK_FINE_MIB = 256.0, 384.0
MEMORY_LOW_MIB, MEMORY_FINE_MIB = 48.0, 96.0
# Of the frames of this many seconds so many may be late; then the camera or the model is too fast
# or too slow for the board.
DEADLINE_WINDOW_S = 30.0
LATE_SHARE, FINE_SHARE = 0.5, 0.25


def _yes(code: str, message: str, remedy: str, *, raise_after_s: float, end_after_s: float) -> Rule:
    return Rule(
        code=code,
        message=message,
        remedy=remedy,
        unit="yes",
        limit=1.0,
        release=0.5,
        raise_after_s=raise_after_s,
        end_after_s=end_after_s,
    )


THROTTLED = _yes(
    "throttled",
    "the board slows itself down, for heat or for want of voltage",
    f"{COOLING}; and {SUPPLY}",
    raise_after_s=2.0,
    end_after_s=30.0,
)
UNDER_VOLTAGE = _yes(
    "under_voltage",
    "the supply's voltage is too low; devices and memory cards may drop out",
    SUPPLY,
    raise_after_s=0.0,  # it lasts for moments, and each can cost a card
    end_after_s=60.0,
)
OVER_CURRENT = _yes(
    "over_current",
    "a rail draws more than the limit that the board has set for it",
    "choose a power mode that the supply and the module can bear (nvpmodel), or use a stronger one",
    raise_after_s=0.0,
    end_after_s=60.0,
)
SENSORS_SILENT = _yes(
    "sensors",
    "the board's sensors do not answer, so power and temperatures are unknown",
    "see the journal for the driver that hangs; restarting the board may be the only way",
    raise_after_s=15.0,
    end_after_s=5.0,
)
DISK_LOW = Rule(
    code="disk_low",
    message="little room is left where the agent keeps its state",
    remedy="delete what is not needed, or lower mqtt.outbox_max_mb",
    unit="MiB",
    limit=DISK_LOW_MIB,
    release=DISK_FINE_MIB,
    raise_after_s=10.0,
    end_after_s=10.0,
)
MEMORY_LOW = Rule(
    code="memory_low",
    message="the board is short of memory, and the kernel may end programs",
    remedy="stop other programs, or use fewer cameras and models",
    unit="MiB",
    limit=MEMORY_LOW_MIB,
    release=MEMORY_FINE_MIB,
    raise_after_s=30.0,
    end_after_s=30.0,
)


def too_hot(zone: str, family: Family) -> Rule:
    """Return the rule of one temperature."""
    limit = HOT_C.get(family, HOT_ELSEWHERE_C)
    return Rule(
        code=f"too_hot.{zone}",
        message=f"{zone} is hot",
        remedy=COOLING,
        unit="°C",
        limit=limit,
        release=limit - COOLER_BY_C,
        raise_after_s=10.0,
        end_after_s=30.0,
    )


def deadline(camera: str, deadline_ms: float) -> Rule:
    """Return the rule of one camera's deadline; its value is the share of late frames."""
    return Rule(
        code=f"deadline.{camera}",
        message=f"camera {camera}: most results take longer than its deadline of "
        f"{deadline_ms:g} ms, for {DEADLINE_WINDOW_S:g} s and more",
        remedy="use a smaller model, an accelerator, fewer frames (fps) or fewer cameras",
        unit="share",
        limit=LATE_SHARE,
        release=FINE_SHARE,
        raise_after_s=0.0,  # the window is the delay
        end_after_s=DEADLINE_WINDOW_S,
    )


@dataclass(slots=True)
class LateShare:
    """The share of late frames over the last `DEADLINE_WINDOW_S`, from counters."""

    _seen: deque[tuple[float, int, int]] = field(default_factory=deque)  # s, processed, late

    def note(self, now: float, processed: int, late: int) -> float | None:
        """Return the share; None before the window is full, and where no frame was processed."""
        self._seen.append((now, processed, late))
        while len(self._seen) > 1 and self._seen[1][0] <= now - DEADLINE_WINDOW_S:
            self._seen.popleft()
        then, processed_then, late_then = self._seen[0]
        if now - then < DEADLINE_WINDOW_S or processed <= processed_then:
            return None
        return (late - late_then) / (processed - processed_then)


@dataclass(slots=True)
class BoardObserver:
    """Turns looks at the board into what is held against limits."""

    _under_voltage_events: int | None = None  # of a Jetson, since boot

    def observe(self, reading: Reading | None) -> Iterator[Observation]:
        """Yield what a look says; None: there was none for a while."""
        yield Observation(SENSORS_SILENT, float(reading is None))
        if reading is None:
            return
        throttle = reading.throttle
        slowed = throttle.throttled_now if throttle is not None else None
        if reading.accel is not None and reading.accel.throttled is True:
            slowed = True
        yield _observed(THROTTLED, slowed)
        yield _observed(UNDER_VOLTAGE, self._is_low(throttle))
        if reading.power.alarms:
            yield _observed(OVER_CURRENT, True)
        elif reading.power.kind == "measured":
            yield _observed(OVER_CURRENT, False)
        for zone, celsius in reading.temps_c.items():
            yield Observation(too_hot(zone, reading.board_id.family), celsius)

    def _is_low(self, throttle: Throttle | None) -> bool | None:
        if throttle is None:
            return None
        if isinstance(throttle.now, ThrottleFlags):
            return throttle.now.under_voltage
        # Without the firmware's word, what the kernel saw of it in the last 2 s.
        if isinstance(throttle.hwmon_under_voltage_alarm, bool):
            return throttle.hwmon_under_voltage_alarm
        if not isinstance(throttle.oc_events, dict):
            return None
        count = throttle.oc_events.get("oc1_under_voltage")
        if count is None:
            return None
        before, self._under_voltage_events = self._under_voltage_events, count
        return None if before is None else count > before


def _observed(rule: Rule, holds: bool | None) -> Observation:
    return Observation(rule, None if holds is None else float(holds))


def observe_system(disk_free_mib: float | None, memory_mib: float | None) -> Iterable[Observation]:
    """Return what is held against limits of disk and memory."""
    return Observation(DISK_LOW, disk_free_mib), Observation(MEMORY_LOW, memory_mib)
