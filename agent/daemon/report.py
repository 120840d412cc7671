"""What the daemon knows about itself, and the payloads made of it.

One owner: the control process's main thread. Facts come in through one `EngineReport` per
engine, its supervisor's `Listener`; retained payloads go out whenever a fact changes. Telemetry
is `TelemetryReport`'s.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterable

from msgspec.structs import replace

from agent import __version__
from agent.config import CameraConfig
from agent.contract import topics
from agent.contract.payloads import (
    Board,
    CameraStatus,
    CameraSummary,
    Gap,
    Problem,
    Status,
    encode,
)
from agent.contract.topics import Topics
from agent.daemon.camera_facts import SEEN, CameraFacts
from agent.daemon.clock_repair import ClockRepair
from agent.daemon.counts import CountReport
from agent.daemon.engine_report import EngineReport
from agent.daemon.mqtt import MqttLink
from agent.daemon.outbox import GapNote, Record
from agent.link import Beat, CameraChange, ResultOut
from agent.redaction import redact
from agent.sensors.board import read_board_model
from agent.sensors.clock import read_clock_offset_s, read_clock_synced
from agent.telemetry.health import Health, Observation
from agent.telemetry.latency import LatencyBook

log = logging.getLogger(__name__)
# A board without a clock of its own is set by days or years; what NTP slews is far below this.
CLOCK_STEP_S = 1.0


def detections_stream(camera: str) -> str:
    """Return the stream that a camera's results are numbered in."""
    return f"camera/{camera}/detections"


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
        latency: LatencyBook,
        counts: CountReport,
    ) -> None:
        self._device = device
        self._boot_id = boot_id
        self._groups = groups
        self._names = names
        self._mqtt = mqtt
        self._started_at = time.time()
        self.engines: list[EngineReport] = []  # filled by the composition root, never empty then
        self._camera_problems: dict[str, Problem] = {}
        self._board_model = read_board_model()
        self._clock = clock
        self._clock_offset_s = read_clock_offset_s()
        self._latency = latency
        self._counts = counts
        self._own: dict[str, Problem] = {}
        self._health = Health(time.time)
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
        camera.result_at = time.monotonic()
        self._mqtt.put(
            Record(
                topic=camera.topic,
                payload=result.payload,
                stream=camera.stream,
                seq=result.seq,
                clock=self._clock.mark(result.clock_offset_s),
                captured_ns=result.captured_ns,
                encoded_ns=result.encoded_ns,
            )
        )

    def note_beat(self, beat: Beat) -> None:
        """Take over a worker's counters, and the times of the frames it processed."""
        for name, counts in beat.cameras.items():
            if name in self.cameras:
                self.cameras[name].now = counts
                self._counts.note(name, counts.found, time.monotonic())
        self._latency.note_frames(beat.times)
        self._latency.note_lost(beat.times_lost)

    def follow_health(self, observations: Iterable[Observation]) -> None:
        """Hold values against limits; say so in the status when one is passed or kept again."""
        if self._health.follow(observations, time.monotonic()):
            for problem in self._health.problems(time.monotonic()):
                what = (problem.code, problem.value, problem.limit, problem.unit)
                log.warning("limit passed code=%s value=%s limit=%s unit=%s", *what)
            self.publish_status()

    def change_camera(self, change: CameraChange) -> None:
        """Take over what a worker says of a camera."""
        camera = self.cameras[change.camera]
        if (camera.state, camera.reason) != (change.state, change.reason):
            camera.state, camera.reason, camera.since = change.state, change.reason, change.at
        if change.state not in SEEN:
            camera.fps = None
        self._counts.set_online(change.camera, is_online=change.state == "online")
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
            self._counts.set_online(name, is_online=False)
            self._publish_camera(self.cameras[name])
        self.publish_status()

    def publish_status(self) -> None:
        """Retain the status."""
        self._mqtt.retain(self._names.name(topics.STATUS), encode(self.status()))

    def status(self) -> Status:
        """Return what this board is and how it fares."""
        first = self.engines[0]
        ready = first.ready
        problems = [one for engine in self.engines for one in engine.problems.values()]
        return Status(
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

    def _own_problems(self) -> list[Problem]:
        return [*self._own.values(), *self._health.problems(time.monotonic())]

    def follow_clock(self) -> None:
        """Move what was stamped by the wall clock when that has been set."""
        shift_s = read_clock_offset_s() - self._clock_offset_s
        if abs(shift_s) < CLOCK_STEP_S:
            return
        self._clock_offset_s += shift_s
        self._started_at += shift_s
        for problems in (self._camera_problems, self._own):
            for code, problem in problems.items():
                problems[code] = replace(problem, since=problem.since + shift_s)
        for engine in self.engines:
            engine.shift_clock(shift_s)
        for camera in self.cameras.values():
            camera.since += shift_s
        self.publish_all()

    def look_after_outbox(self) -> None:
        """Say so in the status when the outbox's disk fails, and when it works again."""
        self.note("outbox", self._mqtt.outbox.alarm)

    def note(self, code: str, message: str | None) -> None:
        """Say in the status what is wrong, under a code of its own; None: nothing any more."""
        known = self._own.get(code)
        if message == (known.message if known is not None else None):
            return
        if message is None:
            del self._own[code]
        else:
            self._own[code] = Problem(code=code, message=message, since=time.time())
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
        self.publish_cameras()

    def publish_cameras(self) -> None:
        """Retain the state of all cameras."""
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
