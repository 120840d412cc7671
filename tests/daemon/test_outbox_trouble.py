"""Trouble with the disk from its first sign until it works again: what is said, tried, written."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from outbox_bench import STREAMS, Bench, FaultyDisk, record

from agent.daemon.outbox import Outbox
from agent.daemon.outbox.reader import OutboxReader
from agent.daemon.outbox.writer import OutboxWriter

FULL = sqlite3.OperationalError("database or disk is full")
EIO = sqlite3.OperationalError("disk I/O error")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def written(folder: Path) -> dict[str, tuple[int, int]]:
    found = {path.name: path.stat() for path in folder.iterdir()}
    return {name: (one.st_mtime_ns, one.st_size) for name, one in found.items()}


@pytest.mark.parametrize("saved_before", [0, 3])
def test_the_alarm_stays_until_the_disk_takes_something_again(folder, saved_before):
    disk = FaultyDisk(FULL)
    bench = Bench(folder, connect=disk.connect)
    bench.spill(*range(1, saved_before + 1))
    disk.good = disk.calls
    bench.put(saved_before + 1)
    bench.turn(2)
    bench.outbox.set_online(True)
    if not saved_before:
        for record_id, _ in bench.outbox.take(100):
            bench.outbox.acknowledged(record_id)
    for _ in range(20):  # nothing to write, and nothing that could be written
        bench.turn(31)
        assert "disk is full" in (bench.outbox.alarm or "")
    disk.good = 1 << 30
    bench.turn(31)
    assert bench.outbox.alarm is None


def test_with_nothing_to_save_a_full_disk_is_asked_with_a_real_write(folder):
    bench = Bench(folder)
    bench.spill(1)
    bench.disk._writes.comes("full", bench.now)
    bench.disk._spool.cut_log()
    bench.turn(31)
    assert (folder / "outbox.db-wal").stat().st_size > 0
    assert bench.outbox.alarm is None
    before = written(folder)
    bench.turn(31)
    assert written(folder) == before


def test_trouble_with_reading_stays_said_while_nothing_was_read(folder):
    bench = Bench(folder)
    bench.spill(*range(1, 2001))
    bench.disk._reads.comes("disk I/O error", bench.now)
    bench.turn(1)  # what was read ahead is plenty: nothing is due
    assert bench.outbox.alarm
    lane = bench.outbox._queue.lanes[0]
    assert not lane.wants_reading
    assert not lane.has_room
    bench.outbox.take(10)
    bench.turn(31)
    assert bench.outbox.alarm is None
    assert not lane.has_room


@pytest.mark.parametrize("cls", [OutboxReader, OutboxWriter])
def test_an_unforeseen_fault_is_tried_ever_more_seldom_and_logged_once(
    folder, monkeypatch, caplog, cls
):
    bench = Bench(folder)
    bench.spill(*range(1, 2001))
    calls = []
    name = "read" if cls is OutboxReader else "_save"

    def fails(self: object, *_: object, **__: object) -> None:
        calls.append(1)
        raise KeyError("unforeseen")

    with monkeypatch.context() as patch:
        patch.setattr(cls, name, fails)
        for record_id, _ in bench.outbox.take(400) if cls is OutboxReader else ():
            bench.outbox.acknowledged(record_id)
        for lane in bench.outbox._queue.lanes if cls is OutboxReader else ():
            while len(lane.ready) > 10:
                lane.ready.pop()
        bench.put(2001)
        for _ in range(400):
            bench.turn(0.25)
    assert 1 < len(calls) < 12
    assert [one.message for one in caplog.records].count("outbox turn abandoned") == 1
    assert "unforeseen" in (bench.outbox.alarm or "")


@pytest.mark.parametrize("row_id", [2**63 - 1, 2**63 - 500])
def test_a_row_with_an_impossible_id_costs_the_database_and_not_the_outbox(folder, row_id, caplog):
    bench = Bench(folder)
    bench.spill(*range(1, 100))

    def spoil(folder: Path) -> None:
        connection = sqlite3.connect(folder / "outbox.db")
        connection.execute("UPDATE records SET id=? WHERE id=99", (row_id,))
        connection.commit()
        connection.close()

    bench.kill(spoil)
    assert "impossible id" in (bench.outbox.alarm or "")
    bench.spill(100)
    assert bench.outbox.on_disk == 1
    assert len(caplog.records) == 1


def test_notes_told_in_time_are_not_written_although_others_come(folder):
    bench = Bench(folder)
    bench.spill(1)
    bench.outbox.set_online(True)
    bench.drain()
    for _ in range(8):
        bench.turn()
    before = written(folder)
    owed = []
    for seq in range(2, 102):  # one in two is refused, and each is told of within a second
        bench.put(seq)
        [(record_id, _)] = bench.outbox.take(1)
        if seq % 2:
            bench.outbox.acknowledged(record_id)
        else:
            bench.outbox.refused(record_id, "refused")
        for note in owed:
            bench.outbox.gap_told(note)
        owed = bench.outbox.take_gaps()
        bench.turn(0.5)
    assert written(folder) == before
    bench.put(102)
    bench.outbox.refused(bench.outbox.take(1)[0][0], "refused")
    for _ in range(3):  # one that is not told of in time is
        bench.turn(1.5)
    assert bench.outbox._queue.notes.is_saved
    assert written(folder) != before


def test_a_damaged_database_set_aside_goes_before_any_result(tmp_path):
    aside = tmp_path / "outbox.db.damaged-1"
    aside.write_bytes(bytes(60_000))
    bench = Bench(tmp_path, max_bytes=100_000)
    for start in range(1, 91, 10):
        bench.spill(*range(start, start + 10), size=400)
        used = bench.disk._spool.used_bytes() + (aside.stat().st_size if aside.exists() else 0)
        assert used <= 100_000
    assert not aside.exists()
    assert bench.outbox.dropped == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_really_full_disk_and_what_happens_when_there_is_room_again(small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(200_000))
    bench = Bench(small_disk)
    first = bench.outbox.first_seq(STREAMS[0])
    for seq in range(first, first + 2000):
        bench.put(seq, size=400)
        if seq % 20 == 0:
            bench.outbox.set_online(False)
            bench.turn(31)
    assert "full" in (bench.outbox.alarm or "")
    assert bench.outbox.waiting == 2000
    ahead = [entry.seq for _, entry in bench.outbox.take(5)]
    assert ahead == list(range(first, first + 5))
    bench.outbox.requeue_in_flight()
    ballast.unlink()
    for _ in range(3):
        bench.turn(31)
    taken = [entry.seq for entry in bench.drain()]
    assert taken == list(range(first, first + 2000))
    bench.turn(31)
    assert bench.outbox.alarm is None
    assert bench.notes() == []
    bench.reopen()
    assert (bench.outbox.waiting, bench.notes()) == (0, [])
    bench.close()


def test_a_disk_that_turns_read_only_still_gives_what_it_holds(small_disk):
    bench = Bench(small_disk)
    bench.spill(*range(1, 401), size=300)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=False)
    if os.access(small_disk, os.W_OK):
        # An open file for writing keeps tmpfs from it, as it does other file systems.
        bench.disk._spool.close()
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    bench.put(401)
    bench.turn(31)
    assert bench.outbox.alarm
    assert bench.outbox.waiting == 401
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    bench.turn(31)
    assert [entry.seq for entry in bench.drain()] == list(range(1, 402))
    bench.turn(31)
    assert bench.outbox.alarm is None
    bench.close()


def test_a_disk_that_hangs_holds_nobody_up(tmp_path):
    class Hung(FaultyDisk):
        def check(self) -> None:
            time.sleep(1.0)

    disk = Hung(OSError())
    began = time.monotonic()
    outbox = Outbox(1 << 20, folder=tmp_path, connect=disk.connect, write_file=disk.write_file)
    outbox.open()
    outbox.set_online(False)
    outbox.put(record(1))
    assert [entry.seq for _, entry in outbox.take(1)] == [1]
    assert outbox.close(0.1) == 1
    assert time.monotonic() - began < 10
