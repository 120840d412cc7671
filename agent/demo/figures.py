"""Numbers made of results: percentiles, rates, holes in `seq`, labels seen.

Pure: no clock, no I/O. Samples are kept sorted, so percentiles are exact and cheap enough to
show ten times a second; `MAX_SECONDS` of the demo bounds them.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from dataclasses import dataclass, field

from msgspec import UNSET

from agent.contract.payloads import Detection, Result

STAGES = ("queue", "preprocess", "inference", "postprocess")
RATE_WINDOW_S = 1.0


@dataclass(slots=True)
class Samples:
    """Milliseconds, sorted."""

    ordered: list[float] = field(default_factory=list)
    last: float | None = None

    def add(self, value: float) -> None:
        """Take one more."""
        insort(self.ordered, value)
        self.last = value

    def percentile(self, percent: float) -> float | None:
        """Return the smallest sample that at least `percent` of all do not exceed."""
        if not self.ordered:
            return None
        rank = math.ceil(percent / 100 * len(self.ordered))
        return self.ordered[max(rank, 1) - 1]

    @property
    def highest(self) -> float | None:
        """Return the largest sample."""
        return self.ordered[-1] if self.ordered else None


@dataclass(slots=True)
class LabelSeen:
    """One label over the run."""

    results: int = 0
    best_score: float = 0.0


def label_of(detection: Detection) -> str:
    """Return the label, or the class number of a model without labels."""
    return detection.label if detection.label is not None else f"class {detection.class_id}"


def detections_of(result: Result) -> list[Detection]:
    """Return a result's detections, best first."""
    found = [] if result.detections is UNSET else result.detections
    return sorted(found, key=lambda detection: -detection.score)


@dataclass(slots=True)
class Figures:
    """Everything counted over the run; feed it results in the order they came."""

    results: int = 0
    lost: int = 0  # holes in seq
    repeated: int = 0  # a QoS 1 message may come twice
    dropped: int = 0  # frames that gave way to newer ones, before the model
    last: Result | None = None
    first_at: float = 0.0
    last_at: float = 0.0
    latency: Samples = field(default_factory=Samples)
    stages: dict[str, Samples] = field(default_factory=lambda: {name: Samples() for name in STAGES})
    labels: dict[str, LabelSeen] = field(default_factory=dict)
    _recent: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, result: Result, *, at: float, latency_ms: float) -> None:
        """Count a result that came `at` a monotonic time, `latency_ms` after its capture."""
        # The subscriber was there before the daemon, so the first result is number 1.
        expected = self.last.seq + 1 if self.last else 1
        if result.seq < expected:
            self.repeated += 1
            return
        self.lost += result.seq - expected
        self.first_at = at if self.last is None else self.first_at
        self.last, self.last_at = result, at
        self.results += 1
        self.dropped += result.dropped
        self.latency.add(latency_ms)
        for name, samples in self.stages.items():
            samples.add(getattr(result.stage_ms, name))
        self._count_labels(detections_of(result))
        self._recent.append((result.captured_at, result.frame_id))
        while result.captured_at - self._recent[0][0] > RATE_WINDOW_S:
            self._recent.popleft()

    def _count_labels(self, detections: list[Detection]) -> None:
        best: dict[str, float] = {}
        for detection in detections:
            label = label_of(detection)
            best[label] = max(best.get(label, 0.0), detection.score)
        for label, score in best.items():
            seen = self.labels.setdefault(label, LabelSeen())
            seen.results += 1
            seen.best_score = max(seen.best_score, score)

    @property
    def lasted_s(self) -> float:
        """Return the time from the first result to the last."""
        return self.last_at - self.first_at

    @property
    def fps(self) -> float | None:
        """Return results per second over the run."""
        return (self.results - 1) / self.lasted_s if self.lasted_s > 0 else None

    @property
    def fps_now(self) -> tuple[float | None, float | None]:
        """Return frames captured and results made per second, by the last second's results."""
        if len(self._recent) < 2:
            return None, None
        (started, first_id), (ended, last_id) = self._recent[0], self._recent[-1]
        if ended <= started:
            return None, None
        return (last_id - first_id) / (ended - started), (len(self._recent) - 1) / (ended - started)
