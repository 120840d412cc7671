"""Whether a model that serves cameras may stay: judged by what it did, and by nothing else.

Time counts only while the model could have worked: cameras gave frames, the broker was there, and
neither heat nor voltage held the board back. Whatever is missing extends a probation; only what
the model itself does ends it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agent.ota.refusal import Code
from agent.ota.steps import Vitals

# What it must have shown: so many frames, and one message that the broker took.
ENOUGH_FRAMES = 1000
# With slow cameras, or a motion gate, fewer will do after so many times the time.
PATIENCE = 6
FEW_FRAMES = 30
# Cameras give frames and none of them is processed for this long.
STILL_S = 30.0
# Beside cameras, decoding and encoding an invoke takes longer than alone, which the budget is for.
MARGIN = 1.25
SLOW_S = 30.0
# Percentiles are of the last 10 s or so: those of a throttled board are still in there.
AFTER_THROTTLING_S = 15.0
# Longest time between two looks that counts in full; beyond it the process itself stood still.
LONGEST_LOOK_S = 5.0
# After this, whatever was missing.
MOST_S = 86400.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """`code` None: it has passed."""

    code: Code | None
    message: str = ""


@dataclass(slots=True)
class Probation:
    """One model's, from its first frame on; all times are monotonic seconds."""

    probation_s: float
    budget_ms: float | None  # of one invoke, the 95th percentile
    began_at: float
    began_with: Vitals
    good_s: float = 0.0  # time that counts
    waits_for: Literal["", "a camera", "the broker", "the board to cool"] = ""
    _looked_at: float = 0.0
    _frames: int = 0
    _still_s: float = 0.0
    _slow_s: float = 0.0
    _throttled_at: float | None = None

    def __post_init__(self) -> None:
        self._looked_at, self._frames = self.began_at, self.began_with.frames

    @property
    def progress(self) -> float:
        """Return how far it is on the shorter of its two ways, in time and frames; 0 to 1."""
        time = self.good_s / self.probation_s if self.probation_s > 0 else 1.0
        frames = self._frames - self.began_with.frames
        quick = min(time, frames / ENOUGH_FRAMES)
        patient = min(time / PATIENCE, frames / FEW_FRAMES)
        return max(0.0, min(1.0, max(quick, patient)))

    def look(self, now: float, vitals: Vitals) -> Verdict | None:
        """Take note of how the model fares; return a verdict once there is one."""
        passed_s = min(LONGEST_LOOK_S, max(0.0, now - self._looked_at))
        self._looked_at = now
        self.waits_for = self._find_wait(now, vitals)
        if not self.waits_for:
            self.good_s += passed_s
        self._note_frames(vitals, passed_s)
        self._note_speed(vitals, passed_s)
        if self._still_s >= STILL_S:
            return Verdict("E_HANG", f"no frame was processed for {self._still_s:.0f} s")
        if self._slow_s >= SLOW_S:
            return Verdict(
                "E_BUDGET", f"p95 {vitals.p95_ms:.1f} ms; {self.budget_ms:.1f} ms is allowed"
            )
        if self._has_passed(vitals):
            return Verdict(None)
        if now - self.began_at >= MOST_S:
            why = f"waits for {self.waits_for}" if self.waits_for else "has shown too little"
            return Verdict("E_UNPROVEN", f"{why} after {MOST_S / 3600:.0f} h")
        return None

    def _find_wait(
        self, now: float, vitals: Vitals
    ) -> Literal["", "a camera", "the broker", "the board to cool"]:
        if vitals.is_throttled:
            self._throttled_at = now
        if self._throttled_at is not None and now - self._throttled_at < AFTER_THROTTLING_S:
            return "the board to cool"
        if not vitals.is_fed:
            return "a camera"
        return "" if vitals.is_connected else "the broker"

    def _note_frames(self, vitals: Vitals, passed_s: float) -> None:
        if vitals.frames != self._frames or not vitals.is_fed:
            self._still_s = 0.0
        else:
            self._still_s += passed_s
        self._frames = vitals.frames

    def _note_speed(self, vitals: Vitals, passed_s: float) -> None:
        if self.waits_for == "the board to cool":
            return
        is_slow = (
            self.budget_ms is not None
            and vitals.p95_ms is not None
            and vitals.p95_ms > self.budget_ms * MARGIN
        )
        self._slow_s = self._slow_s + passed_s if is_slow else 0.0

    def _has_passed(self, vitals: Vitals) -> bool:
        frames = vitals.frames - self.began_with.frames
        if self.good_s < self.probation_s or self._slow_s > 0 or self._still_s > 0:
            return False
        if vitals.acknowledged == self.began_with.acknowledged:
            return False
        is_patient = self.good_s >= PATIENCE * self.probation_s and frames >= FEW_FRAMES
        return frames >= ENOUGH_FRAMES or is_patient
