"""The outbox's disk thread: the only one that waits for the disk.

Four times a second it looks whether something is to be done. While the broker acknowledges in
time there is nothing, and no byte is written. It writes when the link is down or the oldest
record in memory is older than `FRESH_S`: all of them in one transaction, at most every
`SAVE_EVERY_S`, so that a sudden end costs less than a second of results once the outage is
noticed. Reading, see `outbox_reader`, never keeps writing, see `outbox_writer`, for long.
Trouble with the disk never leaves this thread: it becomes an alarm, results wait in
memory, and it is tried again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from agent.daemon.outbox.disk_trouble import RETRY_MAX_S, Trouble, damaged_rows, hanging, jumped
from agent.daemon.outbox.lanes import Lane
from agent.daemon.outbox.numbering import Numbering
from agent.daemon.outbox.queue import OutboxQueue
from agent.daemon.outbox.reader import OutboxReader
from agent.daemon.outbox.spool import Spool
from agent.daemon.outbox.spool_survey import Survey
from agent.daemon.outbox.spool_trouble import SpoolDamagedError, SpoolUnavailableError
from agent.daemon.outbox.writer import OutboxWriter
from agent.daemon.processes import UNINTERRUPTIBLE, read_thread_state

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25
# What the database holds is numbered by what `seq.json` says, but not held back for it longer.
NUMBERS_PATIENCE_S = 5.0
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
        memory_bytes: int,
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
        self._clock = clock
        self._on_refill = on_refill
        self._wake = threading.Event()
        self._turn_over = threading.Condition()
        self._turns_begun = self._turns_over = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="agent.outbox", daemon=True)
        # owned by the thread
        self._began_at = self.ticked_at
        self._replaced_at = float("-inf")
        self._unforeseen: str | None = None
        self._reader = OutboxReader(
            queue, spool, lock, tick=self._tick, is_closing=lambda: self._closing
        )
        self._writer = OutboxWriter(
            queue,
            spool,
            lock,
            max_bytes=max_bytes,
            memory_bytes=memory_bytes,
            tick=self._tick,
            read=self._reader.read,
        )
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
        numbering = self._numbering
        jump = None if numbering.is_loaded else jumped(numbering.path, len(numbering.jumped))
        damage = (self._damage or rows, jump, *numbering.damage)
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
        """Wait until all that is due now was done, or was tried in vain, or for so long."""
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
        except Exception as error:  # whatever it was, the thread must outlive it
            self._say_unforeseen(error)
        finally:
            if self._queue.is_open or any(trouble.said for trouble in self._troubles):
                self._has_looked()
            with self._turn_over:
                self._turns_over = self._turns_begun
                self._turn_over.notify_all()

    def _has_looked(self) -> None:
        if not self.looked.is_set():
            self.looked.set()
            self._on_refill()

    def _do_what_is_due(self) -> None:
        self._attempt(self._numbers, self._keep_numbers)
        if not self._queue.is_open:
            self._attempt(self._reads, self._find)
        if self._queue.is_open:
            self._read_ahead()
        is_known = self._queue.is_open or self._reader.has_begun
        if is_known and self._is_write_due():
            self._attempt(self._writes, self._write)
        if self._closing:
            self._attempt(self._numbers, self._give_numbers_back)

    def _tick(self) -> float:
        self.ticked_at = self._clock()
        return self.ticked_at

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
        except Exception as error:  # a fault of ours must not be tried at every look either
            self._say_unforeseen(error)
            trouble.comes(repr(error), self.ticked_at)
        else:
            trouble.goes()

    def _say_unforeseen(self, error: Exception) -> None:
        if repr(error) != self._unforeseen:
            self._unforeseen = repr(error)
            log.error("outbox turn abandoned", exc_info=error)

    def _keep_numbers(self) -> None:
        numbering, queue = self._numbering, self._queue
        if not numbering.is_loaded:
            numbering.load(self._lock)
            if queue.is_open:
                with self._lock:
                    queue.name_left(numbering.left)
        with self._lock:
            for stream in numbering.begun:
                last = queue.last_seq(stream)
                if numbering.is_low(stream, last):
                    numbering.use(stream, last, queue.accounted(stream) if queue.is_open else 0)
        self._save_numbers()

    def _give_numbers_back(self) -> None:
        """Let the next run go on right behind the last number, if nothing is left unsaved."""
        queue = self._queue
        with self._lock:
            if not queue.is_open or queue.unsaved or not queue.notes.is_saved:
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
        """Learn what an earlier run left, over several turns where it takes long."""
        self._reader.begin()
        waited_s = self.ticked_at - self._began_at
        if not self._numbering.is_loaded and waited_s < NUMBERS_PATIENCE_S:
            return
        survey = self._reader.find()
        if survey is None:
            self._wake.set()
            return
        self._take_over(survey)

    def _take_over(self, survey: Survey) -> None:
        with self._lock:
            self._queue.open(survey, self._numbering.left)
        self._has_looked()

    def _read_ahead(self) -> None:
        """Fill the lanes that run low; trouble goes when a row was read, or none is left."""
        is_troubled = self._reads.said is not None
        lanes = self._reader.wanting(is_troubled=is_troubled)
        if lanes or (is_troubled and not any(lane.blocks for lane in self._queue.lanes)):
            self._attempt(self._reads, lambda: self._read(lanes))

    def _read(self, lanes: list[Lane]) -> None:
        try:
            if self._reader.read_ahead(lanes):
                self._wake.set()
        except SpoolUnavailableError as error:
            if self._reads.said and self.ticked_at - self._reads.since > READ_PATIENCE_S:
                raise SpoolDamagedError(f"it cannot be read: {error}") from error
            raise
        finally:
            with self._lock:
                is_starved, self._queue.is_starved = self._queue.is_starved, False
            if is_starved:
                self._on_refill()

    def _is_write_due(self) -> bool:
        """Return whether to write; after a failure also to learn that it works again."""
        is_due = self._writer.is_due(
            self.ticked_at, is_online=self.is_online, is_closing=self._closing
        )
        return is_due or (self._writes.said is not None and self.ticked_at >= self._writes.retry_at)

    def _write(self) -> None:
        self._writer.write(is_troubled=self._writes.said is not None, is_closing=self._closing)

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
        if not self._queue.is_open:
            self._take_over(Survey())
        if now - self._replaced_at < RETRY_MAX_S:
            self._writes.retry_at = self._reads.retry_at = now + RETRY_MAX_S
        self._replaced_at = now
