"""What the demo has learnt from the daemon's topics: one owner, fed by `take`."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.contract.payloads import CameraStatus, Gap, Result, Status
from agent.contract.telemetry import Telemetry
from agent.demo.figures import Figures
from agent.demo.subscriber import Received
from agent.demo.usage import Usage


@dataclass(slots=True)
class Story:
    """The newest of each topic, and the figures of all results until `ends_at`."""

    spawned_at: float  # all times are monotonic
    seconds: float
    figures: Figures = field(default_factory=Figures)
    usage: Usage = field(default_factory=Usage)
    is_online: bool = False
    status: Status | None = None
    camera: CameraStatus | None = None
    telemetry: Telemetry | None = None
    gaps: list[Gap] = field(default_factory=list)

    @property
    def ends_at(self) -> float | None:
        """Return when the run is over: so many seconds after the first result."""
        return self.figures.first_at + self.seconds if self.figures.results else None

    def take(self, received: Received) -> None:
        """Learn from one message."""
        match received.payload:
            case str() as availability:
                self.is_online = availability == "online"
            case Status() as status:
                self.status = status
            case CameraStatus() as camera:
                self.camera = camera
            case Telemetry() as telemetry:
                self.telemetry = telemetry
            case Gap() as gap:
                self.gaps.append(gap)
            case Result() as result if self.ends_at is None or received.at <= self.ends_at:
                latency_ms = (received.unix_at - result.captured_at) * 1000
                self.figures.add(result, at=received.at, latency_ms=latency_ms)

    def follow_processes(self, control_pid: int) -> None:
        """Measure from the first result on: loading libraries and model is not running them."""
        if not self.figures.results:
            return
        self.usage.follow("control", control_pid)
        worker = self.telemetry.processes.get("worker") if self.telemetry else None
        if worker is not None:
            self.usage.follow("worker", worker.pid)

    def waiting_for(self) -> str:
        """Say what has not happened yet."""
        if not self.is_online:
            return "the daemon to connect to the broker"
        if self.status is None or self.status.model is None:
            return "the model to load"
        if self.camera is None or self.camera.state != "online":
            return "the clip to open"
        return "the first result"

    def problems(self) -> str:
        """Say what the daemon itself reports as wrong, or nothing."""
        return "; ".join(item.message for item in self.status.health) if self.status else ""
