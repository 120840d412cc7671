"""CPU and memory of the daemon's processes, read from outside it.

Memory is PSS: libraries that both processes map are shared out between them, so the two
numbers may be added up.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import psutil

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What one process needed; None where it cannot be read."""

    cpu_percent: float | None  # of one core, since it was first seen
    pss_mib: float | None


@dataclass(slots=True)
class _Seen:
    process: psutil.Process
    at: float
    cpu_s: float


@dataclass(slots=True)
class Usage:
    """Follows processes by name from when they are first noted."""

    _seen: dict[str, _Seen] = field(default_factory=dict)

    def follow(self, name: str, pid: int) -> None:
        """Begin with a process; one that is followed already goes on."""
        known = self._seen.get(name)
        if known is not None and known.process.pid == pid:
            return
        try:
            process = psutil.Process(pid)
            self._seen[name] = _Seen(process=process, at=time.monotonic(), cpu_s=_cpu_s(process))
        except psutil.Error:
            self._seen.pop(name, None)

    def read(self) -> dict[str, Use]:
        """Return what each has used so far."""
        return {name: _read(seen) for name, seen in self._seen.items()}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    used: float = times.user + times.system
    return used


def _read(seen: _Seen) -> Use:
    try:
        elapsed_s = time.monotonic() - seen.at
        used_s = _cpu_s(seen.process) - seen.cpu_s
        # Too short a time says nothing in ticks of 10 ms.
        cpu_percent = 100 * used_s / elapsed_s if elapsed_s >= 1.0 else None
        pss = getattr(seen.process.memory_full_info(), "pss", None)
        return Use(cpu_percent=cpu_percent, pss_mib=pss / MIB if pss else None)
    except psutil.Error:
        return Use(cpu_percent=None, pss_mib=None)
