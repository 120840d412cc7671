"""The outbox: the one owner of what the broker has not acknowledged yet.

Bounded in bytes and held in memory. `put` never blocks: when the bound is passed the oldest
record that is not on the wire goes, and is counted. Invariants, at every moment and from any
thread: put == published + dropped + waiting; records leave in the order they came; every
dropped record of a numbered stream is inside exactly one `GapNote`. This room knows nothing
of MQTT; a durable outbox can take its place behind the same methods.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Literal

GapReason = Literal["queue_full", "too_large", "refused"]

# What CPython spends on one waiting record beside its bytes, so that the bound is about memory
# and not only about payload: the record (64), the bytes header (33), the pair (56), the id (28)
# and the queue's slot (8), by sys.getsizeof on CPython 3.11, 64 bit.
RECORD_OVERHEAD_BYTES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One message to publish; `seq` > 0 numbers it within its `stream`."""

    topic: str
    payload: bytes
    stream: str = ""
    seq: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GapNote:
    """Every `seq` from `from_seq` to `to_seq` of `stream` was given up for `reason`."""

    stream: str
    from_seq: int
    to_seq: int
    reason: GapReason

    @property
    def count(self) -> int:
        """Return how many records the range holds."""
        return self.to_seq - self.from_seq + 1


class Outbox:
    """A bounded first-in-first-out queue whose records stay until they are acknowledged.

    Call order: `put` from any thread; `take`, then `acknowledged` or `refused` for each id
    taken; `requeue_in_flight` once a connection is gone, after which every id taken before
    is void until it is taken again.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        # guarded by _lock
        self._next_id = 1
        self._unsent: deque[tuple[int, Record]] = deque()
        self._in_flight: dict[int, Record] = {}
        self._gaps: list[GapNote] = []
        # index in _gaps of the newest note of a (stream, reason): the one that may grow
        self._open_gaps: dict[tuple[str, GapReason], int] = {}
        # written under _lock, read by anyone
        self.published = 0
        self.dropped = 0
        self.waiting_bytes = 0

    @property
    def waiting(self) -> int:
        """Return how many records are not acknowledged yet, on the wire or not."""
        with self._lock:
            return len(self._unsent) + len(self._in_flight)

    @property
    def has_gaps(self) -> bool:
        """Return whether `take_gaps` would give anything."""
        return bool(self._gaps)

    def put(self, record: Record) -> None:
        """Queue a record; drops the oldest ones that are not on the wire to make room."""
        size = size_bytes(record)
        with self._lock:
            if size > self._max_bytes:
                # It can never fit, so nothing else is thrown away for it.
                self._give_up(record, "too_large")
                return
            self._unsent.append((self._next_id, record))
            self._next_id += 1
            self.waiting_bytes += size
            while self.waiting_bytes > self._max_bytes and self._unsent:
                _, oldest = self._unsent.popleft()
                self.waiting_bytes -= size_bytes(oldest)
                self._give_up(oldest, "queue_full")

    def take(self, limit: int) -> list[tuple[int, Record]]:
        """Return up to `limit` of the oldest unsent records, which are in flight from now on."""
        with self._lock:
            taken = [self._unsent.popleft() for _ in range(min(limit, len(self._unsent)))]
            self._in_flight.update(taken)
            return taken

    def acknowledged(self, record_id: int) -> None:
        """Forget a record the broker has taken over; an id that is not in flight is ignored."""
        with self._lock:
            if self._land(record_id) is not None:
                self.published += 1

    def refused(self, record_id: int, reason: GapReason) -> None:
        """Give up a record the broker will never take; counted, and noted as a gap."""
        with self._lock:
            record = self._land(record_id)
            if record is not None:
                self._give_up(record, reason)

    def requeue_in_flight(self) -> None:
        """Put everything unacknowledged back in front, in its old order, to be sent again."""
        with self._lock:
            # Ids are taken in rising order, and a dict keeps that order.
            self._unsent.extendleft(reversed(self._in_flight.items()))
            self._in_flight.clear()

    def take_gaps(self) -> list[GapNote]:
        """Return what was given up since last asked, as contiguous ranges."""
        with self._lock:
            gaps, self._gaps = self._gaps, []
            self._open_gaps.clear()
            return gaps

    def _land(self, record_id: int) -> Record | None:
        record = self._in_flight.pop(record_id, None)
        if record is not None:
            self.waiting_bytes -= size_bytes(record)
        return record

    def _give_up(self, record: Record, reason: GapReason) -> None:
        self.dropped += 1
        if record.seq <= 0:
            return
        first = last = record.seq
        index = self._open_gaps.get((record.stream, reason), len(self._gaps))
        if index < len(self._gaps) and self._gaps[index].to_seq + 1 == record.seq:
            first = self._gaps[index].from_seq
        else:
            index = len(self._gaps)
        note = GapNote(stream=record.stream, from_seq=first, to_seq=last, reason=reason)
        self._gaps[index : index + 1] = [note]
        self._open_gaps[record.stream, reason] = index


def size_bytes(record: Record) -> int:
    """Return what a record counts for against the bound."""
    return len(record.payload) + len(record.topic) + RECORD_OVERHEAD_BYTES
