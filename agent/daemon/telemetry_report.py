"""The telemetry message, each interval, and between two of them what must be watched.

One owner: the control process's main thread. What takes time or may hang is read elsewhere: the
board by the sampler's thread, frames' times by the workers and the link's thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from msgspec.structs import replace

from agent import __version__
from agent.contract import topics
from agent.contract.payloads import encode
from agent.contract.reading import BoardIdentity, Power, Reading
from agent.contract.telemetry import (
    EngineTelemetry,
    MqttTelemetry,
    OutboxTelemetry,
    Telemetry,
)
from agent.contract.topics import Topics
from agent.daemon.camera_facts import SEEN, camera_counts, camera_telemetry
from agent.daemon.clock_repair import ClockRepair
from agent.daemon.mqtt import MqttLink
from agent.daemon.outbox import Record
from agent.daemon.report import Report
from agent.daemon.vitals import Vitals, VitalsReader
from agent.daemon.workers.restart_reasons import RestartReason
from agent.sensors.sampler import Sampler
from agent.telemetry.energy import EnergyMeter
from agent.telemetry.health import Observation
from agent.telemetry.latency import RELATIVE_ERROR, LatencyBook
from agent.telemetry.limits import BoardObserver, LateShare, deadline, observe_system
from agent.telemetry.metrics import Metrics

MIB = 1 << 20
TELEMETRY_STREAM = "telemetry"
LOOK_EVERY_S = 1.0
# What whoever scrapes is told of processes and of the system may be so old.
VITALS_KEEP_S = 5.0
NO_READING = Reading(
    board_id=BoardIdentity(id="generic", family="generic", soc=None, model=None, compatible=[]),
    power=Power(
        kind="unavailable",
        scope="none",
        total_w=None,
        rails={},
        in_total=[],
        excluded_from_total=[],
        sensor=None,
        reason="the board has not been read yet, or its sensors hang",
    ),
    estimate=None,
    temps_c={},
    temps_unreadable=[],
    temps_ignored=[],
    throttle=None,
    clocks_hz=None,
    fan=None,
    accel=None,
    read_errors={},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruments:
    """What measures."""

    board: Sampler
    energy: EnergyMeter
    latency: LatencyBook
    vitals: VitalsReader  # between two telemetry messages
    scraped: VitalsReader  # between two looks for whoever scrapes


class TelemetryReport:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        device: str,
        boot_id: str,
        first_seq: int,
        names: Topics,
        report: Report,
        mqtt: MqttLink,
        clock: ClockRepair,
        instruments: Instruments,
        follow: Callable[[Telemetry, BoardIdentity | None], None],
    ) -> None:
        self._device = device
        self._boot_id = boot_id
        self._next_seq = first_seq
        self._topic = names.name(topics.TELEMETRY)
        self._report = report
        self._mqtt = mqtt
        self._clock = clock
        self._instruments = instruments
        self._follow = follow
        self._observer = BoardObserver()
        self._late = {name: LateShare() for name in report.cameras}
        self._started = self._last = time.monotonic()
        self._next_look = self._started
        self._counted = 0  # inferences that the energy meter knows of
        self._scraped: Vitals | None = None
        self._scrape_problem: Callable[[], str | None] | None = None
        self.metrics: Metrics | None = None  # replaced as a whole; any thread may read it

    def look(self) -> None:
        """Once a second: hold what was measured against its limits, show it to who scrapes."""
        now = time.monotonic()
        if now < self._next_look:
            return
        if self._next_look == self._started:
            self._instruments.vitals.read(self._workers(), now)  # the first rates are from here on
        self._next_look = now + LOOK_EVERY_S
        self._instruments.latency.catch_up()
        self._count_inferences(now)
        self._report.follow_health(self._observations(now))
        if self._scrape_problem is not None:
            self._report.note("prometheus", self._scrape_problem())
            self.metrics = self._snapshot(now)

    def serve(self, problem: Callable[[], str | None]) -> None:
        """Keep `metrics` up to date from now on; `problem` says why nobody can ask for them."""
        self._scrape_problem = problem

    def why_not_ready(self) -> list[str]:
        """Return what keeps results from flowing; from any thread."""
        metrics = self.metrics
        if metrics is None:
            return ["nothing is known yet"]
        status = metrics.status
        problems = [] if any(engine.model for engine in status.engines) else ["no model runs"]
        if not any(camera.state in SEEN for camera in status.cameras):
            problems.append("no camera gives frames")
        return problems

    def _count_inferences(self, now: float) -> None:
        done = sum(camera.inferences for camera in self._report.cameras.values())
        self._instruments.energy.note_inferences(done - self._counted, now)
        self._counted = done

    def _observations(self, now: float) -> Iterator[Observation]:
        look = self._instruments.board.fresh(now)
        yield from self._observer.observe(look.reading if look is not None else None)
        system = self._instruments.vitals.system
        yield from observe_system(system.disk_free_mib, system.memory_available_mib)
        for name, camera in self._report.cameras.items():
            late = self._instruments.latency.misses(name)
            if late is not None:
                share = self._late[name].note(now, camera.totals()[3], late)
                yield Observation(deadline(name, camera.config.deadline_ms), share)

    def publish(self) -> None:
        """Publish one telemetry message about the interval since the last."""
        now = time.monotonic()
        interval_s, self._last = now - self._last, now
        self._instruments.latency.catch_up()
        self._count_inferences(now)
        at, is_synced, mark = self._clock.stamp()
        message = self._message(now, at, is_synced=is_synced, interval_s=interval_s)
        self._next_seq += 1
        look = self._instruments.board.fresh(now)
        self._follow(message, look.reading.board_id if look is not None else None)
        self._report.publish_cameras()  # their rates are new
        self._mqtt.put(
            Record(
                topic=self._topic,
                payload=encode(message),
                stream=TELEMETRY_STREAM,
                seq=message.seq,
                is_telemetry=True,
                clock=mark,
            )
        )

    def _snapshot(self, now: float) -> Metrics:
        """Return what is known now, without ending any interval."""
        tools = self._instruments
        vitals = self._scraped
        if vitals is None or now - vitals.at > VITALS_KEEP_S:
            vitals = self._scraped = tools.scraped.read(self._workers(), now)
        status = self._report.status()
        return Metrics(
            at=now,
            telemetry=self._so_far(now, time.time(), vitals, is_synced=status.clock_synced),
            status=status,
            connected=self._mqtt.connection.connected,
            histograms=tools.latency.buckets(),
            energy_j=tools.energy.total_j,
            idle_w=tools.energy.idle_w,
            cpu_s=vitals.cpu_s,
            result_age_s={
                name: now - one.result_at
                for name, one in self._report.cameras.items()
                if math.isfinite(one.result_at)
            },
            disks=vitals.disks,
            networks=vitals.networks,
            restart_reasons=get_args(RestartReason),
        )

    def _message(
        self, now: float, at: float, *, is_synced: bool | None, interval_s: float
    ) -> Telemetry:
        """Return what is published, and end the interval."""
        tools = self._instruments
        vitals = tools.vitals.read(self._workers(), now)
        return replace(
            self._so_far(now, at, vitals, is_synced=is_synced),
            interval_s=round(interval_s, 3),
            cameras={
                name: camera_telemetry(camera, interval_s, tools.latency)
                for name, camera in self._report.cameras.items()
            },
            energy=replace(tools.energy.window(now), total_j=tools.energy.total_j),
        )

    def _so_far(
        self, now: float, at: float, vitals: Vitals, *, is_synced: bool | None
    ) -> Telemetry:
        """Return what counts since the start and what holds now; no interval ends by it."""
        tools = self._instruments
        engines = self._engines()
        return Telemetry(
            device=self._device,
            boot_id=self._boot_id,
            seq=self._next_seq,
            at=at,
            clock_synced=is_synced,
            uptime_s=round(now - self._started, 3),
            interval_s=0.0,
            agent_version=__version__,
            relative_error=RELATIVE_ERROR,
            times_lost=tools.latency.lost,
            cameras={
                name: camera_counts(camera, tools.latency)
                for name, camera in self._report.cameras.items()
            },
            engines=engines,
            energy=tools.energy.so_far(),
            processes=dict(vitals.processes),
            system=vitals.system,
            worker_restarts=sum(sum(engine.restarts.values()) for engine in engines),
            outbox=self._outbox(),
            mqtt=self._mqtt_telemetry(),
            **self._board(now),
        )

    def _board(self, now: float) -> dict[str, Any]:
        """Return the fields that the last look at the board fills."""
        look = self._instruments.board.fresh(now)
        reading = look.reading if look is not None else NO_READING
        return {
            "power": reading.power,
            "estimate": reading.estimate,
            "temps_c": reading.temps_c,
            "temps_unreadable": reading.temps_unreadable,
            "throttle": reading.throttle,
            "clocks_hz": reading.clocks_hz,
            "fan": reading.fan,
            "accel": reading.accel,
            "sampler_cpu_ms": self._instruments.board.cpu_ms,
        }

    def _workers(self) -> dict[str, int | None]:
        return {
            f"worker.{engine.name}" if engine.name else "worker": engine.worker_pid()
            for engine in self._report.engines
        }

    def _mqtt_telemetry(self) -> MqttTelemetry:
        connection = self._mqtt.connection
        return MqttTelemetry(protocol=connection.protocol, reconnects=connection.reconnects)

    def _engines(self) -> list[EngineTelemetry]:
        cameras = self._report.cameras
        return [
            engine.telemetry(sum(cameras[name].inferences for name in engine.cameras))
            for engine in self._report.engines
        ]

    def _outbox(self) -> OutboxTelemetry:
        outbox = self._mqtt.outbox
        age_s = outbox.oldest_age_s
        return OutboxTelemetry(
            waiting=outbox.waiting,
            waiting_mib=round(outbox.waiting_bytes / MIB, 3),
            on_disk=outbox.on_disk,
            on_disk_mib=round(outbox.on_disk_bytes / MIB, 3),
            published=outbox.published,
            dropped=outbox.dropped,
            oldest_age_s=None if age_s is None else round(age_s, 3),
        )
