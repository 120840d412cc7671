"""Keep one vision worker running: start it, listen to it, notice death and hang, replace it.

    backing_off ──restart_at──▶ starting ──Ready──▶ running
         ▲                          │                  │
         └── died / failed / too slow to start / silent / a stage stuck ──┘

The supervisor owns the worker's process and its end of the link; it never touches MQTT.
What it learns goes to a `Listener`. Whether the worker may use its accelerator is `Failover`'s
word; when a probe finds it well again, the worker is asked to end and replaced. All times are
monotonic.
"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from agent.daemon.failover import Failover
from agent.daemon.worker_run import WorkerRun, spawn_worker
from agent.link import (
    OPENING,
    Beat,
    CameraChange,
    Failed,
    FromWorker,
    Inbox,
    Learned,
    Ready,
    ResultOut,
    Resume,
    Start,
    Stop,
    open_link,
    send,
)

log = logging.getLogger(__name__)

# Loading libraries and a model from an SD card on the slowest board, after the model was tried in
# children (50 s each at most, and 30 s for its turn): with a wide margin.
START_WITHIN_S = 300.0
# The worker beats twice a second; this much silence means that it is frozen or starved.
SILENT_S = 5.0
# Every stage waits at most half a second before it ticks; more than this is native code that
# hangs. Cameras get longer: opening a network stream may rightly take several seconds.
STAGE_STUCK_S = 10.0
# Big models on small boards take seconds; hung is what takes this many times the 99th
# percentile and more, or that many first invokes before a percentile is known.
INVOKES_STUCK = 20
# A worker that is asked to end finishes the frames under way first.
REPLACE_WITHIN_S = 4.0
STOP_STARTING_WITHIN_S = 0.5
CAPTURE_STUCK_S = 25.0
# Opening an accelerator and the first run on it; 2.75 s on a Coral (edgetpu#522).
OPEN_STUCK_S = 30.0
BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 60.0
# A worker that ran this long has earned an immediate restart.
STABLE_S = 10.0
# Messages handled in one go before timers get their turn.
BATCH = 256


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


class Probe(Protocol):
    """A process that tries the accelerator."""

    def poll(self) -> str | None:
        """Return why it does not work, empty when it does, None while that is being tried."""

    def end(self) -> None:
        """Stop trying."""


@dataclass(slots=True)
class _Progress:
    """How far a camera's stream has come, over all workers."""

    next_seq: int = 1
    last_frame_id: int = 0


State = Literal["starting", "running", "backing_off"]


@dataclass(slots=True)
class Supervisor:
    """See the module's docstring. Drive it with `receive` when `link` is readable, and `check`."""

    make_start: Callable[[dict[str, Resume], str], Start]  # of resume and Failover.avoid
    listener: Listener
    failover: Failover
    start_probe: Callable[[tuple[str, ...]], Probe]  # of models by name in [models]
    spawn: Callable[[socket.socket], subprocess.Popen[bytes]] = spawn_worker
    clock: Callable[[], float] = time.monotonic
    state: State = "backing_off"
    restarts: int = 0
    _run: WorkerRun | None = None
    _restart_at: float = 0.0
    _failures: int = 0
    _stuck_s: float = STAGE_STUCK_S
    _deaths_without_progress: int = 0
    _probe: Probe | None = None
    _progress: dict[str, _Progress] = field(default_factory=dict)

    @property
    def link(self) -> socket.socket | None:
        """The socket to wait on, while there is a worker."""
        return self._run.link if self._run else None

    @property
    def worker_pid(self) -> int | None:
        """The worker's process id, while there is one."""
        return self._run.process.pid if self._run else None

    def start(self) -> None:
        """Start a worker now."""
        ours, theirs = open_link()
        try:
            process = self.spawn(theirs)
        except OSError as error:
            ours.close()
            self._back_off("worker", f"no worker can be started: {error.strerror}")
            return
        finally:
            theirs.close()
        now = self.clock()
        inbox: Inbox[FromWorker] = Inbox(ours, FromWorker)
        self._run = WorkerRun(process=process, link=ours, inbox=inbox, started_at=now, heard_at=now)
        self.state = "starting"
        ours.setblocking(False)
        try:
            send(ours, self.make_start(self._resume(), self.failover.avoid))
        except OSError as error:
            self.receive()  # it has ended already, and its last words may say why
            if self._run is not None:
                self._down("worker", f"the worker cannot be told its work: {error.strerror}")

    def _resume(self) -> dict[str, Resume]:
        """Where each camera goes on.

        A file continues behind its last processed frame. When workers die again and again
        without progress, a frame is skipped for each death after the first.
        """
        skip = max(0, self._deaths_without_progress - 1)
        return {
            name: Resume(
                next_seq=progress.next_seq, next_frame_id=progress.last_frame_id + 1, skip=skip
            )
            for name, progress in self._progress.items()
        }

    def receive(self) -> None:
        """Handle what the worker has sent; notice the end of its link."""
        for _ in range(BATCH):
            run = self._run
            if run is None:
                return
            try:
                message = run.inbox.receive()
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # it ended with our words unread; its own last words are still there
            except (OSError, msgspec.DecodeError) as error:
                self._down("worker", f"link to the worker broke: {error}")
                return
            if message is None:
                if run.replaced_by is None:
                    self._down(*run.obituary(is_starting=self.state == "starting"))
                else:
                    self._replace(run)
                return
            run.heard_at = self.clock()
            self._handle(run, message)

    def _handle(self, run: WorkerRun, message: FromWorker) -> None:
        match message:
            case ResultOut():
                progress = self._progress.setdefault(message.camera, _Progress())
                progress.next_seq = message.seq + 1
                progress.last_frame_id = max(progress.last_frame_id, message.frame_id)
                run.has_progressed = True
                self.listener.on_result(message)
            case Beat():
                for name, counts in message.cameras.items():
                    progress = self._progress.setdefault(name, _Progress())
                    progress.last_frame_id = max(progress.last_frame_id, counts.last_frame_id)
                    run.has_progressed |= counts.processed > 0
                self.listener.on_beat(message)
                if message.invoke_p99_s is not None:
                    self._stuck_s = max(STAGE_STUCK_S, INVOKES_STUCK * message.invoke_p99_s)
                self._check_stages(message)
            case Ready():
                self.state = "running"
                self._stuck_s = max(STAGE_STUCK_S, INVOKES_STUCK * message.first_invoke_s)
                run.ready_at = self.clock()
                self.failover.on_ready(
                    is_accelerated=message.is_accelerated,
                    fallbacks=message.fallbacks,
                    now=run.ready_at,
                )
                self.listener.on_ready(message)
            case Learned():
                self.listener.on_learned(message)
            case CameraChange():
                self.listener.on_camera(message)
            case Failed():
                run.failure = message

    def _check_stages(self, beat: Beat) -> None:
        for stage, age_s in beat.stage_age_s.items():
            limit = CAPTURE_STUCK_S if stage.startswith("capture.") else self._stuck_s
            limit = OPEN_STUCK_S if stage == OPENING else limit
            if age_s > limit:
                reason = f"stage {stage} stuck for {age_s:.0f} s; worker replaced"
                self._down("worker", reason, is_hang=True)
                return

    def check(self) -> float:
        """Do what is due; return the seconds until something may be due again."""
        now = self.clock()
        run = self._run
        if run is None:
            if now < self._restart_at:
                return self._restart_at - now
            self.restarts += 1
            self.start()
            return 0.1
        if self.state == "running":
            if run.ready_at is not None and now - run.ready_at > STABLE_S:
                self._failures = 0
            self._look_after_accelerator(run)
        if run.replaced_by is not None and now > run.replaced_by:
            self._replace(run)
            return 0.1
        limit = START_WITHIN_S if self.state == "starting" else SILENT_S
        silent_s = now - (run.started_at if self.state == "starting" else run.heard_at)
        if silent_s > limit and self.state == "running":
            self.receive()  # perhaps it was us who did not listen
            silent_s = now - run.heard_at
        if self._run is run and silent_s > limit:
            what = "did not become ready" if self.state == "starting" else "was silent"
            self._down("worker", f"worker {what} for {silent_s:.0f} s; replaced", is_hang=True)
        return 0.25

    def _look_after_accelerator(self, run: WorkerRun) -> None:
        """Probe a resting accelerator when it is time; ask the worker to end when it is back."""
        now = self.clock()
        if self._probe is None:
            if self.failover.is_probe_due(now):
                self._probe = self.start_probe(self.failover.resting)
            return
        failure = self._probe.poll()
        if failure is None:
            return
        self._probe = None
        log.info("accelerator probed wanted=%s failure=%s", self.failover.wanted, failure or "none")
        if self.failover.on_probe(failure, now) and run.replaced_by is None:
            run.replaced_by = now + REPLACE_WITHIN_S
            try:
                send(run.link, Stop())
            except OSError:
                run.replaced_by = now

    def _replace(self, run: WorkerRun) -> None:
        """Start the next worker in the place of one that was asked to end."""
        run.end()
        self._run = None
        self.restarts += 1
        self.listener.on_replaced()
        self.start()

    def _down(self, code: str, reason: str, *, is_hang: bool = False) -> None:
        """Bury the worker."""
        run = self._run
        assert run is not None
        rests_now = False
        if code != "model" or run.failure is None:  # a refused model says nothing of accelerators
            rests_now = self.failover.on_death(
                reason, self.clock(), was_ready=self.state == "running", is_hang=is_hang
            )
        run.end()
        self._run = None
        if run.has_progressed:
            self._deaths_without_progress = 0
        elif self.state == "running":
            self._deaths_without_progress += 1
        self._back_off(code, reason, at_once=rests_now)  # the next one has less to stumble over

    def _back_off(self, code: str, reason: str, *, at_once: bool = False) -> None:
        """Set the time for the next worker."""
        self.state = "backing_off"
        delay = 0.0
        if self._failures and not at_once:
            delay = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** (self._failures - 1))
        self._failures = min(self._failures + 1, 12)
        delay *= random.uniform(0.75, 1.25)
        self._restart_at = self.clock() + delay
        log.error("worker down code=%s reason=%s restart_in_s=%.1f", code, reason, delay)
        self.listener.on_down(code, reason)

    def ask_to_stop(self) -> None:
        """Ask the worker to finish what is under way; `stop` waits for it."""
        if self._probe is not None:
            self._probe.end()
            self._probe = None
        if self._run is not None:
            with contextlib.suppress(OSError):
                send(self._run.link, Stop())

    def stop(self, within_s: float) -> None:
        """Take the last results of a worker that was asked to stop, then end it."""
        run = self._run
        if run is None:
            return
        if self.state != "running":  # as far as we have heard, it has no results yet
            within_s = min(within_s, STOP_STARTING_WITHIN_S)
        deadline = self.clock() + within_s
        try:
            while (left := deadline - self.clock()) > 0:
                run.link.settimeout(left)
                message = run.inbox.receive()
                if message is None:
                    break
                self._handle(run, message)
                if self._run is None:
                    return
        except (OSError, msgspec.DecodeError):
            pass
        run.end()
        self._run = None


def stop_all(supervisors: Sequence[Supervisor], within_s: float) -> None:
    """Stop workers side by side: all are asked before any is waited for."""
    deadline = time.monotonic() + within_s
    for supervisor in supervisors:
        supervisor.ask_to_stop()
    for supervisor in supervisors:
        supervisor.stop(max(0.2, deadline - time.monotonic()))
