"""Whether every loop of this process still turns, and systemd's watchdog, fed only if so.

Each loop is registered with the longest time that one turn of it may rightly take. Whoever
drives this, the main loop, is alive because it asks; nothing here runs by itself, as a thread
of its own would feed the watchdog of a process that hangs. All times are monotonic seconds.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

# sd_watchdog_enabled(3) recommends half of the time; a third leaves room for one word lost.
FEED_SHARE = 1 / 3


@dataclass(frozen=True, slots=True)
class Loop:
    """One loop: when it last turned, and how long ago that may be."""

    name: str
    longest_s: float
    ticked_at: Callable[[], float]


@dataclass(slots=True)
class Liveness:
    """The loops of the process. Used by one thread, but for `silent`; so is each `ticked_at`."""

    loops: list[Loop] = field(default_factory=list)
    _known_stuck: set[str] = field(default_factory=set)

    def watch(self, name: str, longest_s: float, ticked_at: Callable[[], float]) -> None:
        """Register a loop; `math.inf` as its time says that it need not turn now."""
        self.loops.append(Loop(name, longest_s, ticked_at))

    def stuck(self, now: float) -> list[str]:
        """Return the loops that have not turned for longer than they may; say each change once."""
        silent_s = {loop.name: now - loop.ticked_at() for loop in self.loops}
        stuck = [loop.name for loop in self.loops if silent_s[loop.name] > loop.longest_s]
        for name in stuck:
            if name not in self._known_stuck:
                log.error("loop is stuck name=%s silent_s=%.0f", name, silent_s[name])
        for name in sorted(self._known_stuck.difference(stuck)):
            log.info("loop turns again name=%s", name)
        self._known_stuck = set(stuck)
        return stuck

    def silent(self, now: float) -> list[str]:
        """Return the same as sentences; any thread, as nothing is logged or kept."""
        silent_s = ((loop, now - loop.ticked_at()) for loop in self.loops)
        return [
            f"loop {loop.name} has not turned for {silent:.0f} s"
            for loop, silent in silent_s
            if silent > loop.longest_s
        ]


@dataclass(slots=True)
class Watchdog:
    """Feeds systemd's watchdog while no loop is stuck.

    Attributes:
        watchdog_s: within this time systemd must be fed; None: it does not ask for it.
        feed: says that we are alive.
    """

    liveness: Liveness
    watchdog_s: float | None
    feed: Callable[[], object]
    _next_at: float = -math.inf

    def turn(self, now: float) -> float:
        """Feed if it is time and all is well; return the seconds until it is time again.

        While a loop is stuck, that is found out again each time: it may recover before systemd
        loses its patience.
        """
        if now >= self._next_at:
            if not self.liveness.stuck(now):
                self.feed()
            self._next_at = now + self._every_s
        return self._next_at - now

    @property
    def _every_s(self) -> float:
        """Without a watchdog the loops are looked at all the same, for the log."""
        return 10.0 if self.watchdog_s is None else self.watchdog_s * FEED_SHARE
