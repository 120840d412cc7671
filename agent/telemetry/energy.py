"""The energy of each telemetry interval, and of all since the start, while the daemon runs.

A window goes from its first sample to its last, so that one ends where the next begins and no
joule is told twice; inferences are counted for just that time. The sampler's thread adds, the main
thread takes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from agent.contract.telemetry import EnergyTelemetry
from agent.telemetry.baseline import Baseline
from agent.telemetry.integral import (
    LEAST_SAMPLES,
    Energy,
    Look,
    Sample,
    Window,
    gap_limit_s,
    sample_of,
)

log = logging.getLogger(__name__)

EVERY_S = 1.0
# Workers speak twice a second: far more than the time between a window's last sample and its end.
MOST_NOTES = 512


class Tally:
    """How many inferences there were until when; between two notes they came evenly."""

    def __init__(self) -> None:
        self._notes: deque[tuple[float, int]] = deque(maxlen=MOST_NOTES)
        self._from: tuple[float, int | None] | None = None  # since when it is counted

    def note(self, count: int, at_s: float) -> None:
        """So many more have been done since the last note."""
        total = self._notes[-1][1] if self._notes else 0
        self._notes.append((at_s, total + count))
        if self._from is not None and self._from[1] is None and at_s >= self._from[0]:
            self._from = self._from[0], self._until(self._from[0])

    def begin(self, at_s: float) -> None:
        """Count from then on."""
        is_known = bool(self._notes) and at_s <= self._notes[-1][0]
        self._from = at_s, self._until(at_s) if is_known else None

    def count(self, end_s: float) -> int:
        """Return how many there were until then, since what `begin` said."""
        if self._from is None:
            return 0
        begin_s, before = self._from
        return self._until(end_s) - (self._until(begin_s) if before is None else before)

    def _until(self, at_s: float) -> int:
        last_s, last = None, 0
        for note_s, total in self._notes:
            if note_s >= at_s:
                if last_s is None:
                    return total if note_s == at_s else 0
                return int(last + (total - last) * (at_s - last_s) / (note_s - last_s))
            last_s, last = note_s, total
        return last


class EnergyMeter:
    """See the module's docstring. Any thread."""

    def __init__(
        self,
        baseline: Baseline | None = None,
        *,
        every_s: float = EVERY_S,
        least_samples: int = LEAST_SAMPLES,
    ) -> None:
        """Take the board's draw at rest, if that is known, and how often samples come."""
        self.baseline = baseline
        self._every_s = every_s
        self._least_samples = least_samples
        self._lock = threading.Lock()
        # Guarded by `_lock`.
        self._tally = Tally()
        self._window: Window | None = None  # None: there has been no look yet
        self._last: Sample | None = None  # of those that were measured
        self._first_s: float | None = None  # of this window's
        self._looked_s = 0.0  # at the newest look, measured or not
        self._board: str | None = None
        self._total_j: float | None = None
        self._said: str | None = None  # why the baseline does not hold

    @property
    def total_j(self) -> float | None:
        """Return the joules since the start, without times that were not measured.

        It never goes down, but begins anew when the sensor changes. None: nothing measures.
        """
        with self._lock:
            return self._total_j

    @property
    def idle_w(self) -> float | None:
        """Return the baseline, if it is of what measured lately; None: nothing did, or another."""
        with self._lock:
            last, looked_s, board = self._last, self._looked_s, self._board
        if self.baseline is None or last is None or board is None:
            return None
        if looked_s - last.at_s > gap_limit_s(self._every_s):
            return None
        why_not = self.baseline.why_not(board, last.scope, last.sensor)
        return self.baseline.idle_w if why_not is None else None

    def so_far(self) -> EnergyTelemetry:
        """Return what was measured since the start alone; no window ends by it."""
        with self._lock:
            last, total_j = self._last, self._total_j
        return EnergyTelemetry(
            valid=False,
            why_invalid="the window has not ended",
            source=None,
            scope=last.scope if last is not None else "none",
            window_s=None,
            mean_w=None,
            gross_j=None,
            idle_w=None,
            net_j=None,
            inferences=0,
            gross_mj_per_inference=None,
            net_mj_per_inference=None,
            samples=0,
            largest_gap_s=None,
            coverage=None,
            total_j=total_j,
        )

    def add(self, look: Look) -> None:
        """Take a look at the board; later than the last one, or it is left out."""
        sample = sample_of(look)
        with self._lock:
            self._board = look.reading.board_id.id
            last = self._last
            if last is not None and sample.at_s <= last.at_s:
                return
            self._looked_s = sample.at_s
            if self._window is None:
                self._window = self._open(sample.at_s)
            step_j = self._window.add(sample)
            if not sample.is_measured:
                return
            if last is None or not sample.is_comparable(last) or self._total_j is None:
                self._total_j = 0.0
            else:
                # A board that gives power back, as a battery's meter may say, is no counter.
                self._total_j += max(0.0, step_j)
            if self._first_s is None:
                self._first_s = sample.at_s
                self._tally.begin(sample.at_s)
            self._last = sample

    def note_inferences(self, count: int, at_s: float | None = None) -> None:
        """So many inferences have been done since the last call; `at_s` None: until now."""
        with self._lock:
            self._tally.note(count, time.monotonic() if at_s is None else at_s)

    def window(self, now: float) -> EnergyTelemetry:
        """End the window at the last sample, or at `now` if that is long ago; begin the next."""
        with self._lock:
            window, last = self._window, self._last
            is_fresh = last is not None and now - last.at_s <= gap_limit_s(self._every_s)
            end_s = last.at_s if last is not None and is_fresh else now
            if window is None:
                window = self._open(end_s)
            energy = window.end(max(end_s, window.start_s))
            inferences = self._tally.count(energy.end_s)
            self._window = self._open(end_s)
            self._first_s = None
            self._tally.begin(end_s)
            if last is not None and is_fresh:
                self._window.add(last)
                self._first_s = last.at_s
            board = self._board
        return self._telemetry(energy, inferences, self._idle_w(energy, board))

    def _open(self, start_s: float) -> Window:
        return Window(start_s, every_s=self._every_s, least_samples=self._least_samples)

    def _idle_w(self, energy: Energy, board: str | None) -> float | None:
        """Return the baseline, if it is of what measures now; say once why not."""
        if self.baseline is None or board is None or energy.source is None:
            return None
        why_not = self.baseline.why_not(board, energy.scope, energy.sensor)
        if why_not != self._said:
            self._said = why_not
            if why_not is not None:
                log.warning(
                    "no net energy: %s; measure it anew: edge-agent bench --energy", why_not
                )
        return self.baseline.idle_w if why_not is None else None

    @staticmethod
    def _telemetry(energy: Energy, inferences: int, idle_w: float | None) -> EnergyTelemetry:
        """Return the payload; what an invalid window would say stays unsaid."""
        is_valid = energy.why_invalid is None
        gross_j = energy.gross_j if is_valid else None
        net_j = energy.net_j(idle_w) if is_valid and idle_w is not None else None
        return EnergyTelemetry(
            valid=is_valid,
            why_invalid=energy.why_invalid,
            source=energy.source,
            scope=energy.scope,
            window_s=round(energy.seconds, 3),
            mean_w=_rounded(energy.mean_w if is_valid else None),
            gross_j=_rounded(gross_j),
            idle_w=_rounded(idle_w),
            net_j=_rounded(net_j),
            inferences=inferences,
            gross_mj_per_inference=_per_inference_mj(gross_j, inferences),
            net_mj_per_inference=_per_inference_mj(net_j, inferences),
            samples=energy.samples,
            largest_gap_s=_rounded(energy.largest_gap_s),
            coverage=_rounded(energy.coverage),
        )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _per_inference_mj(joules: float | None, inferences: int) -> float | None:
    return None if joules is None or inferences <= 0 else round(1e3 * joules / inferences, 4)
