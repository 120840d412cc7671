"""What the outbox puts on disk, when, and what a next run makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from outbox_bench import STREAMS, TELEMETRY, Bench, is_genuine, named, record

from agent.daemon.outbox import ClockMark, Outbox, Record
from agent.daemon.outbox.lanes import READ_AHEAD
from agent.daemon.outbox.numbering import BLOCK


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    folder = tmp_path / "state"
    folder.mkdir()
    return Bench(folder)


def numbers(records: list[Record], stream: str = STREAMS[0]) -> list[int]:
    return [entry.seq for entry in records if entry.stream == stream]


def test_what_is_acknowledged_in_time_never_touches_the_disk(bench):
    first = bench.outbox.first_seq(STREAMS[0])
    before = {path: path.stat().st_mtime_ns for path in bench.folder.iterdir()}
    for seq in range(first, first + 100):
        bench.put(seq)
        for record_id, _ in bench.outbox.take(20):
            bench.outbox.acknowledged(record_id)
        bench.turn(0.25)
    assert {path: path.stat().st_mtime_ns for path in bench.folder.iterdir()} == before
    assert not (bench.folder / "outbox.db").exists()


def test_what_is_not_acknowledged_for_two_seconds_is_saved(bench):
    bench.put(1)
    [(record_id, _)] = bench.outbox.take(1)
    bench.turn(1.9)
    assert bench.outbox.on_disk == 0
    bench.put(2)
    bench.turn(0.2)
    assert (bench.outbox.on_disk, bench.outbox.waiting) == (2, 2)
    bench.outbox.acknowledged(record_id)
    assert (bench.outbox.on_disk, bench.outbox.waiting, bench.outbox.published) == (1, 1, 1)
    bench.kill()
    # The deletion was not on disk yet: at least once, never less.
    assert numbers(bench.drain()) == [1, 2]


def test_without_a_connection_it_is_saved_at_the_next_look(bench):
    bench.outbox.set_online(False)
    bench.put(1, 2)
    bench.turn(0.25)
    assert bench.outbox.on_disk == 2
    bench.put(3)
    bench.turn(0.25)
    assert bench.outbox.on_disk == 2
    bench.turn(0.25)
    assert bench.outbox.on_disk == 3


def test_a_sudden_end_loses_nothing_that_was_saved(bench):
    first = bench.outbox.first_seq(STREAMS[0])
    assert first == 1
    bench.spill(1, 2, 3)
    bench.put(4)
    bench.kill()
    assert bench.outbox.found == bench.outbox.waiting == bench.outbox.on_disk == 3
    assert bench.outbox.first_seq(STREAMS[0]) == BLOCK + 1
    assert bench.notes() == [(4, BLOCK, "restart")]
    bench.put(BLOCK + 1)
    assert numbers(bench.drain()) == [1, 2, 3, BLOCK + 1]
    assert bench.notes() == []
    assert bench.outbox.published == 4


def test_closing_saves_everything_and_the_next_run_goes_on_without_a_gap(bench):
    assert bench.outbox.first_seq(STREAMS[0]) == 1
    bench.put(1, 2, 3)
    bench.outbox.take(1)
    assert bench.close() == 0
    bench.outbox = bench._start()
    assert bench.outbox.first_seq(STREAMS[0]) == 4
    bench.put(4)
    assert numbers(bench.drain()) == [1, 2, 3, 4]
    assert bench.notes() == []
    bench.reopen()
    assert bench.outbox.first_seq(STREAMS[0]) == 5
    assert (bench.notes(), bench.outbox.waiting) == ([], 0)


def test_a_camera_that_is_gone_keeps_its_numbers_and_is_noted_once(bench):
    bench.outbox.first_seq(STREAMS[1])
    bench.put(1, 2, stream=STREAMS[1])
    bench.kill()
    assert bench.notes() == [(1, BLOCK, "restart")]
    for _ in range(2):
        bench.reopen()
        assert bench.notes() == []
    assert bench.outbox.first_seq(STREAMS[1]) == BLOCK + 1


def test_the_next_block_is_reserved_in_time(bench):
    bench.outbox.first_seq(STREAMS[0])
    for seq in range(1, BLOCK * 3):
        bench.put(seq)
        if seq % 100 == 0:
            bench.turn(0.25)
            bench.drain()
    bench.kill()
    [(first, last, reason)] = bench.notes()
    assert first <= BLOCK * 3 <= last < BLOCK * 4.5
    assert (first > BLOCK * 2, reason) == (True, "restart")
    assert bench.outbox.first_seq(STREAMS[0]) == last + 1


def test_what_comes_from_disk_is_complete_in_order_and_genuine(bench):
    clock = ClockMark(boot="b", offset_s=1.5)
    count = READ_AHEAD * 3
    for seq in range(1, count + 1):
        bench.put(seq, size=seq % 5000)
        bench.put(seq, stream=STREAMS[1])
    bench.outbox.put(Record(topic="t", payload=b"x", clock=clock))
    bench.outbox.set_online(False)
    bench.turn()
    assert bench.outbox.on_disk == 2 * count + 1
    bench.reopen()
    taken = bench.drain()
    assert numbers(taken) == numbers(taken, STREAMS[1]) == list(range(1, count + 1))
    assert all(is_genuine(entry) for entry in taken if entry.seq)
    assert [entry.clock for entry in taken if not entry.seq] == [clock]
    assert bench.notes() == []
    assert (bench.outbox.on_disk, bench.outbox.on_disk_bytes) == (0, 0)


def test_memory_holds_a_bounded_part_of_a_long_backlog(bench):
    bench.outbox.set_online(False)
    for start in range(1, 5001, 100):
        bench.put(*range(start, start + 100))
        bench.turn()
    [lane] = bench.outbox._queue.lanes
    assert len(lane.ready) <= READ_AHEAD
    assert not lane.fresh
    assert lane.unread == 5000 - len(lane.ready)
    assert numbers(bench.drain()) == list(range(1, 5001))


def test_a_long_backlog_of_one_camera_does_not_delay_another(bench):
    bench.spill(*range(1, 3001))
    bench.spill(1, 2, stream=STREAMS[1])
    bench.reopen()
    bench.put(3, stream=STREAMS[1])
    bench.put(1, stream=TELEMETRY)
    first = [entry for _, entry in bench.outbox.take(12)]
    assert numbers(first, STREAMS[1]) == [1, 2, 3]
    assert numbers(first, TELEMETRY) == [1]


def test_what_comes_from_disk_is_paced_and_what_is_fresh_is_not(bench):
    bench.spill(*range(1, 401))
    bench.outbox.set_online(True)
    bench.now += 10
    at_once = len(bench.outbox.take(10_000))
    assert 0 < at_once < 100
    wait_s = bench.outbox.wait_s
    assert wait_s is not None
    assert 0 < wait_s <= 0.01
    bench.put(*range(1, 201), stream=STREAMS[1])
    assert len(bench.outbox.take(10_000)) == 200
    bench.now += 0.04
    assert 35 <= len(bench.outbox.take(10_000)) <= 45
    bench.outbox.requeue_in_flight()
    bench.drain()
    assert bench.outbox.take(1) == []
    assert bench.outbox.wait_s is None


def test_when_all_is_published_the_log_is_cut_to_nothing(bench):
    bench.spill(*range(1, 2001), size=400)
    bench.outbox.set_online(True)
    bench.drain()
    bench.turn(2)
    assert (bench.folder / "outbox.db-wal").stat().st_size == 0
    bench.kill()
    assert bench.outbox.waiting == 0


@pytest.mark.parametrize("size", [400, 6000])
def test_the_files_stay_below_the_cap_and_the_oldest_go_first(tmp_path, size):
    bench = Bench(tmp_path, max_bytes=300_000)
    bench.outbox.set_online(False)
    for seq in range(1, 1201):
        bench.put(seq, size=size)
        bench.put(seq, stream=STREAMS[1], size=size)
        if seq % 10 == 0:
            bench.put(seq // 10, stream=TELEMETRY, size=size)
            bench.turn()
            used = (tmp_path / "outbox.db").stat().st_size
            assert used < 300_000 + 100_000
            assert bench.database_bytes() < 300_000 + 2_000_000
    assert bench.outbox.dropped + bench.outbox.waiting == 2520
    assert bench.outbox.on_disk_bytes > 200_000
    bench.kill()
    notes = bench.outbox.take_gaps()
    assert {note.reason for note in notes} == {"queue_full"}
    taken = bench.drain()
    everything = {(stream, seq) for stream in STREAMS for seq in range(1, 1201)}
    everything |= {(TELEMETRY, seq) for seq in range(1, 121)}
    got = {(entry.stream, entry.seq) for entry in taken}
    assert named(notes) == everything - got
    assert sum(note.count or 0 for note in notes) == len(everything - got)
    for stream in STREAMS:
        kept = numbers(taken, stream)
        assert kept == list(range(kept[0], 1201))


def test_telemetry_goes_before_any_result(tmp_path):
    bench = Bench(tmp_path, max_bytes=200_000)
    bench.spill(*range(1, 101), size=400)
    bench.spill(*range(1, 101), stream=TELEMETRY, size=400)
    while TELEMETRY in {key[0] for key in bench.outbox._queue._lane_of} and (
        not bench.outbox.dropped
    ):
        bench.spill(bench.outbox._queue.last_seq(STREAMS[0]) + 1, size=400)
    assert {note.stream for note in bench.outbox.take_gaps()} == {TELEMETRY}


def test_a_gap_is_told_again_until_it_was_taken_over(tmp_path):
    bench = Bench(tmp_path, max_bytes=100_000)
    for start in range(1, 1000, 50):
        bench.spill(*range(start, start + 50), size=400)
    [note] = bench.outbox.take_gaps()
    bench.kill()
    assert bench.outbox.take_gaps() == [note]
    bench.outbox.gap_told(note)
    bench.turn()
    bench.turn(2.5)  # by then the disk knows that it was told
    bench.kill()
    assert bench.outbox.take_gaps() == []
    taken = numbers(bench.drain())
    assert taken == list(range(note.to_seq + 1, taken[-1] + 1))
    assert bench.notes() == []


def test_acknowledgements_out_of_order_make_no_false_gap(bench):
    bench.put(1, 2, 3, 4)
    ids = [record_id for record_id, _ in bench.outbox.take(4)]
    bench.outbox.acknowledged(ids[2])
    bench.outbox.acknowledged(ids[0])
    bench.outbox.requeue_in_flight()
    bench.spill(5)
    bench.kill()
    assert numbers(bench.drain()) == [2, 4, 5]
    assert bench.notes() == []


def test_records_too_large_are_noted_once_even_over_a_restart(tmp_path):
    bench = Bench(tmp_path, max_bytes=100_000)
    bench.put(1)
    bench.put(2, size=200_000)
    bench.spill(3)
    assert bench.notes() == [(2, 2, "too_large")]
    bench.turn(2)  # by then the disk knows that it was told
    bench.kill()
    assert numbers(bench.drain()) == [1, 3]
    assert bench.notes() == []


def test_with_the_disk_gone_memory_is_bounded_and_the_oldest_go_first(tmp_path):
    bench = Bench(tmp_path / "nowhere", max_bytes=100_000)
    assert bench.outbox.alarm is None
    bench.put(1, stream=TELEMETRY)
    bench.spill(*range(1, 201), size=800)
    assert "nowhere" in (bench.outbox.alarm or "")
    assert bench.outbox.waiting_bytes <= 100_000
    notes = bench.outbox.take_gaps()
    assert [note.stream for note in notes] == [TELEMETRY, STREAMS[0]]
    taken = numbers(bench.drain())
    assert taken == list(range(notes[1].to_seq + 1, 201))
    bench.put(201)
    assert bench.close() == 1


def test_the_thread_does_all_that_by_itself(tmp_path):
    refills = []
    outbox = Outbox(1 << 20, folder=tmp_path, on_refill=lambda: refills.append(1))
    outbox.open()
    assert outbox.first_seq(STREAMS[0]) == 1
    outbox.set_online(False)
    for seq in range(1, 51):
        outbox.put(record(seq))
    assert outbox.close(10) == 0
    again = Outbox(1 << 20, folder=tmp_path)
    again.open()
    assert again.first_seq(STREAMS[0]) == 51
    assert [entry.seq for _, entry in again.take(100)] == list(range(1, 51))
    assert again.ticked_at > 0
    assert again.alarm is None
    assert again.close(10) == 0


def test_a_repair_that_fails_does_not_hold_a_record_back(tmp_path):
    def repair(entry: Record) -> Record:
        raise ValueError(entry.topic)

    outbox = Outbox(1 << 20, repair=repair)
    outbox.put(record(1))
    assert [entry.seq for _, entry in outbox.take(1)] == [1]


def test_a_gap_that_was_told_is_not_told_again_as_damage_after_a_restart(tmp_path):
    bench = Bench(tmp_path, max_bytes=30_000)
    bench.put(1, size=29_000)
    bench.put(2, size=60_000)
    assert bench.notes() == [(2, 2, "too_large")]
    bench.put(3, size=60_000)
    bench.reopen()
    assert bench.notes() == [(3, 3, "too_large")]
    assert [entry.seq for entry in bench.drain()] == [1]
    bench.close()
