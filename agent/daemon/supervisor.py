"""Keep one vision worker running: start it, listen to it, notice death and hang, replace it.

    backing_off ──restart_at──▶ starting ──Ready──▶ running
         ▲                          │                  │
         └── died / failed / too slow to start / silent / a stage stuck ──┘

The supervisor owns the worker's process and its end of the link; it never touches MQTT.
What it learns goes to a `Listener`. All times are monotonic.
"""

from __future__ import annotations

import logging
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import msgspec

import agent
from agent.link import (
    Beat,
    CameraChange,
    Failed,
    FromWorker,
    Inbox,
    Ready,
    ResultOut,
    Resume,
    Start,
    Stop,
    open_link,
    send,
)

log = logging.getLogger(__name__)

# Loading libraries and a model from an SD card on the slowest board, with a wide margin.
START_WITHIN_S = 120.0
# The worker beats twice a second; this much silence means that it is frozen or starved.
SILENT_S = 5.0
# Every stage waits at most half a second before it ticks; more than this is native code that
# hangs. Cameras get longer: opening a network stream may rightly take several seconds.
STAGE_STUCK_S = 10.0
# Big models on small boards take seconds; hung is what takes this many first invokes and more.
INVOKES_STUCK = 20
CAPTURE_STUCK_S = 25.0
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

    def on_down(self, code: str, reason: str) -> None:
        """The worker is gone; results stop until the next `on_ready`."""


@dataclass(slots=True)
class _Progress:
    """How far a camera's stream has come, over all workers."""

    next_seq: int = 1
    last_frame_id: int = 0


@dataclass(slots=True)
class _Run:
    """One worker's life."""

    process: subprocess.Popen[bytes]
    link: socket.socket
    inbox: Inbox[FromWorker]
    started_at: float
    heard_at: float
    failure: Failed | None = None
    has_progressed: bool = False


# As `-m agent.vision.worker`, but this very package comes first on the path, and not the
# current folder with whatever modules lie there.
WORKER = "import sys; sys.path[0] = sys.argv.pop(1); from agent.vision.worker import main; main()"
State = Literal["starting", "running", "backing_off"]


def spawn_worker(worker_end: socket.socket) -> subprocess.Popen[bytes]:
    """Start a worker process on its end of a link."""
    descriptor = worker_end.fileno()
    package = str(Path(agent.__file__).parent.parent)
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, package, str(descriptor)],
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # the terminal's Ctrl-C is for us; we end the worker
    )


@dataclass(slots=True)
class Supervisor:
    """See the module's docstring. Drive it with `receive` when `link` is readable, and `check`."""

    make_start: Callable[[dict[str, Resume]], Start]
    listener: Listener
    spawn: Callable[[socket.socket], subprocess.Popen[bytes]] = spawn_worker
    clock: Callable[[], float] = time.monotonic
    state: State = "backing_off"
    restarts: int = 0
    _run: _Run | None = None
    _restart_at: float = 0.0
    _failures: int = 0
    _stuck_s: float = STAGE_STUCK_S
    _deaths_without_progress: int = 0
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
        self._run = _Run(process=process, link=ours, inbox=inbox, started_at=now, heard_at=now)
        self.state = "starting"
        try:
            send(ours, self.make_start(self._resume()))
        except OSError:
            self.receive()  # it has ended already; its last words may say why
        ours.setblocking(False)

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
                self._down(*self._obituary(run))
                return
            run.heard_at = self.clock()
            self._handle(run, message)

    def _handle(self, run: _Run, message: FromWorker) -> None:
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
                self._check_stages(message)
            case Ready():
                self.state = "running"
                self._stuck_s = max(STAGE_STUCK_S, INVOKES_STUCK * message.first_invoke_s)
                self.listener.on_ready(message)
            case CameraChange():
                self.listener.on_camera(message)
            case Failed():
                run.failure = message

    def _check_stages(self, beat: Beat) -> None:
        for stage, age_s in beat.stage_age_s.items():
            limit = CAPTURE_STUCK_S if stage.startswith("capture.") else self._stuck_s
            if age_s > limit:
                self._down("worker", f"stage {stage} stuck for {age_s:.0f} s; worker replaced")
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
        if self.state == "running" and self.clock() - run.started_at > STABLE_S:
            self._failures = 0
        limit = START_WITHIN_S if self.state == "starting" else SILENT_S
        silent_s = now - (run.started_at if self.state == "starting" else run.heard_at)
        if silent_s > limit and self.state == "running":
            self.receive()  # perhaps it was us who did not listen
            silent_s = now - run.heard_at
        if self._run is run and silent_s > limit:
            what = "did not become ready" if self.state == "starting" else "was silent"
            self._down("worker", f"worker {what} for {silent_s:.0f} s; replaced")
        return 0.25

    def _obituary(self, run: _Run) -> tuple[str, str]:
        """Say why a worker that closed its link has ended."""
        try:
            code = run.process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            return "worker", "worker closed its link but did not end; killed"
        if run.failure is not None:
            return run.failure.code, run.failure.reason
        if code >= 0:
            return "worker", f"worker ended with exit code {code}"
        name = signal.Signals(-code).name
        if self.state == "starting" and -code in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS):
            return "model", f"the runtime crashed ({name}) while loading; the model may be damaged"
        return "worker", f"worker died of {name}"

    def _down(self, code: str, reason: str) -> None:
        """Bury the worker."""
        run = self._run
        assert run is not None
        self._end(run)
        self._run = None
        if run.has_progressed:
            self._deaths_without_progress = 0
        elif self.state == "running":
            self._deaths_without_progress += 1
        self._back_off(code, reason)

    def _back_off(self, code: str, reason: str) -> None:
        """Set the time for the next worker."""
        self.state = "backing_off"
        delay = 0.0
        if self._failures:
            delay = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** (self._failures - 1))
        self._failures = min(self._failures + 1, 12)
        delay *= random.uniform(0.75, 1.25)
        self._restart_at = self.clock() + delay
        log.error("worker down code=%s reason=%s restart_in_s=%.1f", code, reason, delay)
        self.listener.on_down(code, reason)

    def _end(self, run: _Run) -> None:
        if run.process.poll() is None:
            run.process.kill()
        run.link.close()
        try:
            run.process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            # Stuck in the kernel: nothing ends it but the driver; leave it and go on.
            log.error("worker cannot be killed pid=%d", run.process.pid)  # noqa: TRY400

    def stop(self, within_s: float) -> None:
        """Ask the worker to finish, take its last results, then end it."""
        run = self._run
        if run is None:
            return
        deadline = self.clock() + within_s
        try:
            send(run.link, Stop())
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
        self._end(run)
        self._run = None
