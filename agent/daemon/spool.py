"""The SQLite database of the outbox: what waits on disk, and nothing about why.

One thread uses a `Spool`. Records lie in the order they were saved, whatever their stream:
appending touches one page however many streams there are. Measured on ext4 with 5 records of
400 bytes per transaction (write_bytes of /proc/self/io, per record): 3.6 kB so, 8.5 kB with
three streams clustered, 6.7 kB with an index on the stream. To find a sparse stream's records
all the same, the reader knows which blocks of `BLOCK_ROWS` ids hold some (`Found.blocks`).

Every row carries a checksum of all its fields, because SQLite has none on its pages: a flipped
bit in a payload would go unnoticed. Errors come in two kinds: `SpoolDamagedError` (the file
cannot be used any more) and `SpoolUnavailableError` (the disk is full, read-only or failing).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.daemon.outbox_records import RECORD_OVERHEAD_BYTES, GapNote
from agent.daemon.spool_rows import (
    PAGE_BYTES,
    Row,
    checksum,
    decoded,
    encoded,
    pack,
    unpack,
    unpack_note,
)

SCHEMA_VERSION = 1
BLOCK_ROWS = 1024
EMPTY_PAGES = 4  # the header and one root for each table
# The log is folded into the database from this size on, and cut back to it.
LOG_PAGES = 256
_SCHEMA = """
CREATE TABLE records(
    id INTEGER PRIMARY KEY, stream BLOB, is_telemetry INTEGER, seq INTEGER, skipped INTEGER,
    topic BLOB, boot BLOB, clock_offset_s REAL, crc INTEGER, payload BLOB);
CREATE TABLE gaps(
    stream BLOB, reason BLOB, from_seq INTEGER, to_seq INTEGER, crc INTEGER,
    PRIMARY KEY(stream, reason, from_seq)) WITHOUT ROWID;
CREATE TABLE floors(stream BLOB PRIMARY KEY, seq INTEGER, crc INTEGER) WITHOUT ROWID;
"""
_COLUMNS = "id, stream, is_telemetry, seq, skipped, topic, boot, clock_offset_s, crc, payload"
_INSERT = f"INSERT INTO records({_COLUMNS}) VALUES(?,?,?,?,?,?,?,?,?,?)"
_READ = (
    f"SELECT {_COLUMNS} FROM records WHERE id>? AND id<?"  # noqa: S608
    " AND stream=? AND is_telemetry=? ORDER BY id LIMIT ?"
)
# SQLITE_ERROR covers a lost table as well as a passing fault; sqlite3 gives codes from Python
# 3.11 on only.
_DAMAGED_WORDS = ("no such", "malformed", "unsupported file format", "has no column")

Connect = Callable[..., sqlite3.Connection]


class SpoolDamagedError(Exception):
    """The database cannot be used any more; the text says how that shows."""


class SpoolUnavailableError(Exception):
    """The disk does not let the database be used now; the text says why."""


@dataclass(slots=True)
class Found:
    """What lies on disk of one stream; `blocks` are the id // BLOCK_ROWS that hold some."""

    count: int = 0
    bytes: int = 0
    blocks: list[int] = field(default_factory=list)
    highest_seq: int = 0


@dataclass(slots=True)
class Survey:
    """What an earlier run left; a floor is the number up to which all is accounted for.

    `is_intact` is False where a note or a floor was damaged: then no floor can be relied on.
    """

    streams: dict[tuple[str, bool], Found] = field(default_factory=dict)
    notes: list[GapNote] = field(default_factory=list)
    floors: dict[str, int] = field(default_factory=dict)
    next_id: int = 1
    is_intact: bool = True


class Spool:
    """One database file; `open` first, then anything, then `close` or `set_aside`."""

    def __init__(self, path: Path, connect: Connect = sqlite3.connect) -> None:
        self.path = path
        self._connect = connect
        self._connection: sqlite3.Connection | None = None

    @property
    def is_open(self) -> bool:
        """Return whether there is a connection."""
        return self._connection is not None

    @property
    def exists(self) -> bool:
        """Return whether there is a file, or something else in its place."""
        try:
            return self.path.exists()
        except OSError as error:
            raise SpoolUnavailableError(str(error)) from error

    def open(self) -> None:
        """Open the database, or make a new one where there is none.

        Raises:
            SpoolDamagedError: it is no database, or not one of this version.
            SpoolUnavailableError: the disk does not let it be opened or made.
        """
        with _translated():
            if self.path.is_dir():
                raise SpoolDamagedError("a folder is in its place")
            self._connection = connection = self._connect(self.path, isolation_level=None)
            try:
                self._prepare(connection)
            except BaseException:
                self.close()
                raise

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.text_factory = bytes
        # One process uses it. Set before the first access, so the index of the log is in memory
        # and no shared-memory file is mapped, which a failing disk answers with SIGBUS
        # (sqlite.org/wal.html, "Use of WAL Without Shared-Memory").
        for setting in (
            f"page_size={PAGE_BYTES}",
            "locking_mode=EXCLUSIVE",
            "journal_mode=WAL",
            "synchronous=FULL",
            f"wal_autocheckpoint={LOG_PAGES}",
            f"journal_size_limit={LOG_PAGES * PAGE_BYTES}",
            "cache_size=-512",
        ):
            connection.execute(f"PRAGMA {setting}").fetchall()
        version = self._pragma("user_version")
        if version == SCHEMA_VERSION:
            return
        if version or self._one("SELECT count(*) FROM sqlite_master"):
            raise SpoolDamagedError(f"its schema version is {version}, not {SCHEMA_VERSION}")
        with self.transaction():
            for statement in filter(str.strip, _SCHEMA.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def close(self) -> None:
        """Let go of the file; never raises."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error, OSError):
                connection.close()

    def set_aside(self) -> Path:
        """Move a damaged database out of the way and return where it is now.

        One is kept: an older one is replaced, so that damage cannot fill the disk.

        Raises:
            SpoolUnavailableError: the disk does not let it be moved.
        """
        names = [self.path.with_name(f"{self.path.name}.damaged-{number}") for number in (1, 2)]
        self._drop_log()
        with _translated():
            try:
                return self.path.replace(names[0])
            except OSError:
                # A file does not replace a folder nor a folder a file (rename(2)).
                return self.path.replace(names[1])

    def remove(self) -> None:
        """Delete the database.

        Raises:
            SpoolUnavailableError: the disk does not let it be deleted.
        """
        self._drop_log()
        with _translated():
            self.path.unlink(missing_ok=True)

    def _drop_log(self) -> None:
        """Close, and delete the log first, lest a new database takes it for its own."""
        self.close()
        with _translated():
            for suffix in ("-wal", "-shm", "-journal"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Do all of it or nothing."""
        connection = self._open_connection()
        with _translated():
            connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            with _translated():
                connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error, OSError):
                connection.execute("ROLLBACK")
            raise

    def insert(self, rows: Iterable[Row]) -> None:
        """Append records; within a transaction."""
        packed = [pack(row) for row in rows]
        with _translated():
            self._open_connection().executemany(_INSERT, packed)

    def delete(self, ids: Iterable[int]) -> None:
        """Delete records by id; within a transaction."""
        with _translated():
            self._open_connection().executemany(
                "DELETE FROM records WHERE id=?", ((one,) for one in ids)
            )

    def save_notes(self, notes: list[GapNote], told: list[tuple[str, str, int]]) -> None:
        """Write notes, replacing shorter ones, and delete those told; within a transaction."""
        with _translated():
            connection = self._open_connection()
            for note in notes:
                fields = (
                    encoded(note.stream),
                    encoded(note.reason),
                    note.from_seq,
                    note.to_seq,
                )
                connection.execute(
                    "INSERT OR REPLACE INTO gaps VALUES(?,?,?,?,?)", (*fields, checksum(fields))
                )
            connection.executemany(
                "DELETE FROM gaps WHERE stream=? AND reason=? AND from_seq=?",
                [
                    (
                        encoded(stream),
                        encoded(reason),
                        seq,
                    )
                    for stream, reason, seq in told
                ],
            )

    def save_floors(self, floors: dict[str, int]) -> None:
        """Write up to which number all is accounted for; within a transaction."""
        rows = [(encoded(stream), seq) for stream, seq in floors.items()]
        with _translated():
            self._open_connection().executemany(
                "INSERT OR REPLACE INTO floors VALUES(?,?,?)",
                [(*fields, checksum(fields)) for fields in rows],
            )

    def read(
        self, stream: tuple[str, bool], after_id: int, below_id: int, limit: int
    ) -> list[tuple[int, Row | None]]:
        """Return a stream's rows between two ids, oldest first; None for a damaged one."""
        with _translated():
            rows = self._open_connection().execute(
                _READ, (after_id, below_id, encoded(stream[0]), int(stream[1]), limit)
            )
            return [(row[0], unpack(row)) for row in rows]

    def used_bytes(self) -> int:
        """Return what records and notes take on disk, beyond an empty database."""
        with _translated():
            pages = self._pragma("page_count") - self._pragma("freelist_count")
            return max(0, pages - EMPTY_PAGES) * PAGE_BYTES

    def clear(self) -> None:
        """Delete all records, whatever state their rows are in; within a transaction."""
        with _translated():
            self._open_connection().execute("DELETE FROM records")

    def cut_log(self) -> None:
        """Fold the log into the database and cut it to nothing."""
        with _translated():
            self._open_connection().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def survey(self, tick: Callable[[], None]) -> Survey:
        """Return what is there; reads every page once and calls `tick` now and then."""
        survey = Survey()
        with _translated():
            self._read_notes(survey)
            last = self._one("SELECT max(id) FROM records")
            survey.next_id = (last if isinstance(last, int) else 0) + 1
            at: Any = self._one("SELECT min(id) FROM records")
            while isinstance(at, int):
                tick()
                upto = (at // BLOCK_ROWS + 1) * BLOCK_ROWS
                self._count_block(survey, at, upto)
                at = self._one("SELECT id FROM records WHERE id>=? ORDER BY id LIMIT 1", upto)
                if isinstance(at, int) and at < upto:
                    raise SpoolDamagedError("its rows are out of order")
        for stream, found in survey.streams.items():
            found.highest_seq = self._highest_seq(stream, found)
        return survey

    def _read_notes(self, survey: Survey) -> None:
        connection = self._open_connection()
        for *fields, crc in connection.execute(
            "SELECT stream, reason, from_seq, to_seq, crc FROM gaps"
        ):
            note = unpack_note(tuple(fields)) if crc == checksum(fields) else None
            if note is None:
                survey.is_intact = False
            else:
                survey.notes.append(note)
        for stream, seq, crc in connection.execute("SELECT stream, seq, crc FROM floors"):
            if crc == checksum((stream, seq)):
                survey.floors[decoded(stream)] = seq
            else:
                survey.is_intact = False

    def _count_block(self, survey: Survey, from_id: int, below_id: int) -> None:
        rows = self._open_connection().execute(
            "SELECT stream, is_telemetry, count(*), total(length(payload) + length(topic))"
            " FROM records WHERE id>=? AND id<? GROUP BY stream, is_telemetry",
            (from_id, below_id),
        )
        for stream, is_telemetry, count, size in rows:
            if not isinstance(stream, bytes) or is_telemetry not in (0, 1):
                continue  # damaged; nothing can be said of it but by what is missing around it
            try:
                key = (decoded(stream), bool(is_telemetry))
            except UnicodeDecodeError:
                continue
            found = survey.streams.setdefault(key, Found())
            found.count += count
            found.bytes += int(size) + count * RECORD_OVERHEAD_BYTES
            found.blocks.append(from_id // BLOCK_ROWS)

    def _highest_seq(self, stream: tuple[str, bool], found: Found) -> int:
        for block in reversed(found.blocks):
            rows = self.read(stream, block * BLOCK_ROWS - 1, (block + 1) * BLOCK_ROWS, BLOCK_ROWS)
            seqs = [row.record.seq for _, row in rows if row is not None]
            if seqs:
                return max(seqs)
        return 0

    def _open_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise SpoolUnavailableError("it is not open")
        return self._connection

    def _one(self, sql: str, *arguments: int) -> Any:  # noqa: ANN401 - a damaged file may hold anything
        row = self._open_connection().execute(sql, arguments).fetchone()
        return row[0] if row else None

    def _pragma(self, name: str) -> int:
        return int(self._one(f"PRAGMA {name}"))


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what sqlite3 and the file system raise into the two kinds that matter."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if any(word in str(error) for word in _DAMAGED_WORDS):
            raise SpoolDamagedError(str(error)) from error
        raise SpoolUnavailableError(str(error)) from error
    except sqlite3.Error as error:
        raise SpoolDamagedError(str(error) or repr(error)) from error
    except OSError as error:
        raise SpoolUnavailableError(error.strerror or str(error)) from error
