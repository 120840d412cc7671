"""Whatever happens to the disk: nothing raised, nothing invented, everything missing is named."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from outbox_bench import STREAMS, Bench, FaultyDisk, is_genuine, named
from repeats import IS_THOROUGH, repeats

from agent.daemon.outbox import Outbox


def failures() -> list[Exception]:
    return [
        sqlite3.OperationalError("disk I/O error"),
        sqlite3.OperationalError("database or disk is full"),
        sqlite3.OperationalError("attempt to write a readonly database"),
        sqlite3.DatabaseError("database disk image is malformed"),
        OSError(errno.EROFS, os.strerror(errno.EROFS)),
    ]


def a_life(bench: Bench, check: Callable[[], None] = lambda: None) -> set[tuple[str, int]]:
    """Outage, backlog, restart, drain; return what was named as missing."""
    names: set[tuple[str, int]] = set()
    got: set[tuple[str, int]] = set()

    def receive(limit: int) -> None:
        for record_id, entry in bench.outbox.take(limit):
            assert is_genuine(entry)
            got.add((entry.stream, entry.seq))
            bench.outbox.acknowledged(record_id)
        for note in bench.outbox.take_gaps():
            names.update(named([note]))
            bench.outbox.gap_told(note)
        check()

    put = {(stream, seq) for stream in STREAMS for seq in range(1, 61)}
    for half in (range(1, 31), range(31, 61)):
        bench.outbox.set_online(False)
        for seq in half:
            for stream in STREAMS:
                bench.put(seq, stream=stream, size=300)
            if seq % 10 == 0:
                bench.turn(31)  # past every back-off
                receive(3)
        bench.outbox.set_online(True)
        receive(7)
    for _ in range(100):
        if not bench.outbox.waiting:
            break
        bench.turn(31)
        receive(1000)
    assert bench.outbox.waiting == 0
    receive(0)
    assert put <= got | names
    return names


@pytest.mark.parametrize(("at", "failure"), list(enumerate(failures())), ids=str)
@pytest.mark.parametrize("for_calls", [1, 1 << 30], ids=["once", "for good"])
def test_a_disk_that_fails_at_any_call_costs_nothing_unnamed(tmp_path, at, failure, for_calls):
    counted = FaultyDisk(failure)
    (tmp_path / "count").mkdir()
    a_life(Bench(tmp_path / "count", connect=counted.connect, write_file=counted.write_file))
    # At every call, but not of every failure: each begins at another one.
    step = 1 if IS_THOROUGH or (for_calls == 1 and str(failure) == "disk I/O error") else 5
    for good in range(at % step, counted.calls, step):
        folder = tmp_path / str(good)
        folder.mkdir()
        disk = FaultyDisk(failure, good, for_calls=for_calls)
        bench = Bench(folder, connect=disk.connect, write_file=disk.write_file)
        names = a_life(bench)
        if not isinstance(failure, sqlite3.OperationalError | OSError):
            continue
        if for_calls == 1:
            assert (good, names) == (good, set())
        bench.close()


def test_alarms_say_what_to_do_and_go_when_it_works_again(tmp_path, caplog):
    disk = FaultyDisk(sqlite3.OperationalError("database or disk is full"), 0)
    bench = Bench(tmp_path, connect=disk.connect)
    bench.spill(1)
    assert "disk is full" in (bench.outbox.alarm or "")
    assert "free or repair the disk" in (bench.outbox.alarm or "")
    bench.put(2)
    for _ in range(100):
        bench.turn(0.25)
    # Once when it began: a state that stays is not said again.
    assert len(caplog.records) == 1
    tries = disk.calls
    bench.turn(0.25)
    assert disk.calls == tries
    disk.good = 1 << 30
    bench.turn(31)
    assert (bench.outbox.alarm, bench.outbox.on_disk) == (None, 2)


def test_records_flow_past_rows_that_cannot_be_read(tmp_path):
    disk = FaultyDisk(sqlite3.OperationalError("disk I/O error"))
    bench = Bench(tmp_path, connect=disk.connect)
    bench.spill(*range(1, 1001))
    disk.good = disk.calls
    bench.outbox.set_online(True)
    bench.put(1001)
    got = []
    for _ in range(2000):
        batch = bench.outbox.take(20)
        for record_id, entry in batch:
            bench.outbox.acknowledged(record_id)
            got.append(entry.seq)
        bench.turn(0.1)
        if got[-1:] == [1001]:
            break
    [note] = bench.outbox.take_gaps()
    assert note.reason == "damaged"
    assert got == [*range(1, note.from_seq), *range(note.to_seq + 1, 1002)]
    assert bench.outbox.waiting == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"not a database " * 1000),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: (path.unlink(), path.mkdir(), (path / "something").touch()),
        lambda path: _execute(path, "PRAGMA user_version=99"),
        lambda path: _execute(path, "DROP TABLE records"),
        lambda path: _execute(path, "ALTER TABLE floors RENAME COLUMN seq TO x"),
    ],
    ids=["garbage", "truncated", "folder", "newer version", "no table", "other columns"],
)
def test_a_database_that_cannot_be_used_is_put_aside(tmp_path, spoil):
    folder = tmp_path / "state"
    folder.mkdir()
    bench = Bench(folder)
    for _ in range(2):  # again and again, in bounded space
        first = bench.outbox.first_seq(STREAMS[0])
        bench.spill(*range(first, first + 2000), size=200)
        bench.close()
        spoil(bench.folder / "outbox.db")
        bench.outbox = bench._start()
        bench.turn(31)
        notes = bench.outbox.take_gaps()
        got = {(entry.stream, entry.seq) for entry in bench.drain()}
        notes += bench.outbox.take_gaps()
        for note in notes:
            bench.outbox.gap_told(note)
        assert {(STREAMS[0], seq) for seq in range(first, first + 2000)} <= got | named(notes)
        assert {note.reason for note in notes} <= {"damaged"}
        assert "outbox.db.damaged-" in (bench.outbox.alarm or "")
        assert "may be missing" in (bench.outbox.alarm or "")
        assert len(list(bench.folder.glob("*.damaged*"))) <= 2
        bench.reopen()
        assert bench.outbox.alarm is None


def _execute(path: Path, sql: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(sql)
    connection.commit()
    connection.close()


def test_one_damaged_row_costs_one_record(tmp_path):
    folder = tmp_path / "state"
    folder.mkdir()
    bench = Bench(folder)
    bench.spill(*range(1, 11))

    def spoil(folder: Path) -> None:
        _execute(folder / "outbox.db", "UPDATE records SET payload=x'00' WHERE seq=4")

    bench.kill(spoil)
    assert [entry.seq for entry in bench.drain()] == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert (bench.outbox.published, bench.outbox.dropped, bench.outbox.found) == (9, 1, 10)
    assert bench.notes() == [(4, 4, "damaged")]
    bench.turn(2)
    bench.reopen()
    assert (bench.outbox.waiting, bench.notes()) == (0, [])


@pytest.mark.parametrize(
    ("part", "ending"),
    [  # a database that was closed has no log
        ("outbox.db", "killed"),
        ("outbox.db", "closed"),
        ("outbox.db-wal", "killed"),
        ("seq.json", "killed"),
        ("seq.json", "closed"),
    ],
)
@pytest.mark.parametrize("seed", range(repeats(10, 40)))
def test_flipped_bytes_anywhere_are_never_believed(tmp_path, part, ending, seed):
    dice = random.Random(f"{part} {ending} {seed}")
    (tmp_path / "state").mkdir()
    life = RandomLife(Bench(tmp_path / "state", max_bytes=dice.choice((40_000, 1 << 20))), dice)
    for _ in range(dice.randrange(2, 8)):
        life.go_on()
    bench = life.bench
    bench.outbox.set_online(False)
    bench.turn()
    if part == "outbox.db" and ending == "killed" and bench.disk._spool.is_open:
        bench.disk._spool.cut_log()
    if ending == "closed":
        bench.close()
    bench.kill(lambda folder: flip(folder / part, dice))
    firsts = {stream: bench.outbox.first_seq(stream) for stream in STREAMS}
    bench.turn(31)
    for entry in bench.drain():
        assert is_genuine(entry)
        life.got.add((entry.stream, entry.seq))
    life.told |= named(bench.outbox.take_gaps())
    assert life.put - life.got - life.told == set()
    assert all(firsts[stream] > life.last[stream] for stream in STREAMS)


class RandomLife:
    """Cameras, a broker that comes and goes, and what became of every record."""

    def __init__(self, bench: Bench, dice: random.Random) -> None:
        self.bench, self.dice = bench, dice
        self.last = {stream: bench.outbox.first_seq(stream) - 1 for stream in STREAMS}
        self.got: set[tuple[str, int]] = set()
        self.told: set[tuple[str, int]] = set()

    @property
    def put(self) -> set[tuple[str, int]]:
        return {(stream, seq) for stream in STREAMS for seq in range(1, self.last[stream] + 1)}

    def go_on(self) -> None:
        bench, dice = self.bench, self.dice
        for stream in STREAMS:
            for _ in range(dice.randrange(20)):
                self.last[stream] += 1
                bench.put(self.last[stream], stream=stream, size=dice.randrange(48, 900))
        bench.outbox.set_online(dice.random() < 0.4)
        bench.turn(dice.choice((0.5, 3)))
        for record_id, entry in bench.outbox.take(dice.randrange(20)):
            bench.outbox.acknowledged(record_id)
            self.got.add((entry.stream, entry.seq))
        if dice.random() < 0.3:
            for note in bench.outbox.take_gaps():
                bench.outbox.gap_told(note)
                self.told |= named([note])


def flip(path: Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes() if path.exists() else b"")
    for _ in range(min(len(content), dice.choice((1, 1, 1, 8)))):
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    if content:
        path.write_bytes(content)


KILLED = """
import sys, time
from pathlib import Path
from agent.daemon.outbox import Outbox, Record
outbox = Outbox(1 << 24, folder=Path(sys.argv[1]))
outbox.open()
first = outbox.first_seq("s")
outbox.set_online(False)
for seq in range(first, first + 100_000):
    outbox.put(Record(topic="t", payload=b"%d" % seq * 40, stream="s", seq=seq))
    print(seq, time.monotonic(), flush=True)
    time.sleep(0.005)
"""


def test_kill_9_loses_at_most_the_last_second(tmp_path):
    rng = random.Random(1)
    got: set[int] = set()
    named_missing: set[int] = set()
    old: set[int] = set()
    every: set[int] = set()
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, tmp_path],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout
        lines = [child.stdout.readline()]
        until = time.monotonic() + 1.2 + rng.random()
        while time.monotonic() < until:
            lines.append(child.stdout.readline())
        killed_at = time.monotonic()
        child.kill()
        lines += child.stdout.read().splitlines()
        child.wait()
        child.stdout.close()
        put = [(int(seq), float(at)) for seq, at in (line.split() for line in lines)]
        every |= {seq for seq, _ in put}
        old |= {seq for seq, at in put if at < killed_at - 1.0}
    outbox = Outbox(1 << 24, folder=tmp_path)
    outbox.open()
    outbox.first_seq("s")
    order = []
    deadline = time.monotonic() + 30
    while outbox.waiting and time.monotonic() < deadline:
        for record_id, entry in outbox.take(100):
            assert entry.payload == b"%d" % entry.seq * 40
            outbox.acknowledged(record_id)
            order.append(entry.seq)
        time.sleep(outbox.wait_s or 0.01)
    got = set(order)
    for note in outbox.take_gaps():
        named_missing |= set(range(note.from_seq, note.to_seq + 1))
    outbox.close(10)
    assert order == sorted(got)
    assert old - got == set()
    assert every - got <= named_missing
