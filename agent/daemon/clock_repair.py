"""Times stamped before the clock was set, corrected once it is.

A board without a real-time clock starts at some time in the past and publishes nothing that can
be believed until a time server answers. What it wrote meanwhile carries a `ClockMark`: the offset
between the wall clock and the monotonic one at that moment. Within one boot of the kernel the
monotonic clock knows of no steps, so the difference between that offset and today's is exactly
what the stamped time is wrong by. After a reboot it is not known, and nothing is changed.

CLOCK_MONOTONIC stands still while a board sleeps (clock_gettime(2)): times from before a suspend
are corrected by the wrong amount. Boards that serve cameras do not sleep.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import msgspec

from agent.daemon.outbox import ClockMark, Record
from agent.sensors.clock import read_clock_offset_s, read_clock_synced, read_kernel_boot_id

# What a time is called in results and in telemetry (agent/contract/payloads.py).
TIME_KEYS = ("captured_at", "at")
# Steps of floating point at today's Unix times are 0.24 µs; payloads have microseconds.
DIGITS = 6

# Values are kept as the bytes they are, so that nothing but the three keys can change.
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_number = msgspec.json.Decoder(float).decode


class ClockRepair:
    """Marks what is stamped by an unset clock, and corrects it; for any thread."""

    def __init__(
        self,
        *,
        read_synced: Callable[[], bool | None] = read_clock_synced,
        read_offset_s: Callable[[], float] = read_clock_offset_s,
        boot: str | None = None,
    ) -> None:
        """Take the clock's readers; `boot` is by default the running kernel's id."""
        self._read_synced = read_synced
        self._read_offset_s = read_offset_s
        self._boot = boot if boot is not None else read_kernel_boot_id()

    def mark(self, offset_s: float | None) -> ClockMark | None:
        """Return the mark of a time with this offset; None where nothing is to be corrected.

        `offset_s` is `ResultOut.clock_offset_s`: None where the clock was synchronized.
        """
        if offset_s is None or not self._boot:
            return None
        return ClockMark(boot=self._boot, offset_s=offset_s)

    def stamp(self) -> tuple[float, bool | None, ClockMark | None]:
        """Return the time, whether it can be believed, and the mark of a record that carries it.

        Asked before the time is read: a clock that is set in between gives a right time with a
        mark, which is corrected by nothing; the other way round it would be wrong without one.
        """
        is_synced = self._read_synced()
        at, now = time.time(), time.monotonic()
        return at, is_synced, None if is_synced else self.mark(at - now)

    def repair(self, record: Record) -> Record:
        """Return the record with its time corrected, or as it is where that cannot be done."""
        mark = record.clock
        if mark is None or not self._boot or mark.boot != self._boot or not self._read_synced():
            return record
        payload = shift_time(record.payload, self._read_offset_s() - mark.offset_s)
        if payload is None:
            return record
        return dataclasses.replace(record, payload=payload, clock=None)


def shift_time(payload: bytes, shift_s: float) -> bytes | None:
    """Return a payload's JSON with its time moved and said to be right; None: it has no time."""
    try:
        fields = _decode(payload)
        key = next(key for key in TIME_KEYS if key in fields)
        moved = round(_number(fields[key]) + shift_s, DIGITS)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, StopIteration):
        return None
    repaired: dict[str, msgspec.Raw | float | bool] = {}
    for name, value in fields.items():
        if name == key:
            repaired[name] = moved
        elif name == "clock_synced":
            repaired[name] = repaired["clock_repaired"] = True
        elif name != "clock_repaired":
            repaired[name] = value
    repaired.setdefault("clock_synced", True)
    repaired.setdefault("clock_repaired", True)
    return _encode(repaired)
