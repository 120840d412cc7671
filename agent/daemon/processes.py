"""CPU and memory of our own processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import psutil

from agent.contract.payloads import ProcessTelemetry

MIB = 1 << 20
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


class ProcessReader:
    """Reads processes again and again; CPU is over the time since the last reading."""

    def __init__(self) -> None:
        self._known: dict[int, psutil.Process] = {}

    def read(self, workers: Mapping[str, int | None]) -> dict[str, ProcessTelemetry | None]:
        """Return this process as `control`, and the workers; None where there is none."""
        pids: dict[str, int | None] = {"control": os.getpid(), **workers}
        for gone in self._known.keys() - set(pids.values()):
            del self._known[gone]
        return {name: self._one(pid) for name, pid in pids.items()}

    def _one(self, pid: int | None) -> ProcessTelemetry | None:
        if pid is None:
            return None
        is_known = pid in self._known
        try:
            process = self._known.setdefault(pid, psutil.Process(pid))
            with process.oneshot():
                cpu = process.cpu_percent()
                return ProcessTelemetry(
                    pid=pid,
                    cpu_percent=cpu if is_known else None,  # the first reading has no interval
                    rss_mib=round(process.memory_info().rss / MIB, 1),
                    threads=process.num_threads(),
                )
        except psutil.Error:
            self._known.pop(pid, None)
            return None
