"""Standing behind others for the processor."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def stand_behind(nice: int) -> None:
    """Give this process, and its session's group if it is alone in it, at least this niceness.

    Where sessions have groups of their own (sched(7), autogroup) a process is nice only to those
    of its session, so the group has to be. Whatever a service's filter refuses stays as it is.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_bytes(b"%d" % nice)
