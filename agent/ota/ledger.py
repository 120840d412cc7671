"""The state as it is acted upon, and as it is on the disk: the same, but for a moment."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from agent.ota.rules import ON_TRIAL
from agent.ota.state import Order, State

log = logging.getLogger(__name__)

# A full disk, or one that the kernel has made read-only.
AGAIN_S = 10.0


class StateFile(Protocol):
    """Where the state is kept: `agent.ota.slots.Slots`."""

    def read(self) -> State:
        """Return the newest; never raises."""

    def write(self, state: State) -> State:
        """Keep a state; return it as it is kept. OSError: nothing is promised."""


class Ledger:
    """Writes each state before anybody acts on it.

    What cannot be written is not done, and written when the disk has recovered. Only what leads to
    where a restart would lead as well is done without: the ways back, and from trial to probation.

    entered: called when a state is acted upon in which the phase was entered anew
    """

    def __init__(self, file: StateFile, entered: Callable[[State], None]) -> None:
        self.state = State()
        self.trouble = ""  # why the last one is not on the disk
        self._file = file
        self._entered = entered
        self._unsaved: State | None = None
        self._again_at = 0.0

    @property
    def is_saved(self) -> bool:
        """Whether the disk has what is acted upon, and nothing waits to be written."""
        return self._unsaved is None

    @property
    def newest(self) -> State:
        """The state that is acted upon once it is written: what others are made of."""
        return self._unsaved or self.state

    @property
    def may_try(self) -> bool:
        """Whether a candidate's next worker is counted on the disk."""
        unsaved = self._unsaved.deployment if self._unsaved is not None else None
        return unsaved is None or unsaved.phase != "trial"

    def open(self) -> None:
        """Read what the last process left."""
        self.state = self._file.read()

    def put(self, state: State, now: float, *, is_way_back: bool = False) -> bool:
        """Write a state, then have it acted upon; return whether it was written."""
        before = self.state
        try:
            saved = self._file.write(state)
        except OSError as error:
            self._unsaved, self._again_at = state, now + AGAIN_S
            trouble = f"room for its state: {error.strerror or error}"
            if trouble != self.trouble:
                log.warning("state not written reason=%s", error)
            self.trouble = trouble
            if not is_way_back:
                return False
            saved = state
        else:
            self._unsaved, self.trouble = None, ""
        self.state = saved
        if _stay(before) != _stay(saved):
            self._entered(saved)
        return self._unsaved is None

    def check(self, now: float) -> None:
        """Write what waits, if it is time."""
        if self._unsaved is not None and now >= self._again_at:
            self.put(self._unsaved, now)

    def is_saving(self, order: Order) -> bool:
        """Return whether it is this order's state that waits to be written."""
        unsaved = self._unsaved.deployment if self._unsaved is not None else None
        return unsaved is not None and unsaved.order == order


def is_on_trial(state: State, engine: str) -> bool:
    """Return whether an engine's candidate serves cameras."""
    deployment = state.deployment
    return deployment is not None and deployment.engine == engine and deployment.phase in ON_TRIAL


def _stay(state: State) -> tuple[object, ...]:
    """Return what tells one stay in a phase from another."""
    deployment = state.deployment
    if deployment is None:
        return ()
    return (deployment.order, deployment.phase, deployment.transitions)
