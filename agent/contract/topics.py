"""The topic table: every topic the agent writes or reads, its payload and retention.

Beside it there are the topics of Home Assistant's discovery (`agent.contract.home_assistant`), and
those on which a board asks for pieces of a repository's files (`agent.ota.chunks`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from msgspec import Struct

from agent.contract import payloads, telemetry, updates


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicRow:
    """One row of the contract; `<p>` prefix, `<d>` device, `<c>` camera, `<g>` group."""

    pattern: str
    payload: type[Struct] | Literal["online | offline"]
    retained: bool
    says: str
    is_heard: bool = False  # written by the operator, read by the agent


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
MODEL_DESIRED = TopicRow(
    pattern="<p>/<d>/model/desired",
    payload=updates.Desired,
    retained=True,
    says="which model this board should run",
    is_heard=True,
)
GROUP_DESIRED = TopicRow(
    pattern="<p>/group/<g>/model/desired",
    payload=updates.Desired,
    retained=True,
    says="which model the boards of a group should run",
    is_heard=True,
)
MODEL_REPORTED = TopicRow(
    pattern="<p>/<d>/model/reported",
    payload=updates.Reported,
    retained=True,
    says="which model runs, and how the last order fares: phase, progress, code",
)
TABLE = (
    *(AVAILABILITY, STATUS, DETECTIONS, CAMERA_STATUS, COUNTS, TELEMETRY, GAP),
    *(MODEL_DESIRED, GROUP_DESIRED, MODEL_REPORTED),
)


@dataclass(frozen=True, slots=True)
class Topics:
    """The table for one device."""

    prefix: str
    device: str

    def name(self, row: TopicRow, camera: str = "", group: str = "") -> str:
        """Return the full topic of a row."""
        return (
            row.pattern.replace("<p>", self.prefix)
            .replace("<d>", self.device)
            .replace("<c>", camera)
            .replace("<g>", group)
        )
