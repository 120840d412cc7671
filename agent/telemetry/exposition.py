"""The text of /metrics: one snapshot in Prometheus' format or in OpenMetrics'.

All names begin with `edge_agent_`. The board is no label: Prometheus knows by its own `instance`
whom it asked, and `edge_agent_device_info` says which device that is. `[model]` stands for the
engine of the configuration's [model], which has no name.
"""

from __future__ import annotations

from typing import get_args

from prometheus_client.exposition import choose_encoder

from agent.contract.payloads import CameraState, Status
from agent.contract.telemetry import EngineTelemetry, OutboxTelemetry
from agent.telemetry.board_families import board_families
from agent.telemetry.families import Families, mib_in_bytes, scaled
from agent.telemetry.metrics import Metrics, ScrapeCost

# The two formats, as a scraper asks for them; both have UTF-8 in label values alone.
OPENMETRICS = "application/openmetrics-text"
PLAIN = "text/plain"


def exposition(metrics: Metrics, accept: str, cost: ScrapeCost | None = None) -> tuple[bytes, str]:
    """Return the text and its content type, in the format that `accept` (of HTTP) prefers."""
    families = Families()
    _agent(families, metrics)
    _cameras(families, metrics)
    _engines(families, metrics.telemetry.engines, metrics.status)
    _restarts(families, metrics.telemetry.engines, metrics.restart_reasons)
    board_families(families, metrics)
    _outbox(families, metrics.telemetry.outbox)
    _mqtt(families, metrics)
    _scrapes(families, cost or ScrapeCost())
    encode, content_type = choose_encoder(OPENMETRICS if wants_openmetrics(accept) else PLAIN)
    return encode(families), content_type


def wants_openmetrics(accept: str) -> bool:
    """Return whether an Accept header names OpenMetrics, and nothing it likes better.

    The library's own choice heeds no weights.
    """
    openmetrics = weight(accept, OPENMETRICS)
    return openmetrics > 0 and openmetrics >= weight(accept, PLAIN)


def weight(header: str, word: str) -> float:
    """Return how much a header such as Accept wants a word it names, 0 to 1 (RFC 9110, 12.4.2)."""
    weights = [0.0]
    for part in header.lower().split(","):
        name, *parameters = (text.strip() for text in part.split(";"))
        if name == word:
            weights.append(next(map(_weight_of, filter(_is_weight, parameters)), 1.0))
    return max(weights)


def _is_weight(parameter: str) -> bool:
    return parameter.partition("=")[0].strip() == "q"


def _weight_of(parameter: str) -> float:
    try:
        return float(parameter.partition("=")[2])
    except ValueError:
        return 0.0


def engine_label(name: str) -> str:
    """Return the label of an engine; no name in [models] can have brackets."""
    return name or "[model]"


def _agent(families: Families, metrics: Metrics) -> None:
    telemetry, status = metrics.telemetry, metrics.status
    families.info(
        "edge_agent_build",
        "Version of the agent.",
        [{"version": status.agent_version, "python": status.board.python}],
    )
    families.info(
        "edge_agent_device",
        "Which board this is; boot_id is one run of the daemon.",
        [
            {
                "device": status.device,
                "boot_id": status.boot_id,
                "board": status.board.model,
                "machine": status.board.machine,
                "groups": ",".join(status.groups),
            }
        ],
    )
    families.gauge(
        "edge_agent_uptime_seconds", "Time since the daemon started.", telemetry.uptime_s
    )
    families.gauge(
        "edge_agent_clock_synced",
        "Whether the board's clock is synchronized.",
        telemetry.clock_synced,
    )
    families.gauge(
        "edge_agent_health_problems", "How many things are wrong now.", len(status.health)
    )
    families.gauges(
        "edge_agent_health_problem",
        "Something that is wrong now; the messages are in the status.",
        "code",
        [(problem.code, 1) for problem in status.health],
    )
    families.gauge(
        "edge_agent_sampler_cpu_seconds",
        "Processor time of one reading of the board's sensors, mean.",
        scaled(telemetry.sampler_cpu_ms, 1e-3),
    )


def _cameras(families: Families, metrics: Metrics) -> None:
    cameras = metrics.telemetry.cameras
    states = metrics.status.cameras
    families.gauges(
        "edge_agent_camera_up",
        "Whether frames come.",
        "camera",
        [(camera.name, camera.state == "online") for camera in states],
    )
    families.gauges(
        "edge_agent_camera_state",
        "1 for the state that the camera is in.",
        ("camera", "state"),
        [
            ((camera.name, state), camera.state == state)
            for camera in states
            for state in get_args(CameraState)
        ],
    )
    counts = {
        "captured": "Frames that came from the camera.",
        "dropped": "Frames that were captured but not processed, as there was no time for them.",
        "still": "Frames that a motion gate found unchanged.",
        "processed": "Frames with a result.",
    }
    for count, text in counts.items():
        families.counters(
            f"edge_agent_frames_{count}",
            text,
            "camera",
            [(name, getattr(camera, count)) for name, camera in cameras.items()],
        )
    families.counter(
        "edge_agent_times_lost",
        "Frames and results that no histogram knows of.",
        metrics.telemetry.times_lost,
    )
    families.histograms(
        "edge_agent_stage_latency_seconds",
        "Where a frame's time goes; total is capture to encoded result, end_to_end until the"
        " broker has it.",
        ("camera", "stage"),
        [
            ((name, stage), buckets)
            for name, stages in metrics.histograms.items()
            for stage, buckets in stages.items()
        ],
    )
    families.gauges(
        "edge_agent_deadline_seconds",
        "What a frame's total may take, as configured.",
        "camera",
        [(name, scaled(camera.deadline_ms or None, 1e-3)) for name, camera in cameras.items()],
    )
    families.counters(
        "edge_agent_deadline_misses",
        "Frames whose total took longer than the deadline.",
        "camera",
        [(name, camera.deadline_misses) for name, camera in cameras.items()],
    )
    # An age and no time stamp, as the clock of a board may be wrong.
    families.gauges(
        "edge_agent_last_result_age_seconds",
        "Time since the last result.",
        "camera",
        metrics.result_age_s.items(),
    )


def _engines(families: Families, engines: list[EngineTelemetry], status: Status) -> None:
    tasks = {engine.name: engine.task for engine in status.engines}
    families.info(
        "edge_agent_model",
        "Which model runs, and on what.",
        [
            {
                "engine": engine_label(engine.name),
                "model": engine.model.name,
                "version": engine.model.version,
                "sha256": engine.model.sha256,
                "task": tasks.get(engine.name),
                "accelerator": engine.accelerator,
                "runtime": engine.runtime,
                "runtime_version": engine.runtime_version,
            }
            for engine in engines
            if engine.model is not None
        ],
    )
    families.gauges(
        "edge_agent_engine_up",
        "Whether its model runs.",
        "engine",
        [(engine_label(engine.name), engine.model is not None) for engine in engines],
    )
    families.gauges(
        "edge_agent_engine_fallback",
        "Whether it runs on something else than was wanted; the reason is in the status.",
        "engine",
        [
            (engine_label(engine.name), engine.accelerator.reason is not None)
            for engine in status.engines
            if engine.accelerator.used is not None
        ],
    )
    families.counters(
        "edge_agent_inferences",
        "Runs of the model, those of second stages as well.",
        "engine",
        [(engine_label(engine.name), engine.inferences) for engine in engines],
    )


def _restarts(families: Families, engines: list[EngineTelemetry], reasons: tuple[str, ...]) -> None:
    families.counters(
        "edge_agent_worker_restarts",
        "Worker processes that had to be replaced.",
        ("engine", "reason"),
        [
            ((engine_label(engine.name), reason), count)
            for engine in engines
            for reason, count in {**dict.fromkeys(reasons, 0), **engine.restarts}.items()
        ],
    )


def _outbox(families: Families, outbox: OutboxTelemetry) -> None:
    families.gauge(
        "edge_agent_outbox_waiting_messages", "Messages that wait for the broker.", outbox.waiting
    )
    families.gauge(
        "edge_agent_outbox_waiting_bytes", "Their size.", mib_in_bytes(outbox.waiting_mib)
    )
    families.gauge("edge_agent_outbox_disk_messages", "Of those waiting, on disk.", outbox.on_disk)
    families.gauge("edge_agent_outbox_disk_bytes", "Their size.", mib_in_bytes(outbox.on_disk_mib))
    families.gauge(
        "edge_agent_outbox_oldest_age_seconds", "How long the oldest waits.", outbox.oldest_age_s
    )
    families.counter(
        "edge_agent_outbox_published", "Messages that the broker has.", outbox.published
    )
    families.counter("edge_agent_outbox_dropped", "Messages given up.", outbox.dropped)


def _mqtt(families: Families, metrics: Metrics) -> None:
    families.gauge(
        "edge_agent_mqtt_connected", "Whether the broker is connected.", metrics.connected
    )
    mqtt = metrics.telemetry.mqtt
    families.counter("edge_agent_mqtt_reconnects", "Connections after the first.", mqtt.reconnects)
    if mqtt.protocol is not None:
        families.info("edge_agent_mqtt", "What is spoken.", [{"protocol": mqtt.protocol}])


def _scrapes(families: Families, cost: ScrapeCost) -> None:
    families.counter("edge_agent_scrapes", "Answers like this one, before it.", cost.scrapes)
    families.counter("edge_agent_scrape_cpu_seconds", "Processor time of making them.", cost.cpu_s)
    families.gauge(
        "edge_agent_snapshot_age_seconds",
        "How old the figures here are.",
        cost.snapshot_age_s,
    )
