"""The outbox: the one owner of what the broker has not acknowledged yet.

What is fresh waits in memory. When the broker does not acknowledge in time a thread of its own
saves everything to the SQLite database `outbox.db`, within a second, and reads it back when the
broker takes it; see `outbox_disk`. `put` and `take` never wait for the disk. Invariants, at
every moment and from any thread: put + found == published + dropped + waiting; the records of a
stream leave in the order they came; every dropped record of a numbered stream is inside exactly
one `GapNote`, which survives a sudden end as the records do. This room knows nothing of MQTT.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from agent.contract.payloads import GapReason
from agent.daemon.outbox.disk import OutboxDisk
from agent.daemon.outbox.numbering import Numbering, WriteFile
from agent.daemon.outbox.queue import OutboxQueue
from agent.daemon.outbox.records import (
    RECORD_OVERHEAD_BYTES,
    ClockMark,
    GapNote,
    Record,
    size_bytes,
)
from agent.daemon.outbox.spool import Connect, Spool
from agent.durable import write_durably

__all__ = [
    "RECORD_OVERHEAD_BYTES",
    "ClockMark",
    "GapNote",
    "GapReason",
    "Outbox",
    "Record",
    "TokenBucket",
    "size_bytes",
]

log = logging.getLogger(__name__)

DATABASE_FILE, NUMBERS_FILE = "outbox.db", "seq.json"
# What waits in memory while the disk takes nothing.
MOST_MEMORY_BYTES = 16_000_000
# What comes from disk leaves at this rate, beside what is fresh. A record costs the link 0.12 ms
# of CPU (measured on one x86-64 core, 400 bytes, mosquitto on the loop-back: 4,200 a second at
# most), so draining takes an eighth of such a core, and a day's outage at 10 a second is made
# good in a quarter of an hour.
STORED_PER_S = 1000.0
STORED_AT_ONCE = 50.0
OPEN_WITHIN_S = 2.0
# A disk that has not said what it holds by then must not stop live results; what it holds is
# sent when it does, behind newer ones.
ORDER_PATIENCE_S = 10.0


class TokenBucket:
    """Lets `rate` pass each second, and `burst` at once."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._tokens, self._at = burst, clock()
        self.is_dry = False

    def take(self) -> bool:
        """Return whether one may pass now."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        self.is_dry = self._tokens < 1.0
        if not self.is_dry:
            self._tokens -= 1.0
        return not self.is_dry

    @property
    def wait_s(self) -> float:
        """Return when the next may pass, from now."""
        return max(0.0, (1.0 - self._tokens) / self._rate - (self._clock() - self._at))


class Outbox:
    """A bounded queue, first in first out per stream, that survives restarts where it has a folder.

    Call order: `open`; `first_seq` for each numbered stream; `put` from any thread; `take`, then
    `acknowledged` or `refused` for each id taken, by one thread; `requeue_in_flight` once a
    connection is gone, after which every id taken before is void until it is taken again;
    `close`. Without a folder it lives in memory and needs neither `open` nor `close`.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        folder: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        repair: Callable[[Record], Record] | None = None,
        on_refill: Callable[[], None] | None = None,
        connect: Connect = sqlite3.connect,
        write_file: WriteFile = write_durably,
    ) -> None:
        """Make one that keeps up to `max_bytes`, on disk in `folder` or else in memory.

        `repair` is applied to every record taken; `on_refill` is called when `take` has more to
        give although nothing was put. The last two are where faults of the disk are injected.
        """
        self.on_refill = on_refill
        self._clock = clock
        self._repair = repair
        self._lock = threading.Lock()
        memory_bytes = max_bytes if folder is None else min(max_bytes, MOST_MEMORY_BYTES)
        # guarded by _lock
        self._queue = OutboxQueue(max_bytes, memory_bytes, has_disk=folder is not None)
        self._numbering = Numbering(folder and folder / NUMBERS_FILE, write_file)
        self._first_seqs: dict[str, int] = {}
        self._patience_s = OPEN_WITHIN_S  # of `open` and `first_seq`
        # owned by the link's thread
        self._bucket = TokenBucket(STORED_PER_S, STORED_AT_ONCE, clock)
        self._hold_until = float("-inf")  # `take` gives nothing while the disk is looked at
        self._disk = folder and OutboxDisk(
            self._queue,
            self._numbering,
            Spool(folder / DATABASE_FILE, connect),
            self._lock,
            max_bytes=max_bytes,
            memory_bytes=memory_bytes,
            clock=clock,
            on_refill=self._refilled,
        )

    def open(self) -> None:
        """Start the disk thread and wait a little for it; trouble with the disk is an alarm."""
        if self._disk:
            self._hold_until = self._clock() + ORDER_PATIENCE_S
            self._disk.start()
            self._wait(self._disk.looked.wait)

    def first_seq(self, stream: str) -> int:
        """Return the number the stream goes on with; reserves a block, so waits for the disk.

        Where the disk is too slow for that, the number is far ahead of any used so far.
        """
        with self._lock:
            if stream in self._first_seqs:
                return self._first_seqs[stream]
            first = self._numbering.begin(stream, self._queue.last_seq(stream))
            self._queue.begin(stream, first)
            self._first_seqs[stream] = first
        if self._disk:
            self._wait(self._disk.wait_for_turn)
        return first

    def _wait(self, wait: Callable[[float], object]) -> None:
        """Wait for the disk, in all calls together no longer than `OPEN_WITHIN_S`."""
        if self._patience_s > 0:
            began = self._clock()
            wait(self._patience_s)
            self._patience_s -= self._clock() - began

    def put(self, record: Record) -> None:
        """Queue a record; where there is no room, the oldest not on the wire are given up."""
        now = self._clock()
        with self._lock:
            self._queue.put(record, now)

    def take(self, limit: int) -> list[tuple[int, Record]]:
        """Return up to `limit` records, which are in flight from now on: see `wait_s`."""
        if self._disk and not self._disk.looked.is_set() and self._clock() < self._hold_until:
            return []
        self._bucket.is_dry = False
        with self._lock:
            entries = self._queue.take(limit, self._bucket.take)
            is_low, self._queue.is_low = self._queue.is_low, False
        if self._disk and is_low:
            self._disk.wake()
        return [(entry.id, self._repaired(entry.record)) for entry in entries]

    @property
    def wait_s(self) -> float | None:
        """Return after how long `take` gives more of what it holds back, None for nothing."""
        return self._bucket.wait_s if self._bucket.is_dry else None

    def acknowledged(self, record_id: int) -> None:
        """Forget a record the broker has taken over; an id that is not in flight is ignored."""
        with self._lock:
            self._queue.acknowledged(record_id)

    def refused(self, record_id: int, reason: GapReason) -> None:
        """Give up a record the broker will never take; counted, and noted as a gap."""
        with self._lock:
            self._queue.refused(record_id, reason)

    def requeue_in_flight(self) -> None:
        """Put everything unacknowledged back in front, in its old order, to be sent again."""
        with self._lock:
            self._queue.requeue_in_flight()

    def take_gaps(self) -> list[GapNote]:
        """Hand out what was given up since last asked, as contiguous ranges.

        Each is told again after a restart unless `gap_told` says that it has arrived.
        """
        with self._lock:
            return self._queue.notes.take()

    def gap_told(self, note: GapNote) -> None:
        """Forget a note that was handed out: the broker has taken over the message about it."""
        with self._lock:
            self._queue.notes.told(note)

    def set_online(self, is_online: bool) -> None:
        """Note whether there is a connection: without one, everything is saved at once."""
        if self._disk:
            self._disk.is_online = is_online
            if not is_online:
                self._disk.wake()

    def close(self, timeout_s: float) -> int:
        """Save what is not acknowledged; return how many records could not be saved."""
        if self._disk:
            self._disk.close(timeout_s)
        with self._lock:
            return len(self._queue.unsaved)

    @property
    def has_gaps(self) -> bool:
        """Return whether `take_gaps` would give anything."""
        return bool(self._queue.notes)

    @property
    def waiting(self) -> int:
        """Return how many records are not acknowledged yet, on the wire or not."""
        return self._queue.waiting

    @property
    def waiting_bytes(self) -> int:
        """Return how much they take, as in `size_bytes`."""
        return self._queue.waiting_bytes

    @property
    def on_disk(self) -> int:
        """Return how many of those waiting a sudden end would not lose."""
        return self._queue.on_disk

    @property
    def on_disk_bytes(self) -> int:
        """Return how much those take, as in `size_bytes`."""
        return self._queue.on_disk_bytes

    @property
    def oldest_age_s(self) -> float | None:
        """Return for how long the oldest has waited, None where nothing does.

        None as well where that is from an earlier run. Where it is on disk, it is the age of the
        first of its block of 1,024 rows.
        """
        with self._lock:
            age_s = self._clock() - self._queue.oldest_at()
        return age_s if math.isfinite(age_s) else None

    @property
    def found(self) -> int:
        """Return how many of those waiting, published or dropped an earlier run had left."""
        return self._queue.found

    @property
    def published(self) -> int:
        """Return how many records the broker has taken over in this run."""
        return self._queue.published

    @property
    def dropped(self) -> int:
        """Return how many records were given up in this run."""
        return self._queue.dropped

    @property
    def alarm(self) -> str | None:
        """Return what is wrong with the disk, in sentences."""
        return self._disk.alarm if self._disk else None

    @property
    def is_held_by_disk(self) -> bool:
        """Return whether its thread waits in the kernel for a disk that does not answer."""
        return self._disk.is_held_by_disk if self._disk else False

    @property
    def ticked_at(self) -> float:
        """Return when, on `clock`, the disk thread last showed life; now where there is none."""
        return self._disk.ticked_at if self._disk else self._clock()

    def _refilled(self) -> None:
        if self.on_refill is not None:
            self.on_refill()

    def _repaired(self, record: Record) -> Record:
        if self._repair is None:
            return record
        try:
            return self._repair(record)
        except Exception:  # a wrong time is better than no result
            log.exception("time not repaired topic=%s", record.topic)
            return record
