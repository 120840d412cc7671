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
from pathlib import Path
from typing import Any

from agent.daemon.outbox.records import GapNote
from agent.daemon.outbox.spool_rows import COLUMNS, PAGE_BYTES, Row, checksum, encoded, pack, unpack
from agent.daemon.outbox.spool_survey import Survey, count_rows, read_head
from agent.daemon.outbox.spool_trouble import SpoolDamagedError, SpoolUnavailableError, translated

SCHEMA_VERSION = 1
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
_INSERT = f"INSERT INTO records({COLUMNS}) VALUES(?,?,?,?,?,?,?,?,?,?)"
_READ = (
    f"SELECT {COLUMNS} FROM records WHERE id>? AND id<?"  # noqa: S608
    " AND stream=? AND is_telemetry=? ORDER BY id"
)
Connect = Callable[..., sqlite3.Connection]


class Spool:
    """One database file; `open` first, then anything, then `close` or `set_aside`."""

    def __init__(self, path: Path, connect: Connect = sqlite3.connect) -> None:
        self.path = path
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._aside_bytes: int | None = None

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
        with translated():
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

        One is kept, so that damage cannot fill the disk: older ones are deleted. It counts
        against the room the outbox may take (`aside_bytes`) and is the first to go when that
        runs out (`drop_aside`).

        Raises:
            SpoolUnavailableError: the disk does not let it be moved.
        """
        self._drop_log()
        self.drop_aside()
        with translated():
            try:
                return self.path.replace(self._aside[0])
            except OSError:
                # A file does not replace a folder nor a folder a file (rename(2)).
                return self.path.replace(self._aside[1])
            finally:
                self._aside_bytes = None

    @property
    def aside_bytes(self) -> int:
        """Return how much of the disk a damaged database that was set aside takes."""
        if self._aside_bytes is None:
            with translated():
                kept = [path for path in self._aside if path.is_file()]
                self._aside_bytes = sum(path.stat().st_size for path in kept)
        return self._aside_bytes

    def drop_aside(self) -> None:
        """Delete the damaged database that was set aside, as far as the disk lets it be."""
        for path in self._aside:
            with suppress(OSError):
                if path.is_file():
                    path.unlink()
        self._aside_bytes = None

    @property
    def _aside(self) -> list[Path]:
        return [self.path.with_name(f"{self.path.name}.damaged-{number}") for number in (1, 2)]

    def remove(self) -> None:
        """Delete the database.

        Raises:
            SpoolUnavailableError: the disk does not let it be deleted.
        """
        self._drop_log()
        with translated():
            self.path.unlink(missing_ok=True)

    def _drop_log(self) -> None:
        """Close, and delete the log first, lest a new database takes it for its own."""
        self.close()
        with translated():
            for suffix in ("-wal", "-shm", "-journal"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Do all of it or nothing."""
        connection = self._open_connection()
        with translated():
            connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            with translated():
                connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error, OSError):
                connection.execute("ROLLBACK")
            raise

    def insert(self, rows: Iterable[Row]) -> None:
        """Append records; within a transaction."""
        packed = [pack(row) for row in rows]
        with translated():
            self._open_connection().executemany(_INSERT, packed)

    def delete(self, ids: Iterable[int]) -> None:
        """Delete records by id; within a transaction."""
        with translated():
            self._open_connection().executemany(
                "DELETE FROM records WHERE id=?", ((one,) for one in ids)
            )

    def save_notes(self, notes: list[GapNote], told: list[tuple[str, str, int]]) -> None:
        """Write notes, replacing shorter ones, and delete those told; within a transaction."""
        with translated():
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
        with translated():
            self._open_connection().executemany(
                "INSERT OR REPLACE INTO floors VALUES(?,?,?)",
                [(*fields, checksum(fields)) for fields in rows],
            )

    def read(
        self, stream: tuple[str, bool], after_id: int, below_id: int, limit: int, most_bytes: int
    ) -> tuple[list[tuple[int, Row | None]], bool]:
        """Return a stream's rows between two ids, oldest first; None for a damaged one.

        Ends after `limit` rows, or with the row that fills `most_bytes` of payload. Returns
        besides whether these are all.
        """
        found: list[tuple[int, Row | None]] = []
        with translated():
            rows = self._open_connection().execute(
                _READ, (after_id, below_id, encoded(stream[0]), int(stream[1]))
            )
            try:
                for fields in rows:
                    if len(found) >= limit or most_bytes <= 0:
                        return found, False
                    row = unpack(fields)
                    found.append((fields[0], row))
                    most_bytes -= 0 if row is None else len(row.record.payload)
            finally:
                rows.close()  # an open one keeps the log from being cut
        return found, True

    def prove(self) -> None:
        """Write, within a transaction, a page as it is: fails where nothing can be written."""
        with translated():
            self._open_connection().execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def used_bytes(self) -> int:
        """Return what records and notes take on disk, beyond an empty database."""
        with translated():
            pages = self._pragma("page_count") - self._pragma("freelist_count")
            return max(0, pages - EMPTY_PAGES) * PAGE_BYTES

    def clear(self) -> None:
        """Delete all records, whatever state their rows are in; within a transaction."""
        with translated():
            self._open_connection().execute("DELETE FROM records")

    def cut_log(self) -> None:
        """Fold the log into the database and cut it to nothing."""
        with translated():
            self._open_connection().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def read_head(self) -> Survey:
        """Return what is known at once of what is there; see `spool_survey`."""
        with translated():
            return read_head(self._open_connection())

    def count_rows(self, survey: Survey) -> Iterator[None]:
        """Count the rows below `survey.next_id` in steps; reads every page once."""
        with translated():
            yield from count_rows(self._open_connection(), survey)

    def _open_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise SpoolUnavailableError("it is not open")
        return self._connection

    def _one(self, sql: str, *arguments: int) -> Any:  # noqa: ANN401 - a damaged file may hold anything
        row = self._open_connection().execute(sql, arguments).fetchone()
        return row[0] if row else None

    def _pragma(self, name: str) -> int:
        return int(self._one(f"PRAGMA {name}"))
