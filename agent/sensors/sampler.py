"""The one thread that looks at the board, once a second.

It never ends by an error and never fails its users: a look that raises is left out and said once of
each kind, a driver that hangs holds this thread alone, and what it saw last counts as unknown when
it has become old. The thread is a daemon, so that one that hangs does not hold up the process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from agent.sensors.reader import Look

_log = logging.getLogger(__name__)

EVERY_S = 1.0
FRESH_FOR_S = 5.0
# How long `stop` waits: a look takes milliseconds, or its driver hangs.
STOP_WITHIN_S = 1.0
# The processor time of a look is the mean of so many.
LOOKS = 60


class Reader(Protocol):
    """What looks at the board: `agent.sensors.reader.BoardReader`."""

    def read(self, at_s: float | None = None) -> Look:
        """Return one look, taken at `at_s` of the monotonic clock."""

    def close(self) -> None:
        """Let go of all files."""


class Sampler:
    """Looks each `every_s` and hands every look to `on_look`, on its own thread."""

    def __init__(
        self,
        reader: Reader,
        *,
        every_s: float = EVERY_S,
        on_look: Callable[[Look], None],
    ) -> None:
        self._reader = reader  # of the thread alone
        self._every_s = every_s
        self._on_look = on_look
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agent.sensors", daemon=True)
        self._said: set[str] = set()
        self._costs_ms: deque[float] = deque(maxlen=LOOKS)
        # Any thread may read these; each is replaced as a whole.
        self.latest: Look | None = None
        self.cpu_ms: float | None = None  # processor time of one look, mean of the last ones
        self.ticked_at: float | None = None  # of the monotonic clock: the last turn's begin

    def start(self) -> None:
        """Take the first look at once, on the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Take no further look; a thread that hangs is left behind after STOP_WITHIN_S."""
        self._stop.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(STOP_WITHIN_S)

    def fresh(self, now: float) -> Look | None:
        """Return the last look unless it is older than FRESH_FOR_S at `now`, monotonic."""
        look = self.latest
        return look if look is not None and now - look.at_s <= FRESH_FOR_S else None

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            self._turn()
            due = next_turn(due, time.monotonic(), self._every_s)
        try:
            self._reader.close()
        except Exception as error:  # the thread ends in any case
            self._say_once(error)

    def _turn(self) -> None:
        self.ticked_at = time.monotonic()
        began = time.thread_time()
        try:
            look = self._reader.read(self.ticked_at)
            if not isinstance(look, Look):
                raise TypeError(f"a look is no {type(look).__name__}")
            self.latest = look
            self._on_look(look)
        except Exception as error:  # a sensor must never take the agent down
            self._say_once(error)
        self._costs_ms.append((time.thread_time() - began) * 1000)
        self.cpu_ms = sum(self._costs_ms) / len(self._costs_ms)

    def _say_once(self, error: Exception) -> None:
        """Log what is new: where it was raised tells kinds apart, as messages may hold numbers."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
        kind = f"{type(error).__name__} {where}"
        if kind not in self._said:
            self._said.add(kind)
            _log.error("sensors cannot be read reason=%s: %s", kind, error, exc_info=error)


def next_turn(due: float, now: float, every_s: float) -> float:
    """Return when the turn after that of `due` is due: on the same grid, skipping what is over."""
    missed = max(0, int((now - due) // every_s))
    return due + (missed + 1) * every_s
