"""Whether the wall clock is to be believed, and what corrects the times that were not.

The wall clock stands in payloads alone; every duration and every timeout is of the monotonic
clock. What links the two is the offset, wall minus monotonic: whoever notes it beside a time can
correct that time later, when the clock has been set.
"""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable
from pathlib import Path

# ntp_adjtime(3) returns TIME_ERROR while the kernel's clock is not synchronized (sys/timex.h).
TIME_ERROR = 5
# sizeof(struct timex) is 208 bytes on 64-bit and less on 32-bit Linux; room to spare.
TIMEX_BYTES = 512
# systemd-timesyncd(8): the folder is there while the service runs, the file once it has set the
# clock. It knows more than the kernel where a unit's filter refuses adjtimex (ProtectClock=).
TIMESYNC_FOLDER = "run/systemd/timesync"
# Larger differences between two readings of the offset are steps: clients correct by slewing what
# is less, ntpd(8) up to 128 ms, systemd-timesyncd up to 400 ms (timesyncd-manager.c,
# NTP_MAX_ADJUST). A slewed clock moves less than this while a frame is under way.
STEP_S = 0.1


@functools.cache
def _ntp_adjtime() -> Callable[[ctypes.Array[ctypes.c_char]], int] | None:
    try:
        return ctypes.CDLL(None).ntp_adjtime
    except (OSError, AttributeError):
        return None


def ask_kernel() -> bool | None:
    """Return whether the kernel calls its clock synchronized; None where it will not say.

    A zeroed `modes` field asks without setting anything and needs no privilege, yet a unit with
    ProtectClock=yes is refused it: systemd.exec(5).
    """
    call = _ntp_adjtime()
    if call is None:
        return None
    state = call(ctypes.create_string_buffer(TIMEX_BYTES))
    return None if state < 0 else state != TIME_ERROR


def read_clock_synced(
    root: Path = Path("/"), *, kernel: Callable[[], bool | None] = ask_kernel
) -> bool | None:
    """Return whether the clock has been synchronized; None where nobody will say.

    The kernel's "no" does not outweigh timesyncd's file: it turns to "no" again after hours
    without a time server, in which the clock drifts by a second or so (adjtimex(2), maxerror).
    """
    folder = root / TIMESYNC_FOLDER
    if (folder / "synchronized").exists():
        return True
    said = kernel()
    if said is None and folder.is_dir():
        return False
    return said


def read_kernel_boot_id(root: Path = Path("/")) -> str | None:
    """Return the id of this boot of the kernel (random(4)), None where there is none.

    Monotonic times, and offsets from them, mean nothing after the next boot.
    """
    try:
        text = (root / "proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text or None


def read_clock_offset_s() -> float:
    """Return what the wall clock now is ahead of the monotonic clock, in seconds."""
    return time.time() - time.monotonic()


def judge_capture(
    is_synced: bool | None,
    captured_at: float,
    captured_ns: int,
    *,
    read_offset_s: Callable[[], float] = read_clock_offset_s,
) -> tuple[bool | None, float | None]:
    """Return what a result says of its clock, and the offset that may correct it later.

    `is_synced` is asked after the capture. A "yes" holds for the capture only if the clock was
    not set in between: a frame under way in that moment carries the old time. The offset is None
    where there is nothing to correct.

    Args:
        is_synced: what `read_clock_synced` says now, or said a moment ago.
        captured_at: wall clock at the capture, Unix seconds.
        captured_ns: monotonic clock at the capture, nanoseconds.
        read_offset_s: wall minus monotonic now, seconds.
    """
    offset_s = captured_at - captured_ns / 1e9
    if not is_synced:
        return is_synced, offset_s
    if abs(read_offset_s() - offset_s) < STEP_S:
        return True, None
    return False, offset_s
