"""What a board never goes below again, kept apart from the state and in another way.

A file that only grows: each record is written behind the last one and none is ever written over,
so what damages one, a power cut or a worn page, leaves the others. It is read record by record,
and the highest of each number counts.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.contract.updates import Floors
from agent.ota.checked import seal, unseal
from agent.ota.disk import Disk, read_bounded, write_through
from agent.ota.state import ReleaseFloor, State

log = logging.getLogger(__name__)

KIND = "floors"
# A record has a few hundred bytes, and there is one each time a repository was signed again.
REWRITTEN_BYTES = 64 << 10
MOST_BYTES = 4 << 20


class FloorBook(Struct, frozen=True, kw_only=True):
    """All numbers of a state that only grow."""

    floors: Floors = Floors()
    releases: dict[str, ReleaseFloor] = {}
    counters: dict[str, int] = {}


def book_of(state: State) -> FloorBook:
    """Return a state's."""
    return FloorBook(floors=state.floors, releases=state.releases, counters=state.counters)


def lifted(state: State, book: FloorBook) -> State:
    """Return the state with nothing below the book."""
    high = highest(book_of(state), book)
    return msgspec.structs.replace(
        state, floors=high.floors, releases=high.releases, counters=high.counters
    )


def highest(one: FloorBook, other: FloorBook) -> FloorBook:
    """Return what satisfies both; in whichever order any number of books is joined."""
    names, engines = one.releases | other.releases, one.counters | other.counters
    return FloorBook(
        floors=highest_floors(one.floors, other.floors),
        releases={
            name: _highest_release(*(book.releases.get(name) for book in (one, other)))
            for name in names
        },
        counters={
            engine: max(book.counters.get(engine, 0) for book in (one, other)) for engine in engines
        },
    )


def highest_floors(one: Floors, other: Floors) -> Floors:
    """Return the higher of each; but the metadata's versions are those of the higher root.

    After a key of the repository was stolen, and used to sign a very high version, a new root
    lets its versions start anew (TUF specification, recovery from fast-forward attacks).
    """
    newer = max((one, other), key=lambda floors: floors.root_version)
    if one.root_version == other.root_version:
        versions = {
            name: max(getattr(one, name), getattr(other, name))
            for name in ("timestamp_version", "snapshot_version", "targets_version")
        }
        newer = msgspec.structs.replace(newer, **versions)
    return msgspec.structs.replace(
        newer,
        release_counter=max(one.release_counter, other.release_counter),
        security_floor=max(one.security_floor, other.security_floor),
        time=max(one.time, other.time),
    )


def _highest_release(one: ReleaseFloor | None, other: ReleaseFloor | None) -> ReleaseFloor:
    found = [floor for floor in (one, other) if floor is not None]
    return ReleaseFloor(
        release_counter=max(floor.release_counter for floor in found),
        security_floor=max(floor.security_floor for floor in found),
    )


class FloorLog:
    """The file. One process at a time; `kept` is what a power cut cannot take."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self._number = 0
        self._is_named = False  # the folder is known to keep the file's name
        self.kept = FloorBook()

    def read(self) -> FloorBook:
        """Return the highest of all whole records; never raises."""
        found = FloorBook()
        records: list[bytes] = []
        # A file that has grown beyond all bounds is not ours.
        with contextlib.suppress(OSError):
            # A record has one line of head and one of content.
            content = read_bounded(self._disk, self._path, MOST_BYTES)
            records = content.split(f"\nedge-agent-{KIND}".encode())
        for record in records:
            whole = unseal(KIND, f"edge-agent-{KIND}".encode() + record)
            if whole is None:
                continue
            # Of a later version of this program, which has other fields.
            with contextlib.suppress(msgspec.MsgspecError):
                found = highest(found, msgspec.json.decode(whole[1], type=FloorBook))
                self._number = max(self._number, whole[0])
        return found

    def keep(self, book: FloorBook) -> None:
        """Add a record, if it says anything new.

        Raises:
            OSError: it may be there or not; `kept` is as before.
        """
        wanted = highest(self.kept, book)
        if wanted == self.kept:
            return
        if (self._disk.size(self._path) or 0) > REWRITTEN_BYTES:
            self._rewrite(highest(wanted, self.read()))
        # The first line break ends whatever half a record a power cut has left there.
        record = b"\n" + seal(KIND, self._number + 1, msgspec.json.encode(wanted)) + b"\n"
        write_through(self._disk, self._path, record, "append")
        if not self._is_named:
            self._disk.sync_folder(self._path.parent)
            self._is_named = True
        self._number += 1
        self.kept = wanted

    def _rewrite(self, book: FloorBook) -> None:
        fresh = self._path.with_name(f"{self._path.name}.new")
        self._disk.remove(fresh)
        record = b"\n" + seal(KIND, self._number + 1, msgspec.json.encode(book)) + b"\n"
        write_through(self._disk, fresh, record, "new")
        self._disk.rename(fresh, self._path)
        self._disk.sync_folder(self._path.parent)
        self._number += 1
