"""What an earlier run left in the spool: first what is cheap to know, then the rest in steps.

`read_head` takes a moment whatever the database holds, and new records may be appended from then
on. `count_rows` reads every page once, for minutes on a slow card: one block at each step, so
that whoever steps can do other things in between, or end.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from agent.daemon.outbox.records import RECORD_OVERHEAD_BYTES, GapNote
from agent.daemon.outbox.spool_rows import COLUMNS, checksum, decoded, encoded, unpack, unpack_note
from agent.daemon.outbox.spool_trouble import SpoolDamagedError

BLOCK_ROWS = 1024
# An id beyond this is damage: at 1,000 a second it would take 285,000 years. SQLite gives no id
# behind the highest one there can be.
HIGHEST_ID = 2**53


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
    Only rows below `next_id` are counted.
    """

    streams: dict[tuple[str, bool], Found] = field(default_factory=dict)
    notes: list[GapNote] = field(default_factory=list)
    floors: dict[str, int] = field(default_factory=dict)
    next_id: int = 1
    is_intact: bool = True

    @property
    def highest(self) -> dict[str, int]:
        """Return the highest number of each stream."""
        result: dict[str, int] = {}
        for (stream, _), found in self.streams.items():
            result[stream] = max(found.highest_seq, result.get(stream, 0))
        return result


def read_head(connection: sqlite3.Connection) -> Survey:
    """Return notes, floors and the next id, without any of the streams."""
    survey = Survey()
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
    last = _one(connection, "SELECT max(id) FROM records")
    survey.next_id = (last if isinstance(last, int) else 0) + 1
    if survey.next_id > HIGHEST_ID:
        raise SpoolDamagedError(f"it holds a row with the impossible id {last}")
    return survey


def count_rows(connection: sqlite3.Connection, survey: Survey) -> Iterator[None]:
    """Fill in `survey.streams`, a little between one `yield` and the next."""
    survey.streams.clear()
    at: Any = _one(connection, "SELECT min(id) FROM records")
    while isinstance(at, int) and at < survey.next_id:
        upto = (at // BLOCK_ROWS + 1) * BLOCK_ROWS
        _count_block(connection, survey, at, min(upto, survey.next_id))
        yield
        at = _one(connection, "SELECT id FROM records WHERE id>=? ORDER BY id LIMIT 1", upto)
        if isinstance(at, int) and at < upto:
            raise SpoolDamagedError("its rows are out of order")
    for stream, found in survey.streams.items():
        found.highest_seq = _highest_seq(connection, stream, found, survey.next_id)
        yield


def _count_block(
    connection: sqlite3.Connection, survey: Survey, from_id: int, below_id: int
) -> None:
    # Grouped here: the sorter of GROUP BY would copy every payload, where length() alone reads
    # none that lies in pages of its own.
    sizes: dict[tuple[object, object], list[int]] = {}
    for stream, is_telemetry, size in connection.execute(
        "SELECT stream, is_telemetry, length(payload) + length(topic)"
        " FROM records WHERE id>=? AND id<?",
        (from_id, below_id),
    ):
        sizes.setdefault((stream, is_telemetry), []).append(size or 0)
    for (stream, is_telemetry), lengths in sizes.items():
        if not isinstance(stream, bytes) or is_telemetry not in (0, 1):
            continue  # damaged; nothing can be said of it but by what is missing around it
        try:
            key = (decoded(stream), bool(is_telemetry))
        except UnicodeDecodeError:
            continue
        found = survey.streams.setdefault(key, Found())
        found.count += len(lengths)
        found.bytes += sum(lengths) + len(lengths) * RECORD_OVERHEAD_BYTES
        found.blocks.append(from_id // BLOCK_ROWS)


def _highest_seq(
    connection: sqlite3.Connection, stream: tuple[str, bool], found: Found, below_id: int
) -> int:
    """Return the number of the last row that is whole; rows lie in the order of their numbers."""
    for block in reversed(found.blocks):
        rows = connection.execute(
            f"SELECT {COLUMNS} FROM records WHERE id>=? AND id<?"  # noqa: S608
            " AND stream=? AND is_telemetry=? ORDER BY id DESC",
            (
                block * BLOCK_ROWS,
                min((block + 1) * BLOCK_ROWS, below_id),
                encoded(stream[0]),
                int(stream[1]),
            ),
        )
        for fields in rows:  # one at a time: payloads may be large
            row = unpack(fields)
            if row is not None:
                return row.record.seq
    return 0


def _one(connection: sqlite3.Connection, sql: str, *arguments: int) -> Any:  # noqa: ANN401 - a damaged file may hold anything
    row = connection.execute(sql, arguments).fetchone()
    return row[0] if row else None
