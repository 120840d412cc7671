"""CPU and memory of our own processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from agent.contract.telemetry import ProcessTelemetry
from agent.daemon.aside import Aside

MIB = 1 << 20
# The kernel walks all page tables of a process for it (0.6 ms measured for 120 and for 420 MiB of
# huge pages, x86-64; more with small ones) and holds the process' memory map meanwhile. Before
# 4.14 (a Jetson Nano has 4.9) psutil adds all mappings up.
PSS_KEEP_S = 30.0
# One that has just begun is read more often: it has not loaded yet what it will need.
YOUNG_KEEP_S = 2.0
UNINTERRUPTIBLE = "D"  # proc_pid_stat(5): waiting for a disk or a driver; no signal reaches it
# psutil's words for the letters of proc_pid_stat(5).
_LETTERS = {
    psutil.STATUS_RUNNING: "R",
    psutil.STATUS_SLEEPING: "S",
    psutil.STATUS_DISK_SLEEP: "D",
    psutil.STATUS_STOPPED: "T",
    psutil.STATUS_TRACING_STOP: "t",
    psutil.STATUS_ZOMBIE: "Z",
    psutil.STATUS_DEAD: "X",
    psutil.STATUS_IDLE: "I",
}


def read_state(pid: int) -> str | None:
    """Return the letter of a process' state as proc_pid_stat(5) has it; None: there is none."""
    try:
        return _LETTERS.get(psutil.Process(pid).status())
    except (psutil.Error, OSError):
        return None


def read_thread_state(number: int, root: Path = Path("/")) -> str | None:
    """Return the letter of the state of a thread of ours, by its native id; None: there is none.

    Behind the name in proc_pid_stat(5), which may hold spaces and parentheses itself.
    """
    try:
        stat = (root / f"proc/self/task/{number}/stat").read_text(errors="replace")
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[0]


def read_rss_bytes(pid: int) -> int | None:
    """Return the memory that a process has in RAM; None: it cannot be told, or has ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except (psutil.Error, OSError):
        return None


def read_pss_bytes(pid: int) -> int | None:
    """Return a process' memory with what it shares counted in parts; None: not for us to know.

    proc_pid_smaps(5). This waits as long as a driver holds the process' memory map.
    """
    try:
        found = psutil.Process(pid).memory_full_info()
    except (psutil.Error, OSError):
        return None
    # Kernels may be built without; 0 is said of a process that ends while it is asked about.
    return getattr(found, "pss", None) or None


class ProcessReader:
    """Reads processes again and again; CPU is over the time since the last reading.

    Attributes:
        cpu_s: process -> its processor seconds since it started, at the last reading, as far as
            known.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Know no process yet."""
        self._clock = clock
        self._known: dict[int, psutil.Process] = {}
        self._since: dict[int, float] = {}  # when it was read first
        self._pids: tuple[int, ...] = ()
        self._pss = Aside(self._read_pss, keep_s=PSS_KEEP_S, clock=clock)
        self.cpu_s: dict[str, float] = {}

    def read(self, workers: Mapping[str, int | None]) -> dict[str, ProcessTelemetry | None]:
        """Return this process as `control`, and the workers; None where there is none."""
        pids: dict[str, int | None] = {"control": os.getpid(), **workers}
        for gone in self._known.keys() - set(pids.values()):
            del self._known[gone]
        self._pids = tuple(pid for pid in pids.values() if pid is not None)
        now = self._clock()
        self._since = {pid: self._since.get(pid, now) for pid in self._pids}
        is_young = any(now - since < PSS_KEEP_S for since in self._since.values())
        pss = self._pss.answer(keep_s=YOUNG_KEEP_S if is_young else None) or {}
        self.cpu_s = {}  # a new one: another thread may still look at the last
        return {name: self._one(name, pid, pss) for name, pid in pids.items()}

    def _read_pss(self) -> dict[int, int]:
        found = {pid: read_pss_bytes(pid) for pid in self._pids}
        return {pid: pss for pid, pss in found.items() if pss is not None}

    def _one(self, name: str, pid: int | None, pss: Mapping[int, int]) -> ProcessTelemetry | None:
        if pid is None:
            return None
        is_known = pid in self._known
        try:
            process = self._known.setdefault(pid, psutil.Process(pid))
            with process.oneshot():
                cpu, times = process.cpu_percent(), process.cpu_times()
                said = ProcessTelemetry(
                    pid=pid,
                    cpu_percent=cpu if is_known else None,  # the first reading has no interval
                    rss_mib=round(process.memory_info().rss / MIB, 1),
                    threads=process.num_threads(),
                    pss_mib=round(pss[pid] / MIB, 1) if pid in pss else None,
                    fds=_count_fds(process),
                )
        except (psutil.Error, OSError):
            self._known.pop(pid, None)
            return None
        self.cpu_s[name] = round(times.user + times.system, 2)
        return said


def _count_fds(process: psutil.Process) -> int | None:
    try:
        count = int(process.num_fds())
    except (psutil.Error, OSError):  # another user's, or it has just ended
        return None
    return count - int(process.pid == os.getpid())  # our own are looked at with one more
