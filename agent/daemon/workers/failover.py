"""Whether an accelerator is tried or left alone, by how it has behaved. Pure; times are given.

    trying ──absent, refused, or its worker died too often──▶ resting
       ▲                                                        │ a probe with back-off
       └───────────────── the probe succeeded ──────────────────┘

While it rests, the model runs on the processor. The probe is a process of its own, so an
accelerator that aborts or hangs hurts nobody. After a return, one death is enough to send it
back, and the next probe waits twice as long.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Its worker may die this often within so many seconds; edgetpu#645: libedgetpu's abort cannot
# be caught, and a stick that is reset once by a bad cable goes on working.
DEATHS_MOST = 3
WITHIN_S = 300.0
# From a stick that is plugged in again to its use, at first and at most.
PROBE_FIRST_S = 10.0
PROBE_MOST_S = 600.0
# What has just been plugged in is still being enumerated.
SETTLE_S = 1.0
# An accelerator that worked this long after its return is trusted as before.
PROVEN_S = 300.0


@dataclass(slots=True)
class Failover:
    """The accelerators of one worker: its model's, and those of its second stages."""

    wanted: tuple[str, ...]  # as configured
    avoid: str = ""  # why the next worker must not try them, as they killed others
    resting: tuple[str, ...] = ()  # models that do without, by name in [models]
    _deaths: list[float] = field(default_factory=list)
    _is_used: bool = False  # by the worker that is ready now
    _returned_at: float | None = None
    _probe_at: float | None = None
    _wait_s: float = PROBE_FIRST_S

    def on_ready(self, *, is_accelerated: bool, fallbacks: tuple[str, ...], now: float) -> None:
        """A worker runs; `fallbacks` are its models that had to do without."""
        self._is_used = is_accelerated
        self.resting = fallbacks
        if not fallbacks:
            self.avoid, self._probe_at = "", None
        elif self._probe_at is None:
            # Nothing is to be avoided: what is absent for one model may serve another.
            self._look_later(now)

    def on_death(self, reason: str, now: float, *, was_ready: bool, is_hang: bool) -> bool:
        """A worker died unbidden; return whether the accelerator rests from now on."""
        is_suspect = self._is_used if was_ready else set(self.wanted) != {"cpu"}
        self._is_used = False
        if self.avoid or not is_suspect:
            return False
        self._deaths = [at for at in self._deaths if now - at < WITHIN_S] + [now]
        is_proven = self._returned_at is None or now - self._returned_at > PROVEN_S
        if is_proven:
            self._wait_s = PROBE_FIRST_S
        count = len(self._deaths)
        # A hang costs subscribers ten seconds and more: one is enough.
        if is_proven and count < DEATHS_MOST and not is_hang:
            return False
        times = "once" if count == 1 else f"{count} times"
        self._rest(f"its worker died {times} in {WITHIN_S / 60:.0f} minutes; last: {reason}", now)
        return True

    def _rest(self, reason: str, now: float) -> None:
        self.avoid = reason
        self._deaths = []
        self._look_later(now)

    def _look_later(self, now: float) -> None:
        self._probe_at = now + self._wait_s
        self._wait_s = min(PROBE_MOST_S, 2 * self._wait_s)

    def is_probe_due(self, now: float) -> bool:
        """Return whether it is time to look whether the accelerator works again."""
        return self._probe_at is not None and now >= self._probe_at

    def on_plugged_in(self, now: float) -> None:
        """A device has appeared: look at once, whatever the back-off says."""
        is_coral = any(wanted.startswith(("edgetpu", "auto")) for wanted in self.wanted)
        if self._probe_at is not None and is_coral:
            self._probe_at = now + SETTLE_S

    def on_probe(self, failure: str, now: float) -> bool:
        """Take a probe's answer, empty for success; return whether the accelerator is back."""
        if failure:
            self._look_later(now)
            return False
        self.avoid, self._probe_at = "", None
        self._returned_at = now
        return True
