"""From what the link says of a record to the latency book, which knows cameras."""

from __future__ import annotations

from collections.abc import Mapping

from agent.daemon.mqtt import OnDelivered
from agent.daemon.outbox import Record
from agent.telemetry.latency import LatencyBook


def note_delivered(book: LatencyBook, camera_of: Mapping[str, str]) -> OnDelivered:
    """Return what the link is to call; `camera_of` says whose results a stream holds.

    Telemetry is in none of these streams, so it does not count.
    """

    def on_delivered(record: Record, sent_ns: int, acknowledged_ns: int) -> None:
        camera = camera_of.get(record.stream)
        if camera is not None:
            book.note_delivered(
                camera, record.captured_ns, record.encoded_ns, sent_ns, acknowledged_ns
            )

    return on_delivered
