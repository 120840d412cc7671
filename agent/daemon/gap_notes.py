"""Notes about what is missing, from the drop until the broker has taken the message about it.

A note lives in three stages: open (it may still grow), handed out (on its way), told (gone).
Until it is told it belongs on disk as soon as anything else is written there, so that a note
about a durable drop outlives a crash. It may be told twice then, never not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from agent.contract.payloads import GapReason
from agent.daemon.outbox_records import GapNote

Key = tuple[str, str, int]
# Where nobody says which notes were told, those handed out must not pile up for ever.
MOST_HANDED_OUT = 10_000


class GapNotes:
    """All notes of all streams; not locked, its owner is."""

    def __init__(self, *, keeps_handed_out: bool) -> None:
        self._keeps_handed_out = keeps_handed_out
        self._open: dict[Key, GapNote] = {}
        # the newest open note of a (stream, reason): the one that may grow
        self._growing: dict[tuple[str, str], Key] = {}
        self._handed_out: dict[Key, GapNote] = {}
        self._on_disk: dict[Key, int] = {}  # to_seq as it is there
        self.damaged = 0  # how many numbers were noted as damaged in this run

    def __bool__(self) -> bool:
        """Return whether `take` would give anything."""
        return bool(self._open)

    def add(self, stream: str, from_seq: int, to_seq: int, reason: GapReason) -> None:
        """Note a range; one that continues the last of its kind makes that one longer."""
        if reason == "damaged":
            self.damaged += to_seq - from_seq + 1
        key = self._growing.get((stream, reason))
        last = self._open.get(key) if key else None
        if key and last and last.to_seq + 1 == from_seq:
            self._open[key] = replace(last, to_seq=to_seq)
            return
        note = GapNote(stream=stream, from_seq=from_seq, to_seq=to_seq, reason=reason)
        self._open[note.key] = note
        self._growing[stream, reason] = note.key

    def take(self) -> list[GapNote]:
        """Hand out all open notes; they grow no further."""
        notes = list(self._open.values())
        if self._keeps_handed_out:
            self._handed_out.update(self._open)
            while len(self._handed_out) > MOST_HANDED_OUT:
                del self._handed_out[next(iter(self._handed_out))]
        self._open = {}
        self._growing.clear()
        return notes

    def told(self, note: GapNote) -> None:
        """Forget a note that was handed out and has arrived."""
        self._handed_out.pop(note.key, None)

    def found(self, notes: list[GapNote]) -> None:
        """Take over the notes an earlier run left on disk."""
        for note in notes:
            self._open[note.key] = note
            self._growing[note.stream, note.reason] = note.key
            self._on_disk[note.key] = note.to_seq

    def lowest(self, stream: str) -> int | None:
        """Return the first number of the stream that somebody is still to be told of."""
        return min((note.from_seq for note in self._all() if note.stream == stream), default=None)

    def highest(self, stream: str) -> int:
        """Return the last number of the stream that somebody is still to be told of, 0 if none."""
        return max((note.to_seq for note in self._all() if note.stream == stream), default=0)

    def skip(self, stream: str, seen: int) -> int:
        """Return the number up to which notes explain what is missing after `seen`."""
        for note in sorted(
            (note for note in self._all() if note.stream == stream), key=lambda note: note.from_seq
        ):
            if note.from_seq <= seen + 1 <= note.to_seq:
                seen = note.to_seq
        return seen

    @property
    def is_saved(self) -> bool:
        """Return whether the disk holds exactly the notes that are not told yet."""
        if not (self._on_disk or self._open or self._handed_out):
            return True
        return self._on_disk == {note.key: note.to_seq for note in self._all()}

    def changes(self) -> tuple[list[GapNote], list[Key]]:
        """Return the notes to write to disk, and the keys of those to delete there."""
        now = {note.key: note for note in self._all()}
        write = [note for key, note in now.items() if self._on_disk.get(key) != note.to_seq]
        return write, [key for key in self._on_disk if key not in now]

    def saved(self, written: list[GapNote], deleted: list[Key]) -> None:
        """Note that the disk has taken these changes."""
        self._on_disk.update((note.key, note.to_seq) for note in written)
        for key in deleted:
            self._on_disk.pop(key, None)

    def disk_lost(self) -> None:
        """Note that nothing of what was on disk is there any more."""
        self._on_disk.clear()

    def _all(self) -> Iterator[GapNote]:
        yield from self._handed_out.values()
        yield from self._open.values()
