"""One stream's part of the outbox: records in memory, and the rest on disk between them.

    in flight ◀─ ready ◀─ unread rows on disk ◀─ fresh ◀─ put

Records leave strictly in that order. `ready` holds what was read ahead from disk or is to be
sent again, `fresh` what came since; nothing fresh leaves while there are unread rows. Not
locked: its owner is.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from agent.daemon.outbox.gap_notes import GapNotes
from agent.daemon.outbox.records import Record
from agent.daemon.outbox.spool_survey import BLOCK_ROWS, Found

# Half a second of records at the pace they leave; at 400 bytes about 430 kB for each stream.
READ_AHEAD = 500
READ_AHEAD_BYTES = 512 * 1024
EARLIER_RUN = -math.inf  # when what that left was put, on the clock of this one
UNKNOWN = -1


@dataclass(slots=True, eq=False)
class Entry:
    """A record that waits; `row` is its id on disk from the moment it is to be saved.

    `at` is when it was put; for one that was read from disk, when the first of its block was.
    `after` is the number of the record before it in its stream: what lies between was noted.
    """

    id: int
    record: Record
    size: int
    at: float
    after: int
    lane: Lane
    row: int = 0
    is_saving: bool = False
    is_gone: bool = False  # acknowledged or given up

    @property
    def is_on_disk(self) -> bool:
        """Return whether a crash now would not lose it."""
        return self.row > 0 and not self.is_saving


@dataclass(slots=True, eq=False)
class Lane:
    """See the module's docstring."""

    stream: str
    is_telemetry: bool
    seen: int = 0  # up to this number all left, is ready or was noted; UNKNOWN after damage
    last: int = 0  # the highest number put
    previous: int = 0  # the number of the newest that was kept when it was put
    ready: deque[Entry] = field(default_factory=deque)
    fresh: deque[Entry] = field(default_factory=deque)
    ready_bytes: int = 0
    unread: int = 0
    unread_bytes: int = 0
    read_after: int = 0  # unread rows have higher ids
    blocks: deque[int] = field(default_factory=deque)  # ids // BLOCK_ROWS that hold unread rows
    block_at: deque[float] = field(default_factory=deque)  # when the first row of each was put

    @property
    def key(self) -> tuple[str, bool]:
        """Return what tells it from the others."""
        return (self.stream, self.is_telemetry)

    @property
    def has_room(self) -> bool:
        """Return whether more may be read ahead."""
        return len(self.ready) < READ_AHEAD and self.ready_bytes < READ_AHEAD_BYTES

    @property
    def wants_reading(self) -> bool:
        """Return whether rows should be read ahead now."""
        is_low = len(self.ready) < READ_AHEAD // 2 and self.ready_bytes < READ_AHEAD_BYTES // 2
        return bool(self.blocks) and is_low

    def head(self) -> Entry | None:
        """Return what leaves next; None also while it is still on disk."""
        if self.ready:
            return self.ready[0]
        return self.fresh[0] if self.fresh and not self.blocks else None

    def pop(self, notes: GapNotes) -> Entry:
        """Remove and return the head."""
        if self.ready:
            entry = self.ready.popleft()
            self.ready_bytes -= entry.size
            return entry
        entry = self.fresh.popleft()
        self.admit(entry, notes)
        return entry

    def push_back(self, entry: Entry) -> None:
        """Put one in front that left before, to leave again."""
        self.ready.appendleft(entry)
        self.ready_bytes += entry.size

    def admit(self, entry: Entry, notes: GapNotes) -> None:
        """Note what should have come before this one and did not."""
        seq = entry.record.seq
        if not seq:
            return
        if UNKNOWN < self.seen < entry.after:
            self.lose_up_to(entry.after, notes)
        self.seen = max(self.seen, seq)

    def lose_up_to(self, seq: int, notes: GapNotes) -> None:
        """Note as damaged what no note explains between what was seen and `seq`."""
        if self.seen == UNKNOWN or seq <= self.seen:
            return
        self.seen = notes.skip(self.stream, self.seen)
        if seq > self.seen:
            notes.add(self.stream, self.seen + 1, seq, "damaged")
            self.seen = seq

    def first(self, suits: Callable[[Entry], bool]) -> Entry | None:
        """Return the oldest in memory, not in flight, that suits."""
        for entries in (self.ready, self.fresh):
            for entry in entries:
                if suits(entry):
                    return entry
        return None

    def first_in_memory_only(self) -> Entry | None:
        """Return the oldest that has no place on disk and is not in flight."""
        # What was read ahead, or sent before and saved since, has one and is passed over unseen:
        # while the disk takes nothing this is asked for every record put.
        if self.ready and not (self.ready[0].row and self.ready[-1].row):
            return self.first(_has_no_row)
        return next((entry for entry in self.fresh if not entry.row), None)

    def remove(self, entry: Entry) -> None:
        """Take out one that is given up; its number is noted by the caller."""
        is_first = bool(self.fresh) and self.fresh[0] is entry  # most are, and `ready` is long
        if not is_first and entry in self.ready:
            self.ready.remove(entry)
            self.ready_bytes -= entry.size
            return
        at = self.fresh.index(entry)
        del self.fresh[at]
        if at < len(self.fresh):
            self.fresh[at].after = entry.after
        elif entry.record.seq:
            self.previous = entry.after

    def find(self, found: Found, done: int) -> None:
        """Take over the rows an earlier run left, to leave before what was put meanwhile.

        Up to `done` every number is accounted for; UNKNOWN after damage.
        """
        if not self.last:
            self.last = self.previous = found.highest_seq
            self.seen = done
        elif self.fresh and self.fresh[0].after == self.seen:  # nothing has left yet
            self.fresh[0].after = found.highest_seq
            self.seen = done
        self.unread, self.unread_bytes = found.count, found.bytes
        self.read_after = 0
        self.blocks.extend(found.blocks)
        self.block_at.extend(EARLIER_RUN for _ in found.blocks)

    def store(self, notes: GapNotes) -> None:
        """Take what is on disk now out of `fresh`: into the read-ahead, or out of memory."""
        while self.fresh and self.fresh[0].is_on_disk:
            entry = self.fresh.popleft()
            if not self.blocks and self.has_room:
                self.admit(entry, notes)
                self.ready.append(entry)
                self.ready_bytes += entry.size
                continue
            if not self.blocks:
                self.read_after = entry.row - 1
            block = entry.row // BLOCK_ROWS
            if not self.blocks or self.blocks[-1] != block:
                self.blocks.append(block)
                self.block_at.append(entry.at)
            self.unread += 1
            self.unread_bytes += entry.size

    def oldest_at(self, in_flight: Iterable[Entry]) -> float:
        """Return when the first that waits was put, infinity for none."""
        ats = [entry.at for entry in in_flight]
        if self.ready:
            ats.append(self.ready[0].at)
        if self.block_at:
            ats.append(self.block_at[0])
        if self.fresh:
            ats.append(self.fresh[0].at)
        return min(ats, default=math.inf)

    def floor(self, in_flight: Iterable[Entry]) -> int:
        """Return up to which number nothing waits any more."""
        lowest = min((entry.record.seq for entry in in_flight), default=None)
        if self.ready:
            lowest = min(lowest or self.ready[0].record.seq, self.ready[0].record.seq)
        if lowest is not None:
            return lowest - 1
        if self.blocks:
            return max(0, self.seen)
        return self.fresh[0].record.seq - 1 if self.fresh else self.last

    def lowest_row(self, in_flight: Iterable[Entry]) -> float:
        """Return the id on disk of the first that waits there, infinity for none."""
        rows = [entry.row for entry in (*in_flight, *self.ready) if entry.is_on_disk]
        if self.blocks:
            rows.append(self.read_after + 1)
        return min(rows, default=math.inf)

    def highest_waiting(self, in_flight: Iterable[Entry]) -> int:
        """Return the highest number that waits, 0 for none."""
        if self.fresh or self.blocks:
            return self.previous
        return max((entry.record.seq for entry in (*in_flight, *self.ready)), default=0)

    def skipped(self, in_flight: Iterable[Entry], chosen: set[int]) -> dict[int, int]:
        """Return for the chosen ids how many numbers before each are accounted for already."""
        result: dict[int, int] = {}
        before: int | None = None  # the number of the record that waits before
        for entry in (*in_flight, *self.ready):
            if entry.id in chosen:
                result[entry.id] = _between(before, entry)
            before = entry.record.seq
        if self.blocks and self.fresh:
            before = self.fresh[0].after
        for entry in self.fresh:
            if entry.id not in chosen:
                break
            result[entry.id] = _between(before, entry)
            before = entry.record.seq
        return result


def oldest(lanes: Iterable[Lane], first_of: Callable[[Lane], Entry | None]) -> Entry | None:
    """Return the oldest of what the lanes offer; telemetry before results."""
    chosen: Entry | None = None
    for lane in lanes:
        if chosen is not None and lane.is_telemetry < chosen.record.is_telemetry:
            continue
        entry = first_of(lane)
        if entry is not None and (
            chosen is None
            or lane.is_telemetry > chosen.record.is_telemetry
            or (entry.row or entry.id) < (chosen.row or chosen.id)
        ):
            chosen = entry
    return chosen


def _has_no_row(entry: Entry) -> bool:
    return entry.row == 0


def _between(before: int | None, entry: Entry) -> int:
    if before is None or not entry.record.seq:
        return 0
    return max(0, entry.record.seq - 1 - before)
