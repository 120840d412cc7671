"""For how long the oldest has waited, wherever it waits, and stamps that last while in memory."""

from __future__ import annotations

import dataclasses

import pytest
from outbox_bench import STREAMS, TELEMETRY, Bench, record

from agent.daemon.outbox import Outbox
from agent.daemon.outbox.lanes import READ_AHEAD
from agent.daemon.outbox.spool_survey import BLOCK_ROWS


@pytest.fixture
def bench(tmp_path):
    folder = tmp_path / "state"
    folder.mkdir()
    return Bench(folder)


def test_where_nothing_waits_there_is_no_age():
    assert Outbox(1 << 20).oldest_age_s is None


def test_the_oldest_counts_in_flight_or_not_of_any_stream():
    now = 0.0
    outbox = Outbox(1 << 20, clock=lambda: now)
    outbox.put(record(1))
    now = 5.0
    outbox.put(record(1, stream=TELEMETRY))
    assert outbox.oldest_age_s == 5.0
    [(first, entry)] = outbox.take(1)
    assert outbox.oldest_age_s == 5.0
    outbox.acknowledged(first)
    now = 7.0
    assert outbox.oldest_age_s == {TELEMETRY: 7.0}.get(entry.stream, 2.0)
    [(second, _)] = outbox.take(1)
    outbox.requeue_in_flight()
    assert outbox.oldest_age_s is not None
    outbox.take(1)
    outbox.acknowledged(second)
    assert outbox.oldest_age_s is None


def test_age_goes_on_while_records_are_on_disk(bench):
    count = BLOCK_ROWS * 3
    for start in range(1, count, 64):
        bench.spill(*range(start, start + 64))
    began = 1000.0
    assert bench.outbox.oldest_age_s == bench.now - began
    [lane] = bench.outbox._queue.lanes
    assert lane.unread > BLOCK_ROWS, "most are on disk alone"
    bench.outbox.set_online(True)
    left, ages = count, []
    while left:
        for record_id, _ in bench.outbox.take(20):
            bench.outbox.acknowledged(record_id)
            left -= 1
        bench.turn(1.0)
        if left:
            ages.append(bench.now - bench.outbox.oldest_age_s)
    assert ages == sorted(ages), "the oldest left is never older than the one before"
    assert began <= ages[0] <= ages[-1] <= began + count
    assert bench.outbox.oldest_age_s is None


def test_what_an_earlier_run_left_is_of_unknown_age(bench):
    bench.spill(1, 2)
    bench.reopen()
    bench.put(1, stream=STREAMS[1])
    bench.now += 3.0
    assert bench.outbox.oldest_age_s is None
    for record_id, _ in bench.outbox.take(2):
        bench.outbox.acknowledged(record_id)
    left = {entry.stream for _, entry in bench.outbox.take(1)}
    assert left == {STREAMS[0]}
    assert bench.outbox.oldest_age_s is None, "read from disk, it is as old as before"


def test_stamps_last_as_long_as_a_record_stays_in_memory(bench):
    def stamped(seq):
        return dataclasses.replace(record(seq), captured_ns=10**15 + seq, encoded_ns=1)

    bench.outbox.set_online(False)
    for seq in range(1, READ_AHEAD + 100):
        bench.outbox.put(stamped(seq))
    bench.turn()
    taken = {entry.seq: entry for entry in bench.drain()}
    assert taken[1] == stamped(1), "saved, and still in memory"
    assert taken[READ_AHEAD + 50] == record(READ_AHEAD + 50), "read back from disk"
