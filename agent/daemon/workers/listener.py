"""What a supervisor says of its engine, to whoever reports it."""

from __future__ import annotations

import os
import subprocess
from typing import Protocol

from agent.link import (
    Beat,
    CameraChange,
    Learned,
    Lent,
    Ready,
    ResultOut,
    SwapFailed,
    Swapped,
)
from agent.ota.steps import Down


class Listener(Protocol):
    """Who is told; called on the supervisor's thread, must not block."""

    def on_result(self, result: ResultOut) -> None:
        """A result is ready to publish."""

    def on_ready(self, ready: Ready) -> None:
        """A model runs."""

    def on_camera(self, change: CameraChange) -> None:
        """A camera came, went or ended."""

    def on_beat(self, beat: Beat) -> None:
        """The worker's counters, since it started."""

    def on_learned(self, learned: Learned) -> None:
        """How a model runs best here was measured."""

    def on_down(self, code: str, reason: str) -> None:
        """The worker is gone; results stop until the next `on_ready`."""

    def on_replaced(self) -> None:
        """The worker has ended because it was asked to; another one starts."""

    def on_abandoned(self, pid: int, reason: str) -> None:
        """A killed process does not end; with an empty reason: the last of them now has."""


class Attendant(Protocol):
    """Who exchanges the engine's model; called as a `Listener` is."""

    def on_ready(self, ready: Ready) -> None:
        """A model runs, in a worker that has just started or after a swap."""

    def on_result(self, result: ResultOut) -> None:
        """There is a result."""

    def on_swap(self, answer: Swapped | SwapFailed) -> None:
        """The worker has another model, or goes on with the one before."""

    def on_lent(self, lent: Lent, descriptor: int | None) -> None:
        """Frames were lent; the descriptor of their memory, if any, is the attendant's to close."""

    def on_replaced(self) -> None:
        """The worker has ended because it was asked to."""

    def on_down(self, down: Down) -> None:
        """The worker is gone, unasked, and what that says of its model."""


class Nobody:
    """An attendant of an engine whose model stays."""

    def on_ready(self, ready: Ready) -> None:
        """Nothing waits for it."""

    def on_result(self, result: ResultOut) -> None:
        """Nothing waits for it."""

    def on_swap(self, answer: Swapped | SwapFailed) -> None:
        """Nobody has asked."""

    def on_lent(self, lent: Lent, descriptor: int | None) -> None:
        """Nobody looks at them."""
        del lent
        if descriptor is not None:
            os.close(descriptor)

    def on_replaced(self) -> None:
        """The supervisor starts another one."""

    def on_down(self, down: Down) -> None:
        """Likewise."""


class Probe(Protocol):
    """A process that tries the accelerator."""

    def poll(self) -> str | None:
        """Return why it does not work, empty when it does, None while that is being tried."""

    def end(self) -> list[subprocess.Popen[bytes]]:
        """Stop trying, without waiting; return the processes that are to be killed."""
