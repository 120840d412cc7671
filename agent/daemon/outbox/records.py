"""What the outbox holds: a message to publish, and the name of what will never be published."""

from __future__ import annotations

from dataclasses import dataclass

from agent.contract.payloads import GapReason

# What CPython spends on one waiting record beside its bytes, so that the bound is about memory
# and not only about payload: the record (96), the header of its bytes (33), its entry (104), the
# numbers of both (160) and the slots in a queue and a table (70). tracemalloc says 463 on CPython
# 3.11, 64 bit; strings that all records of a stream share are not counted.
RECORD_OVERHEAD_BYTES = 460


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockMark:
    """What is needed to correct a time once the clock is right.

    `boot` is the kernel's boot id, `offset_s` the wall clock minus the monotonic clock when the
    time was read.
    """

    boot: str
    offset_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One message to publish; `seq` > 0 numbers it within its `stream`.

    `clock` is set where its times were read from a clock that was not synchronized yet.
    `captured_ns` and `encoded_ns` are stamps of the monotonic clock for latency, 0 where unknown:
    they do not go to disk, so what is read back has none.
    """

    topic: str
    payload: bytes
    stream: str = ""
    seq: int = 0
    is_telemetry: bool = False
    clock: ClockMark | None = None
    captured_ns: int = 0
    encoded_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GapNote:
    """Every `seq` from `from_seq` to `to_seq` of `stream` was given up for `reason`."""

    stream: str
    from_seq: int
    to_seq: int
    reason: GapReason

    @property
    def count(self) -> int | None:
        """Return how many records the range holds; None where some were never used."""
        return None if self.reason == "restart" else self.to_seq - self.from_seq + 1

    @property
    def key(self) -> tuple[str, str, int]:
        """Return what stays the same while a note grows."""
        return (self.stream, self.reason, self.from_seq)


def size_bytes(record: Record) -> int:
    """Return what a record counts for against the bound."""
    return len(record.payload) + len(record.topic) + RECORD_OVERHEAD_BYTES
