"""The telemetry payload, as types: how the agent and its board fare, each interval.

Percentiles are of all frames of a camera in the interval or since the daemon started, never of
samples of them, and within `relative_error` of the exact ones. Unknown is `null` and never 0.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from agent.contract.payloads import Count, ModelIdentity, UnixSeconds
from agent.contract.reading import Accel, Estimate, Fan, Power, Throttle

# Where a frame's time goes. `age`: capture until preprocessing begins; `queue`: all waiting, as in
# a result; `total`: capture to encoded result, a result's latency_ms. Then, of what is published:
# `publish`: encoded until it is handed to the connection; `acknowledge`: from then until the broker
# has said that it has it; `end_to_end`: capture until that.
Stage = Literal[
    "age",
    "queue",
    "preprocess",
    "inference",
    "postprocess",
    "cascade",
    "total",
    "publish",
    "acknowledge",
    "end_to_end",
]
Milliseconds = float | None


class Percentiles(Struct, frozen=True, kw_only=True):
    """A distribution of times in milliseconds; null where nothing was counted."""

    count: Count
    p50: Milliseconds
    p90: Milliseconds
    p99: Milliseconds
    p999: Milliseconds
    max: Milliseconds


class CameraTelemetry(Struct, frozen=True, kw_only=True):
    """Counts since the daemon started; rates over the last interval."""

    captured: Count
    dropped: Count
    still: Count
    processed: Count
    fps_in: float | None
    fps_out: float | None
    deadline_ms: Annotated[float | None, Meta(description="of the configuration")] = None
    deadline_misses: Annotated[
        Count | None, Meta(description="frames whose `total` took longer, since the start")
    ] = None
    latency_ms: Annotated[dict[Stage, Percentiles], Meta(description="of this interval")] = {}
    latency_since_start_ms: dict[Stage, Percentiles] = {}


class ProcessTelemetry(Struct, frozen=True, kw_only=True):
    """One process of the agent, from /proc; 100 % CPU is one core."""

    pid: int
    cpu_percent: float | None
    rss_mib: float | None
    threads: int | None
    pss_mib: Annotated[float | None, Meta(description="what it shares counted in parts")] = None
    fds: Annotated[int | None, Meta(description="open file descriptors")] = None


class SystemTelemetry(Struct, frozen=True, kw_only=True):
    """The whole board; bytes and rates over the interval."""

    uptime_s: float | None
    cpu_percent: Annotated[float | None, Meta(description="of all cores together, 0 to 100")]
    load_1m: float | None
    memory_total_mib: float | None
    memory_available_mib: float | None
    swap_used_mib: float | None
    disk_total_mib: Annotated[float | None, Meta(description="where state_dir lies")]
    disk_free_mib: float | None
    disk_read_bytes_per_s: float | None
    disk_written_bytes_per_s: float | None
    network_received_bytes_per_s: Annotated[float | None, Meta(description="without loopback")]
    network_sent_bytes_per_s: float | None


class EnergyTelemetry(Struct, frozen=True, kw_only=True):
    """Energy of the interval and per inference; of the scope of `power`, so not of the plug.

    Everything is null unless `valid`. One window's energy is divided by its inferences, of all
    models and cameras: a single inference has none of its own. Net is without what the board
    draws at rest, if that was measured (`edge-agent bench --energy`). Not an MLPerf figure.
    """

    valid: bool
    why_invalid: str | None
    source: Annotated[
        Literal["counter", "trapezoid"] | None, Meta(description="a counter of the chip, or power")
    ]
    scope: str
    window_s: float | None
    mean_w: float | None
    gross_j: float | None
    idle_w: Annotated[float | None, Meta(description="the baseline, measured at rest")]
    net_j: float | None
    inferences: Count
    gross_mj_per_inference: float | None
    net_mj_per_inference: float | None
    samples: Count
    largest_gap_s: float | None
    coverage: Annotated[float | None, Meta(description="share of the window between samples")]
    total_j: Annotated[
        float | None, Meta(description="measured since the daemon started, valid or not")
    ] = None


class EngineTelemetry(Struct, frozen=True, kw_only=True):
    """What ran; the whole of it is in `status`."""

    name: str
    model: ModelIdentity | None
    accelerator: str | None
    runtime: str | None
    runtime_version: str | None
    inferences: Annotated[
        int, Meta(ge=0, description="frames, and boxes that second stages looked at")
    ]
    restarts: Annotated[dict[str, int], Meta(description="of its worker, by reason")]


class OutboxTelemetry(Struct, frozen=True, kw_only=True):
    """Results and telemetry waiting for the broker, and those given up; counts of this run."""

    waiting: Count
    waiting_mib: float
    on_disk: Annotated[int, Meta(ge=0, description="of those waiting")]
    on_disk_mib: float
    published: Count
    dropped: Count
    oldest_age_s: Annotated[float | None, Meta(description="how long the oldest waits")] = None


class MqttTelemetry(Struct, frozen=True, kw_only=True):
    """The connection to the broker."""

    protocol: str | None
    reconnects: Count


class Telemetry(Struct, frozen=True, kw_only=True):
    """How the agent fares, each interval."""

    schema: Literal["edge-agent/telemetry/1"] = "edge-agent/telemetry/1"
    device: str
    boot_id: str
    seq: Annotated[int, Meta(ge=1, description="of the stream `telemetry`; as in a result")]
    at: UnixSeconds
    clock_synced: bool | None
    clock_repaired: bool | UnsetType = UNSET
    uptime_s: Annotated[float, Meta(description="of the daemon")]
    interval_s: float
    agent_version: str
    relative_error: Annotated[float, Meta(description="of percentiles, at most")]
    times_lost: Annotated[
        int, Meta(ge=0, description="frames and results that no percentile knows of")
    ]
    cameras: dict[str, CameraTelemetry]
    engines: list[EngineTelemetry]
    power: Power
    estimate: Estimate | None
    energy: EnergyTelemetry
    temps_c: dict[str, float]
    temps_unreadable: list[str]
    throttle: Throttle | None
    clocks_hz: dict[str, int] | None
    fan: Fan | None
    accel: Accel | None
    sampler_cpu_ms: Annotated[
        float | None, Meta(description="processor time of one reading of the board, mean")
    ]
    processes: dict[str, ProcessTelemetry | None]
    system: SystemTelemetry
    worker_restarts: Count
    outbox: OutboxTelemetry
    mqtt: MqttTelemetry
