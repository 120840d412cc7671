"""A disk that is slow or silent when the outbox starts: nobody waits, nothing is lost."""

from __future__ import annotations

import errno
import os
import random
from itertools import pairwise
from pathlib import Path

import pytest
from outbox_bench import STREAMS, Bench, record

from agent.daemon.outbox import Outbox, numbering
from agent.daemon.outbox.lanes import Entry, Lane, deque
from agent.daemon.outbox.numbering import BLOCK
from agent.daemon.outbox.outbox import OPEN_WITHIN_S
from agent.daemon.outbox.spool_survey import BLOCK_ROWS

BACKLOG = BLOCK_ROWS * 6


def numbers(bench: Bench, stream: str = STREAMS[0]) -> list[int]:
    return [entry.seq for entry in bench.drain() if entry.stream == stream]


@pytest.fixture
def slow(tmp_path: Path) -> Bench:
    """A bench that has a backlog to survey, on a disk that takes long for each block."""
    (tmp_path / "state").mkdir()
    bench = Bench(tmp_path / "state")
    assert bench.outbox.first_seq(STREAMS[0]) == 1
    bench.spill(*range(1, BACKLOG + 1))
    bench.close()
    bench.step_s = 0.2
    bench.outbox = bench._start()
    assert not bench.disk.looked.is_set()
    return bench


def test_all_waiting_for_a_silent_disk_together_takes_two_seconds(tmp_path):
    now = 0.0
    outbox = Outbox(1 << 20, folder=tmp_path, clock=lambda: now)
    assert outbox._disk

    def waits(timeout_s: float) -> None:
        nonlocal now
        now += timeout_s

    outbox._disk.wait_for_turn = waits  # type: ignore[method-assign]
    for number in range(16):
        outbox.first_seq(str(number))
    assert now == OPEN_WITHIN_S


def test_results_are_saved_while_the_survey_lasts_and_keep_their_order(slow):
    first = slow.outbox.first_seq(STREAMS[0])
    assert first == BACKLOG + 1
    slow.outbox.set_online(False)
    slow.put(first, first + 1)
    slow.turn()
    assert not slow.disk.looked.is_set()
    assert slow.outbox.on_disk == 2
    slow.put(first + 2)
    for _ in range(100):
        slow.turn()
    assert slow.disk.looked.is_set()
    slow.step_s = 0.0
    assert slow.outbox.found == BACKLOG
    assert numbers(slow) == list(range(1, first + 3))
    assert (slow.outbox.published, slow.outbox.dropped) == (BACKLOG + 3, 0)
    assert slow.notes() == []
    slow.reopen()
    assert (slow.outbox.waiting, slow.notes()) == (0, [])


@pytest.mark.parametrize("is_killed", [False, True])
def test_an_end_amid_the_survey_loses_nothing(slow, is_killed):
    first = slow.outbox.first_seq(STREAMS[0])
    slow.outbox.set_online(False)
    slow.put(*range(first, first + 100))
    if is_killed:
        slow.turn()
    else:
        assert slow.close() == 0
    assert not slow.disk.looked.is_set()
    slow.step_s = 0.0
    slow.kill()
    again = slow.outbox.first_seq(STREAMS[0])
    assert again == first + BLOCK
    assert numbers(slow) == list(range(1, first + 100))
    assert slow.notes() == [(first + 100, again - 1, "restart")]


def test_a_record_taken_and_answered_amid_the_survey_makes_no_false_damage(slow):
    first = slow.outbox.first_seq(STREAMS[0])
    slow.outbox.set_online(False)
    slow.put(first, first + 1)
    slow.turn()
    slow.now += 20  # beyond the patience with a disk that does not say what it holds
    [(record_id, entry), *_] = slow.outbox.take(1)
    assert entry.seq == first
    slow.outbox.acknowledged(record_id)
    slow.turn()
    slow.step_s = 0.0
    slow.kill()
    slow.outbox.first_seq(STREAMS[0])
    assert set(range(1, first + 2)) - {first} <= set(numbers(slow))
    assert {reason for _, _, reason in slow.notes()} == {"restart"}


def test_a_damaged_row_below_what_was_put_amid_the_survey_is_named(slow):
    first = slow.outbox.first_seq(STREAMS[0])
    slow.put(first)
    with slow.disk._spool.transaction():
        slow.disk._spool._open_connection().execute("UPDATE records SET seq=0 WHERE id=7")
    slow.step_s = 0.0
    slow.turn()
    assert numbers(slow) == [*range(1, 7), *range(8, first + 1)]
    assert slow.notes() == [(7, 7, "damaged")]


def test_what_is_saved_amid_the_survey_hides_no_damage_below_it(slow):
    first = slow.outbox.first_seq(STREAMS[0])
    with slow.disk._spool.transaction():
        slow.disk._spool._open_connection().execute("UPDATE records SET seq=0 WHERE id<8")
    slow.outbox.set_online(False)
    slow.put(first)
    slow.turn()
    assert slow.outbox.on_disk == 1
    slow.step_s = 0.0
    slow.kill()
    assert numbers(slow) == list(range(8, first + 1))
    assert (1, 7, "damaged") in slow.notes()


def test_reading_ahead_gives_saving_its_turn(slow):
    slow.outbox.set_online(False)
    slow.step_s = 0.0
    slow.turn()
    for stream in STREAMS:
        slow.spill(*range(BACKLOG + 1, BACKLOG + 1000), stream=stream)
    slow.reopen()
    for record_id, _ in slow.outbox.take(10_000):
        slow.outbox.acknowledged(record_id)
    lanes = slow.outbox._queue.lanes
    for lane in lanes:
        lane.ready.clear()
        lane.ready_bytes = 0
    slow.step_s = 0.1
    slow.turn()
    # One read of each in turn, and the rest another time.
    assert [0 < len(lane.ready) < 400 for lane in lanes] == [True, True]
    assert slow.disk._wake.is_set()


def unreadable(path: Path) -> dict[str, numbering.Numbers]:
    raise OSError(errno.EIO, os.strerror(errno.EIO), path)


@pytest.mark.parametrize("comes_after_s", [1, 60], ids=["soon", "late"])
@pytest.mark.parametrize("seed", range(4))
def test_numbers_that_cannot_be_read_at_start_are_jumped_over_and_named(
    tmp_path, monkeypatch, comes_after_s, seed
):
    dice = random.Random(seed)
    (tmp_path / "state").mkdir()
    bench = Bench(tmp_path / "state")
    used = {(STREAMS[0], seq) for seq in range(bench.outbox.first_seq(STREAMS[0]), 30_000)}
    got = set()
    for _, seq in sorted(used):
        bench.put(seq)
        if seq < 29_990:
            got |= {(one.stream, one.seq) for id_, one in bench.outbox.take(1)
                    if bench.outbox.acknowledged(id_) is None}  # fmt: skip
    bench.turn()
    if dice.random() < 0.5:
        bench.close()
    with monkeypatch.context() as patch:
        patch.setattr(numbering, "_read", unreadable)
        bench.kill()
        first = bench.outbox.first_seq(STREAMS[0])
        assert first > 1e12
        assert "jump ahead" in (bench.outbox.alarm or "")
        bench.put(first)
        assert not bench.outbox._queue.is_open  # the numbers may yet come, and come first
        bench.turn(comes_after_s)
        assert bench.outbox._queue.is_open == (comes_after_s > 5)
    bench.turn(31)
    assert bench.outbox.alarm is None
    got |= {(one.stream, one.seq) for one in bench.drain()}
    notes = bench.outbox.take_gaps()
    # Exactly what is missing, and that without counting up to 1e12.
    assert {note.reason for note in notes} == {"restart"}
    missing = {(one, seq) for one, seq in used | {(STREAMS[0], first)} if (one, seq) not in got}
    assert all(any(n.from_seq <= seq <= n.to_seq for n in notes) for _, seq in missing)
    assert max(note.to_seq for note in notes) == first - 1
    assert not any(n.from_seq <= seq <= n.to_seq for n in notes for _, seq in got)
    ranges = sorted((note.from_seq, note.to_seq) for note in notes)
    assert all(one[1] + 1 == other[0] for one, other in pairwise(ranges))
    for note in notes:
        bench.outbox.gap_told(note)
    bench.reopen()
    assert bench.outbox.first_seq(STREAMS[0]) == first + 1
    assert bench.notes() == []


class Unscannable(deque[Entry]):
    def __iter__(self):
        raise AssertionError("what was read ahead was walked through")


def test_to_give_up_the_oldest_in_memory_no_lane_is_walked_through():
    lane = Lane(STREAMS[0], is_telemetry=False)
    entries = [Entry(seq, record(seq), 1, 0.0, seq - 1, lane, row=seq) for seq in range(1, 501)]
    fresh = Entry(501, record(501), 1, 0.0, 500, lane)
    lane.ready, lane.fresh = Unscannable(), deque([fresh])
    for entry in entries:
        lane.ready.append(entry)
    assert lane.first_in_memory_only() is fresh
    lane.remove(fresh)
    assert not lane.fresh
