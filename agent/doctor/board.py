"""The board: power and heat, memory, and what restarts it should the kernel hang."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from msgspec import UNSET

from agent.config import Config
from agent.contract.reading import Accel, Throttle, ThrottleFlags
from agent.daemon.outbox import MOST_MEMORY_BYTES
from agent.doctor.check import Check, State, ok, warn, worst
from agent.sensors.accel import AccelReader
from agent.sensors.board import identify, read_board_model
from agent.sensors.commands import Ask, ask
from agent.sensors.files import BoardFiles
from agent.sensors.mailbox import Mailbox, through_mailbox
from agent.sensors.thermal import ThermalReader
from agent.sensors.throttling import UNDER_VOLTAGE_EVENTS, ThrottleReader

MIB = 1 << 20
# Resident with the shipped model and one 720p camera: 28 MiB and 97 MiB, measured on x86-64.
MEMORY_NEEDED_MIB = 160
SUPPLY = "use the maker's power supply and its cable, and power USB devices from a hub of their own"
COOLING = "add a heat sink or a fan, or move the board to where air passes"


def check_power(throttle: Throttle | None) -> Check:
    """Whether the board gets the voltage it needs: without, cameras and cards drop out."""
    now, earlier = _flags(throttle)
    alarm = None if throttle is None else throttle.hwmon_under_voltage_alarm
    faults: list[tuple[State, str, str]] = []
    if now is not None and now.under_voltage:
        message = "the voltage is too low at this moment, and devices and cards may drop out"
        faults.append(("fail", message, SUPPLY))
    elif alarm is True or (earlier is not None and earlier.under_voltage):
        faults.append(("warn", "the voltage has been too low since the board was started", SUPPLY))
    events = _under_voltage_events(throttle)
    if events:
        message = f"the voltage has been too low {events} times since the board was started"
        faults.append(("warn", message, SUPPLY))
    is_known = earlier is not None or isinstance(alarm, bool) or events is not None
    message = "enough voltage since the start" if is_known else "this board does not tell"
    return worst("power", "" if faults else message, faults)


def check_heat(throttle: Throttle | None, edgetpus: Sequence[Accel] = ()) -> Check:
    """Whether heat slows the processor or a PCIe Coral."""
    now, earlier = _flags(throttle)
    alerts = (throttle and throttle.alerts_active) or []
    faults: list[tuple[State, str, str]] = []
    if alerts or _is_hot(now):
        named = f" ({', '.join(alerts)})" if alerts else ""
        message = f"the board slows itself down at this moment, for heat{named}"
        faults.append(("warn", message, COOLING))
    elif _is_hot(earlier):
        message = "heat has slowed the board down since it was started"
        faults.append(("warn", message, COOLING))
    # Capped clocks follow from heat or from voltage; said only where neither is.
    if now is not None and now.freq_capped and not now.under_voltage and not _is_hot(now):
        message = "the firmware holds the processor's clock down at this moment"
        faults.append(("warn", message, f"{COOLING}; and {SUPPLY}"))
    faults.extend(("warn", _hot_edgetpu(one), COOLING) for one in edgetpus if one.throttled is True)
    is_known = throttle is not None and throttle.throttled_now is not None
    message = "not slowed down" if is_known else "nothing says that it slows itself down"
    return worst("heat", "" if faults else message, faults)


def _flags(throttle: Throttle | None) -> tuple[ThrottleFlags | None, ThrottleFlags | None]:
    if throttle is None or throttle.now is UNSET or throttle.since_boot is UNSET:
        return None, None
    return throttle.now, throttle.since_boot


def _is_hot(flags: ThrottleFlags | None) -> bool:
    return flags is not None and (flags.throttled or flags.soft_temp_limit)


def _under_voltage_events(throttle: Throttle | None) -> int | None:
    events = None if throttle is None else throttle.oc_events
    return None if events is UNSET or events is None else events.get(UNDER_VOLTAGE_EVENTS)


def _hot_edgetpu(accel: Accel) -> str:
    trips = [] if accel.trip_points_c is UNSET else accel.trip_points_c
    return (
        f"{accel.name} is at {accel.temp_c:.0f} °C and slows itself down from {trips[0]:.0f} °C on"
    )


def check_memory(config: Config) -> Check:
    """Whether both processes fit, and what waits in memory where the disk takes nothing."""
    available_mib = psutil.virtual_memory().available // MIB
    waiting_mb = min(config.mqtt.outbox_max_mb, MOST_MEMORY_BYTES / 1e6)
    needed_mib = MEMORY_NEEDED_MIB + round(waiting_mb * 1e6 / MIB)
    message = f"{available_mib} MiB available, about {needed_mib} MiB needed"
    if available_mib >= needed_mib:
        return ok("memory", message)
    return warn("memory", message, "stop other programs, or use fewer cameras and models")


def check_memory_limits(root: Path = Path("/")) -> Check:
    """Whether MemoryMax= of the unit means anything: the memory controller of the kernel.

    The Raspberry Pi's firmware switches it off (cgroup_disable=memory), unless cmdline.txt says
    otherwise. Without it a leak takes the board, not the worker.
    """
    controllers = _text(root / "sys/fs/cgroup/cgroup.controllers")
    if controllers is not None:
        is_on = "memory" in controllers.split()
    else:
        # cgroups(7), /proc/cgroups: name, hierarchy, number of groups, enabled.
        lines = [line.split() for line in (_text(root / "proc/cgroups") or "").splitlines()]
        states = [fields[3] for fields in lines if len(fields) == 4 and fields[0] == "memory"]
        if not states:
            return ok("memory_limits", "the kernel does not tell of its control groups here")
        is_on = states[0] == "1"
    if is_on:
        return ok("memory_limits", "MemoryMax= is kept by the kernel")
    file = next(
        (one for one in ("/boot/firmware/cmdline.txt", "/boot/cmdline.txt") if _is(root, one)), None
    )
    where = f"in {file}" if file else "on the kernel's command line"
    return warn(
        "memory_limits",
        "the kernel does not limit memory (its cgroup controller is off), so MemoryMax= of the "
        "unit does nothing",
        f"add `cgroup_memory=1 cgroup_enable=memory` at the end of the one line {where}, and "
        "restart the board",
    )


def check_watchdog(root: Path = Path("/"), ask_systemd: Callable[..., str | None] = ask) -> Check:
    """Whether the board restarts by itself when its kernel hangs."""
    devices = sorted((root / "sys/class/watchdog").glob("watchdog[0-9]*"))
    if not devices:
        return ok("watchdog", "this board has no hardware watchdog")
    # Documentation/ABI/testing/sysfs-class-watchdog; a kernel may be built without these files.
    if any(_text(device / "state") == "active" for device in devices):
        return ok("watchdog", f"{devices[0].name} restarts the board when its kernel hangs")
    fed = ask_systemd("systemctl", "show", "--property=RuntimeWatchdogUSec", "--value")
    if fed not in (None, "", "0", "infinity"):
        return ok("watchdog", f"systemd feeds {devices[0].name} ({fed})")
    return warn(
        "watchdog",
        f"{devices[0].name} is not used, so a board whose kernel hangs stays down",
        "write RuntimeWatchdogSec=15 below [Manager] in /etc/systemd/system.conf.d/watchdog.conf, "
        "and restart the board",
    )


def examine_board(root: Path = Path("/"), ask_firmware: Ask = ask) -> list[Check]:
    """Return what the board says of its power, its heat and its kernel."""
    files, mailbox = BoardFiles(root), Mailbox(root)
    try:
        accel = AccelReader(files)
        edgetpus = accel.edgetpus(ThermalReader(files).read().temps_c)
        firmware = through_mailbox(ask_firmware, mailbox)
        throttling = ThrottleReader(files, identify(files), firmware)
        throttle = throttling.read(time.monotonic(), edgetpus)
    finally:
        files.close()
        mailbox.close()
    return [
        ok("board", read_board_model(root) or "it has no name"),
        check_power(throttle),
        check_heat(throttle, edgetpus),
        check_memory_limits(root),
        check_watchdog(root),
    ]


def _is(root: Path, path: str) -> bool:
    return (root / path.lstrip("/")).is_file()


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
