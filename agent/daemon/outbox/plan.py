"""What one transaction of the outbox writes: the queue chooses, the disk thread carries out."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.daemon.outbox.gap_notes import Key
from agent.daemon.outbox.lanes import Entry
from agent.daemon.outbox.records import GapNote
from agent.daemon.outbox.spool_rows import Row


@dataclass(slots=True)
class Plan:
    """What one transaction saves."""

    entries: list[Entry] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


@dataclass(slots=True)
class Changes:
    """What one transaction changes beside the records it saves, as of its end."""

    gone: list[int]
    notes: list[GapNote]
    told: list[Key]
    floors: dict[str, int]
