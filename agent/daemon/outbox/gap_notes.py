"""Notes about what is missing, from the drop until the broker has taken the message about it.

A note lives in three stages: open (it may still grow), handed out (on its way), told (gone).
Until it is told it belongs on disk as soon as anything else is written there, so that a note
about a durable drop outlives a crash. It may be told twice then, never not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from agent.contract.payloads import GapReason
from agent.daemon.outbox.records import GapNote

Key = tuple[str, str, int]
# Where nobody hears them (the broker refuses their topic), those handed out must not pile up for
# ever: beyond these the oldest are not told again after a restart.
MOST_HANDED_OUT = 1000


class GapNotes:
    """All notes of all streams; not locked, its owner is."""

    def __init__(self, *, keeps_handed_out: bool) -> None:
        self._keeps_handed_out = keeps_handed_out
        self._open: dict[Key, GapNote] = {}
        # the newest open note of a (stream, reason): the one that may grow
        self._growing: dict[tuple[str, str], Key] = {}
        self._handed_out: dict[Key, GapNote] = {}
        self._on_disk: dict[Key, int] = {}  # to_seq as it is there
        # those the disk holds otherwise than memory, the longest so first
        self._unsaved: dict[Key, None] = {}
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
            self._changed(key)
            return
        note = GapNote(stream=stream, from_seq=from_seq, to_seq=to_seq, reason=reason)
        self._open[note.key] = note
        self._growing[stream, reason] = note.key
        self._changed(note.key)

    def take(self) -> list[GapNote]:
        """Hand out all open notes; they grow no further."""
        notes = list(self._open.values())
        if self._keeps_handed_out:
            self._handed_out.update(self._open)
            while len(self._handed_out) > MOST_HANDED_OUT:
                key = next(iter(self._handed_out))
                del self._handed_out[key]
                self._changed(key)
        else:
            self._unsaved.clear()
        self._open = {}
        self._growing.clear()
        return notes

    def told(self, note: GapNote) -> None:
        """Forget a note that was handed out and has arrived."""
        if self._handed_out.pop(note.key, None) is not None:
            self._changed(note.key)

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
        return not self._unsaved

    @property
    def oldest_unsaved(self) -> Key | None:
        """Return the note the disk has held otherwise for the longest, None for none."""
        return next(iter(self._unsaved), None)

    def changes(self) -> tuple[list[GapNote], list[Key]]:
        """Return the notes to write to disk, and the keys of those to delete there."""
        now = [(key, self._known(key)) for key in self._unsaved]
        return [note for _, note in now if note], [key for key, note in now if note is None]

    def saved(self, written: list[GapNote], deleted: list[Key]) -> None:
        """Note that the disk has taken these changes."""
        self._on_disk.update((note.key, note.to_seq) for note in written)
        for key in deleted:
            self._on_disk.pop(key, None)
        for key in (*(note.key for note in written), *deleted):
            self._changed(key)

    def disk_lost(self) -> None:
        """Note that nothing of what was on disk is there any more."""
        self._on_disk.clear()
        self._unsaved = dict.fromkeys(note.key for note in self._all())

    def _known(self, key: Key) -> GapNote | None:
        return self._open.get(key) or self._handed_out.get(key)

    def _changed(self, key: Key) -> None:
        note = self._known(key)
        if self._on_disk.get(key) == (note and note.to_seq):
            self._unsaved.pop(key, None)
        else:
            self._unsaved.setdefault(key)

    def _all(self) -> Iterator[GapNote]:
        yield from self._handed_out.values()
        yield from self._open.values()
