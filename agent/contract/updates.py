"""What operators ask of a board's models, and what the board answers: `model/desired`, `reported`.

A desired state only points at a version in the repository that the board trusts; by itself it can
make no board trust any bytes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from agent.contract.payloads import Count, ModelIdentity, UnixSeconds

# In this order, but that any of them may end in `refused` and the last two in `rolled_back`.
Phase = Literal[
    "idle",
    "accepted",
    "metadata",
    "downloading",
    "verify",
    "selftest",
    "shadow",
    "trial",
    "probation",
    "committed",
    "rolled_back",
    "refused",
]
Action = Literal["run", "rollback", "factory"]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
Version = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}\Z")]
DeploymentId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:-]{1,64}\Z")]
MOST_DESIRED_BYTES = 4096


class Desired(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What should run; retained by the operator, for a device or for a group.

    The one with the highest `counter` counts; a device's own before any group's.
    """

    schema: Literal["edge-agent/desired/1"] = "edge-agent/desired/1"
    deployment_id: Annotated[DeploymentId, Meta(description="echoed in `reported`")]
    counter: Annotated[
        int, Meta(ge=1, le=2**53, description="grows with every order; Unix milliseconds will do")
    ]
    action: Action = "run"
    engine: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9_-]{0,64}\Z", description="in [models]; empty for [model]")
    ] = ""
    name: Name | None = None  # of the model, with action run
    version: Version | None = None
    pinned: Annotated[bool, Meta(description="groups are not listened to any more")] = False


class Floors(Struct, frozen=True, kw_only=True):
    """What a board never goes below again."""

    release_counter: Count = 0
    security_floor: Count = 0
    root_version: Count = 0
    timestamp_version: Count = 0
    snapshot_version: Count = 0
    targets_version: Count = 0
    time: UnixSeconds = 0.0


class IgnoredOrder(Struct, frozen=True, kw_only=True):
    """The last message on a desired topic that changes nothing here."""

    code: str
    message: str
    deployment_id: Annotated[str | None, Meta(description="null: could not be read")]
    at: UnixSeconds


class Reported(Struct, frozen=True, kw_only=True):
    """What runs, and how the last order fares; retained."""

    schema: Literal["edge-agent/reported/1"] = "edge-agent/reported/1"
    device: str
    boot_id: str
    at: UnixSeconds
    engine: str
    deployment_id: str | None
    phase: Phase
    code: Annotated[str | None, Meta(description="why it was refused or rolled back")]
    message: str | None
    progress: Annotated[float | None, Meta(description="of the phase, 0 to 1")]
    model: Annotated[ModelIdentity | None, Meta(description="what runs now")]
    release_counter: Count | None
    source: Literal["active", "candidate", "previous", "factory", "none"]
    candidate: Annotated[str | None, Meta(description="name@version under way")]
    previous: str | None
    attempts: Count
    bytes_done: Count | None
    bytes_total: Count | None
    p95_ms: float | None
    rss_mib: float | None
    agreement: Annotated[
        float | None, Meta(description="of the candidate with what ran, on frames of this board")
    ]
    clock_trusted: bool | None
    floors: Floors
    ignored: Annotated[IgnoredOrder | None, Meta(description="of this run of the daemon")] = None
