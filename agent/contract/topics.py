"""The topic table: every topic the agent writes, its payload, QoS and retention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from msgspec import Struct

from agent.contract import payloads, telemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicRow:
    """One row of the contract; `<p>` prefix, `<d>` device, `<c>` camera."""

    pattern: str
    payload: type[Struct] | Literal["online | offline"]
    retained: bool
    says: str


AVAILABILITY = TopicRow(
    pattern="<p>/<d>/availability",
    payload="online | offline",
    retained=True,
    says="`online` only after an accepted CONNACK; `offline` is the last will",
)
STATUS = TopicRow(
    pattern="<p>/<d>/status",
    payload=payloads.Status,
    retained=True,
    says="version, board, model, accelerator, cameras, what is wrong",
)
DETECTIONS = TopicRow(
    pattern="<p>/<d>/camera/<c>/detections",
    payload=payloads.Result,
    retained=False,
    says="one result per frame",
)
CAMERA_STATUS = TopicRow(
    pattern="<p>/<d>/camera/<c>/status",
    payload=payloads.CameraStatus,
    retained=True,
    says="online, offline, starting or frozen, since when and why",
)
COUNTS = TopicRow(
    pattern="<p>/<d>/camera/<c>/counts",
    payload=payloads.Counts,
    retained=True,
    says="how many of each label the camera sees now, when that changes",
)
TELEMETRY = TopicRow(
    pattern="<p>/<d>/telemetry",
    payload=telemetry.Telemetry,
    retained=False,
    says="latency, power, energy, heat, frames, drops, processes, outbox, each interval",
)
GAP = TopicRow(
    pattern="<p>/<d>/gap",
    payload=payloads.Gap,
    retained=False,
    says="which results were given up, and why",
)
TABLE = (AVAILABILITY, STATUS, DETECTIONS, CAMERA_STATUS, COUNTS, TELEMETRY, GAP)


@dataclass(frozen=True, slots=True)
class Topics:
    """The table for one device."""

    prefix: str
    device: str

    def name(self, row: TopicRow, camera: str = "") -> str:
        """Return the full topic of a row."""
        return (
            row.pattern.replace("<p>", self.prefix)
            .replace("<d>", self.device)
            .replace("<c>", camera)
        )
