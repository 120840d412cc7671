"""What the daemon knows about itself, and the payloads made of it.

One owner: the control process's main thread. Facts come in through the `Listener` methods;
retained payloads go out whenever a fact changes, telemetry when it is asked for.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from agent import __version__
from agent.config import CameraConfig
from agent.contract import topics
from agent.contract.payloads import (
    Accelerator,
    Board,
    CameraState,
    CameraStatus,
    CameraSummary,
    CameraTelemetry,
    Gap,
    MqttTelemetry,
    OutboxTelemetry,
    Problem,
    ProcessTelemetry,
    Status,
    Telemetry,
    encode,
)
from agent.contract.topics import Topics
from agent.daemon.mqtt import MqttLink
from agent.daemon.outbox import GapNote, Record
from agent.link import Beat, CameraChange, CameraCounts, Ready, ResultOut
from agent.redaction import redact
from agent.sensors.board import read_board_model
from agent.sensors.clock import read_clock_synced

log = logging.getLogger(__name__)
MIB = 1 << 20
NOTHING = CameraCounts(captured=0, dropped=0, processed=0, last_frame_id=0)


@dataclass(slots=True)
class _Camera:
    """What is known of one camera."""

    config: CameraConfig
    topic: str
    stream: str
    state: CameraState = "starting"
    reason: str | None = None
    since: float = 0.0
    width: int | None = None
    height: int | None = None
    now: CameraCounts = NOTHING
    captured_before: int = 0  # by earlier workers
    dropped_before: int = 0
    processed_before: int = 0
    captured_then: int = 0  # at the last telemetry
    processed_then: int = 0
    fps: float | None = None

    def totals(self) -> tuple[int, int, int]:
        """Return frames captured, dropped, processed since the daemon started."""
        return (
            self.captured_before + self.now.captured,
            self.dropped_before + self.now.dropped,
            self.processed_before + self.now.processed,
        )

    def worker_is_gone(self) -> None:
        """Keep what the last worker counted."""
        self.captured_before, self.dropped_before, self.processed_before = self.totals()
        self.now = NOTHING
        if self.state == "online":
            self.state, self.reason, self.since = "starting", "the worker is replaced", time.time()
        self.fps = None


class Report:
    """See the module's docstring; a supervisor's `Listener`."""

    def __init__(
        self,
        *,
        device: str,
        boot_id: str,
        groups: tuple[str, ...],
        cameras: tuple[CameraConfig, ...],
        accelerator_wanted: str,
        names: Topics,
        mqtt: MqttLink,
        worker_pid: Callable[[], int | None],
        worker_restarts: Callable[[], int],
    ) -> None:
        self._device = device
        self._boot_id = boot_id
        self._groups = groups
        self._accelerator_wanted = accelerator_wanted
        self._names = names
        self._mqtt = mqtt
        self._worker_pid = worker_pid
        self._worker_restarts = worker_restarts
        self._started_at = time.time()
        self._started = self._last_telemetry = time.monotonic()
        self._ready: Ready | None = None
        self._problems: dict[str, Problem] = {}
        self._processes: dict[int, psutil.Process] = {}
        self._board_model = read_board_model()
        self._cameras = {
            config.name: _Camera(
                config=config,
                topic=names.name(topics.DETECTIONS, config.name),
                stream=f"camera/{config.name}/detections",
                since=self._started_at,
            )
            for config in cameras
        }

    def on_result(self, result: ResultOut) -> None:
        """Hand a result to the outbox."""
        camera = self._cameras[result.camera]
        self._mqtt.put(
            Record(topic=camera.topic, payload=result.payload, stream=camera.stream, seq=result.seq)
        )

    def on_ready(self, ready: Ready) -> None:
        """A model runs: say which, and forget what kept it from running."""
        self._ready = ready
        for code in ("model", "worker", "config", "accelerator"):
            self._problems.pop(code, None)
        if ready.notes:
            self._note("config", "; ".join(ready.notes))
        if ready.reason:
            self._note("accelerator", ready.reason)
        self.publish_status()

    def on_camera(self, change: CameraChange) -> None:
        """A camera came, went or ended."""
        camera = self._cameras[change.camera]
        if (camera.state, camera.reason) != (change.state, change.reason):
            camera.state, camera.reason, camera.since = change.state, change.reason, change.at
        if change.state != "online":
            camera.fps = None
        camera.width = change.width or camera.width
        camera.height = change.height or camera.height
        code = f"camera.{change.camera}"
        if change.is_fault:
            self._note(code, f"camera {change.camera}: {change.reason}")
        else:
            self._problems.pop(code, None)
        self._publish_camera(camera)
        self.publish_status()

    def on_beat(self, beat: Beat) -> None:
        """Take over the worker's counters."""
        for name, counts in beat.cameras.items():
            if name in self._cameras:
                self._cameras[name].now = counts

    def on_down(self, code: str, reason: str) -> None:
        """The worker is gone."""
        self._ready = None if code == "model" else self._ready
        self._note(code, reason)
        for camera in self._cameras.values():
            camera.worker_is_gone()
            self._publish_camera(camera)
        self.publish_status()

    def _note(self, code: str, message: str) -> None:
        known = self._problems.get(code)
        if known is None or known.message != message:
            since = known.since if known else time.time()
            self._problems[code] = Problem(code=code, message=message, since=since)

    def publish_status(self) -> None:
        """Retain the status."""
        ready = self._ready
        status = Status(
            device=self._device,
            boot_id=self._boot_id,
            agent_version=__version__,
            started_at=self._started_at,
            board=Board(
                model=self._board_model,
                machine=platform.machine(),
                python=platform.python_version(),
                runtime=ready.runtime if ready else None,
            ),
            groups=self._groups,
            model=ready.model if ready else None,
            task=ready.task if ready else None,
            accelerator=Accelerator(
                wanted=self._accelerator_wanted,
                used=ready.accelerator if ready else None,
                reason=ready.reason if ready else None,
            ),
            cameras=[
                CameraSummary(name=name, state=camera.state, reason=camera.reason)
                for name, camera in self._cameras.items()
            ],
            health=list(self._problems.values()),
            clock_synced=read_clock_synced(),
        )
        self._mqtt.retain(self._names.name(topics.STATUS), encode(status))

    def publish_all(self) -> None:
        """Retain everything; at start, so that a subscriber never finds nothing."""
        self.publish_status()
        for camera in self._cameras.values():
            self._publish_camera(camera)

    def _publish_camera(self, camera: _Camera) -> None:
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
        message = Telemetry(
            device=self._device,
            boot_id=self._boot_id,
            at=time.time(),
            clock_synced=read_clock_synced(),
            uptime_s=round(now - self._started, 3),
            interval_s=round(interval_s, 3),
            cameras={
                name: _camera_telemetry(camera, interval_s)
                for name, camera in self._cameras.items()
            },
            processes={
                "control": self._process(psutil.Process().pid),
                "worker": self._process(self._worker_pid()),
            },
            worker_restarts=self._worker_restarts(),
            outbox=OutboxTelemetry(
                waiting=outbox.waiting,
                waiting_mib=round(outbox.waiting_bytes / MIB, 3),
                published=outbox.published,
                dropped=outbox.dropped,
            ),
            mqtt=MqttTelemetry(protocol=connection.protocol, reconnects=connection.reconnects),
        )
        for camera in self._cameras.values():
            self._publish_camera(camera)
        self._mqtt.put(Record(topic=self._names.name(topics.TELEMETRY), payload=encode(message)))

    def _process(self, pid: int | None) -> ProcessTelemetry | None:
        """Read one process; CPU is over the time since the last reading, so first unknown."""
        if pid is None:
            return None
        known = pid in self._processes
        for gone in self._processes.keys() - {psutil.Process().pid, pid}:
            del self._processes[gone]
        try:
            process = self._processes.setdefault(pid, psutil.Process(pid))
            with process.oneshot():
                cpu = process.cpu_percent()
                reading = ProcessTelemetry(
                    pid=pid,
                    cpu_percent=cpu if known else None,
                    rss_mib=round(process.memory_info().rss / MIB, 1),
                    threads=process.num_threads(),
                )
        except psutil.Error:
            self._processes.pop(pid, None)
            return None
        return reading

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


def _camera_telemetry(camera: _Camera, interval_s: float) -> CameraTelemetry:
    captured, dropped, processed = camera.totals()
    fps_in = fps_out = None
    if interval_s > 0.5:
        fps_in = round(max(0, captured - camera.captured_then) / interval_s, 2)
        fps_out = round(max(0, processed - camera.processed_then) / interval_s, 2)
    camera.captured_then, camera.processed_then = captured, processed
    camera.fps = fps_out if camera.state == "online" else None
    return CameraTelemetry(
        captured=captured, dropped=dropped, processed=processed, fps_in=fps_in, fps_out=fps_out
    )
