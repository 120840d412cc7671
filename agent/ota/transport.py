"""What fetches have in common: a file of a mirror from an offset on, and how slow is too slow."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from agent.ota.jobs import Limits
from agent.ota.refusal import RefusalError

PIECE_BYTES = 64 << 10
# The window of the minimum rate is looked at in so many steps.
STEPS = 20


class StatusError(RefusalError):
    """The mirror answers, but has not got the file; `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__("E_NET", message)
        self.status = status


class RangeError(RefusalError):
    """The mirror cannot go on at that offset, or goes on elsewhere."""

    def __init__(self, message: str) -> None:
        super().__init__("E_NET", message)


class Reply(Protocol):
    """A file on its way.

    start: offset of the first byte that will be read; 0 although another one was asked for says
        that the file is another one by now, or that the mirror cannot do better
    total: length of the whole file, None where the mirror does not say
    tag: changes with the file's content, where the mirror says
    """

    start: int
    total: int | None
    tag: str | None

    def read(self, most: int) -> bytes:
        """Return what has come, at most so much; empty at the end.

        Raises:
            RefusalError: E_NET it ended early, E_SLOW it comes too slowly.
        """
        ...

    def close(self) -> None:
        """Leave it; whatever has not been read is lost."""
        ...


class Transport(Protocol):
    """One mirror.

    name: for people, without credentials
    """

    name: str

    def open(self, path: str, *, offset: int = 0, tag: str | None = None) -> Reply:
        """Ask for a file below the mirror's folder.

        Args:
            path: such as `metadata/timestamp.json`.
            offset: bytes that are here already.
            tag: of the reply that they came from; whatever has another one starts at 0.

        Raises:
            StatusError: there is no such file, or not for us.
            RangeError: it has nothing at that offset.
            RefusalError: E_NET, E_SLOW, E_CLOCK.
        """
        ...

    def close(self) -> None:
        """End connections."""
        ...


class Pace:
    """Whether bytes come fast enough; for any thread.

    A drip feed keeps every timeout of a socket content for ever, so what counts is how much came
    within the last `Limits.window_s`.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        now = clock()
        self._ends = now + limits.deadline_s
        self._total = 0
        self._marks: deque[tuple[float, int]] = deque([(now, 0)])

    def note(self, count: int) -> None:
        """Count bytes that came."""
        with self._lock:
            self._total += count

    def complaint(self) -> str | None:
        """Return what is wrong with the pace, None for nothing; to be asked often."""
        limits = self._limits
        with self._lock:
            now = self._clock()
            if now >= self._ends:
                return f"took more than {limits.deadline_s:.0f} s"
            while len(self._marks) > 1 and self._marks[1][0] <= now - limits.window_s:
                self._marks.popleft()
            since, before = self._marks[0]
            is_full = since <= now - limits.window_s
            if is_full and self._total - before < limits.least_bytes_per_s * (now - since):
                return (
                    f"{self._total - before} bytes in {now - since:.0f} s, "
                    f"less than {limits.least_bytes_per_s:.0f} a second"
                )
            if now - self._marks[-1][0] >= limits.window_s / STEPS:
                self._marks.append((now, self._total))
        return None


class Watch:
    """A thread that cuts a transfer which is too slow, wherever in the protocol that is.

    Reading headers and chunk sizes byte by byte happens inside the standard library, where nobody
    asks about the pace.
    """

    def __init__(self, pace: Pace, cut: Callable[[], None], every_s: float) -> None:
        self.complaint: str | None = None
        self._pace = pace
        self._cut = cut
        self._every_s = every_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pace", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_over.wait(self._every_s):
            self.complaint = self._pace.complaint()
            if self.complaint is not None:
                self._cut()
                return

    def stop(self) -> None:
        """End the thread."""
        self._is_over.set()
        self._thread.join()
