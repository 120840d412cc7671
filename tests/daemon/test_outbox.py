"""The outbox keeps its promises: order, exact accounting, notes that name what is missing."""

from __future__ import annotations

import threading
from collections import deque

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.daemon.outbox import GapNote, Outbox, Record, size_bytes

STREAMS = ("camera/door/detections", "camera/yard/detections")


def record(seq: int, *, stream: str = STREAMS[0], size: int = 10) -> Record:
    return Record(topic=f"edge/d/{stream}", payload=bytes(size), stream=stream, seq=seq)


def room_for(count: int) -> int:
    return count * size_bytes(record(1))


def test_records_leave_in_order_and_stay_until_acknowledged() -> None:
    outbox = Outbox(room_for(10))
    for seq in (1, 2, 3):
        outbox.put(record(seq))
    taken = outbox.take(2)
    assert [entry.seq for _, entry in taken] == [1, 2]
    assert outbox.waiting == 3
    outbox.acknowledged(taken[0][0])
    assert (outbox.waiting, outbox.published) == (2, 1)


def test_a_lost_connection_sends_the_unacknowledged_again_before_newer_ones() -> None:
    outbox = Outbox(room_for(10))
    for seq in (1, 2, 3, 4):
        outbox.put(record(seq))
    ids = [record_id for record_id, _ in outbox.take(3)]
    outbox.acknowledged(ids[1])
    outbox.requeue_in_flight()
    assert [entry.seq for _, entry in outbox.take(9)] == [1, 3, 4]


def test_an_answer_after_the_connection_was_lost_changes_nothing() -> None:
    outbox = Outbox(room_for(10))
    outbox.put(record(1))
    [(record_id, _)] = outbox.take(1)
    outbox.requeue_in_flight()
    outbox.acknowledged(record_id)
    assert (outbox.waiting, outbox.published) == (1, 0)


def test_a_full_outbox_drops_the_oldest_that_is_not_on_the_wire() -> None:
    outbox = Outbox(room_for(3))
    for seq in (1, 2, 3):
        outbox.put(record(seq))
    outbox.take(1)
    outbox.put(record(4))
    assert outbox.take_gaps() == [
        GapNote(stream=STREAMS[0], from_seq=2, to_seq=2, reason="queue_full")
    ]
    outbox.requeue_in_flight()
    assert [entry.seq for _, entry in outbox.take(9)] == [1, 3, 4]


def test_ten_thousand_drops_in_a_row_are_one_note() -> None:
    outbox = Outbox(room_for(5))
    for seq in range(1, 10_006):
        outbox.put(record(seq))
    [note] = outbox.take_gaps()
    assert (note.from_seq, note.to_seq, note.count) == (1, 10_000, 10_000)
    assert outbox.dropped == 10_000
    assert not outbox.has_gaps


def test_notes_of_streams_that_drop_in_turn_still_grow_together() -> None:
    outbox = Outbox(room_for(2))
    for seq in range(1, 101):
        for stream in STREAMS:
            outbox.put(record(seq, stream=stream))
    notes = outbox.take_gaps()
    assert sorted((note.stream, note.from_seq, note.to_seq) for note in notes) == [
        (stream, 1, 99) for stream in STREAMS
    ]


def test_a_note_never_spans_another_reason_or_one_that_was_published() -> None:
    outbox = Outbox(room_for(10))
    for seq in range(1, 6):
        outbox.put(record(seq))
    ids = [record_id for record_id, _ in outbox.take(5)]
    outbox.refused(ids[0], "refused")
    outbox.refused(ids[1], "too_large")
    outbox.acknowledged(ids[2])
    outbox.refused(ids[3], "too_large")
    outbox.refused(ids[4], "too_large")
    assert [(note.from_seq, note.to_seq, note.reason) for note in outbox.take_gaps()] == [
        (1, 1, "refused"),
        (2, 2, "too_large"),
        (4, 5, "too_large"),
    ]


def test_what_can_never_fit_goes_alone() -> None:
    outbox = Outbox(room_for(3))
    outbox.put(record(1))
    outbox.put(record(2, size=10_000))
    assert outbox.waiting == 1
    assert [(note.from_seq, note.reason) for note in outbox.take_gaps()] == [(2, "too_large")]


def test_records_without_a_number_are_counted_but_leave_no_note() -> None:
    outbox = Outbox(room_for(2))
    for _ in range(5):
        outbox.put(Record(topic=record(1).topic, payload=bytes(10)))
    assert outbox.dropped == 3
    assert outbox.take_gaps() == []


def test_the_accounting_is_exact_while_threads_put_and_take() -> None:
    outbox = Outbox(room_for(50))
    each = 2_000

    def produce(stream: str) -> None:
        for seq in range(1, each + 1):
            outbox.put(record(seq, stream=stream))

    threads = [threading.Thread(target=produce, args=(stream,)) for stream in STREAMS]
    for thread in threads:
        thread.start()
    seen: dict[str, list[int]] = {stream: [] for stream in STREAMS}
    while any(thread.is_alive() for thread in threads) or outbox.waiting:
        for record_id, entry in outbox.take(20):
            seen[entry.stream].append(entry.seq)
            outbox.acknowledged(record_id)
    for thread in threads:
        thread.join()
    assert outbox.published + outbox.dropped == 2 * each
    for stream in STREAMS:
        assert seen[stream] == sorted(set(seen[stream]))
    noted = {(note.stream, seq) for note in outbox.take_gaps() for seq in _seqs(note)}
    expected = {
        (stream, seq) for stream in STREAMS for seq in set(range(1, each + 1)) - set(seen[stream])
    }
    assert noted == expected


def _seqs(note: GapNote) -> range:
    return range(note.from_seq, note.to_seq + 1)


class OutboxMachine(RuleBasedStateMachine):
    """Any sequence of calls against a slow, obvious model of the same promises."""

    def __init__(self) -> None:
        super().__init__()
        self.bound = room_for(6)
        self.outbox = Outbox(self.bound)
        self.next_seq = dict.fromkeys(STREAMS, 1)
        self.unsent: deque[Record] = deque()
        self.in_flight: dict[int, Record] = {}
        self.put_count = self.published = 0
        self.lost: list[tuple[str, int, str]] = []
        self.noted: list[tuple[str, int, str]] = []

    @rule(stream=st.sampled_from(STREAMS), size=st.integers(0, 1500))
    def put(self, stream: str, size: int) -> None:
        entry = record(self.next_seq[stream], stream=stream, size=size)
        self.next_seq[stream] += 1
        self.put_count += 1
        self.outbox.put(entry)
        if size_bytes(entry) > self.bound:
            self.lost.append((stream, entry.seq, "too_large"))
            return
        self.unsent.append(entry)
        while self._bytes() > self.bound and self.unsent:
            oldest = self.unsent.popleft()
            self.lost.append((oldest.stream, oldest.seq, "queue_full"))

    @rule(limit=st.integers(0, 4))
    def take(self, limit: int) -> None:
        for record_id, entry in self.outbox.take(limit):
            assert entry is self.unsent.popleft()
            self.in_flight[record_id] = entry

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        record_id = data.draw(st.sampled_from(sorted(self.in_flight)))
        self.outbox.acknowledged(record_id)
        del self.in_flight[record_id]
        self.published += 1

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), too_large=st.booleans())
    def refuse(self, data: st.DataObject, too_large: bool) -> None:
        record_id = data.draw(st.sampled_from(sorted(self.in_flight)))
        self.outbox.refused(record_id, "too_large" if too_large else "refused")
        entry = self.in_flight.pop(record_id)
        self.lost.append((entry.stream, entry.seq, "too_large" if too_large else "refused"))

    @rule()
    def lose_connection(self) -> None:
        self.outbox.requeue_in_flight()
        self.unsent.extendleft(reversed(self.in_flight.values()))
        self.in_flight.clear()

    @rule()
    def take_gaps(self) -> None:
        for note in self.outbox.take_gaps():
            self.noted += [(note.stream, seq, note.reason) for seq in _seqs(note)]
        assert sorted(self.noted) == sorted(self.lost)

    @invariant()
    def accounts_are_exact(self) -> None:
        outbox = self.outbox
        assert outbox.waiting == len(self.unsent) + len(self.in_flight)
        assert outbox.waiting_bytes == self._bytes()
        assert (outbox.published, outbox.dropped) == (self.published, len(self.lost))
        assert self.put_count == outbox.published + outbox.dropped + outbox.waiting

    def _bytes(self) -> int:
        return sum(size_bytes(entry) for entry in (*self.unsent, *self.in_flight.values()))


OutboxMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestOutboxMachine = OutboxMachine.TestCase
