"""The outbox's disk thread: the only one that waits for the disk.

Four times a second it looks whether something is to be done. While the broker acknowledges in
time there is nothing, and no byte is written. It writes when the link is down or the oldest
record in memory is older than `FRESH_S`: all of them in one transaction, at most every
`SAVE_EVERY_S`, so that a sudden end costs less than a second of results once the outage is
noticed. Trouble with the disk never leaves this thread: it becomes an alarm, results wait in
memory, and it is tried again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from agent.daemon.disk_trouble import RETRY_MAX_S, Trouble, damaged_rows, hanging
from agent.daemon.numbering import Numbering
from agent.daemon.outbox_lanes import Lane
from agent.daemon.outbox_plan import Plan
from agent.daemon.outbox_queue import OutboxQueue
from agent.daemon.processes import UNINTERRUPTIBLE, read_thread_state
from agent.daemon.spool import (
    BLOCK_ROWS,
    Spool,
    SpoolDamagedError,
    SpoolUnavailableError,
    Survey,
)
from agent.daemon.spool_rows import row_bytes

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25
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
READ_AT_ONCE = 125
# Results that wait behind rows that cannot be read are let past after this.
READ_PATIENCE_S = 5.0
# A turn that takes longer than this is said to hang. A worn card may hold one write for seconds.
HANGS_S = 15.0


class OutboxDisk:
    """Keeps database and numbers in step with the queue.

    Call order: `start`, then `wake` and `wait_for_turn` from any thread, then `close` once.
    `lock` guards the queue and the numbers; it is never held while the disk is waited for.
    """

    def __init__(
        self,
        queue: OutboxQueue,
        numbering: Numbering,
        spool: Spool,
        lock: threading.Lock,
        *,
        max_bytes: int,
        clock: Callable[[], float],
        on_refill: Callable[[], None],
    ) -> None:
        self.is_online = True
        self.ticked_at = clock()
        self.looked = threading.Event()  # what an earlier run left is known, as far as it can be
        self._queue = queue
        self._numbering = numbering
        self._spool = spool
        self._lock = lock
        self._max_bytes = max_bytes
        self._most_saved_bytes = min(MOST_SAVED_BYTES, max_bytes // 4)
        self._clock = clock
        self._on_refill = on_refill
        self._wake = threading.Event()
        self._turn_over = threading.Condition()
        self._turns_begun = self._turns_over = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="agent.outbox", daemon=True)
        # owned by the thread
        self._is_found = False
        self._saved_at = self._deleted_at = self._replaced_at = float("-inf")
        self._damage: str | None = None
        repair = "free or repair the disk of the state folder"
        self._numbers = Trouble(
            f"result numbers cannot be kept ({{}}): after a restart they may repeat; {repair}"
        )
        self._reads = Trouble(
            f"the outbox {spool.path} cannot be read ({{}}): what it holds is sent later; {repair}"
        )
        self._writes = Trouble(
            f"the outbox {spool.path} cannot be written ({{}}): results wait in memory only;"
            f" {repair}"
        )

    @property
    def alarm(self) -> str | None:
        """Return what is wrong, as sentences; damage stays said for as long as we run."""
        path, silent_s = self._spool.path, self._clock() - self.ticked_at
        rows = damaged_rows(path, self._queue.notes.damaged)
        hang = hanging(path) if silent_s > HANGS_S and self._thread.is_alive() else None
        damage = (self._damage or rows, *self._numbering.damage)
        now = (*damage, *(one.said for one in self._troubles), hang)
        return ". ".join(said for said in now if said) or None

    @property
    def is_held_by_disk(self) -> bool:
        """Whether the kernel keeps the thread waiting for the disk, which nothing can end."""
        number = self._thread.native_id
        return number is not None and read_thread_state(number) == UNINTERRUPTIBLE

    @property
    def _troubles(self) -> tuple[Trouble, ...]:
        return (self._numbers, self._reads, self._writes)

    def start(self) -> None:
        """Begin with what an earlier run left."""
        self._thread.start()

    def wake(self) -> None:
        """Look now instead of at the next look."""
        self._wake.set()

    def wait_for_turn(self, timeout_s: float) -> None:
        """Wait until all that is due now was done, or was tried in vain."""
        with self._turn_over:
            target = self._turns_begun + 1
            self._wake.set()
            self._turn_over.wait_for(lambda: self._turns_over >= target, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Save everything and end; a disk that hangs is left behind."""
        self._closing = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._closing:
            self._turn()
            self._wake.wait(LOOK_EVERY_S)
            self._wake.clear()
        for trouble in self._troubles:
            trouble.retry_at = 0.0
        self._turn()
        self._spool.close()

    def _turn(self) -> None:
        self._turns_begun += 1
        self._tick()
        try:
            self._do_what_is_due()
            if not self.looked.is_set():
                self.looked.set()
                self._on_refill()
        except Exception as error:  # whatever it was, the thread must outlive it
            log.exception("outbox turn abandoned")
            self._writes.comes(repr(error), self.ticked_at)
        finally:
            self.looked.set()
            with self._turn_over:
                self._turns_over = self._turns_begun
                self._turn_over.notify_all()

    def _do_what_is_due(self) -> None:
        self._attempt(self._numbers, self._keep_numbers)
        self._attempt(self._reads, self._read_ahead)
        if self._is_found:
            self._attempt(self._writes, self._write)
        if self._closing:
            self._attempt(self._numbers, self._give_numbers_back)

    def _tick(self) -> None:
        self.ticked_at = self._clock()

    def _attempt(self, trouble: Trouble, action: Callable[[], None]) -> None:
        if self.ticked_at < trouble.retry_at:
            return
        try:
            action()
        except SpoolDamagedError as error:
            self._replace_damaged(str(error))
        except SpoolUnavailableError as error:
            trouble.comes(str(error), self.ticked_at)
        except OSError as error:
            trouble.comes(error.strerror or str(error), self.ticked_at)
        else:
            trouble.goes()

    def _keep_numbers(self) -> None:
        numbering = self._numbering
        if not numbering.is_loaded:
            numbering.load()
        with self._lock:
            for stream in numbering.begun:
                numbering.use(stream, self._queue.last_seq(stream), self._queue.accounted(stream))
        self._save_numbers()

    def _give_numbers_back(self) -> None:
        """Let the next run go on right behind the last number, if nothing is left unsaved."""
        queue = self._queue
        with self._lock:
            if not self._is_found or queue.unsaved or not queue.notes.is_saved:
                return
            for stream in self._numbering.streams:
                accounted, kept = queue.accounted(stream), queue.kept(stream)
                noted = queue.notes.highest(stream)
                self._numbering.end(stream, queue.last_seq(stream), accounted, kept, noted)
        self._save_numbers()

    def _save_numbers(self) -> None:
        with self._lock:
            if self._numbering.is_saved:
                return
            streams = self._numbering.to_save()
        self._numbering.save(streams)

    def _find(self) -> None:
        """Learn what an earlier run left; a new database is made only when it is needed."""
        survey = Survey()
        if self._spool.exists:
            if not self._spool.is_open:
                self._spool.open()
            survey = self._spool.survey(self._tick)
        self._take_over(survey)

    def _take_over(self, survey: Survey) -> None:
        with self._lock:
            self._queue.open(survey, self._numbering.left)
        self._is_found = True

    def _read_ahead(self) -> None:
        """Fill the lanes that run low from disk."""
        if not self._is_found:
            self._find()
        with self._lock:
            lanes = [lane for lane in self._queue.lanes if lane.wants_reading]
        if not lanes:
            return
        try:
            for lane in lanes:
                while lane.blocks and lane.has_room:
                    self._read(lane)
                    self._tick()
        except SpoolUnavailableError as error:
            if self._reads.said and self.ticked_at - self._reads.since > READ_PATIENCE_S:
                raise SpoolDamagedError(f"it cannot be read: {error}") from error
            raise
        finally:
            with self._lock:
                is_starved, self._queue.is_starved = self._queue.is_starved, False
            if is_starved:
                self._on_refill()

    def _read(self, lane: Lane) -> None:
        block = lane.blocks[0]  # only this thread changes what is unread
        after = max(lane.read_after, block * BLOCK_ROWS - 1)
        rows = self._spool.read(lane.key, after, (block + 1) * BLOCK_ROWS, READ_AT_ONCE)
        # Rows out of order, after damage, must not be read for ever.
        is_end = len(rows) < READ_AT_ONCE or max(row_id for row_id, _ in rows) <= after
        with self._lock:
            self._queue.loaded(lane, rows, is_end=is_end)

    def _write(self) -> None:
        if not self._is_due():
            return
        if not self._spool.is_open:
            self._spool.open()
        self._saved_at = self._deleted_at = self._clock()
        if self._writes.said:
            self._make_it_easy()
        # What is there now; what comes meanwhile has its own turn.
        with self._lock:
            unsaved, gone = len(self._queue.unsaved), len(self._queue.deletable())
        while True:
            saved, deleted = self._save()
            unsaved, gone = unsaved - saved, gone - deleted
            self._tick()
            if (unsaved <= 0 and gone <= 0) or not (saved or deleted):
                break
        with self._lock:
            is_empty = self._queue.on_disk == 0
        if is_empty:
            self._spool.cut_log()

    def _make_it_easy(self) -> None:
        """Free what room there is to be freed, on a disk that may be full."""
        with self._lock:
            is_empty = self._queue.on_disk == 0
        if is_empty:
            # Its log may be what fills the disk, and folding it in takes room as well. Notes that
            # were in it are in memory, and below them nothing counts as accounted in `seq.json`.
            self._spool.remove()
            with self._lock:
                self._queue.disk_lost()
            self._spool.open()
        else:
            self._spool.cut_log()

    def _is_due(self) -> bool:
        with self._lock:
            queue = self._queue
            put_at = queue.oldest_unsaved_at()
            is_stale = bool(queue.deletable()) or (
                (self._closing or self._spool.is_open) and not queue.notes.is_saved
            )
        if self._closing:
            return put_at is not None or is_stale
        now = self.ticked_at
        if put_at is not None and (not self.is_online or now - put_at > FRESH_S):
            return now - self._saved_at >= SAVE_EVERY_S
        return is_stale and now - self._deleted_at >= DELETE_EVERY_S

    def _save(self) -> tuple[int, int]:
        """Write one transaction: what is gone, what is new, and what is missing for ever.

        Returns how many records it saved and how many it deleted because they are gone.
        """
        queue, spool = self._queue, self._spool
        plan = Plan()
        try:
            with spool.transaction():
                with self._lock:
                    plan = queue.plan(MOST_SAVED_RECORDS, self._most_saved_bytes)
                    is_empty = queue.on_disk == 0
                    gone = list(queue.gone_rows) if is_empty else queue.deletable()
                if is_empty:
                    # Takes hardly any room in the log, and damaged rows nobody can find with it.
                    spool.clear()
                else:
                    gone = gone[: FEW_DELETED if self._writes.said else MOST_DELETED]
                    spool.delete(gone)
                evicted = self._make_room(sum(row_bytes(row) for row in plan.rows))
                spool.insert(plan.rows)
                with self._lock:
                    changes = queue.changes([*gone, *evicted])
                spool.save_notes(changes.notes, changes.told)
                spool.save_floors(changes.floors)
        except BaseException:
            with self._lock:
                queue.not_saved(plan)
            raise
        with self._lock:
            queue.saved(plan, changes)
        return len(plan.entries), len(gone)

    def _make_room(self, needed: int) -> list[int]:
        """Give up the oldest on disk until `needed` bytes fit; return their rows, deleted."""
        gone: list[int] = []
        while self._spool.used_bytes() + needed > self._max_bytes:
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

    def _replace_damaged(self, reason: str) -> None:
        """Put the database aside and go on with a new one."""
        path, now = self._spool.path, self._clock()
        try:
            kept = self._spool.set_aside()
        except SpoolUnavailableError as error:
            self._damage = f"{path} is damaged ({reason}) and cannot be moved away ({error})"
        else:
            self._damage = (
                f"{path} was damaged ({reason}) and is now {kept}; results it held may be missing,"
                " gap messages name them; check the disk"
            )
        log.error("%s", self._damage)
        with self._lock:
            self._queue.disk_lost()
        if not self._is_found:
            self._take_over(Survey())
        if now - self._replaced_at < RETRY_MAX_S:
            self._writes.retry_at = self._reads.retry_at = now + RETRY_MAX_S
        self._replaced_at = now
