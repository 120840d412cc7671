"""Where the time goes, of every frame and every result, in memory that does not grow.

A `Distribution` is a DDSketch (Masson, Rim and Lee, VLDB 2019): logarithmic bins, so that a
percentile is off by a share of itself and never by more, whatever the distribution; two of them
merge by adding bins, in any order, to exactly what one of all the times would be. Beside it are
exact counts in fixed buckets for Prometheus, which makes percentiles of its own.

The bound. A percentile q of n times stands for the one at index floor(q (n - 1)) of all of them,
sorted; it is within `RELATIVE_ERROR` of that one, digits included: 0.99 % of the bins and 0.005 %
of five significant digits, which in milliseconds are a microsecond at 10 ms and a nanosecond at
10 µs. Counts and `max` are exact; `max` is shown to the nanosecond. Nothing ever falls out of the
bins: they reach from one nanosecond to 2**64 of them, and 0 is counted by itself.

Memory. A sketch has at most 2,304 bins of a float each, 74 kB; a camera has ten stages of two
sketches, so 1.5 MB at most, for which its times would have to lie all over five centuries. Times
all over 0.1 ms to 10 s make it 0.4 MB.

Owned by the main thread; only `note_delivered` is for any.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import get_args

from ddsketch import LogCollapsingLowestDenseDDSketch

from agent.contract.telemetry import Percentiles, Stage
from agent.link import FrameTimes

RELATIVE_ERROR = 0.01
BIN_ERROR, DIGITS = 0.0099, 5
# A bin is 2 % wide: ln(2**64) / ln(1.0099 / 0.9901) is 2,241 of them; ddsketch adds 128 at once.
MOST_BINS = 18 * 128
# Seconds, from what a fast accelerator takes to what is no longer live. With 1-1.5-2-3-5-7 to a
# decade `histogram_quantile`, which thinks times lie evenly between two bounds, is off by 7 % on
# average, with 1-2-5 by 22 %: simulated p50, p90 and p99 of log-normal times, medians of 1 ms to
# 5 s, sigmas of 0.1 to 0.5.
BOUNDS_S = (
    0.0005, 0.0007,
    0.001, 0.0015, 0.002, 0.003, 0.005, 0.007,
    0.01, 0.015, 0.02, 0.03, 0.05, 0.07,
    0.1, 0.15, 0.2, 0.3, 0.5, 0.7,
    1.0, 1.5, 2.0, 3.0, 5.0, 7.0,
    10.0, 15.0, 20.0, 30.0, 60.0,
)  # fmt: skip
BOUNDS_NS = tuple(round(bound * 1e9) for bound in BOUNDS_S)
# Told even before anything was counted; the others once they have been seen.
EVERY_FRAME: tuple[Stage, ...] = (*get_args(Stage)[:5], "total")
# A broker takes over 4,200 results a second at most, and the main loop turns once in that time.
MOST_DELIVERED = 8192
NS_PER_MS, NS_PER_S = 10**6, 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """A histogram since the start.

    `counts` has one number per bound, of the times up to that bound and above the one before,
    and one more for all above the last; `bounds` and `sum_s` are in seconds.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum_s: float


class Times:
    """Times of one kind, in nanoseconds.

    Merging is commutative and associative: the percentiles are those of all times together.
    """

    __slots__ = ("_longest", "_sketch")

    def __init__(self) -> None:
        self._sketch = LogCollapsingLowestDenseDDSketch(BIN_ERROR, MOST_BINS)
        self._longest = 0

    def record(self, ns: int) -> None:
        """Count one time; there are none below 0."""
        self._sketch.add(ns)
        self._longest = max(self._longest, ns)

    def merge(self, other: Times) -> None:
        """Count all that another has counted as well."""
        self._sketch.merge(other._sketch)
        self._longest = max(self._longest, other._longest)

    def percentiles(self) -> Percentiles:
        """Return what was counted, in milliseconds."""
        count = round(self._sketch.count)
        if not count:
            return Percentiles(count=0, p50=None, p90=None, p99=None, p999=None, max=None)
        longest_ms = self._longest / NS_PER_MS

        def at(share: float) -> float:
            # A bin's middle may lie above all that is in it.
            ms = (self._sketch.get_quantile_value(share) or 0.0) / NS_PER_MS
            return min(float(f"{ms:.{DIGITS}g}"), longest_ms)

        return Percentiles(
            count=count, p50=at(0.5), p90=at(0.9), p99=at(0.99), p999=at(0.999), max=longest_ms
        )


class Distribution:
    """Times of one kind, in nanoseconds: since the last window, and since the start."""

    __slots__ = ("_before", "_counts", "_sum_ns", "_window")

    def __init__(self) -> None:
        self._window = Times()
        self._before = Times()
        self._counts = [0] * (len(BOUNDS_NS) + 1)
        self._sum_ns = 0

    def record(self, ns: int) -> None:
        """Count one time; there are none below 0."""
        self._window.record(ns)
        self._counts[bisect_left(BOUNDS_NS, ns)] += 1
        self._sum_ns += ns

    def window(self) -> Percentiles:
        """Return what was counted since the last call, and begin anew."""
        window, self._window = self._window, Times()
        self._before.merge(window)
        return window.percentiles()

    def total(self) -> Percentiles:
        """Return what was counted since the start."""
        total = Times()
        total.merge(self._before)
        total.merge(self._window)
        return total.percentiles()

    def buckets(self) -> Buckets:
        """Return what was counted since the start, by `BOUNDS_S`."""
        return Buckets(bounds=BOUNDS_S, counts=tuple(self._counts), sum_s=self._sum_ns / NS_PER_S)


@dataclass(slots=True)
class _CameraTimes:
    deadline_ns: int | None
    misses: int = 0
    stages: dict[Stage, Distribution] = field(
        default_factory=lambda: {stage: Distribution() for stage in EVERY_FRAME}
    )

    def record(self, stage: Stage, ns: int) -> None:
        there = self.stages.get(stage)
        if there is None:
            there = self.stages[stage] = Distribution()
        there.record(max(0, ns))


class LatencyBook:
    """The times of all cameras.

    Frames come from the workers' heartbeats; results, each once and when it has arrived, from
    the thread that delivers them. Of a result that waited on disk the stamps are lost: it counts
    in `acknowledge` alone.
    """

    def __init__(self, deadlines_ms: Mapping[str, float]) -> None:
        """Make one for these cameras; a deadline of 0 is none."""
        self._cameras = {
            name: _CameraTimes(round(ms * NS_PER_MS) if ms > 0 else None)
            for name, ms in deadlines_ms.items()
        }
        # appended to by the delivering thread, emptied by the main thread
        self._delivered: deque[tuple[str, int, int, int, int]] = deque()
        self._deliveries_lost = 0  # they found it full: the main thread had stopped
        self._frames_lost = 0

    def note_frames(self, times: Iterable[FrameTimes]) -> None:
        """Count frames that a worker has processed."""
        self.catch_up()
        for one in times:
            camera = self._cameras.get(one.camera)
            if camera is None:
                continue
            record = camera.record
            record("age", one.age)
            record("queue", one.queue)
            record("preprocess", one.preprocess)
            record("inference", one.inference)
            record("postprocess", one.postprocess)
            if one.cascade:
                record("cascade", one.cascade)
            record("total", one.total)
            camera.misses += camera.deadline_ns is not None and one.total > camera.deadline_ns

    def note_lost(self, frames: int) -> None:
        """Count frames whose times a worker could not keep."""
        self._frames_lost += frames

    @property
    def lost(self) -> int:
        """Return of how many frames and deliveries the times are missing."""
        return self._frames_lost + self._deliveries_lost

    def note_delivered(
        self, camera: str, captured_ns: int, encoded_ns: int, sent_ns: int, acknowledged_ns: int
    ) -> None:
        """Count a result that has arrived, by stamps of the monotonic clock; from any thread.

        0 is an unknown stamp; with QoS 0 that of the acknowledgement always is.
        """
        if len(self._delivered) >= MOST_DELIVERED:
            self._deliveries_lost += 1
            return
        self._delivered.append((camera, captured_ns, encoded_ns, sent_ns, acknowledged_ns))

    def catch_up(self) -> None:
        """Take over what was delivered; to be called every second or so."""
        for _ in range(len(self._delivered)):
            name, captured_ns, encoded_ns, sent_ns, acknowledged_ns = self._delivered.popleft()
            camera = self._cameras.get(name)
            if camera is None:
                continue
            if encoded_ns:
                camera.record("publish", sent_ns - encoded_ns)
            if acknowledged_ns:
                camera.record("acknowledge", acknowledged_ns - sent_ns)
                if captured_ns:
                    camera.record("end_to_end", acknowledged_ns - captured_ns)

    def window(self, camera: str) -> dict[Stage, Percentiles]:
        """Return a camera's times since the last call, and begin anew."""
        self.catch_up()
        stages = self._cameras[camera].stages
        return {stage: stages[stage].window() for stage in get_args(Stage) if stage in stages}

    def since_start(self, camera: str) -> dict[Stage, Percentiles]:
        """Return a camera's times since the daemon started."""
        self.catch_up()
        stages = self._cameras[camera].stages
        return {stage: stages[stage].total() for stage in get_args(Stage) if stage in stages}

    def buckets(self) -> dict[str, dict[Stage, Buckets]]:
        """Return the histograms of all cameras since the daemon started."""
        self.catch_up()
        return {
            name: {stage: there.buckets() for stage, there in camera.stages.items()}
            for name, camera in self._cameras.items()
        }

    def deadline_ms(self, camera: str) -> float | None:
        """Return a camera's deadline, None where there is none."""
        deadline_ns = self._cameras[camera].deadline_ns
        return None if deadline_ns is None else deadline_ns / NS_PER_MS

    def misses(self, camera: str) -> int | None:
        """Return how many frames took longer than that, None where there is no deadline."""
        times = self._cameras[camera]
        return None if times.deadline_ns is None else times.misses
