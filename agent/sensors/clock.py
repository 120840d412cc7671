"""Whether the wall clock is to be believed."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

# ntp_adjtime(3) returns TIME_ERROR while the kernel's clock is not synchronized (sys/timex.h).
TIME_ERROR = 5
# sizeof(struct timex) is 208 bytes on 64-bit and less on 32-bit Linux; room to spare.
TIMEX_BYTES = 512


@functools.cache
def _ntp_adjtime() -> Callable[[ctypes.Array[ctypes.c_char]], int] | None:
    try:
        return ctypes.CDLL(None).ntp_adjtime
    except (OSError, AttributeError):
        return None


def read_clock_synced() -> bool | None:
    """Return whether the kernel says that the clock is synchronized; None where it will not say.

    A zeroed `modes` field asks without setting anything and needs no privilege.
    """
    call = _ntp_adjtime()
    if call is None:
        return None
    state = call(ctypes.create_string_buffer(TIMEX_BYTES))
    return None if state < 0 else state != TIME_ERROR
