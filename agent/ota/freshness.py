"""Whether the repository's word is still good, asked once a day although nobody orders anything.

Signatures expire, and are renewed by a job of the operator's. Where that has stopped, or somebody
keeps boards from hearing of it (a freeze attack), a board learns of it only by asking.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Protocol

from agent.contract.updates import Floors
from agent.ota.refusal import Code
from agent.ota.steps import Refused, Step, Working

log = logging.getLogger(__name__)

EVERY_S = 86400.0
# While something is wrong with it, so that the status does not say so long after it is mended.
AGAIN_S = 3600.0
# Of each day, by chance, so that boards that were started together do not ask together.
JITTER_S = 3600.0
FIRST_S = 600.0
WITHIN_S = 900.0
# What says something about the repository, and not about the way to it or the clock.
SERIOUS: frozenset[Code] = frozenset({"E_FREEZE", "E_SIG", "E_ROLLBACK"})


class Asks(Protocol):
    """The part of `agent.ota.fetching.Fetching` that is needed here."""

    def list_all(self, floors: Floors) -> Step:
        """Ask for all that fits this board."""


class Freshness:
    """`problem`: a sentence for the status, None where there is nothing to say. One thread."""

    def __init__(self, asks: Asks, chance: Callable[[], float] = random.random) -> None:
        self.problem: str | None = None
        self._asks = asks
        self._chance = chance
        self._step: Step | None = None
        self._due_at: float | None = None
        self._until = 0.0

    def check(self, now: float, floors: Floors, *, is_free: bool) -> None:
        """Do what is due; `is_free`: nobody else asks the repository for anything."""
        if self._due_at is None:
            self._due_at = now + FIRST_S + JITTER_S * self._chance()
        if self._step is not None:
            self._look(self._step, now, is_free=is_free)
        elif now >= self._due_at and is_free:
            try:
                self._step = self._asks.list_all(floors)
            except OSError as error:
                log.warning("repository not asked reason=%s", error)
                self._rest(now)
            self._until = now + WITHIN_S

    def stop(self) -> None:
        """Give up what is under way."""
        if self._step is not None:
            self._step.stop()
        self._step = None

    def _look(self, step: Step, now: float, *, is_free: bool) -> None:
        reply = step.poll()
        if isinstance(reply, Working):
            if not is_free or now >= self._until:  # an order comes first
                self.stop()
                self._rest(now)
            return
        self._step = None
        if not isinstance(reply, Refused):
            self.problem = None
        elif reply.code in SERIOUS:
            problem = f"{reply.code} {reply.message}"
            if self.problem is None or not self.problem.startswith(reply.code):  # says for how long
                log.warning("repository not believed code=%s reason=%s", reply.code, reply.message)
            self.problem = problem
        self._rest(now)

    def _rest(self, now: float) -> None:
        every_s = EVERY_S if self.problem is None else AGAIN_S
        self._due_at = now + every_s + JITTER_S * self._chance()
