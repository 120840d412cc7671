"""The snapshot that Prometheus is told: everything that is known at one moment.

The control process's main thread makes it, the thread that answers scrapes reads it; it is never
changed, so nothing is locked. Figures over an interval are left out where Prometheus works out
its own from counters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.contract.payloads import Status
from agent.contract.telemetry import Stage, Telemetry
from agent.telemetry.latency import Buckets


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """One snapshot.

    Attributes:
        at: monotonic seconds when it was made.
        telemetry: what counts since the start and what holds now must be right in it; what is
            of an interval (rates, percentiles, the energy of a window) is not looked at.
        status: as retained.
        connected: to the broker.
        histograms: camera -> stage -> times since the daemon started.
        energy_j: joules since the daemon started, of the scope of `telemetry.power`.
        idle_w: the baseline measured at rest.
        cpu_s: process, as in telemetry -> processor seconds since that process started.
        result_age_s: camera -> seconds since its last result, for those that had one.
        disks: device -> bytes read and written, since the board started.
        networks: interface -> bytes received and sent, since the board started.
        restart_reasons: all that there are, so that each is counted from 0 on: Prometheus sees
            no increase in a count that begins with 1.
    """

    at: float
    telemetry: Telemetry
    status: Status
    connected: bool
    histograms: Mapping[str, Mapping[Stage, Buckets]] = field(default_factory=dict)
    energy_j: float | None = None
    idle_w: float | None = None
    cpu_s: Mapping[str, float] = field(default_factory=dict)
    result_age_s: Mapping[str, float] = field(default_factory=dict)
    disks: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    networks: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    restart_reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrapeCost:
    """What scrapes themselves cost so far, and how old the snapshot is that is told now."""

    scrapes: int = 0
    cpu_s: float = 0.0
    snapshot_age_s: float | None = None
