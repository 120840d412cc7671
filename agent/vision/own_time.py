"""How long something took, without the time its threads waited for processors others used.

An examined model stands behind everything else on the board, so the clock on the wall says how
busy the board is, and not how fast the model will be once it has its turn. A run waits for the
slowest of its threads, so the longest wait of one thread is taken off: a lower bound of what all
waits together have cost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from agent.sensors.waits import waits_ns


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds; `own_s` is `wall_s` where the kernel does not count waits."""

    wall_s: float
    own_s: float


def timed(work: Callable[[], None]) -> Took:
    """Do something and return how long it took."""
    before = waits_ns()
    started = time.perf_counter()
    work()
    wall_s = time.perf_counter() - started
    waited_ns = max(
        (waited - before.get(thread, 0) for thread, waited in waits_ns().items()), default=0
    )
    return Took(wall_s, max(0.0, wall_s - waited_ns / 1e9))


def percentile(values: list[float], share: float) -> float:
    """Return the smallest value that so large a share does not exceed; of at least one value."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
