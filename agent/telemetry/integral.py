"""Energy between two times, from samples of the board's own sensor. Pure; monotonic seconds.

A counter's delta where the chip counts, else the trapezoid over samples of power, on their own
stamps: each sample weighs as much as the time around it, whatever the sampler's jitter. The ends
of a window that lie between two samples are interpolated linearly. Where samples are missing
nothing is hidden: the window is then said to be invalid, and why.

Nothing here is an MLPerf figure: those are of the plug, with an external analyser.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from agent.contract.reading import Reading, Scope

# Two public protocols for Jetson boards, sampled at 10 Hz, reject windows with longer holes. A
# slower sampler may lose one sample, and be late by half an interval.
GAP_S = 0.5
GAP_INTERVALS = 2.5
# A counter loses nothing between two looks unless it wraps twice: after 44 minutes at 100 W with
# the usual range of RAPL (the kernel's powercap.rst). Readers look at least once a minute.
COUNTER_GAP_S = 60.0
LEAST_COVERAGE = 0.9
# Of power; a counter needs its two ends alone.
LEAST_SAMPLES = 5

Source = Literal["counter", "trapezoid"]


class Look(Protocol):
    """What is needed of `agent.sensors.reader.Look`."""

    @property
    def reading(self) -> Reading:
        """What the board's sensors said."""

    @property
    def energy_j(self) -> float | None:
        """Joules of a counter of the same scope as the power; wraps are unrolled.

        None where there is none, or where joules were missed since the look before.
        """

    @property
    def at_s(self) -> float:
        """When, on the monotonic clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Power at one time, as far as it was measured."""

    at_s: float
    power_w: float | None
    energy_j: float | None = None
    scope: Scope = "none"
    sensor: str | None = None
    why_not: str | None = None  # why nothing was measured

    @property
    def is_measured(self) -> bool:
        """Return whether energy can be told from it."""
        return self.power_w is not None or self.energy_j is not None

    @property
    def title(self) -> str:
        """Return what measured, and what of."""
        return f"{self.sensor or 'an unnamed one'} ({self.scope})"

    def is_comparable(self, other: Sample) -> bool:
        """Return whether another one is of the same sensor and scope."""
        return (self.scope, self.sensor) == (other.scope, other.sensor)


def sample_of(look: Look) -> Sample:
    """Return what one look at the board says of power; only what was measured counts."""
    power = look.reading.power
    is_measured = power.kind == "measured"
    why_not = "power is estimated here, not measured" if power.kind == "estimated" else power.reason
    return Sample(
        at_s=look.at_s,
        power_w=_finite(power.total_w) if is_measured else None,
        energy_j=_finite(look.energy_j) if is_measured else None,
        scope=power.scope,
        sensor=power.sensor,
        why_not=None if is_measured else why_not,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What a window's samples say. The joules of an invalid one are for the curious alone."""

    source: Source | None
    scope: Scope
    sensor: str | None
    start_s: float  # the joules are of the time from here
    end_s: float  # to here
    gross_j: float | None
    samples: int
    largest_gap_s: float | None
    coverage: float | None
    why_invalid: str | None

    @property
    def seconds(self) -> float:
        """Return how long it took."""
        return self.end_s - self.start_s

    @property
    def mean_w(self) -> float | None:
        """Return the mean power."""
        return self.gross_j / self.seconds if self.gross_j is not None and self.seconds else None

    def net_j(self, idle_w: float) -> float | None:
        """Return the joules above those of the board at rest; negative below them."""
        return None if self.gross_j is None else self.gross_j - idle_w * self.seconds


def gap_limit_s(every_s: float) -> float:
    """Return how far apart two neighbours may be where a sample is taken each `every_s`."""
    return max(GAP_S, GAP_INTERVALS * every_s)


class Track:
    """The energy of one window by one source, sample by sample."""

    def __init__(self, source: Source, start_s: float, limit_s: float) -> None:
        """Begin at `start_s`; neighbours farther apart than `limit_s` leave a hole."""
        self._source: Source = source
        self._start_s = start_s
        self._limit_s = limit_s
        self._joules = 0.0
        self._samples = 0
        self._first_s: float | None = None
        self._last: tuple[float, float] | None = None
        self._covered_s = 0.0
        self._largest_gap_s = 0.0
        self._why_invalid: str | None = None
        self._has_missed = False

    def miss(self) -> None:
        """A sample has no value: what a counter says next need not hold all since the last."""
        if self._source == "counter" and self._last is not None:
            self._has_missed = True
            self._why_invalid = "the energy counter could not be followed"

    def add(self, at_s: float, value: float, *, cut_s: float, is_sample: bool) -> float | None:
        """Take one more value, of watts or of the counter's joules; see `Window.add`."""
        self._samples += is_sample
        last, self._last = self._last, (at_s, value)
        gap_s = max(cut_s, at_s - (last[0] if last else self._start_s))
        is_hole = self._note_gap(gap_s, is_inside=last is not None and not cut_s)
        if last is None:
            self._first_s = at_s
            return None
        seconds = at_s - last[0]
        if self._source == "trapezoid":
            step = (last[1] + value) / 2 * seconds
        else:
            step = value - last[1]
            if step < 0:
                self._why_invalid = "the energy counter began anew"
                return None
        self._joules += step
        has_missed, self._has_missed = self._has_missed, False
        if is_hole or has_missed:
            return None
        self._covered_s += seconds
        return step

    def _note_gap(self, gap_s: float, *, is_inside: bool) -> bool:
        self._largest_gap_s = max(self._largest_gap_s, gap_s)
        # Where a window's end cuts it, a counter is interpolated as power is.
        counts_on = is_inside and self._source == "counter"
        limit_s = max(self._limit_s, COUNTER_GAP_S) if counts_on else self._limit_s
        if gap_s <= limit_s:
            return False
        if self._why_invalid is None:
            self._why_invalid = f"no sample for {gap_s:.3g} s, allowed are {limit_s:.3g} s"
        return True

    def end(self, end_s: float, sample: Sample, least_samples: int) -> Energy | None:
        """Return the window's energy, of the sensor of `sample`; None: it has no value."""
        if self._last is None or self._first_s is None:
            return None
        if self._last[0] < end_s:
            self._note_gap(end_s - self._last[0], is_inside=False)
        nominal_s = end_s - self._start_s
        coverage = min(1.0, self._covered_s / nominal_s) if nominal_s > 0 else 0.0
        least = least_samples if self._source == "trapezoid" else 2
        why = self._why_invalid
        if why is None and self._samples < least:
            why = f"too few samples: {self._samples}, at least {least}"
        if why is None and coverage < LEAST_COVERAGE:
            why = f"samples cover {coverage:.0%} of the time, at least {LEAST_COVERAGE:.0%}"
        return Energy(
            source=self._source,
            scope=sample.scope,
            sensor=sample.sensor,
            start_s=self._first_s,
            end_s=self._last[0],
            gross_j=self._joules if self._last[0] > self._first_s else None,
            samples=self._samples,
            largest_gap_s=self._largest_gap_s,
            coverage=coverage,
            why_invalid=why,
        )


class Window:
    """One window, sample by sample, in order of time."""

    def __init__(self, start_s: float, *, every_s: float, least_samples: int) -> None:
        """Begin at `start_s`; a sample is to be taken each `every_s`."""
        self.start_s = start_s
        limit_s = gap_limit_s(every_s)
        self._counter = Track("counter", start_s, limit_s)
        self._power = Track("trapezoid", start_s, limit_s)
        self._least_samples = least_samples
        self._sample: Sample | None = None  # the last one that was measured
        self._changed: str | None = None
        self._unmeasured: Sample | None = None

    def add(self, sample: Sample, *, cut_s: float = 0.0, is_sample: bool = True) -> float:
        """Take one more sample; return the joules since the last, 0 where they are not known.

        Args:
            sample: later than the last.
            cut_s: how far apart the neighbours are that an end of the window lies between.
            is_sample: False for such an end.
        """
        if sample.energy_j is None:
            self._counter.miss()
        if not sample.is_measured:
            self._unmeasured = sample
            return 0.0
        last, self._sample = self._sample, sample
        is_same = last is None or sample.is_comparable(last)
        if last is not None and not is_same:
            self._changed = f"the sensor changed from {last.title} to {sample.title}"
        steps = [
            track.add(sample.at_s, value, cut_s=cut_s, is_sample=is_sample)
            for track, value in ((self._counter, sample.energy_j), (self._power, sample.power_w))
            if value is not None
        ]
        known = [step for step in steps if step is not None]
        return known[0] if known and is_same else 0.0

    def end(self, end_s: float) -> Energy:
        """Return the window's energy: of the counter, if that is valid, else of the power."""
        sample = self._sample
        if sample is None:
            missed = self._unmeasured
            why = missed.why_not if missed is not None else "the board was not looked at"
            return Energy(
                source=None,
                scope=missed.scope if missed is not None else "none",
                sensor=missed.sensor if missed is not None else None,
                start_s=self.start_s,
                end_s=end_s,
                gross_j=None,
                samples=0,
                largest_gap_s=None,
                coverage=None,
                why_invalid=why or "no sensor measures power here",
            )
        ends = [
            energy
            for track in (self._counter, self._power)
            if (energy := track.end(end_s, sample, self._least_samples)) is not None
        ]
        best = next((energy for energy in ends if energy.why_invalid is None), ends[0])
        return best if self._changed is None else replace(best, why_invalid=self._changed)


def measure(
    samples: Sequence[Sample],
    start_s: float,
    end_s: float,
    *,
    every_s: float,
    least_samples: int = LEAST_SAMPLES,
) -> Energy:
    """Return the energy between two times.

    Args:
        samples: in order of time; those around the window's ends as well, if there are any.
        start_s: of the window, monotonic seconds.
        end_s: behind it.
        every_s: how often samples were to be taken.
        least_samples: of power within the window.
    """
    window = Window(start_s, every_s=every_s, least_samples=least_samples)
    inside = [sample for sample in samples if start_s <= sample.at_s <= end_s]
    known = [sample for sample in inside if sample.is_measured]
    before = next(
        (one for one in reversed(samples) if one.at_s < start_s and one.is_measured), None
    )
    after = next((one for one in samples if one.at_s > end_s and one.is_measured), None)
    cut_s = 0.0
    first = known[0] if known else after
    if before is not None and first is not None and first.at_s > start_s:
        cut_s = first.at_s - before.at_s
        window.add(_between(before, first, start_s), cut_s=cut_s, is_sample=False)
    for sample in inside:
        window.add(sample, cut_s=cut_s)
        cut_s = 0.0 if sample.is_measured else cut_s
    last = known[-1] if known else before
    if after is not None and last is not None and last.at_s < end_s:
        cut_s = after.at_s - last.at_s
        window.add(_between(last, after, end_s), cut_s=cut_s, is_sample=False)
    return window.end(end_s)


def _between(a: Sample, b: Sample, at_s: float) -> Sample:
    """Return what lies on the line between two samples."""
    share = (at_s - a.at_s) / (b.at_s - a.at_s)

    def on_line(first: float | None, second: float | None) -> float | None:
        if first is None or second is None:
            return None
        return first + share * (second - first)

    power_w = on_line(a.power_w, b.power_w)
    return replace(b, at_s=at_s, power_w=power_w, energy_j=on_line(a.energy_j, b.energy_j))
