"""The outbox keeps its promises: order, exact accounting, notes that name what is missing."""

from __future__ import annotations

import threading

from outbox_bench import STREAMS, TELEMETRY, record, seqs

from agent.daemon.outbox import GapNote, Outbox, Record, size_bytes
from agent.daemon.outbox.outbox import TokenBucket


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
    noted = {(note.stream, seq) for note in outbox.take_gaps() for seq in seqs(note)}
    expected = {
        (stream, seq) for stream in STREAMS for seq in set(range(1, each + 1)) - set(seen[stream])
    }
    assert noted == expected


def test_streams_take_turns_and_each_keeps_its_order() -> None:
    outbox = Outbox(1 << 20)
    for seq in range(1, 101):
        outbox.put(record(seq))
    outbox.put(record(1, stream=STREAMS[1]))
    outbox.put(record(1, stream=TELEMETRY))
    assert {entry.stream for _, entry in outbox.take(3)} == {*STREAMS, TELEMETRY}
    assert [entry.seq for _, entry in outbox.take(3)] == [2, 3, 4]


def test_telemetry_is_given_up_before_results() -> None:
    outbox = Outbox(room_for(10))
    outbox.put(record(1))
    for seq in (1, 2):
        outbox.put(record(seq, stream=TELEMETRY))
    for seq in range(2, 12):
        outbox.put(record(seq))
    assert [(note.stream, note.from_seq, note.to_seq) for note in outbox.take_gaps()][:1] == [
        (TELEMETRY, 1, 2)
    ]


def test_a_bucket_lets_its_rate_pass_and_says_when() -> None:
    now = 0.0
    bucket = TokenBucket(10.0, 2.0, lambda: now)
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    assert bucket.wait_s == 0.1
    now = 0.1
    assert [bucket.take() for _ in range(2)] == [True, False]
    now = 100.0
    assert [bucket.take() for _ in range(3)] == [True, True, False]
