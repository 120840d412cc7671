"""The wall clock: is it right, who sets it, and what does it start from after a power cut?"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from agent.doctor.check import Check, ok, warn
from agent.sensors.clock import TIMESYNC_FOLDER, read_clock_synced

# Names of processes as the kernel keeps them, 15 characters at most: proc_pid_comm(5).
CLIENTS = {
    "systemd-timesyn": "systemd-timesyncd",
    "chronyd": "chrony",
    "ntpd": "ntpd",
    "ntpsec": "ntpsec",
    "ptp4l": "ptp4l",
    "gpsd": "gpsd",
}
# No board that runs this program started in earnest before it was written: 2025-01-01.
NOT_BEFORE = 1_735_689_600


def find_client(root: Path = Path("/")) -> str | None:
    """Return the program that sets this clock; None where none is seen."""
    if (root / TIMESYNC_FOLDER).is_dir():
        return "systemd-timesyncd"
    for file in (root / "proc").glob("[0-9]*/comm"):
        try:
            name = file.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:  # it has just ended
            continue
        if name in CLIENTS:
            return CLIENTS[name]
    return None


def check_clock(
    is_synced: bool | None,
    client: str | None,
    *,
    tls: bool = False,
    wall_clock: Callable[[], float] = time.time,
) -> Check:
    """Whether `captured_at` can be believed."""
    by = f" by {client}" if client else ""
    if is_synced:
        return ok("clock", f"synchronized{by}")
    today = time.strftime("%Y-%m-%d", time.gmtime(wall_clock()))
    message = (
        f"not synchronized, so times in results may be wrong; it says {today}"
        if is_synced is False
        else f"nobody says whether it is synchronized; it says {today}"
    )
    if tls and wall_clock() < NOT_BEFORE:
        message += ", and with that no certificate is valid yet: the broker cannot be reached"
    remedies = {
        None: "sudo timedatectl set-ntp true, or install an NTP client such as chrony",
        "systemd-timesyncd": "`timedatectl timesync-status` says whether its server answers; set "
        "NTP= in /etc/systemd/timesyncd.conf to one this network lets through",
        "chrony": "`chronyc sources` says which servers answer; name one this network lets through",
    }
    return warn("clock", message, remedies.get(client, f"look at the servers that {client} uses"))


def check_rtc(is_synced: bool | None, root: Path = Path("/")) -> Check:
    """Whether the clock survives a power cut (Documentation/admin-guide/rtc.rst).

    Without one it is set by the network, which is well as long as that works.
    """
    clocks = sorted((root / "sys/class/rtc").glob("rtc[0-9]*"))
    known_s = [seconds for clock in clocks if (seconds := _seconds(clock)) is not None]
    if not clocks:
        message = "no real-time clock, so after a power cut the time starts in the past"
        remedy = (
            "add an RTC module (dtoverlay=i2c-rtc,ds3231 on a Raspberry Pi), or have a time "
            "server in this network"
        )
    elif known_s and max(known_s) < NOT_BEFORE:
        day = time.strftime("%Y-%m-%d", time.gmtime(max(known_s)))
        message = f"{clocks[0].name} says {day}: it has lost its time, or was never set"
        remedy = (
            "put in its battery (a Raspberry Pi 5 has a connector for one), then `sudo hwclock -w`"
        )
    else:
        return ok("rtc", f"{clocks[0].name} keeps the time without power")
    if is_synced:
        return ok("rtc", f"{message}, until a time server corrects it, and results with it")
    return warn("rtc", f"{message}; no time server corrects it here", remedy)


def _seconds(clock: Path) -> int | None:
    try:
        return int((clock / "since_epoch").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def examine_clock(*, tls: bool, root: Path = Path("/")) -> list[Check]:
    """Return what there is to say of this board's clocks."""
    synced = read_clock_synced(root)
    return [check_clock(synced, find_client(root), tls=tls), check_rtc(synced, root)]
