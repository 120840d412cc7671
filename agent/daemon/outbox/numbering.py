"""The numbers that results carry, which go on over restarts: `seq.json` in the state directory.

Numbers are reserved in blocks, so that a run writes once in thousands of results. After a run
that ended without closing, numbering goes on behind the reserved block: what of it was used is
unknown, so none of it is used again. A second copy, written after the first, stands in for a
damaged one. Where neither can be read in time, a stream goes on with the time of day. Not
locked: its owner is.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec

from agent.contract.payloads import GapReason
from agent.daemon.outbox.records import GapNote
from agent.durable import write_durably

# At 30 results a second half a block lasts nearly three minutes: one small write in that time.
BLOCK = 10_000
# A number beyond this is damage: at 1,000 a second it would take 285,000 years.
HIGHEST_SEQ = 2**53
RESTART: GapReason = "restart"
DAMAGED: GapReason = "damaged"

WriteFile = Callable[[Path, bytes], None]

log = logging.getLogger(__name__)


class Numbers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stream: numbers up to `end` are reserved, or were used where the run was closed.

    Up to `done` every number was taken over by the broker or is named in a gap it was told of.
    A run that was closed leaves records on disk up to `kept`, and notes up to `noted`; `kept` is
    None in a run that is under way.
    """

    end: int
    done: int
    kept: int | None
    noted: int = 0


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    streams: dict[str, Numbers]
    crc: int


class Numbering:
    """The reservations of all streams; `load` first.

    `left` is what the run before has left, `damage` are sentences about what was damaged.
    """

    def __init__(
        self,
        path: Path | None,
        write_file: WriteFile | None = None,
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self._write_file = write_file or write_durably
        self._wall_clock = wall_clock
        self.left: dict[str, Numbers] = {}
        self._reserved: dict[str, Numbers] = {}
        self._on_disk: dict[str, Numbers] = {}
        self.damage: list[str] = []
        self.begun: set[str] = set()
        self.jumped: set[str] = set()  # streams that began before the file could be read
        self.is_loaded = path is None

    def load(self, lock: AbstractContextManager[object] | None = None) -> None:
        """Read what is reserved; a damaged file is set aside and its copy used.

        What changes the numbers is done under `lock`; reading, which may take long, is not.

        Raises:
            OSError: the disk does not let it be read or set aside.
        """
        if self.path is None:
            return
        first, copy = _read(self.path), _read(self._copy)
        if not first and isinstance(copy, dict) and copy:
            first = "it was gone"
        if isinstance(first, str):
            self._set_aside(self.path, first, has_copy=isinstance(copy, dict) and bool(copy))
            # The lost file may have been one write ahead of its copy: one block per stream.
            left = {
                stream: Numbers(end=one.end + BLOCK, done=one.done, kept=None)
                for stream, one in (copy if isinstance(copy, dict) else {}).items()
            }
            on_disk = {}
        else:
            left, on_disk = first, dict(first)
        with lock or nullcontext():
            begun = {  # the disk came late: what began meanwhile must not fall back behind it
                stream: _behind(one, left.get(stream)) for stream, one in self._reserved.items()
            }
            self.left, self._on_disk = left, on_disk
            self._reserved = {**left, **begun}
            self.is_loaded = True

    def begin(self, stream: str, highest_seq: int) -> int:
        """Reserve a block for a stream and return its first number.

        `highest_seq` is the highest that is known to have been used otherwise.
        """
        left = self._reserved.get(stream)
        first = max(left.end if left else 0, highest_seq) + 1
        if not self.is_loaded:
            # What was used is not known. Milliseconds since 1970 (1.8e12 in 2027, far below 2**53)
            # are ahead of any count at less than 1,000 a second for 57 years, and of earlier such
            # jumps. A board without a clock of its own starts with the time it was last on
            # (systemd-timesyncd.service(8), "/var/lib/systemd/timesync/clock").
            first = max(first, int(self._wall_clock() * 1000))
            self.jumped.add(stream)
            log.warning("%s not read yet; numbers jump stream=%s to=%d", self.path, stream, first)
        done = left.done if left else 0
        self._reserved[stream] = Numbers(end=first - 1 + BLOCK, done=done, kept=None)
        self.begun.add(stream)
        return first

    def is_low(self, stream: str, last_seq: int) -> bool:
        """Return whether half of the stream's block is used."""
        reserved = self._reserved.get(stream)
        return (
            reserved is not None and reserved.kept is None and last_seq + BLOCK // 2 > reserved.end
        )

    def use(self, stream: str, last_seq: int, done: int) -> None:
        """Reserve the next block, if half of this one is used."""
        if self.is_low(stream, last_seq):
            reserved = self._reserved[stream]
            end = max(reserved.end, last_seq) + BLOCK
            self._reserved[stream] = Numbers(end=end, done=max(reserved.done, done), kept=None)

    def end(self, stream: str, last_seq: int, done: int, kept: int, noted: int) -> None:
        """Give back what is left of a block: the next run goes on right behind `last_seq`."""
        self._reserved[stream] = Numbers(
            end=last_seq, done=min(done, last_seq), kept=kept, noted=noted
        )

    @property
    def streams(self) -> list[str]:
        """Return all that have numbers, of this run and of earlier ones."""
        return list(self._reserved)

    @property
    def is_saved(self) -> bool:
        """Return whether all reservations are on disk."""
        return self.path is None or self._on_disk == self._reserved

    def to_save(self) -> dict[str, Numbers]:
        """Return what `save` is to write."""
        return dict(self._reserved)

    def save(self, streams: dict[str, Numbers]) -> None:
        """Write reservations to disk, durably.

        Raises:
            OSError: the disk took nothing; what was there before still is.
        """
        if self.path is None:
            return
        content = msgspec.json.encode(_File(version=1, streams=streams, crc=_checksum(streams)))
        self._write_file(self.path, content)
        self._write_file(self._copy, content)
        self._on_disk = streams

    @property
    def _copy(self) -> Path:
        assert self.path is not None
        return self.path.with_name(self.path.name + ".copy")

    def _set_aside(self, path: Path, reason: str, *, has_copy: bool) -> None:
        kept = path.with_name(path.name + ".damaged")
        then = (
            "numbering goes on from its copy"
            if has_copy
            else "without a copy numbering starts anew, and numbers may repeat"
        )
        self.damage.append(f"{path} was damaged ({reason}) and is now {kept}; {then}")
        if path.exists():
            path.replace(kept)


def _behind(one: Numbers, left: Numbers | None) -> Numbers:
    """Return a reservation that was made without knowing of `left`, moved behind it."""
    if left is None:
        return one
    end = left.end + BLOCK if left.end > one.end else one.end
    return Numbers(end=end, done=max(one.done, left.done), kept=None)


def unnamed(stream: str, left: Numbers, accounted: int, *, has_notes: bool) -> GapNote | None:
    """Return the note about the numbers of a stream of which the run before leaves nothing.

    Up to `accounted` every number is on disk, was published or is named in a note. `has_notes`:
    all the notes that the run has left are there.
    """
    last, reason = left.end, RESTART
    if left.kept is not None:
        # A run that was closed had saved everything: what is not there the disk has lost. Behind
        # its last record everything was named; what is not in a note any more was told.
        last, reason = left.kept if has_notes else max(left.kept, left.noted), DAMAGED
    if accounted >= last:
        return None
    return GapNote(stream=stream, from_seq=accounted + 1, to_seq=last, reason=reason)


def _read(path: Path) -> dict[str, Numbers] | str:
    """Return what a file holds, nothing where there is none, or how it is damaged."""
    if path.is_dir():
        return "a folder is in its place"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        file = msgspec.json.decode(content, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return str(error)
    if file.version != 1:
        return f"its version is {file.version}, not 1"
    if file.crc != _checksum(file.streams):
        return "its checksum is wrong"
    if not all(
        0 <= one.done <= one.end < HIGHEST_SEQ and max(one.kept or 0, one.noted) <= one.end
        for one in file.streams.values()
    ):
        return "a number in it is impossible"
    return file.streams


def _checksum(streams: dict[str, Numbers]) -> int:
    return zlib.crc32(msgspec.json.encode(sorted(streams.items())))
