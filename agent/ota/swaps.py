"""Which model each engine runs, and how it comes to run the one it should.

    wanted by the state ──differs from what its worker was told──▶ swap ──done──▶ told
                                       └──refused, and it was the way back──▶ another worker

A worker that starts is told what to load; one that runs is told to swap. One swap at a time.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from agent.ota.rules import CRASHES_WITHIN_S, MOST_CRASHES
from agent.ota.state import BundleRef, Source
from agent.ota.steps import Refused, Runs, Step, Steps, Succeeded, Working

log = logging.getLogger(__name__)

# For loading and a first frame beside the model that runs; a worker that says nothing for so long
# is replaced.
SWAP_WITHIN_S = 120.0
# A worker that is busy with another swap says so, and is asked again.
AGAIN_S = 5.0
MOST_REFUSALS = 12

Wanted = Callable[[str], BundleRef | None]


def key(ref: BundleRef | None) -> str:
    """Return what tells models apart: the bundle's hash, empty for the factory's."""
    return "" if ref is None else ref.sha256


def is_run(runs: Runs, ref: BundleRef | None) -> bool:
    """Return whether this, or the factory's model, is what a worker runs."""
    return runs.source != "none" and (runs.bundle or "") == key(ref)


@dataclass(slots=True)
class _Engine:
    runs: Runs | None = None  # None: no worker is up
    told: str | None = None  # what its worker is to run, as `key`; None: nobody knows
    crashes: deque[float] = field(default_factory=deque)
    refusals: int = 0  # in a row, that were not final


@dataclass(slots=True)
class _Swap:
    engine: str
    ref: BundleRef | None
    step: Step
    began_at: float
    ran: Runs | None  # by then


@dataclass(frozen=True, slots=True)
class Swapped:
    """How a swap ended.

    refused: None: it did what it was asked. Otherwise the model before runs on
    is_stuck: nobody knows what runs, or whether anything does
    """

    engine: str
    ref: BundleRef | None
    refused: Refused | None
    is_stuck: bool = False


class Swaps:
    """See the module's docstring; for one thread."""

    def __init__(self, steps: Steps, engines: Iterable[str]) -> None:
        self._steps = steps
        self._engines = {name: _Engine() for name in engines}
        self._swap: _Swap | None = None
        self._again_at = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether a swap is under way."""
        return self._swap is not None

    def is_swapping(self, engine: str) -> bool:
        """Return whether it is this engine's worker that swaps."""
        return self._swap is not None and self._swap.engine == engine

    def runs(self, engine: str) -> Runs | None:
        """Return what an engine runs, None while it has no worker."""
        return self._engines[engine].runs

    def is_told(self, engine: str, ref: BundleRef | None) -> bool:
        """Return whether this is what an engine's worker was told last, and nothing else since."""
        return self._engines[engine].told == key(ref) and not self.is_swapping(engine)

    def note_told(self, engine: str, ref: BundleRef | None) -> None:
        """A worker is being started, to run this; so far it runs nothing."""
        self._engines[engine].told, self._engines[engine].runs = key(ref), None

    def note_runs(self, event: Runs) -> None:
        """A model is loaded."""
        engine = self._engines[event.engine]
        before, engine.runs = engine.runs, event
        # A worker that changes its model by itself does what a swap said that was given up since.
        if engine.told is None or (before is not None and before.bundle != event.bundle):
            engine.told = event.bundle or ""

    def note_down(self, engine: str) -> None:
        """A worker is gone, and with it whatever it was asked to do."""
        self._engines[engine].runs = None
        if self._swap is not None and self.is_swapping(engine):
            self._give_up(self._swap)

    def note_due(self, engine: str) -> None:
        """Whatever its worker was told before: it is to be told anew."""
        self._engines[engine].told = None

    def note_crash(self, engine: str, now: float) -> bool:
        """Count a crash with the model it should run; return whether they are too many."""
        crashes = self._engines[engine].crashes
        crashes.append(now)
        while crashes and now - crashes[0] > CRASHES_WITHIN_S:
            crashes.popleft()
        return len(crashes) >= MOST_CRASHES

    def forget_crashes(self, engine: str) -> None:
        """Another model runs now."""
        self._engines[engine].crashes.clear()

    def check(self, now: float, wanted: Wanted) -> Swapped | None:
        """Do what is due; return how a swap ended, if one has."""
        swap = self._swap
        if swap is not None:
            if key(wanted(swap.engine)) == key(swap.ref):
                return self._look_at(swap, now)
            self._give_up(swap)
        if now >= self._again_at:
            for name, engine in self._engines.items():
                if engine.runs is not None and engine.told != key(wanted(name)):
                    self._begin(name, wanted(name), now)
                    break
        return None

    def _begin(self, engine: str, ref: BundleRef | None, now: float) -> None:
        try:
            step = self._steps.swap(engine, ref)
        except OSError as error:
            log.warning("no swap engine=%s reason=%s", engine, error)
            self._again_at = now + AGAIN_S
            return
        self._swap = _Swap(engine, ref, step, now, self._engines[engine].runs)

    def _look_at(self, swap: _Swap, now: float) -> Swapped | None:
        reply = swap.step.poll()
        if self._swap is not swap:
            return None  # its worker has gone meanwhile
        engine = self._engines[swap.engine]
        if isinstance(reply, Working):
            if now - swap.began_at < SWAP_WITHIN_S:
                return None
            self._give_up(swap)
            why = f"no answer within {SWAP_WITHIN_S:.0f} s"
            hung = Refused(code="E_HANG", message=why)
            return Swapped(swap.engine, swap.ref, hung, is_stuck=True)
        self._swap = None
        if isinstance(reply, Succeeded):
            engine.refusals = 0
            runs = engine.runs
            if runs is not None and runs is not swap.ran and (runs.bundle or "") != key(swap.ref):
                engine.told = runs.bundle or ""  # by a swap that was given up before this one
                return None
            engine.told = key(swap.ref)
            bundle = None if swap.ref is None else swap.ref.sha256
            source: Source = "factory" if swap.ref is None else "active"
            engine.runs = Runs(engine=swap.engine, bundle=bundle, source=source, model=reply.model)
            return Swapped(swap.engine, swap.ref, None)
        engine.refusals += 1
        if not reply.is_final and engine.refusals < MOST_REFUSALS:
            self._again_at = now + AGAIN_S
            return None
        engine.refusals = 0
        return Swapped(swap.engine, swap.ref, reply)

    def replace(self, engine: str) -> None:
        """Have another worker find out what can be loaded."""
        self._engines[engine].runs = None
        self._steps.restart(engine)

    def stop(self) -> None:
        """Give up what is under way, at the program's end."""
        if self._swap is not None:
            self._give_up(self._swap)

    def _give_up(self, swap: _Swap) -> None:
        """Nobody knows what its worker will run."""
        swap.step.stop()
        self._swap = None
        self._engines[swap.engine].told = None
