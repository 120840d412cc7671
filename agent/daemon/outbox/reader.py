"""What the outbox's disk thread reads: what an earlier run left, and rows ahead of need.

Both in turns of `READ_FOR_S`, so that saving has its turn in between: a large outbox on a slow
card takes minutes to survey.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from agent.daemon.outbox.lanes import READ_AHEAD_BYTES, Lane
from agent.daemon.outbox.queue import OutboxQueue
from agent.daemon.outbox.spool import Spool
from agent.daemon.outbox.spool_survey import BLOCK_ROWS, Survey

READ_AT_ONCE = 125
READ_FOR_S = 0.25


class OutboxReader:
    """Call order: `find` until it gives a survey that the queue then takes, then the rest.

    `tick` is called after every step and returns the time; `lock` guards the queue.
    """

    def __init__(
        self,
        queue: OutboxQueue,
        spool: Spool,
        lock: threading.Lock,
        *,
        tick: Callable[[], float],
        is_closing: Callable[[], bool],
    ) -> None:
        self._queue = queue
        self._spool = spool
        self._lock = lock
        self._tick = tick
        self._is_closing = is_closing
        self._survey: Survey | None = None
        self._steps: Iterator[None] | None = None

    @property
    def has_begun(self) -> bool:
        """Return whether records can be saved: it is known from which id on."""
        return self._survey is not None

    def begin(self) -> None:
        """Learn what is cheap to know; a new database is made only when it is needed."""
        if self._survey is not None:
            return
        survey = Survey()
        if self._spool.exists:
            if not self._spool.is_open:
                self._spool.open()
            survey = self._spool.read_head()
        with self._lock:
            self._queue.append_from(survey.next_id)
        self._survey = survey

    def find(self) -> Survey | None:
        """Go on learning what an earlier run left; None while there is more to come."""
        self.begin()
        assert self._survey is not None
        if not self._spool.is_open:
            return self._survey
        if self._steps is None:
            self._steps = self._spool.count_rows(self._survey)
        until = self._tick() + READ_FOR_S
        try:
            for _ in self._steps:
                if self._tick() >= until or self._is_closing():
                    return None
        except BaseException:
            self._steps = None  # the next one counts from the start
            raise
        return self._survey

    def wanting(self, *, is_troubled: bool) -> list[Lane]:
        """Return the lanes to read ahead; where that failed, all that could be tried."""
        with self._lock:
            return [
                lane
                for lane in self._queue.lanes
                if lane.wants_reading or (is_troubled and lane.blocks and lane.has_room)
            ]

    def read_ahead(self, lanes: list[Lane]) -> bool:
        """Fill lanes from disk in turns; return whether there is more to do."""
        until = self._tick() + READ_FOR_S
        while lanes:
            for lane in lanes:
                self.read(lane)
                if self._tick() >= until or self._is_closing():
                    return True
            lanes = [lane for lane in lanes if lane.blocks and lane.has_room]
        return False

    def read(self, lane: Lane) -> None:
        """Read the next rows of a lane that has some on disk."""
        block = lane.blocks[0]  # only the disk's thread changes what is unread
        after = max(lane.read_after, block * BLOCK_ROWS - 1)
        room = max(1, READ_AHEAD_BYTES - lane.ready_bytes)
        rows, is_all = self._spool.read(
            lane.key, after, (block + 1) * BLOCK_ROWS, READ_AT_ONCE, room
        )
        # Rows out of order, after damage, must not be read for ever.
        is_end = is_all or max(row_id for row_id, _ in rows) <= after
        with self._lock:
            self._queue.loaded(lane, rows, is_end=is_end)
