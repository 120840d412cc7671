"""How an engine fares, from its worker's heartbeats: what a model's probation is judged by."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from agent.link import Beat
from agent.ota.steps import Vitals

# Frames that come in this time count as a camera that gives frames.
FED_WITHIN_S = 5.0
# Percentiles are of the last so many seconds, and of fewer runs they say nothing.
WINDOW_S = 10.0
MOST_RUNS, ENOUGH_RUNS = 2000, 20


@dataclass(slots=True)
class EngineVitals:
    """One engine's; its counters go on over restarts of its worker."""

    _frames: int = 0  # of workers before this one
    _now_frames: int = 0
    _offered: int = 0  # frames that the model should have seen, of this worker
    _offered_at: float | None = None  # when that last grew
    _is_mixed: bool = False  # the next heartbeat tells of frames of the model before, too
    _runs: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=MOST_RUNS))

    def note_beat(self, beat: Beat, now: float) -> None:
        """Take note of a heartbeat; `now` in monotonic seconds."""
        counts = beat.cameras.values()
        self._now_frames = sum(one.processed for one in counts)
        offered = sum(one.captured - one.still for one in counts)
        if offered > self._offered:
            self._offered_at = now
        self._offered = offered
        if not self._is_mixed:
            self._runs.extend((now, times.inference) for times in beat.times)
        self._is_mixed = False

    def note_end(self) -> None:
        """The worker is gone; the next one counts from nothing."""
        self._frames += self._now_frames
        self._now_frames = self._offered = 0
        self._offered_at, self._is_mixed = None, False
        self._runs.clear()

    def note_swap(self) -> None:
        """Another model runs in the same worker: what is measured from now on is its own."""
        self._runs.clear()
        self._is_mixed = True

    def read(
        self, now: float, *, acknowledged: int, is_connected: bool, is_throttled: bool | None
    ) -> Vitals:
        """Return how it fares; what is not the engine's own is handed through."""
        while self._runs and now - self._runs[0][0] > WINDOW_S:
            self._runs.popleft()
        times_ns = sorted(inference for _, inference in self._runs)
        p95_ms = None
        if len(times_ns) >= ENOUGH_RUNS:
            p95_ms = times_ns[int(len(times_ns) * 0.95)] / 1e6
        is_fed = self._offered_at is not None and now - self._offered_at <= FED_WITHIN_S
        return Vitals(
            frames=self._frames + self._now_frames,
            acknowledged=acknowledged,
            p95_ms=p95_ms,
            is_fed=is_fed,
            is_connected=is_connected,
            is_throttled=is_throttled,
        )
