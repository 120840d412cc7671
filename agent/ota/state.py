"""What a board remembers of its models: one record, written whole before anything is done.

Pure types; `agent.ota.slots` keeps them on disk, `agent.ota.rules` says how they change.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from agent.contract.updates import Desired, Floors, Phase

Scope = Literal["device", "group"]
# Of a message; it may quote what a worker, a child or another machine said.
MOST_CHARACTERS = 500
# Where a model that runs came from: see `Reported.source`.
Source = Literal["active", "candidate", "previous", "factory", "none"]


class BundleRef(Struct, frozen=True, kw_only=True):
    """A bundle of the store, by the hash of its tar file."""

    sha256: str
    name: str
    version: str
    release_counter: int
    security_floor: int
    # Of the manifest.json inside, which has the hashes of all else; known once it is unpacked.
    manifest_sha256: str = ""
    # Of this board's entry in the bundle's budget; None: it states none.
    p95_ms: float | None = None
    rss_mib: float | None = None

    @property
    def title(self) -> str:
        """What people call it."""
        return f"{self.name}@{self.version}"


class Denied(Struct, frozen=True, kw_only=True):
    """A bundle that was rolled back, and the deployment that must not try it again."""

    sha256: str
    deployment_id: str
    code: str


class EngineState(Struct, frozen=True, kw_only=True):
    """What one engine runs; `active` None is the factory's model, the one the settings name."""

    active: BundleRef | None = None
    previous: BundleRef | None = None  # None: one step back is the factory's model
    denied: tuple[Denied, ...] = ()


class ReleaseFloor(Struct, frozen=True, kw_only=True):
    """What no model of this name goes below again, on this board."""

    release_counter: int = 0  # the highest that was committed
    security_floor: int = 0


class Order(Struct, frozen=True, kw_only=True):
    """An order, and whether it was this board's own or one of its groups'."""

    desired: Desired
    scope: Scope

    @property
    def engine(self) -> str:
        """Whose model it is about."""
        return self.desired.engine

    @property
    def is_pinned(self) -> bool:
        """Whether groups are not listened to any more; no group can say so."""
        return self.desired.pinned and self.scope == "device"


class Deployment(Struct, frozen=True, kw_only=True):
    """The last order that was taken up, and how it fares."""

    order: Order
    phase: Phase = "accepted"
    code: str | None = None
    message: str | None = None
    # What is to run: the bundle, or None for the factory's model. Known once `is_resolved`.
    candidate: BundleRef | None = None
    is_resolved: bool = False
    size: int | None = None  # of the bundle's file, bytes
    is_refetched: bool = False  # what had been fetched was damaged here
    # How often the phase under way was begun, written before each beginning. In trial and
    # probation: how often the candidate was given a worker.
    attempts: int = 0
    transitions: int = 0
    p95_ms: float | None = None
    rss_mib: float | None = None
    agreement: float | None = None
    clock_trusted: bool | None = None

    @property
    def engine(self) -> str:
        """Whose model it is."""
        return self.order.engine


class State(Struct, frozen=True, kw_only=True):
    """Everything that outlives the process; `generation` grows with every write."""

    generation: int = 0
    engines: dict[str, EngineState] = {}  # by name in [models]; empty for [model]
    deployment: Deployment | None = None
    # The last order that was taken up for each engine, and its counter, which is kept apart as
    # older ones are replays even where the order itself was lost.
    orders: dict[str, Order] = {}
    counters: dict[str, int] = {}
    floors: Floors = Floors()  # of the metadata and of time
    releases: dict[str, ReleaseFloor] = {}  # by the model's name

    def engine(self, name: str) -> EngineState:
        """Return what is known of an engine."""
        return self.engines.get(name, EngineState())

    def release(self, name: str) -> ReleaseFloor:
        """Return what is known of the models of a name."""
        return self.releases.get(name, ReleaseFloor())


def shown(message: str) -> str:
    """Return a message as it is kept and told, whoever said it."""
    plain = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in message)
    return plain if len(plain) <= MOST_CHARACTERS else f"{plain[:MOST_CHARACTERS]}…"
