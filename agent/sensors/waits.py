"""How long a process's threads have waited for processors that others used.

The kernel counts for each thread how long it was ready to run and did not: the second number of
/proc/[pid]/task/[tid]/schedstat, nanoseconds (kernel: Documentation/scheduler/sched-stats.rst).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def waits_ns(pid: int | str = "self", root: Path = Path("/")) -> dict[str, int]:
    """Return it by thread; empty where the kernel does not count, or the process is gone."""
    tasks = root / "proc" / str(pid) / "task"
    waits = {}
    with contextlib.suppress(OSError):
        for thread in os.listdir(tasks):  # noqa: PTH208 - names only, and often
            with contextlib.suppress(OSError, ValueError, IndexError):
                waits[thread] = int((tasks / thread / "schedstat").read_bytes().split()[1])
    return waits
