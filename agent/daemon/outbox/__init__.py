"""What waits for the broker: in memory while it acknowledges, on disk while it does not."""

from agent.daemon.outbox.outbox import MOST_MEMORY_BYTES, Outbox
from agent.daemon.outbox.records import ClockMark, GapNote, Record, size_bytes

__all__ = ["MOST_MEMORY_BYTES", "ClockMark", "GapNote", "Outbox", "Record", "size_bytes"]
