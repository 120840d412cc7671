"""How the agent's processes and the whole board fare, between two looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.contract.telemetry import ProcessTelemetry, SystemTelemetry
from agent.daemon.processes import ProcessReader
from agent.daemon.system import Counters, SystemReader


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """What was read, and when; rates are of the time since the reader's last look."""

    at: float  # monotonic seconds
    processes: Mapping[str, ProcessTelemetry | None]
    system: SystemTelemetry
    cpu_s: Mapping[str, float]  # process -> processor seconds since it started
    disks: Counters  # since the board started; likewise
    networks: Counters


@dataclass(frozen=True, slots=True)
class VitalsReader:
    """Looks again and again; each who wants rates of intervals of its own needs one of its own."""

    system: SystemReader
    processes: ProcessReader = field(default_factory=ProcessReader)

    def read(self, workers: Mapping[str, int | None], now: float) -> Vitals:
        """Look at this process, the workers by their ids, and the board."""
        return Vitals(
            at=now,
            processes=self.processes.read(workers),
            system=self.system.read(now),
            cpu_s=self.processes.cpu_s,
            disks=self.system.disks,
            networks=self.system.networks,
        )
