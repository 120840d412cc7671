"""What the updater has others do, and how it hears of it: the seams to processes and workers.

A step is begun, then polled on the main loop's thread; neither may block. What a step does, it
does so that it can be done again: the power may go at any instant, and then it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from agent.contract.payloads import ModelIdentity
from agent.contract.updates import Desired, Floors
from agent.ota.refusal import Code
from agent.ota.state import BundleRef, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the repository says of a version, before any byte of it is fetched."""

    ref: BundleRef
    size: int  # of the bundle's file, bytes
    boards: tuple[str, ...] = ()  # globs on the board's id; empty: all
    min_agent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Working:
    """Not done yet; `waits_for`: what for, in words, if it does nothing meanwhile."""

    waits_for: str = ""
    progress: float | None = None  # 0 to 1
    bytes_done: int | None = None
    bytes_total: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Succeeded:
    """Done; each step fills in what it has found out."""

    target: Target | None = None  # metadata
    floors: Floors | None = None  # metadata, download
    clock_trusted: bool | None = None  # metadata
    ref: BundleRef | None = None  # verify: as the store keeps it, with this board's budget
    p95_ms: float | None = None  # selftest
    rss_mib: float | None = None  # selftest
    agreement: float | None = None  # shadow, 0 to 1
    model: ModelIdentity | None = None  # swap: what runs now


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Not done, and why; not final: may be done later."""

    code: Code
    message: str
    is_final: bool = True
    floors: Floors | None = None  # what was learnt all the same
    clock_trusted: bool | None = None


Reply = Working | Succeeded | Refused


class Step(Protocol):
    """Something under way. After the first reply that is not `Working` it is never polled again."""

    def poll(self) -> Reply:
        """Return how it fares, without waiting."""

    def stop(self) -> None:
        """Give it up, without waiting; also after it has ended."""


class Steps(Protocol):
    """Everything the updater has done for it. Beginning a step may raise OSError: tried again."""

    def metadata(self, wanted: Desired, floors: Floors) -> Step:
        """Ask the repository what `wanted` is: `target`, `floors`, `clock_trusted`."""

    def download(self, wanted: Desired, ref: BundleRef, size: int, floors: Floors) -> Step:
        """Fetch the bundle's file, going on where an earlier try ended."""

    def verify(self, ref: BundleRef, size: int) -> Step:
        """Unpack the fetched file into the store, every byte checked: `ref`.

        Where the store has it already, check that. What is damaged is thrown away, and refused
        with an E_HASH that is not final: it can be fetched anew.
        """

    def selftest(self, engine: str, ref: BundleRef) -> Step:
        """Try the model in a process of its own: `p95_ms`, `rss_mib`."""

    def shadow(self, engine: str, ref: BundleRef) -> Step:
        """Replay recent frames through it and what runs: `agreement`."""

    def swap(self, engine: str, ref: BundleRef | None) -> Step:
        """Have the engine's worker run this, or the factory's model: `model`.

        Done once it gave a result, or is loaded where no camera gives frames. The worker keeps the
        old model until then, and goes on with it if the new one is refused.
        """

    def keep(self, engine: str) -> None:
        """The model that its worker runs stays: the one before need not be held ready."""

    def restart(self, engine: str) -> None:
        """Have another worker take over, which loads what `Updater.for_worker` says then."""

    def collect(self, keep: frozenset[str], keep_fetched: frozenset[str]) -> Step:
        """Remove from the store all but these bundles, and these half fetched, by hash."""

    def has(self, ref: BundleRef) -> bool:
        """Return whether the store has it, as far as names tell."""

    def require_space(self, ref: BundleRef, size: int) -> None:
        """Look whether a bundle can be fetched and unpacked.

        Raises:
            RefusalError: E_SPACE, with the bytes that are missing.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """A worker has loaded a model, at its start or by a swap that nobody here asked for."""

    engine: str
    bundle: str | None  # the bundle's hash; None: no bundle's
    source: Source
    model: ModelIdentity | None  # None: it runs without any


@dataclass(frozen=True, slots=True, kw_only=True)
class Down:
    """A worker is gone and another one starts, or it has gone back to the model before by itself.

    Either says with `Runs` what it runs then.

    code: E_CRASH (also for memory) or E_HANG: may be tried again. Others are the model's own fault.
    is_native: it ended in a way that a model can cause. False for one that was asked to end, could
        not be started, or ended for a camera's sake.
    """

    engine: str
    code: Code
    reason: str
    is_native: bool


EngineEvent = Runs | Down


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """How one engine fares now; counters since the daemon started, none of which goes back."""

    frames: int  # that went through the model, published or not
    acknowledged: int  # messages of this board that the broker has taken
    p95_ms: float | None  # of one invoke in the last 10 s or so; None: too few
    is_fed: bool  # a worker is there, cameras are online, and a motion gate lets frames through
    is_connected: bool  # to the broker
    is_throttled: bool | None  # by heat or voltage; None: nobody knows
