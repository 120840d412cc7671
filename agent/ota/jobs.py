"""What the control process asks of an update process, and what that answers.

One job is one line of JSON on stdin; each answer is one on stdout, and `Resolved`, `Downloaded`
or `Refused` is the last. Types alone: the control process loads neither TUF nor HTTP.

A job of `metadata` asks the repository what it has and whether this board may believe it; one of
`download` brings a bundle whose length and hash are known from there. Both can be repeated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Struct

from agent.contract.updates import Floors, Name, Version
from agent.ota.refusal import Code

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
MAX_JOB_BYTES = 1 << 20


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What no repository gets more of; tests ask for less patience.

    least_bytes_per_s: over `window_s`, or the mirror is given up
    connect_s: for a connection, apart from the name's resolution
    deadline_s: for one job on one mirror
    pause_s: before a cut transfer is taken up again
    most_bundle_bytes: of a target; metadata have python-tuf's own caps, at most 5 MB
    """

    least_bytes_per_s: float = 1000.0
    window_s: float = 60.0
    connect_s: float = 15.0
    deadline_s: float = 6 * 3600.0
    pause_s: float = 1.0
    most_bundle_bytes: int = 256 << 20


class Custom(Struct, frozen=True, kw_only=True):
    """What the signed metadata say of a bundle before anything of it is fetched.

    More keys may come with later versions; those that a board must heed come with `min_agent`.
    """

    name: Name
    version: Version
    release_counter: Annotated[int, Meta(ge=1, le=2**53)]
    security_floor: Annotated[int, Meta(ge=0, le=2**53)] = 0
    boards: Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(max_length=256)] = []
    min_agent: Annotated[str, Meta(max_length=64)] | None = None


class Target(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bundle of the repository, by what was signed."""

    sha256: Sha256
    length: Annotated[int, Meta(ge=1)]
    custom: Custom


class MetadataJob(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step",
                  tag="metadata"):  # fmt: skip
    """Ask for a version, or with no name for all there are.

    repository: of each mirror the folder with `metadata` and `targets`: `https://`, `http://` or
        `file://`, or `mqtt:` for the one behind the broker; in this order
    metadata_dir: where trusted metadata are kept; one update process at a time
    root: file of the first root, that came with the configuration
    floors: what must not be gone below; `security_floor` is of the wanted name
    at: Unix seconds, `clock_policy.Time.at`
    board: BoardIdentity.id
    agent: version of this program
    """

    repository: Annotated[list[str], Meta(min_length=1, max_length=16)]
    metadata_dir: str
    root: str
    floors: Floors
    at: float
    clock_trusted: bool | None
    board: str
    agent: str
    name: Name | None = None
    version: Version | None = None
    ca_file: str = ""
    limits: Limits = Limits()


class DownloadJob(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="step",
                  tag="download"):  # fmt: skip
    """Bring a bundle into the file `part`, going on where an earlier process ended."""

    repository: Annotated[list[str], Meta(min_length=1, max_length=16)]
    name: Name
    version: Version
    sha256: Sha256
    length: Annotated[int, Meta(ge=1)]
    part: str
    ca_file: str = ""
    limits: Limits = Limits()


class Progress(Struct, frozen=True, kw_only=True, tag_field="event", tag="progress"):
    """How far a download is, about once a second."""

    bytes_done: int
    bytes_total: int


class Need(Struct, frozen=True, kw_only=True, tag_field="event", tag="need"):
    """A piece of a file to be asked for over MQTT: see `agent.ota.fetch_mqtt.ChunkRelay`."""

    id: str
    path: str
    offset: int
    length: int


class Resolved(Struct, frozen=True, kw_only=True, tag_field="event", tag="resolved"):
    """The repository is believed.

    target: what was asked for; it fits this board
    targets: all that fit this board, if nothing was asked for by name
    floors: to be kept before anything is done with the answer
    expires_at: Unix seconds from which the repository will not be believed unless signed anew
    mirror: index of the one that had it
    """

    target: Target | None
    targets: list[Target]
    floors: Floors
    at: float
    clock_trusted: bool | None
    expires_at: float
    mirror: int


class Downloaded(Struct, frozen=True, kw_only=True, tag_field="event", tag="downloaded"):
    """The file `part` is whole, has the promised hash and is on the disk.

    bytes_fetched: over the network by this process; those of earlier ones are not counted
    """

    sha256: str
    length: int
    bytes_fetched: int


class Refused(Struct, frozen=True, kw_only=True, tag_field="event", tag="refused"):
    """Nothing came of it.

    is_final: whether trying again without another order is of no use
    floors: as far as something was believed; to be kept
    repo_stale_days: since when the repository's word has expired, with E_FREEZE
    """

    code: Code
    message: str
    is_final: bool
    floors: Floors | None = None
    repo_stale_days: float | None = None


Job: TypeAlias = MetadataJob | DownloadJob
Event: TypeAlias = Progress | Need | Resolved | Downloaded | Refused

_jobs: msgspec.json.Decoder[Job] = msgspec.json.Decoder(Job)
_events: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def parse_job(line: bytes) -> Job:
    """Return the job of a line; raises msgspec's errors."""
    return _jobs.decode(line)


def parse_event(line: bytes) -> Event:
    """Return the event of a line; raises msgspec's errors."""
    return _events.decode(line)


def to_line(message: Job | Event) -> bytes:
    """Return a message as one line."""
    return msgspec.json.encode(message) + b"\n"


def target_path(name: str, version: str) -> str:
    """Return what a bundle is called in the metadata."""
    return f"{name}/{version}.tar"


def file_path(name: str, version: str, sha256: str) -> str:
    """Return where a bundle's file is in a repository.

    With its hash, as TUF wants it (`consistent_snapshot`): so it is never another file, whichever
    mirror has it, and a transfer can go on anywhere.
    """
    return f"targets/{name}/{sha256}.{version}.tar"


def sidecar(part: Path) -> Path:
    """Return the file beside a part file that says where it came from."""
    return part.with_name(f"{part.name}.from")
