"""What a process that tries a model may use. Set by the child on itself; none of it can be undone.

A limit that is reached ends the child or makes a call in it fail. Both become a sentence with
whoever started it, and nothing else on the board notices.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
from pathlib import Path

from agent.niceness import stand_behind
from agent.trial_words import MAX_ANSWER_BYTES, TrialRequest

NICE = 5  # a model that is being tried stands behind one that works
LAST_NICE = 19
OOM_FIRST = b"1000"  # proc_pid_oom_score_adj(5): the highest; whoever must go, it is this one
# Between SIGXCPU, which says why, and SIGKILL: where both limits are one, only the latter is sent.
CPU_GRACE_S = 5
MAX_FILES = 256  # a dozen are in use; USB devices and caches of delegates open a few more
# Of the memory that is available, the most a model may take. The rest keeps the board alive.
MEMORY_SHARE = 0.75
# Addresses that are reserved and hardly touched: stacks and allocator arenas of four interpreter
# threads took 276 MiB on x86-64, glibc 2.36.
RESERVED_BYTES = 512 << 20


def confine(request: TrialRequest) -> None:
    """Set every limit but that of memory for a trial; the first thing that its `main` does."""
    threads = max(request.model.threads, request.most_threads, 1)
    # Delegates keep compiled models in files.
    confine_to(cpu_s=request.limit_s * threads, may_write=bool(request.probe))


def confine_to(*, cpu_s: float, may_write: bool, nice: int = NICE) -> None:
    """Limit processor time and files, stand behind others, and be the first to go."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, MAX_FILES)
    if not may_write:
        _limit(resource.RLIMIT_FSIZE, MAX_ANSWER_BYTES)
    # Whoever started it keeps the time; this ends a child that nobody waits for any more.
    _limit(resource.RLIMIT_CPU, math.ceil(cpu_s), CPU_GRACE_S)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_bytes(OOM_FIRST)


def stand_back() -> None:
    """Use what processor time nobody else wants, as far as we may say so."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    stand_behind(LAST_NICE)


def confine_memory() -> None:
    """Limit memory, relative to what our own libraries have mapped: call it after importing them.

    RLIMIT_AS counts addresses, as the kernel has no limit on memory in use for one process.
    """
    mapped_bytes = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
    model_bytes = int(MEMORY_SHARE * available_bytes())
    _limit(resource.RLIMIT_AS, mapped_bytes + RESERVED_BYTES + model_bytes)


def available_bytes() -> int:
    """Return MemAvailable of proc_meminfo(5), which is in KiB."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    return 0


def _limit(kind: int, value: int, grace: int = 0) -> None:
    """Lower a limit, the hard one `grace` above the soft one; what is lower already stays."""
    # Bounded by what a C long holds on 32-bit boards.
    most = ctypes.c_ulong(-1).value >> 1
    soft, hard = (
        most if each == resource.RLIM_INFINITY else min(each, most)
        for each in resource.getrlimit(kind)
    )
    resource.setrlimit(kind, (min(value, soft), min(value + grace, hard)))
