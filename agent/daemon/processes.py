"""CPU and memory of our own processes."""

from __future__ import annotations

import os
from collections.abc import Mapping

import psutil

from agent.contract.payloads import ProcessTelemetry

MIB = 1 << 20


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
