"""What the outbox's disk thread writes, and when: as seldom as can be."""

from __future__ import annotations

import threading
from collections.abc import Callable

from agent.daemon.outbox.gap_notes import Key
from agent.daemon.outbox.lanes import Lane
from agent.daemon.outbox.plan import Plan
from agent.daemon.outbox.queue import OutboxQueue
from agent.daemon.outbox.spool import Spool
from agent.daemon.outbox.spool_rows import row_bytes

SAVE_EVERY_S = 0.5
DELETE_EVERY_S = 1.0
# A broker answers within a second on any link that carries results at all.
FRESH_S = 2.0
# One transaction: bounds the log beside the database, and how long the lock of a slow disk
# keeps reading waiting.
MOST_SAVED_RECORDS = 500
MOST_SAVED_BYTES = 512 * 1024
MOST_DELETED, FEW_DELETED = 1000, 50  # few where the disk is full: deleting takes room, too
EVICT_AT_ONCE = 16


class OutboxWriter:
    """Call order: `write` where `is_due`, from one thread.

    `tick` is called after every step and returns the time; `read` reads the next rows of a lane.
    `lock` guards the queue. Until the queue is open nobody knows what the database holds: then
    records are appended to it and nothing is taken out.
    """

    def __init__(
        self,
        queue: OutboxQueue,
        spool: Spool,
        lock: threading.Lock,
        *,
        max_bytes: int,
        memory_bytes: int,
        tick: Callable[[], float],
        read: Callable[[Lane], None],
    ) -> None:
        self._queue = queue
        self._spool = spool
        self._lock = lock
        self._max_bytes = max_bytes
        self._memory_bytes = memory_bytes
        self._most_saved_bytes = min(MOST_SAVED_BYTES, max_bytes // 4)
        self._tick = tick
        self._read = read
        self._saved_at = self._deleted_at = float("-inf")
        self._oldest_note: Key | None = None
        self._noted_at = 0.0

    def is_due(self, now: float, *, is_online: bool, is_closing: bool) -> bool:
        """Return whether something is to be written now."""
        with self._lock:
            queue = self._queue
            put_at = queue.oldest_unsaved_at()
            is_stale = bool(queue.deletable()) or (
                (is_closing or self._spool.is_open)
                and self._are_notes_due(now, is_awaited=is_closing or not is_online)
            )
            is_early = not queue.is_open
            early_bytes = queue.on_disk_bytes
        if is_closing:
            return put_at is not None or is_stale
        if is_early and early_bytes > self._memory_bytes:
            return False  # what is saved so early stays in memory, too
        if put_at is not None and (not is_online or now - put_at > FRESH_S):
            return now - self._saved_at >= SAVE_EVERY_S
        return is_stale and now - self._deleted_at >= DELETE_EVERY_S

    def _are_notes_due(self, now: float, *, is_awaited: bool) -> bool:
        # A note the broker takes over in time never touches the disk, as a record does not.
        oldest = self._queue.notes.oldest_unsaved
        if oldest != self._oldest_note:
            self._oldest_note, self._noted_at = oldest, now
        return oldest is not None and (is_awaited or now - self._noted_at > FRESH_S)

    def write(self, *, is_troubled: bool, is_closing: bool) -> None:
        """Write all there is; where writing failed before, something in any case.

        Raises:
            SpoolDamagedError: the database cannot be used any more.
            SpoolUnavailableError: the disk does not let it be written.
        """
        queue = self._queue
        if not self._spool.is_open:
            self._spool.open()
        if not queue.is_open and not is_closing and not self._has_room(self._most_saved_bytes):
            # The oldest that would have to go are not known yet.
            if is_troubled:
                with self._spool.transaction():
                    self._spool.prove()
            return
        self._saved_at = self._deleted_at = self._tick()
        if is_troubled:
            self._make_it_easy()
        # What is there now; what comes meanwhile has its own turn.
        with self._lock:
            unsaved, gone = len(queue.unsaved), len(queue.deletable())
        while True:
            saved, deleted = self._save(is_troubled=is_troubled)
            unsaved, gone = unsaved - saved, gone - deleted
            self._tick()
            if (unsaved <= 0 and gone <= 0) or not (saved or deleted):
                break
        with self._lock:
            is_empty = queue.is_disk_empty
        if is_empty:
            self._spool.cut_log()

    def _make_it_easy(self) -> None:
        """Free what room there is to be freed, on a disk that may be full."""
        self._spool.drop_aside()
        with self._lock:
            is_empty = self._queue.is_disk_empty
        if is_empty:
            # Its log may be what fills the disk, and folding it in takes room as well. Notes that
            # were in it are in memory, and below them nothing counts as accounted in `seq.json`.
            self._spool.remove()
            with self._lock:
                self._queue.disk_lost()
            self._spool.open()
        else:
            self._spool.cut_log()

    def _save(self, *, is_troubled: bool) -> tuple[int, int]:
        """Write one transaction: what is gone, what is new, and what is missing for ever.

        Returns how many records it saved and how many it deleted because they are gone.
        """
        queue, spool = self._queue, self._spool
        plan = Plan()
        try:
            with spool.transaction():
                with self._lock:
                    plan = queue.plan(MOST_SAVED_RECORDS, self._most_saved_bytes)
                    is_empty = queue.is_disk_empty
                    gone = list(queue.gone_rows) if is_empty else queue.deletable()
                if is_empty:
                    # Takes hardly any room in the log, and damaged rows nobody can find with it.
                    spool.clear()
                else:
                    gone = gone[: FEW_DELETED if is_troubled else MOST_DELETED]
                    spool.delete(gone)
                evicted = self._make_room(sum(row_bytes(row) for row in plan.rows))
                spool.insert(plan.rows)
                with self._lock:
                    changes = queue.changes([*gone, *evicted])
                spool.save_notes(changes.notes, changes.told)
                spool.save_floors(changes.floors)
                if is_troubled:
                    spool.prove()
        except BaseException:
            with self._lock:
                queue.not_saved(plan)
            raise
        with self._lock:
            queue.saved(plan, changes)
        return len(plan.entries), len(gone)

    def _has_room(self, needed: int) -> bool:
        used = self._spool.used_bytes() + needed
        if used + self._spool.aside_bytes > self._max_bytes:
            self._spool.drop_aside()
        return used <= self._max_bytes

    def _make_room(self, needed: int) -> list[int]:
        """Give up the oldest on disk until `needed` bytes fit; return their rows, deleted."""
        gone: list[int] = []
        while self._queue.is_open and not self._has_room(needed):
            for lane in self._queue.lanes.copy():
                if lane.blocks and not lane.ready:
                    self._read(lane)
            with self._lock:
                rows = self._queue.evict(EVICT_AT_ONCE)
            if not rows:
                break
            self._spool.delete(rows)
            gone += rows
            self._tick()
        return gone
