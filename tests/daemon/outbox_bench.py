"""An outbox whose disk thread the test is, on a clock the test moves."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

from agent.daemon.outbox import GapNote, Outbox, Record
from agent.durable import write_durably

STREAMS = ("camera/door/detections", "camera/yard/detections")
TELEMETRY = "telemetry"


def record(seq: int, *, stream: str = STREAMS[0], size: int = 48) -> Record:
    """A record whose payload tells which it is."""
    payload = f"{stream}#{seq}#".encode()
    return Record(
        topic=f"edge/d/{stream}",
        payload=payload + bytes(max(0, size - len(payload))),
        stream=stream,
        seq=seq,
        is_telemetry=stream == TELEMETRY,
    )


def is_genuine(entry: Record) -> bool:
    return entry == record(entry.seq, stream=entry.stream, size=len(entry.payload))


def seqs(note: GapNote) -> range:
    return range(note.from_seq, note.to_seq + 1)


def named(notes: list[GapNote]) -> set[tuple[str, int]]:
    return {(note.stream, seq) for note in notes for seq in seqs(note)}


class Bench:
    """One run of the outbox after another, in the same folder."""

    def __init__(self, folder: Path, *, max_bytes: int = 1 << 24, **arguments: object) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.arguments = arguments
        self.now = 1000.0
        self.step_s = 0.0  # how far the clock goes on whenever it is read
        self.outbox = self._start()

    def _start(self) -> Outbox:
        outbox = Outbox(
            self.max_bytes, folder=self.folder, clock=self._clock, **self.arguments  # type: ignore[arg-type]
        )  # fmt: skip
        self.disk = outbox._disk
        assert self.disk
        self.disk.wait_for_turn = lambda timeout_s: self.disk._turn()  # type: ignore[method-assign]
        self.disk._turn()
        return outbox

    def _clock(self) -> float:
        self.now += self.step_s
        return self.now

    def turn(self, seconds: float = 0.5) -> None:
        """Let time pass and the disk thread look once."""
        self.now += seconds
        self.disk._turn()

    def put(self, *numbers: int, stream: str = STREAMS[0], size: int = 48) -> None:
        for seq in numbers:
            self.outbox.put(record(seq, stream=stream, size=size))

    def spill(self, *numbers: int, stream: str = STREAMS[0], size: int = 48) -> None:
        """Put and have it saved."""
        self.outbox.set_online(False)
        self.put(*numbers, stream=stream, size=size)
        self.turn()

    def close(self) -> int:
        self.disk._closing = True
        self.disk._turn()
        self.disk._spool.close()
        return self.outbox.close(0)

    def reopen(self) -> None:
        self.close()
        self.outbox = self._start()

    def kill(self, spoil: Callable[[Path], None] = lambda folder: None) -> None:
        """End as by kill -9: the next run finds the files as they are now."""
        old, self.folder = self.folder, self.folder.with_name(self.folder.name + "+")
        shutil.copytree(old, self.folder)
        self.disk._spool.close()
        spoil(self.folder)
        self.outbox = self._start()

    def drain(self) -> list[Record]:
        """Take and acknowledge all there is."""
        taken: list[Record] = []
        for _ in range(100_000):
            batch = self.outbox.take(20)
            for record_id, entry in batch:
                self.outbox.acknowledged(record_id)
                taken.append(entry)
            if not batch:
                self.turn()
                if not self.outbox.waiting:
                    return taken
        raise AssertionError(f"{self.outbox.waiting} records never came")

    def database_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("outbox.db*"))

    def notes(self) -> list[tuple[int, int, str]]:
        notes = self.outbox.take_gaps()
        for note in notes:
            self.outbox.gap_told(note)
        return [(note.from_seq, note.to_seq, note.reason) for note in notes]


class FaultyDisk:
    """Lets the first `good` calls through and fails those after it, until told otherwise."""

    def __init__(
        self, failure: Exception, good: int = 1 << 30, *, for_calls: int = 1 << 30
    ) -> None:
        self.failure, self.good, self.for_calls = failure, good, for_calls
        self.calls = 0

    def check(self) -> None:
        self.calls += 1
        if self.good < self.calls <= self.good + self.for_calls:
            raise self.failure

    def connect(self, path: Path, **arguments: object) -> sqlite3.Connection:
        self.check()
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *arguments: object) -> sqlite3.Cursor:
                # A rollback is sqlite's own when a statement failed for the disk.
                if sql != "ROLLBACK":
                    disk.check()
                return super().execute(sql, *arguments)  # type: ignore[arg-type]

            def executemany(self, sql: str, *arguments: object) -> sqlite3.Cursor:
                disk.check()
                return super().executemany(sql, *arguments)  # type: ignore[arg-type]

        return sqlite3.connect(path, factory=Connection, **arguments)  # type: ignore[call-overload]

    def write_file(self, path: Path, content: bytes) -> None:
        self.check()
        write_durably(path, content)
