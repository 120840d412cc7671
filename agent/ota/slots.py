"""What the board remembers of its models, in two files of which one is always whole.

A write goes to the file that holds the older state, in place, and is waited for; the newer one is
not touched. So a power cut at any instant leaves the state before or the state after. The files
keep their length, so on most file systems a full disk can still be written to here.
"""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.ota.checked import seal, unseal
from agent.ota.disk import Disk, RealDisk, make_folder_durably, read_bounded, write_through
from agent.ota.floors import FloorBook, FloorLog, book_of, lifted
from agent.ota.state import State

log = logging.getLogger(__name__)

KIND = "state"
NAMES = ("state.0", "state.1")
FLOORS_NAME = "floors.log"
# Files grow in steps of this; one holds the records of some ten engines.
STEP_BYTES = 16 << 10
MOST_BYTES = 1 << 20
# Of each engine. The oldest go first: their deployments are long over.
MOST_DENIED = 32


@dataclass(frozen=True, slots=True)
class _Slot:
    """One of the two files, as it was found."""

    name: str
    state: State | None = None
    raw: bytes = b""
    fault: str | None = None  # why there is no state although there is a file


class Slots:
    """The two files, and the floors' own. One process at a time, one thread at a time.

    `alarm` says what was lost, for as long as this process runs, and what cannot be kept, until it
    can be again.
    """

    def __init__(self, folder: Path, disk: Disk | None = None) -> None:
        self._folder = folder
        self._disk = disk or RealDisk()
        self._floors = FloorLog(folder / FLOORS_NAME, self._disk)
        self._state: State | None = None
        self._newest: _Slot | None = None
        self._is_settled = False
        self._lost: str | None = None
        self._unkept: str | None = None

    @property
    def alarm(self) -> str | None:
        """Return what is wrong, as sentences."""
        return ". ".join(said for said in (self._lost, self._unkept) if said) or None

    def read(self) -> State:
        """Return the newest state that is whole, else a new one; never raises.

        The floors are the highest found anywhere, so they hold even where the state is lost. The
        first call also sees to it that what it returns is on the disk: an earlier process may have
        been killed between writing and waiting, and nothing may be built on that.
        """
        if self._state is None:
            self._state = self._load()
            try:
                self._settle()
            except OSError as error:
                self._unkept = f"{self._folder}: cannot be written: {error.strerror or error}"
        return self._state

    def write(self, state: State) -> State:
        """Keep a state; return it as it is kept: with its generation, and no floor lowered.

        Raises:
            OSError: nothing is promised; after a crash it may be this state or the one before.
            ValueError: a fault of the program: what could not be read again is not written.
        """
        before = self.read()
        try:
            self._settle()
            after = lifted(trimmed(state), book_of(before))
            after = self._put(after, before.generation + 1)
            if self._lost and before.generation == 0:
                # What lies in the other is unreadable today, and may be read again tomorrow.
                after = self._put(after, after.generation + 1)
        except OSError as error:
            self._unkept = f"{self._folder}: cannot be written: {error.strerror or error}"
            raise
        self._state, self._unkept = after, None
        try:
            self._floors.keep(book_of(after))
        except OSError as error:
            self._unkept = f"{self._folder / FLOORS_NAME}: {error.strerror or error}"
        return after

    def _load(self) -> State:
        slots = [self._look(name) for name in NAMES]
        book = self._floors.read()
        whole = [slot for slot in slots if slot.state is not None]
        faults = [f"{slot.name} {slot.fault}" for slot in slots if slot.fault]
        if whole:
            self._newest = max(whole, key=_generation)
            if faults:
                # A power cut during a write leaves this, by design.
                log.warning("%s: %s; the other is used", self._folder, faults[0])
        elif len(faults) > 1 or book != FloorBook():
            self._lost = (
                f"{self._folder}: what was remembered of the models is lost "
                f"({', '.join(faults) or 'both files are gone'}): the factory's model runs until "
                "the next order; the lowest versions allowed were kept elsewhere"
            )
            if book == FloorBook():
                self._lost = self._lost.replace("were kept elsewhere", "are lost as well")
        state = self._newest.state if self._newest is not None else None
        return lifted(state or State(), book)

    def _look(self, name: str) -> _Slot:
        try:
            raw = read_bounded(self._disk, self._folder / name, MOST_BYTES)
        except FileNotFoundError:
            return _Slot(name)
        except OSError as error:
            return _Slot(name, fault=f"cannot be read ({error.strerror or error})")
        found = unseal(KIND, raw)
        if found is None:
            return _Slot(name, fault="is damaged")
        number, content = found
        try:
            state = msgspec.json.decode(content, type=State)
        except msgspec.MsgspecError as error:
            return _Slot(name, fault=f"is of another version of this program ({error})")
        return _Slot(name, msgspec.structs.replace(state, generation=number), raw)

    def _settle(self) -> None:
        """Write the newest once more where it is.

        Until that is waited for, the other file must not be touched: what is in memory of this one
        may have never reached the disk.
        """
        is_there = self._disk.is_folder(self._folder)
        if self._is_settled and is_there:
            return
        self._is_settled = False  # somebody has removed it, with all that was in it
        if self._newest is None or not is_there:
            make_folder_durably(self._disk, self._folder)
        if self._newest is not None:
            write_through(self._disk, self._folder / self._newest.name, self._newest.raw, "over")
        self._disk.sync_folder(self._folder)
        self._is_settled = True

    def _put(self, state: State, generation: int) -> State:
        state = msgspec.structs.replace(state, generation=generation)
        raw = _encode(state)
        is_second = self._newest is not None and self._newest.name == NAMES[0]
        name = NAMES[1] if is_second else NAMES[0]
        write_through(self._disk, self._folder / name, raw, "over")
        self._disk.sync_folder(self._folder)
        self._newest = _Slot(name, state, raw)
        return state


def _generation(slot: _Slot) -> int:
    return slot.state.generation if slot.state is not None else -1


def _encode(state: State) -> bytes:
    content = msgspec.json.encode(state)
    try:
        decoded = msgspec.json.decode(content, type=State)
    except msgspec.MsgspecError as error:
        raise ValueError(f"this state could not be read again: {error}") from error
    if decoded != state:
        raise ValueError("this state would be read as another")
    raw = seal(KIND, state.generation, content)
    if len(raw) > MOST_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return raw.ljust(-(-len(raw) // STEP_BYTES) * STEP_BYTES, b"\n")


def trimmed(state: State) -> State:
    """Return what is kept of a state: all but the oldest denied bundles."""
    engines = {
        name: msgspec.structs.replace(engine, denied=engine.denied[-MOST_DENIED:])
        for name, engine in state.engines.items()
    }
    return msgspec.structs.replace(state, engines=engines)
