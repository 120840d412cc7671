"""The outbox as a state machine: what waits, where it is, and the exact accounts of it.

Touches neither disk nor lock: `Outbox` holds the lock, `OutboxDisk` writes what `plan` says
and reads what lanes want. At every moment

    put + found on disk == published + dropped + waiting

and every dropped record of a numbered stream is inside exactly one note. Decisions are made
here and then followed on disk, never the other way round: a record given up stays given up
even when the disk does not take that at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from agent.contract.payloads import GapReason
from agent.daemon.outbox.earlier import EarlierNumbers
from agent.daemon.outbox.gap_notes import GapNotes
from agent.daemon.outbox.lanes import UNKNOWN, Entry, Lane, oldest
from agent.daemon.outbox.numbering import Numbers
from agent.daemon.outbox.plan import Changes, Plan
from agent.daemon.outbox.records import Record, size_bytes
from agent.daemon.outbox.spool_rows import Row
from agent.daemon.outbox.spool_survey import BLOCK_ROWS, Survey

# Ids of rows to delete are kept while the disk takes nothing. Beyond these the oldest are
# forgotten: such a row is only sent again after a restart.
MOST_GONE_ROWS = 200_000


class OutboxQueue:
    """See the module's docstring."""

    def __init__(self, max_bytes: int, memory_bytes: int, *, has_disk: bool) -> None:
        self.notes = GapNotes(keeps_handed_out=has_disk)
        self.published = self.dropped = self.found = 0
        self.waiting = self.waiting_bytes = 0
        self.on_disk = self.on_disk_bytes = 0
        self.unsaved: dict[int, Entry] = {}
        self.gone_rows: dict[int, Lane] = {}
        self.lanes: list[Lane] = []
        self.is_starved = False  # `take` found a lane whose records are all still on disk
        self.is_open = not has_disk  # what an earlier run left is known
        self.is_low = False  # `take` left a lane with little read ahead
        self._max_bytes = max_bytes
        self._memory_bytes = memory_bytes
        self._unsaved_bytes = 0
        self._lane_of: dict[tuple[str, bool], Lane] = {}
        self._in_flight: dict[int, Entry] = {}
        self._next_id = 1
        self._next_row = 1
        self._distrusted_below = 0  # what rows below say about the numbers before is not relied on
        self._turn = 0
        self._earlier = EarlierNumbers(self.notes)
        self._saved_floors: dict[str, int] = {}

    def put(self, record: Record, now: float) -> None:
        """Queue a record; gives up the oldest in memory where there is no room for it."""
        size = size_bytes(record)
        lane = self._lane_of.get((record.stream, record.is_telemetry))
        if lane is None:
            begun = self._earlier.begun.get(record.stream, 0)
            lane = self._lane(record.stream, record.is_telemetry, last=begun)
        if record.seq:
            lane.last = record.seq
        if size > self._max_bytes:
            # It can never fit, so nothing else is thrown away for it.
            self._note(record, "too_large")
            return
        entry = Entry(self._next_id, record, size, now, lane.previous, lane)
        self._next_id += 1
        if record.seq:
            lane.previous = record.seq
        lane.fresh.append(entry)
        self.unsaved[entry.id] = entry
        self.waiting += 1
        self.waiting_bytes += size
        self._unsaved_bytes += size
        while self._unsaved_bytes > self._memory_bytes:
            if self._drop_oldest(Lane.first_in_memory_only) is None:
                break

    def take(self, limit: int, may_send_stored: Callable[[], bool]) -> list[Entry]:
        """Put up to `limit` records in flight, streams in turn.

        `may_send_stored` is asked before each one that comes from disk.
        """
        taken: list[Entry] = []
        passed_over = 0
        while len(taken) < limit and passed_over < len(self.lanes):
            self._turn = (self._turn + 1) % len(self.lanes)
            lane = self.lanes[self._turn]
            entry = lane.head()
            if entry is None:
                self.is_starved |= bool(lane.blocks)
                passed_over += 1
            elif entry.row and not may_send_stored():
                passed_over += 1
            else:
                lane.pop(self.notes)
                self.is_low |= bool(lane.blocks) and lane.wants_reading
                self._in_flight[entry.id] = entry
                taken.append(entry)
                passed_over = 0
        return taken

    def acknowledged(self, record_id: int) -> None:
        """Forget a record the broker has taken over; an id that is not in flight is ignored."""
        entry = self._in_flight.pop(record_id, None)
        if entry is not None:
            self._land(entry)
            self.published += 1

    def refused(self, record_id: int, reason: GapReason) -> None:
        """Give up a record the broker will never take."""
        entry = self._in_flight.pop(record_id, None)
        if entry is not None:
            self._land(entry)
            self._note(entry.record, reason)

    def requeue_in_flight(self) -> None:
        """Put everything unacknowledged back in front, in its old order."""
        # A lane's ids are taken in its order, and a dict keeps that order.
        for entry in reversed(self._in_flight.values()):
            entry.lane.push_back(entry)
        self._in_flight.clear()

    def begin(self, stream: str, first_seq: int) -> None:
        """Note with which number a stream is about to go on."""
        last = self.last_seq(stream)
        if last and self.is_open:
            self._earlier.skip(stream, last, first_seq - 1)
        self._go_on_after(stream, first_seq - 1)

    def oldest_unsaved_at(self) -> float | None:
        """Return when the oldest record that is only in memory was put."""
        entry = next(iter(self.unsaved.values()), None)
        return None if entry is None else entry.at

    def oldest_at(self) -> float:
        """Return when the oldest that waits was put, infinity for none."""
        ats = (lane.oldest_at(self._flying(lane)) for lane in self.lanes)
        return min(ats, default=float("inf"))

    # What follows is for the disk's thread.

    def append_from(self, next_row: int) -> None:
        """Note from which id on rows may be saved, before it is known what the others hold."""
        self._next_row = max(next_row, self._next_row)

    def open(self, survey: Survey, left: dict[str, Numbers]) -> None:
        """Take over what an earlier run left on disk, to leave before what this one has put."""
        self.append_from(survey.next_id)
        if not survey.is_intact:
            self._distrusted_below = survey.next_id
        self.notes.found(survey.notes)
        self._saved_floors = dict(survey.floors)
        self._earlier.found(survey)
        done = self._earlier.done(left)
        for (stream, is_telemetry), found in survey.streams.items():
            lane = self._lane_of.get((stream, is_telemetry)) or self._lane(
                stream, is_telemetry, last=0
            )
            lane.find(found, done.get(stream, UNKNOWN))
            self.found += found.count
            self.waiting += found.count
            self.waiting_bytes += found.bytes
            self.on_disk += found.count
            self.on_disk_bytes += found.bytes
        self.name_left(left)
        self.is_open = True
        for lane in self.lanes:
            lane.store(self.notes)

    def name_left(self, left: dict[str, Numbers]) -> None:
        """Note the numbers of earlier runs of which nothing is left."""
        self._earlier.name(left)
        for stream, seq in list(self._earlier.begun.items()):
            self._go_on_after(stream, seq)

    def _go_on_after(self, stream: str, seq: int) -> None:
        """Take the numbers up to `seq` as used."""
        begun = self._earlier.begun
        begun[stream] = max(seq, begun.get(stream, 0))
        for lane in self.lanes:
            if lane.stream == stream:
                lane.last = max(seq, lane.last)

    def plan(self, most_records: int, most_bytes: int) -> Plan:
        """Choose what to save next, oldest first, and give it its place on disk."""
        plan = Plan()
        for entry in self.unsaved.values():
            if plan.entries and (len(plan.entries) >= most_records or most_bytes < entry.size):
                break
            most_bytes -= entry.size
            plan.entries.append(entry)
        chosen = {entry.id for entry in plan.entries}
        skipped: dict[int, int] = {}
        for lane in dict.fromkeys(entry.lane for entry in plan.entries):
            skipped.update(lane.skipped(self._flying(lane), chosen))
        for entry in plan.entries:
            entry.row, entry.is_saving = self._next_row, True
            self._next_row += 1
            plan.rows.append(Row(entry.row, entry.record, skipped.get(entry.id, 0)))
        return plan

    def deletable(self) -> list[int]:
        """Return the rows to delete: all that are gone, but none before one that waits.

        So what is missing on disk between two rows of a stream is damage and nothing else.
        """
        if not self.gone_rows or not self.is_open:
            return []
        lowest = {lane: lane.lowest_row(self._flying(lane)) for lane in self.lanes}
        return [row for row, lane in self.gone_rows.items() if row < lowest[lane]]

    def changes(self, gone: list[int]) -> Changes:
        """Return what changes on disk beside the records of a plan and the rows `gone`."""
        lanes = self.lanes if self.is_open else ()  # before that older ones may wait
        floors = {lane.stream: lane.floor(self._flying(lane)) for lane in lanes if lane.last}
        changed = {
            stream: seq for stream, seq in floors.items() if self._saved_floors.get(stream) != seq
        }
        return Changes(gone, *self.notes.changes(), changed)

    def saved(self, plan: Plan, changes: Changes) -> None:
        """Note that a transaction is on disk."""
        for row in changes.gone:
            self.gone_rows.pop(row, None)
        self.notes.saved(changes.notes, changes.told)
        self._saved_floors.update(changes.floors)
        for entry in plan.entries:
            entry.is_saving = False
            if entry.is_gone:
                self._row_gone(entry.row, entry.lane)
                continue
            del self.unsaved[entry.id]
            self._unsaved_bytes -= entry.size
            self.on_disk += 1
            self.on_disk_bytes += entry.size
        for lane in dict.fromkeys(entry.lane for entry in plan.entries if self.is_open):
            lane.store(self.notes)

    def not_saved(self, plan: Plan) -> None:
        """Note that a transaction came to nothing."""
        for entry in plan.entries:
            entry.is_saving, entry.row = False, 0

    def loaded(self, lane: Lane, rows: list[tuple[int, Row | None]], *, is_end: bool) -> None:
        """Take over rows read from a lane's first block; `is_end` when it holds no more."""
        for row_id, row in rows:
            lane.read_after = max(lane.read_after, row_id)
            if row is None:
                self._lose_unread(lane, 1)
                self._row_gone(row_id, lane)
                continue
            self._load(lane, row)
        if is_end:
            lane.read_after = max(lane.read_after, (lane.blocks.popleft() + 1) * BLOCK_ROWS - 1)
            lane.block_at.popleft()
        if not lane.blocks:
            # Nothing comes after the last block, so what it lacks would not show by a number.
            lane.lose_up_to(lane.fresh[0].after if lane.fresh else lane.previous, self.notes)
            self._lose_unread(lane, lane.unread)
            self._forget_bytes(lane.unread_bytes, lane)

    def evict(self, most: int) -> list[int]:
        """Give up the oldest that lie on disk, telemetry first; return their rows."""
        rows: list[int] = []
        while len(rows) < most:
            victim = self._drop_oldest(_first_stored)
            if victim is None:
                break
            rows.append(victim.row)
        return rows

    def disk_lost(self) -> None:
        """Note that nothing that was on disk is there any more; save again what is in memory."""
        self.notes.disk_lost()
        self.gone_rows.clear()
        self._saved_floors.clear()
        self._next_row = 1
        self.unsaved.clear()
        self._unsaved_bytes = 0
        for lane in self.lanes:
            if lane.blocks:
                self._lose_unread(lane, lane.unread)
                self._forget_bytes(lane.unread_bytes, lane)
                lane.blocks.clear()
                lane.block_at.clear()
                lane.lose_up_to(lane.fresh[0].after if lane.fresh else lane.previous, self.notes)
            for entry in (*self._flying(lane), *lane.ready, *lane.fresh):
                entry.row, entry.is_saving = 0, False
                self.unsaved[entry.id] = entry
                self._unsaved_bytes += entry.size
        self.on_disk = self.on_disk_bytes = 0

    @property
    def is_disk_empty(self) -> bool:
        """Return whether nothing that waits is on disk, for certain."""
        return self.is_open and self.on_disk == 0

    def accounted(self, stream: str) -> int:
        """Return up to which number nobody need be told anything any more."""
        floors = [lane.floor(self._flying(lane)) for lane in self.lanes if lane.stream == stream]
        lowest = self.notes.lowest(stream)
        if lowest is not None:
            floors.append(lowest - 1)
        return min(floors, default=self._earlier.begun.get(stream, 0))

    def last_seq(self, stream: str) -> int:
        """Return the highest number a stream has used."""
        lasts = [lane.last for lane in self.lanes if lane.stream == stream]
        return max(lasts, default=self._earlier.begun.get(stream, 0))

    def kept(self, stream: str) -> int:
        """Return the highest number that waits, 0 for none."""
        lanes = [lane for lane in self.lanes if lane.stream == stream]
        return max((lane.highest_waiting(self._flying(lane)) for lane in lanes), default=0)

    def _lane(self, stream: str, is_telemetry: bool, last: int) -> Lane:
        lane = Lane(stream, is_telemetry, last=last, previous=last, seen=last)
        self._lane_of[lane.key] = lane
        self.lanes.append(lane)
        return lane

    def _flying(self, lane: Lane) -> Iterable[Entry]:
        return [entry for entry in self._in_flight.values() if entry.lane is lane]

    def _load(self, lane: Lane, row: Row) -> None:
        record = row.record
        after = record.seq - 1
        if row.id >= self._distrusted_below:
            after -= row.skipped
        at = lane.block_at[0]
        entry = Entry(self._next_id, record, size_bytes(record), at, after, lane, row.id)
        self._next_id += 1
        lane.admit(entry, self.notes)
        lane.ready.append(entry)
        lane.ready_bytes += entry.size
        if lane.unread == 0:  # more than were counted
            self.found += 1
            self.waiting += 1
            self.on_disk += 1
        else:
            lane.unread -= 1
        known = min(entry.size, lane.unread_bytes)
        lane.unread_bytes -= known
        self.waiting_bytes += entry.size - known
        self.on_disk_bytes += entry.size - known

    def _lose_unread(self, lane: Lane, count: int) -> None:
        count = min(count, lane.unread)
        lane.unread -= count
        self.waiting -= count
        self.on_disk -= count
        self.dropped += count

    def _forget_bytes(self, size: int, lane: Lane) -> None:
        lane.unread_bytes -= size
        self.waiting_bytes -= size
        self.on_disk_bytes -= size

    def _drop_oldest(self, first_of: Callable[[Lane], Entry | None]) -> Entry | None:
        """Give up the oldest that a lane may give up; telemetry before results."""
        victim = oldest(self.lanes, first_of)
        if victim is None:
            return None
        victim.lane.remove(victim)
        self._land(victim)
        self._note(victim.record, "queue_full")
        return victim

    def _land(self, entry: Entry) -> None:
        """Take one that waits no longer out of all accounts but `published` and `dropped`."""
        entry.is_gone = True
        self.waiting -= 1
        self.waiting_bytes -= entry.size
        if entry.is_on_disk:
            self.on_disk -= 1
            self.on_disk_bytes -= entry.size
            self._row_gone(entry.row, entry.lane)
        else:
            del self.unsaved[entry.id]
            self._unsaved_bytes -= entry.size

    def _row_gone(self, row: int, lane: Lane) -> None:
        self.gone_rows[row] = lane
        if len(self.gone_rows) > MOST_GONE_ROWS:
            del self.gone_rows[next(iter(self.gone_rows))]

    def _note(self, record: Record, reason: GapReason) -> None:
        self.dropped += 1
        if record.seq > 0:
            self.notes.add(record.stream, record.seq, record.seq, reason)


def _first_stored(lane: Lane) -> Entry | None:
    return lane.first(lambda entry: entry.is_on_disk)
