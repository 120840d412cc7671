"""What is known of one engine: its supervisor's `Listener`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from msgspec.structs import replace

from agent.contract.payloads import Accelerator, EngineStatus, Problem
from agent.contract.telemetry import EngineTelemetry
from agent.daemon.engine_vitals import EngineVitals
from agent.daemon.runtimes import runtime_version
from agent.link import Beat, CameraChange, Learned, Ready, ResultOut


class Facts(Protocol):
    """Where an engine's news go; the `Report`."""

    def put_result(self, result: ResultOut) -> None:
        """Publish a result."""

    def change_camera(self, change: CameraChange) -> None:
        """Take over what a worker says of a camera."""

    def note_beat(self, beat: Beat) -> None:
        """Take over a worker's counters and times."""

    def lose_worker(self, cameras: tuple[str, ...]) -> None:
        """Note that nobody serves these cameras at the moment."""

    def publish_status(self) -> None:
        """Retain the status."""


@dataclass(slots=True)
class EngineReport:
    """See the module's docstring."""

    name: str  # in [models]; empty for [model]
    cameras: tuple[str, ...]
    accelerator_wanted: str
    worker_pid: Callable[[], int | None]
    restarts: Callable[[], dict[str, int]]  # by reason
    report: Facts
    learn: Callable[[Learned], None]
    note_ready: Callable[[Ready], None]
    vitals: EngineVitals = field(default_factory=EngineVitals)
    ready: Ready | None = None
    problems: dict[str, Problem] = field(default_factory=dict)

    def on_result(self, result: ResultOut) -> None:
        """Hand a result to the outbox."""
        self.report.put_result(result)

    def on_ready(self, ready: Ready) -> None:
        """A model runs: say which, and forget what kept it from running."""
        self.ready = ready
        self.problems.clear()
        if ready.notes:
            self._note("config", "; ".join(ready.notes))
        if ready.reason:
            self._note("accelerator", ready.reason)
        self.vitals.note_swap()
        self.note_ready(ready)
        self.report.publish_status()

    def on_camera(self, change: CameraChange) -> None:
        """A camera came, went or ended."""
        self.report.change_camera(change)

    def on_beat(self, beat: Beat) -> None:
        """Take over the worker's counters."""
        self.vitals.note_beat(beat, time.monotonic())
        self.report.note_beat(beat)

    def on_learned(self, learned: Learned) -> None:
        """Remember how a model runs best."""
        self.learn(learned)

    def on_down(self, code: str, reason: str) -> None:
        """The worker is gone."""
        self.ready = None if code == "model" else self.ready
        self._note(code, reason)
        self.vitals.note_end()
        self.report.lose_worker(self.cameras)

    def on_replaced(self) -> None:
        """The worker ended as it was asked to."""
        self.vitals.note_end()
        self.report.lose_worker(self.cameras)

    def on_abandoned(self, pid: int, reason: str) -> None:
        """A process cannot be killed; with an empty reason: the last of them has ended."""
        del pid  # it is in the reason
        if reason:
            self._note("needs_reboot", reason)
        else:
            self.problems.pop("needs_reboot", None)
        self.report.publish_status()

    def _note(self, code: str, message: str) -> None:
        known = self.problems.get(code)
        if known is None or known.message != message:
            since = known.since if known else time.time()
            code_shown = f"{code}.{self.name}" if self.name else code
            self.problems[code] = Problem(code=code_shown, message=message, since=since)

    def shift_clock(self, shift_s: float) -> None:
        """Move what was stamped by a clock that has been set since."""
        for code, problem in self.problems.items():
            self.problems[code] = replace(problem, since=problem.since + shift_s)

    def accelerator(self) -> Accelerator:
        """Return what was wanted, what is used and why."""
        ready = self.ready
        return Accelerator(
            wanted=self.accelerator_wanted,
            used=ready.accelerator if ready else None,
            reason=ready.reason if ready else None,
        )

    def status(self) -> EngineStatus:
        """Return the engine's line in the status."""
        ready = self.ready
        return EngineStatus(
            name=self.name,
            cameras=list(self.cameras),
            model=ready.model if ready else None,
            task=ready.task if ready else None,
            head=ready.head if ready else None,
            accelerator=self.accelerator(),
            run=ready.run if ready else None,
        )

    def telemetry(self, inferences: int) -> EngineTelemetry:
        """Return the engine's line in the telemetry; `inferences` are of all its cameras."""
        ready = self.ready
        return EngineTelemetry(
            name=self.name,
            model=ready.model if ready else None,
            accelerator=ready.accelerator if ready else None,
            runtime=ready.run.runtime.split()[0] if ready else None,
            runtime_version=runtime_version(ready.run.runtime) if ready else None,
            inferences=inferences,
            restarts=self.restarts(),
        )
