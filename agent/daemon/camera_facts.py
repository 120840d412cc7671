"""What the control process knows of one camera, over all workers that served it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from msgspec.structs import replace

from agent.config import CameraConfig
from agent.contract.payloads import CameraState
from agent.contract.telemetry import CameraTelemetry
from agent.link import CameraCounts
from agent.telemetry.latency import LatencyBook

NOTHING = CameraCounts(captured=0, dropped=0, still=0, processed=0, last_frame_id=0)
SEEN: tuple[CameraState, ...] = ("online", "frozen")  # frames come


@dataclass(slots=True)
class CameraFacts:
    """What is known of one camera; counts go on over all workers."""

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
    still_before: int = 0
    processed_before: int = 0
    second_before: int = 0
    captured_then: int = 0  # at the last telemetry
    processed_then: int = 0
    fps: float | None = None
    result_at: float = -math.inf  # monotonic

    def totals(self) -> tuple[int, int, int, int]:
        """Return frames captured, dropped, still, processed since the daemon started."""
        return (
            self.captured_before + self.now.captured,
            self.dropped_before + self.now.dropped,
            self.still_before + self.now.still,
            self.processed_before + self.now.processed,
        )

    @property
    def inferences(self) -> int:
        """Return how often models ran since the daemon started, those on boxes as well."""
        return self.totals()[3] + self.second_before + self.now.second

    def worker_is_gone(self) -> None:
        """Keep what the last worker counted."""
        self.second_before += self.now.second
        (
            self.captured_before,
            self.dropped_before,
            self.still_before,
            self.processed_before,
        ) = self.totals()
        self.now = NOTHING
        if self.state in SEEN:
            self.state, self.reason, self.since = "starting", "the worker is replaced", time.time()
        self.fps = None


def camera_counts(camera: CameraFacts, latency: LatencyBook) -> CameraTelemetry:
    """Return the counts alone; no interval ends by it."""
    captured, dropped, still, processed = camera.totals()
    return CameraTelemetry(
        captured=captured,
        dropped=dropped,
        still=still,
        processed=processed,
        fps_in=None,
        fps_out=None,
        deadline_ms=latency.deadline_ms(camera.config.name),
        deadline_misses=latency.misses(camera.config.name),
    )


def camera_telemetry(
    camera: CameraFacts, interval_s: float, latency: LatencyBook
) -> CameraTelemetry:
    """Return the counts, and the rates and times since the last call."""
    name = camera.config.name
    counts = camera_counts(camera, latency)
    captured, processed = counts.captured, counts.processed
    fps_in = fps_out = None
    if interval_s > 0.5:
        fps_in = round(max(0, captured - camera.captured_then) / interval_s, 2)
        fps_out = round(max(0, processed - camera.processed_then) / interval_s, 2)
    camera.captured_then, camera.processed_then = captured, processed
    camera.fps = fps_out if camera.state in SEEN else None
    return replace(
        counts,
        fps_in=fps_in,
        fps_out=fps_out,
        latency_ms=latency.window(name),
        latency_since_start_ms=latency.since_start(name),
    )
