"""How a record lies in a row of the spool: its columns, its checksum, and about its size."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

import msgspec

from agent.contract.payloads import GapReason
from agent.daemon.outbox.records import ClockMark, GapNote, Record

# ext4's block. A smaller page would write a third less per record, but share its block with
# pages that a torn write takes along although no log holds them.
PAGE_BYTES = 4096
# What a row takes beside payload, topic and stream: header, numbers, checksum, cell pointer and
# its share of the page's header; 60 measured.
ROW_OVERHEAD_BYTES = 64
COLUMNS = "id, stream, is_telemetry, seq, skipped, topic, boot, clock_offset_s, crc, payload"
_REASONS: dict[object, GapReason] = {name.encode(): name for name in get_args(GapReason)}


@dataclass(frozen=True, slots=True)
class Row:
    """A record as it lies on disk; `skipped` numbers before `seq` were accounted for already."""

    id: int
    record: Record
    skipped: int = 0


def row_bytes(row: Row) -> int:
    """Return about how much of the file a record takes."""
    record = row.record
    size = len(record.payload) + len(record.topic) + len(record.stream) + ROW_OVERHEAD_BYTES
    # A row too large for its page goes on in pages of its own (sqlite.org/fileformat.html, 1.6).
    return size if size < PAGE_BYTES else size + PAGE_BYTES


def encoded(text: str) -> bytes:
    """Return a text as it is stored: any, since only who publishes it knows whether it can be."""
    return text.encode(errors="surrogatepass")


def decoded(content: bytes) -> str:
    """Return the text that was stored."""
    return content.decode(errors="surrogatepass")


def checksum(fields: Iterable[object]) -> int:
    """Return the CRC-32 of what sqlite3 takes or gives, whatever types damage has made of it."""
    return zlib.crc32(msgspec.msgpack.encode(list(fields)))


def pack(row: Row) -> tuple[object, ...]:
    """Return a record's columns."""
    record = row.record
    clock = record.clock
    fields = (
        row.id,
        encoded(record.stream),
        int(record.is_telemetry),
        record.seq,
        row.skipped,
        encoded(record.topic),
        encoded(clock.boot) if clock else None,
        clock.offset_s if clock else None,
    )
    return (*fields, checksum((*fields, record.payload)), record.payload)


def unpack(fields: tuple[Any, ...]) -> Row | None:
    """Return what the columns hold; None where they are damaged."""
    *head, crc, payload = fields
    if crc != checksum((*head, payload)):
        return None
    row_id, stream, is_telemetry, seq, skipped, topic, boot, offset_s = head
    record = Record(
        topic=decoded(topic),
        payload=payload,
        stream=decoded(stream),
        seq=seq,
        is_telemetry=bool(is_telemetry),
        clock=None if boot is None else ClockMark(boot=decoded(boot), offset_s=offset_s),
    )
    return Row(row_id, record, skipped)


def unpack_note(fields: tuple[Any, ...]) -> GapNote | None:
    """Return a note whose checksum was right; None for a reason only a later version knows."""
    stream, reason, from_seq, to_seq = fields
    known = _REASONS.get(reason)
    if known is None:
        return None
    return GapNote(stream=decoded(stream), reason=known, from_seq=from_seq, to_seq=to_seq)
