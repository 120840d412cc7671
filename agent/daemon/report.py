"""What the daemon knows about itself, and the payloads made of it.

One owner: the control process's main thread. Facts come in through one `EngineReport` per
engine, its supervisor's `Listener`; retained payloads go out whenever a fact changes,
telemetry when it is asked for.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from agent import __version__
from agent.config import CameraConfig
from agent.contract import topics
from agent.contract.payloads import (
    Accelerator,
    Board,
    CameraStatus,
    CameraSummary,
    EngineStatus,
    Gap,
    MqttTelemetry,
    OutboxTelemetry,
    Problem,
    Status,
    Telemetry,
    encode,
)
from agent.contract.topics import Topics
from agent.daemon.camera_facts import SEEN, CameraFacts, camera_telemetry
from agent.daemon.clock_repair import ClockRepair
from agent.daemon.mqtt import MqttLink
from agent.daemon.outbox import GapNote, Record
from agent.daemon.processes import ProcessReader
from agent.link import Beat, CameraChange, Learned, Ready, ResultOut
from agent.redaction import redact
from agent.sensors.board import read_board_model
from agent.sensors.clock import read_clock_offset_s, read_clock_synced

log = logging.getLogger(__name__)
MIB = 1 << 20
# A board without a clock of its own is set by days or years; what NTP slews is far below this.
CLOCK_STEP_S = 1.0
TELEMETRY_STREAM = "telemetry"


def detections_stream(camera: str) -> str:
    """Return the stream that a camera's results are numbered in."""
    return f"camera/{camera}/detections"


@dataclass(slots=True)
class EngineReport:
    """What is known of one engine; its supervisor's `Listener`."""

    name: str  # in [models]; empty for [model]
    cameras: tuple[str, ...]
    accelerator_wanted: str
    worker_pid: Callable[[], int | None]
    restarts: Callable[[], int]
    report: Report
    learn: Callable[[Learned], None]
    ready: Ready | None = None
    problems: dict[str, Problem] = field(default_factory=dict)

    def on_result(self, result: ResultOut) -> None:
        """Hand a result to the outbox."""
        self.report.put_result(result)

    def on_ready(self, ready: Ready) -> None:
        """A model runs: say which, and forget what kept it from running."""
        self.ready = ready
        self.problems.clear()
        if ready.notes:
            self._note("config", "; ".join(ready.notes))
        if ready.reason:
            self._note("accelerator", ready.reason)
        self.report.publish_status()

    def on_camera(self, change: CameraChange) -> None:
        """A camera came, went or ended."""
        self.report.change_camera(change)

    def on_beat(self, beat: Beat) -> None:
        """Take over the worker's counters."""
        for name, counts in beat.cameras.items():
            if name in self.report.cameras:
                self.report.cameras[name].now = counts

    def on_learned(self, learned: Learned) -> None:
        """Remember how a model runs best."""
        self.learn(learned)

    def on_down(self, code: str, reason: str) -> None:
        """The worker is gone."""
        self.ready = None if code == "model" else self.ready
        self._note(code, reason)
        self.report.lose_worker(self.cameras)

    def on_replaced(self) -> None:
        """The worker ended as it was asked to."""
        self.report.lose_worker(self.cameras)

    def on_abandoned(self, pid: int, reason: str) -> None:
        """A process cannot be killed; with an empty reason: the last of them has ended."""
        del pid  # it is in the reason
        if reason:
            self._note("needs_reboot", reason)
        else:
            self.problems.pop("needs_reboot", None)
        self.report.publish_status()

    def _note(self, code: str, message: str) -> None:
        known = self.problems.get(code)
        if known is None or known.message != message:
            since = known.since if known else time.time()
            code_shown = f"{code}.{self.name}" if self.name else code
            self.problems[code] = Problem(code=code_shown, message=message, since=since)

    def accelerator(self) -> Accelerator:
        """Return what was wanted, what is used and why."""
        ready = self.ready
        return Accelerator(
            wanted=self.accelerator_wanted,
            used=ready.accelerator if ready else None,
            reason=ready.reason if ready else None,
        )

    def status(self) -> EngineStatus:
        """Return the engine's line in the status."""
        ready = self.ready
        return EngineStatus(
            name=self.name,
            cameras=list(self.cameras),
            model=ready.model if ready else None,
            task=ready.task if ready else None,
            head=ready.head if ready else None,
            accelerator=self.accelerator(),
            run=ready.run if ready else None,
        )


class Report:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        device: str,
        boot_id: str,
        groups: tuple[str, ...],
        cameras: tuple[CameraConfig, ...],
        names: Topics,
        mqtt: MqttLink,
        clock: ClockRepair,
        telemetry_seq: int = 1,
    ) -> None:
        self._device = device
        self._boot_id = boot_id
        self._groups = groups
        self._names = names
        self._mqtt = mqtt
        self._started_at = time.time()
        self._started = self._last_telemetry = time.monotonic()
        self.engines: list[EngineReport] = []  # filled by the composition root, never empty then
        self._camera_problems: dict[str, Problem] = {}
        self._processes = ProcessReader()
        self._board_model = read_board_model()
        self._clock = clock
        self._clock_offset_s = read_clock_offset_s()
        self._next_telemetry = telemetry_seq
        self._outbox_problem: Problem | None = None
        self.cameras = {
            config.name: CameraFacts(
                config=config,
                topic=names.name(topics.DETECTIONS, config.name),
                stream=detections_stream(config.name),
                since=self._started_at,
            )
            for config in cameras
        }

    def put_result(self, result: ResultOut) -> None:
        """Hand a result to the outbox."""
        camera = self.cameras[result.camera]
        self._mqtt.put(
            Record(
                topic=camera.topic,
                payload=result.payload,
                stream=camera.stream,
                seq=result.seq,
                clock=self._clock.mark(result.clock_offset_s),
            )
        )

    def change_camera(self, change: CameraChange) -> None:
        """Take over what a worker says of a camera."""
        camera = self.cameras[change.camera]
        if (camera.state, camera.reason) != (change.state, change.reason):
            camera.state, camera.reason, camera.since = change.state, change.reason, change.at
        if change.state not in SEEN:
            camera.fps = None
        camera.width = change.width or camera.width
        camera.height = change.height or camera.height
        code = f"camera.{change.camera}"
        if change.is_fault:
            message = f"camera {change.camera}: {change.reason}"
            known = self._camera_problems.get(code)
            if known is None or known.message != message:
                since = known.since if known else time.time()
                self._camera_problems[code] = Problem(code=code, message=message, since=since)
        else:
            self._camera_problems.pop(code, None)
        self._publish_camera(camera)
        self.publish_status()

    def lose_worker(self, cameras: tuple[str, ...]) -> None:
        """Note that nobody serves these cameras at the moment."""
        for name in cameras:
            self.cameras[name].worker_is_gone()
            self._publish_camera(self.cameras[name])
        self.publish_status()

    def publish_status(self) -> None:
        """Retain the status."""
        first = self.engines[0]
        ready = first.ready
        problems = [one for engine in self.engines for one in engine.problems.values()]
        status = Status(
            device=self._device,
            boot_id=self._boot_id,
            agent_version=__version__,
            started_at=self._started_at,
            board=Board(
                model=self._board_model,
                machine=platform.machine(),
                python=platform.python_version(),
                runtime=ready.run.runtime if ready else None,
            ),
            groups=self._groups,
            model=ready.model if ready else None,
            task=ready.task if ready else None,
            accelerator=first.accelerator(),
            engines=[engine.status() for engine in self.engines],
            cameras=[
                CameraSummary(name=name, state=camera.state, reason=camera.reason)
                for name, camera in self.cameras.items()
            ],
            health=[*problems, *self._camera_problems.values(), *self._own_problems()],
            clock_synced=read_clock_synced(),
        )
        self._mqtt.retain(self._names.name(topics.STATUS), encode(status))

    def _own_problems(self) -> list[Problem]:
        return [self._outbox_problem] if self._outbox_problem is not None else []

    def follow_clock(self) -> None:
        """Move what was stamped by the wall clock when that has been set."""
        shift_s = read_clock_offset_s() - self._clock_offset_s
        if abs(shift_s) < CLOCK_STEP_S:
            return
        self._clock_offset_s += shift_s
        self._started_at += shift_s
        for problems in (self._camera_problems, *(engine.problems for engine in self.engines)):
            for code, problem in problems.items():
                problems[code] = replace(problem, since=problem.since + shift_s)
        for camera in self.cameras.values():
            camera.since += shift_s
        self.publish_all()

    def look_after_outbox(self) -> None:
        """Say so in the status when the outbox's disk fails, and when it works again."""
        alarm = self._mqtt.outbox.alarm
        known = self._outbox_problem.message if self._outbox_problem is not None else None
        if alarm == known:
            return
        self._outbox_problem = (
            Problem(code="outbox", message=alarm, since=time.time()) if alarm is not None else None
        )
        self.publish_status()

    def summary(self) -> str:
        """Return one line on how the agent fares, for `systemctl status`."""
        running = [engine for engine in self.engines if engine.ready is not None]
        online = sum(camera.state == "online" for camera in self.cameras.values())
        rates = [camera.fps for camera in self.cameras.values()]
        parts = [f"{online} of {len(self.cameras)} cameras online"]
        if any(rate is not None for rate in rates):
            parts.append(f"{sum(rate or 0.0 for rate in rates):.1f} frames/s")
        parts += [
            f"{engine.ready.model.name} on {engine.ready.accelerator}"
            for engine in running
            if engine.ready is not None
        ] or ["no model runs"]
        waiting = self._mqtt.outbox.waiting
        is_up = self._mqtt.connection.connected
        parts.append("broker connected" if is_up else f"no broker, {waiting} messages wait")
        problems = [one for engine in self.engines for one in engine.problems.values()]
        problems += [*self._camera_problems.values(), *self._own_problems()]
        parts += [f"{one.code}: {one.message}" for one in problems[:2]]
        return "; ".join(parts)

    def publish_all(self) -> None:
        """Retain everything; at start, so that a subscriber never finds nothing."""
        self.publish_status()
        for camera in self.cameras.values():
            self._publish_camera(camera)

    def _publish_camera(self, camera: CameraFacts) -> None:
        payload = CameraStatus(
            device=self._device,
            camera=camera.config.name,
            state=camera.state,
            since=camera.since,
            reason=camera.reason,
            source=redact(camera.config.source),
            width=camera.width,
            height=camera.height,
            fps=camera.fps,
        )
        self._mqtt.retain(
            self._names.name(topics.CAMERA_STATUS, camera.config.name), encode(payload)
        )

    def publish_telemetry(self) -> None:
        """Publish one telemetry message about the interval since the last."""
        now = time.monotonic()
        interval_s = now - self._last_telemetry
        self._last_telemetry = now
        outbox = self._mqtt.outbox
        connection = self._mqtt.connection
        seq, self._next_telemetry = self._next_telemetry, self._next_telemetry + 1
        at, is_synced, clock = self._clock.stamp()
        message = Telemetry(
            device=self._device,
            boot_id=self._boot_id,
            seq=seq,
            at=at,
            clock_synced=is_synced,
            uptime_s=round(now - self._started, 3),
            interval_s=round(interval_s, 3),
            cameras={
                name: camera_telemetry(camera, interval_s) for name, camera in self.cameras.items()
            },
            processes=self._processes.read(
                {
                    f"worker.{engine.name}" if engine.name else "worker": engine.worker_pid()
                    for engine in self.engines
                }
            ),
            worker_restarts=sum(engine.restarts() for engine in self.engines),
            outbox=OutboxTelemetry(
                waiting=outbox.waiting,
                waiting_mib=round(outbox.waiting_bytes / MIB, 3),
                on_disk=outbox.on_disk,
                on_disk_mib=round(outbox.on_disk_bytes / MIB, 3),
                published=outbox.published,
                dropped=outbox.dropped,
            ),
            mqtt=MqttTelemetry(protocol=connection.protocol, reconnects=connection.reconnects),
        )
        for camera in self.cameras.values():
            self._publish_camera(camera)
        self._mqtt.put(
            Record(
                topic=self._names.name(topics.TELEMETRY),
                payload=encode(message),
                stream=TELEMETRY_STREAM,
                seq=seq,
                is_telemetry=True,
                clock=clock,
            )
        )

    def gap_record(self, note: GapNote) -> Record:
        """Return the record that names results given up."""
        gap = Gap(
            device=self._device,
            boot_id=self._boot_id,
            stream=note.stream,
            from_seq=note.from_seq,
            to_seq=note.to_seq,
            count=note.count,
            reason=note.reason,
        )
        return Record(topic=self._names.name(topics.GAP), payload=encode(gap))
