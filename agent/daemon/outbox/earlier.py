"""Which numbers earlier runs used, and the notes about those of which nothing is left."""

from __future__ import annotations

from agent.daemon.outbox.gap_notes import GapNotes
from agent.daemon.outbox.numbering import RESTART, Numbers, unnamed
from agent.daemon.outbox.spool_survey import Survey


class EarlierNumbers:
    """What the database says, joined with what `seq.json` says; either may come late."""

    def __init__(self, notes: GapNotes) -> None:
        self.begun: dict[str, int] = {}  # up to these numbers, all is of earlier runs
        self._notes = notes
        self._survey = Survey()
        self._named: dict[str, int] = {}

    def found(self, survey: Survey) -> None:
        """Take over what the database says."""
        self._survey = survey

    def done(self, left: dict[str, Numbers]) -> dict[str, int]:
        """Return up to which number nobody need be told anything any more, as far as known."""
        floors = {stream: one.done for stream, one in left.items()}
        for stream, seq in self._survey.floors.items() if self._survey.is_intact else ():
            floors[stream] = max(seq, floors.get(stream, 0))
        return floors

    def name(self, left: dict[str, Numbers]) -> None:
        """Note the numbers between what was found and what this run begins with.

        Streams in `left` go on behind it at the earliest. May be called again when `left` comes
        late; what was named then is not named again.
        """
        done, highest = self.done(left), self._survey.highest
        for stream in {**left, **highest}:
            last = max(done.get(stream, 0), highest.get(stream, 0), self._named.get(stream, 0))
            numbers, begun = left.get(stream), self.begun.get(stream, 0)
            if numbers is not None:
                self._name_left(stream, numbers, last)
                last = max(last, numbers.end)
                self.begun[stream] = max(begun, numbers.end)
            self.skip(stream, last, begun)

    def _name_left(self, stream: str, numbers: Numbers, last: int) -> None:
        is_intact = self._survey.is_intact
        has_notes = is_intact and self._notes.highest(stream) >= numbers.noted
        accounted = self._notes.skip(stream, last)
        note = unnamed(stream, numbers, accounted, has_notes=has_notes)
        if note is not None:
            self._notes.add(stream, note.from_seq, note.to_seq, note.reason)

    def skip(self, stream: str, last: int, begun: int) -> None:
        """Note that numbering went on behind `begun` although only `last` was used, if so."""
        if begun > last:
            self._notes.add(stream, last + 1, begun, RESTART)
            self._named[stream] = begun
