"""Questions to the kernel that may never be answered, asked in a thread of their own.

statvfs(3) on a network mount that has gone and /proc/PID/smaps_rollup of a process whose memory
map a driver holds both wait uninterruptibly. Whoever wants to know waits for a moment and goes on
without: unknown. There is one thread at most, however long it hangs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

# What is asked takes well under a millisecond, or a few where a process has much memory.
WAIT_S = 0.05


class Aside(Generic[T]):
    """One question, asked anew when the answer is older than `keep_s`; for one thread."""

    def __init__(
        self,
        ask: Callable[[], T | None],
        *,
        keep_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the question; it raises nothing and returns None where it fails."""
        self._ask = ask
        self._keep_s = keep_s
        self._clock = clock
        self._thread: threading.Thread | None = None
        self._answered = threading.Event()
        # Written by the thread, as one value.
        self._answer: tuple[float, T | None] | None = None

    def answer(self, within_s: float = WAIT_S, *, keep_s: float | None = None) -> T | None:
        """Return what is known; None: it could not be told, or nobody has answered for long.

        `keep_s` is another limit than usual of what is too old this time.
        """
        if self._age_s() >= (self._keep_s if keep_s is None else keep_s) and not self._is_asking():
            self._answered.clear()
            self._thread = threading.Thread(target=self._run, name="agent.aside", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no further thread can be had
                self._thread = None
            else:
                self._answered.wait(within_s)
        answer = self._answer
        if answer is None or self._age_s() > 2 * self._keep_s:
            return None
        return answer[1]

    def _is_asking(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _age_s(self) -> float:
        answer = self._answer
        return self._clock() - answer[0] if answer is not None else float("inf")

    def _run(self) -> None:
        began = self._clock()
        self._answer = began, self._ask()
        self._answered.set()
