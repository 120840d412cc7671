"""A worker that plays, and what goes on beside it: `agent.bench.exchange`."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from msgspec import structs

from agent.choices import most_threads
from agent.config import CameraConfig, ModelConfig
from agent.daemon.workers.exchange import FRAMES, LEND_WITHIN_S
from agent.daemon.workers.worker_run import WorkerRun, launch, spawn_worker
from agent.errors import AgentError
from agent.link import Failed, FromWorker, LendFrames, Lent, ResultOut, Start, Stop, SwapFailed
from agent.ota.selftest import Exam, ExamRequest, start_exam, start_shadow

START_WITHIN_S = 120.0
SETTLE_S = 2.0
CAMERA = "clip"
LOAN = "frames"

# Quiet and busy slices alternate, so that a machine's drift falls on both.
SLICE_S = 1.0
LEND_EVERY_S = 0.1
EXAM_LIMIT_S = 3600.0  # most of its time it is stopped

Kind = Literal["exam", "shadow"]
KINDS: tuple[Kind, ...] = ("exam", "shadow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """From capture to encoded result, of frames that were captured in slices of one kind."""

    p50_ms: float
    p99_ms: float
    hz: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What runs, without and with something beside it."""

    quiet: Latencies
    busy: Latencies
    times: int  # exams or shadow runs that were finished
    cores: float  # of processor time that these took while they might
    load: float  # threads that ran or wanted to, on average over a minute: proc_loadavg(5)

    @property
    def p99_ratio(self) -> float:
        """How much worse the 99th percentile is."""
        return self.busy.p99_ms / self.quiet.p99_ms


@dataclass(slots=True)
class Player:
    """A worker and what it says."""

    model: ModelConfig
    clip: str
    fps: float
    run: WorkerRun = field(init=False)
    frames: int | None = None  # a descriptor that was lent

    def __post_init__(self) -> None:
        self.run = launch(spawn_worker, time.monotonic())
        camera = CameraConfig(name=CAMERA, source=self.clip, loop=True, realtime=True, fps=self.fps)
        start = Start(
            device="bench",
            boot_id="bench",
            model=self.model,
            cameras=(camera,),
            resume={},
            most_threads=most_threads(),
        )
        self.run.ask(start)

    def listen(self, seconds: float, *, until: type[FromWorker] | None = None) -> list[FromWorker]:
        """Return what it says for so long, or up to such a message.

        Raises:
            AgentError: it has ended, or did not say it in time.
        """
        heard: list[FromWorker] = []
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self.run.link], [], [], left)[0]:
                continue
            message = self.run.inbox.receive()
            if message is None or isinstance(message, Failed | SwapFailed):
                raise AgentError(f"the worker gave up: {message or 'no reason given'}")
            heard.append(message)
            if isinstance(message, Lent):
                self.frames = self.run.inbox.take_descriptor()
            if until is not None and isinstance(message, until):
                return heard
        if until is not None:
            raise AgentError(f"no {until.__name__} within {seconds:.0f} s")
        return heard

    def take_frames(self) -> int:
        """Return the descriptor of the frames that were lent; it is the caller's to close.

        Raises:
            AgentError: there is none.
        """
        frames, self.frames = self.frames, None
        if frames is None:
            raise AgentError("the worker lent no frames")
        return frames

    def stop(self) -> None:
        """End it."""
        self.run.ask(Stop())
        with contextlib.suppress(Exception):
            self.run.process.wait(5.0)
        self.run.process.kill()
        self.run.process.wait()
        self.run.link.close()


class Beside:
    """Exams or shadow runs, one after the other, which can be stopped and go on."""

    def __init__(self, request: ExamRequest, frames: int | None) -> None:
        self.times = 0
        self.frames = frames  # a descriptor, for shadow runs
        self._request = structs.replace(request, limit_s=EXAM_LIMIT_S)
        self._exam: Exam | None = None

    def go_on(self) -> None:
        """Begin, or take up what was stopped."""
        if self._exam is not None:
            self._exam.process.send_signal(signal.SIGCONT)
        elif self.frames is None:
            self._exam = start_exam(self._request)
        else:
            self._exam = start_shadow(self._request, self.frames)

    def look(self) -> None:
        """Begin anew what has ended.

        Raises:
            AgentError: it is refused, so that the figures are not of what they should be.
        """
        if self._exam is None or (report := self._exam.poll()) is None:
            return
        self._exam.process.wait()
        self._exam = None
        if not report.ok:
            raise AgentError(f"{self._request.model.path}: {report.message}")
        self.times += 1
        self.go_on()

    def stop(self) -> None:
        """Let it do nothing for a while."""
        if self._exam is not None:
            self._exam.process.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        """End what is under way."""
        if self._exam is not None:
            self._exam.stop()
            self._exam.process.wait()


def measure_part(player: Player, kind: Kind, request: ExamRequest, *, seconds: float) -> Part:
    """Alternate quiet and busy slices, for so many seconds in all.

    Raises:
        AgentError: no results came, or the exam refuses the model.
    """
    frames = None
    if kind == "shadow":
        player.run.ask(LendFrames(token=LOAN, count=FRAMES, every_s=LEND_EVERY_S))
        player.listen(LEND_WITHIN_S, until=Lent)
        frames = player.take_frames()
    beside = Beside(request, frames)
    worked_s = _children_s()
    heard: list[FromWorker] = []
    slices: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
    ends_at = time.monotonic() + seconds
    try:
        while time.monotonic() < ends_at or not slices[True]:
            is_busy = len(slices[True]) < len(slices[False])
            began_ns = time.monotonic_ns()
            if is_busy:
                beside.go_on()
            heard += _one_slice(player, beside if is_busy else None)
            beside.stop()
            slices[is_busy].append((began_ns, time.monotonic_ns()))
    finally:
        beside.end()
        if frames is not None:
            os.close(frames)
    heard += player.listen(SETTLE_S)
    busy_s = sum(end - start for start, end in slices[True]) / 1e9
    return Part(
        quiet=_latencies(heard, slices[False]),
        busy=_latencies(heard, slices[True]),
        times=beside.times,
        cores=round((_children_s() - worked_s) / busy_s, 3),
        load=round(os.getloadavg()[0], 2),
    )


def _one_slice(player: Player, beside: Beside | None) -> list[FromWorker]:
    heard: list[FromWorker] = []
    ends_at = time.monotonic() + SLICE_S
    while (left := ends_at - time.monotonic()) > 0:
        heard += player.listen(min(left, 0.05))
        if beside is not None:
            beside.look()
    return heard


def _children_s() -> float:
    """Return the processor time of children that have ended and were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _latencies(heard: Sequence[FromWorker], slices: Sequence[tuple[int, int]]) -> Latencies:
    times_ms = sorted(
        (one.encoded_ns - one.captured_ns) / 1e6
        for one in heard
        if isinstance(one, ResultOut)
        and any(start <= one.captured_ns < end for start, end in slices)
    )
    if not times_ms:
        raise AgentError("no results; the clip or the model gives none")
    return Latencies(
        p50_ms=statistics.median(times_ms),
        p99_ms=times_ms[int(len(times_ms) * 0.99)],
        hz=len(times_ms) / (sum(end - start for start, end in slices) / 1e9),
    )
