"""Keep one vision worker running: start it, listen to it, notice death and hang, replace it.

    backing_off ──restart_at──▶ starting ──Ready──▶ running
         ▲                          │                  │
         └── died / failed / too slow to start / silent / a stage stuck / memory ──┘

The supervisor owns the worker's process and its end of the link; it never touches MQTT.
What it learns goes to a `Listener`. Whether the worker may use its accelerator is `Failover`'s
word; when a probe finds it well again, the worker is asked to end and replaced. All times are
monotonic.

Nothing here waits for a process for longer than a moment, as engines beside this one are served
by the same thread. The next worker starts when the one before has ended, or is stuck in the
kernel and abandoned: `KilledProcesses`.
"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from agent.daemon.workers.backoff_memory import MOST_FAILURES, BackoffMemory
from agent.daemon.workers.failover import Failover
from agent.daemon.workers.killed import KilledProcesses
from agent.daemon.workers.listener import Listener, Probe
from agent.daemon.workers.memory_limit import WorkerMemory
from agent.daemon.workers.restart_reasons import CLEARS_ACCELERATOR, HANGS, RestartReason
from agent.daemon.workers.stage_limits import CAPTURE, StageLimits
from agent.daemon.workers.stream_progress import StreamProgress
from agent.daemon.workers.worker_run import WorkerRun, spawn_worker
from agent.link import (
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
# A worker that is asked to end finishes the frames under way first.
REPLACE_WITHIN_S = 4.0
STOP_STARTING_WITHIN_S = 0.5
BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 60.0
# A worker that ran this long has earned an immediate restart.
STABLE_S = 10.0
# Messages handled in one go before timers get their turn.
BATCH = 256
# Workers that cannot be killed, beyond which a camera that hangs costs no further one.
MOST_ABANDONED = 3
# How soon a process that is ending is looked at again.
ENDING_LOOK_S = 0.02
# Killed workers have this long, together, at the program's end; see `KilledProcesses`.
GONE_AT_STOP_WITHIN_S = 0.5

State = Literal["starting", "running", "backing_off"]


@dataclass(slots=True)
class Supervisor:
    """See the module's docstring. Drive it with `receive` when `link` is readable, and `check`."""

    make_start: Callable[[dict[str, Resume], str], Start]  # of resume and Failover.avoid
    listener: Listener
    failover: Failover
    start_probe: Callable[[tuple[str, ...]], Probe]  # of models by name in [models]
    name: str = ""  # of the engine, in [models]
    first_seq: Mapping[str, int] = field(default_factory=dict)  # by camera
    backoff: BackoffMemory = field(default_factory=lambda: BackoffMemory(None))
    memory: WorkerMemory | None = None  # None: no limit
    spawn: Callable[[socket.socket], subprocess.Popen[bytes]] = spawn_worker
    clock: Callable[[], float] = time.monotonic
    state: State = "backing_off"
    restarts: int = 0
    restarts_by_reason: Counter[RestartReason] = field(default_factory=Counter)
    _why: RestartReason = "crashed"  # why the next worker will be another one
    _run: WorkerRun | None = None
    _restart_at: float = 0.0
    _is_first: bool = True
    _failures: int = 0
    _deaths_without_progress: int = 0
    _probe: Probe | None = None
    _stages: StageLimits = field(default_factory=StageLimits)
    _progress: StreamProgress = field(init=False)
    _killed: KilledProcesses = field(init=False)

    def __post_init__(self) -> None:
        self._progress = StreamProgress(self.first_seq)
        self._killed = KilledProcesses(self.listener.on_abandoned, self.clock)
        self._failures = self.backoff.failures(self.name)

    @property
    def link(self) -> socket.socket | None:
        """The socket to wait on, while there is a worker that may say something."""
        run = self._run
        return run.link if run is not None and run.link_ended_at is None else None

    @property
    def worker_pid(self) -> int | None:
        """The worker's process id, while there is one."""
        return self._run.process.pid if self._run else None

    def start_later(self, delay_s: float) -> None:
        """Have `check` start the first worker when this time has passed."""
        self._restart_at = self.clock() + delay_s

    def start(self) -> None:
        """Start a worker now."""
        if not self._is_first:
            self.restarts += 1
            self.restarts_by_reason[self._why] += 1
        self._is_first = False
        ours, theirs = open_link()
        try:
            process = self.spawn(theirs)
        except OSError as error:
            ours.close()
            self._back_off("not_started", f"no worker can be started: {error.strerror}")
            return
        finally:
            theirs.close()
        now = self.clock()
        inbox: Inbox[FromWorker] = Inbox(ours, FromWorker)
        self._run = WorkerRun(process=process, link=ours, inbox=inbox, started_at=now, heard_at=now)
        self.state = "starting"
        ours.setblocking(False)
        try:
            # When workers die again and again without progress, a frame of a file is skipped for
            # each death after the first.
            skip = max(0, self._deaths_without_progress - 1)
            send(ours, self.make_start(self._progress.resume(skip), self.failover.avoid))
        except OSError as error:
            self.receive()  # it has ended already, and its last words may say why
            if self._run is not None:
                self._down("crashed", f"the worker cannot be told its work: {error.strerror}")

    def receive(self) -> None:
        """Handle what the worker has sent; notice the end of its link."""
        for _ in range(BATCH):
            run = self._run
            if run is None or run.link_ended_at is not None:
                return
            try:
                message = run.inbox.receive()
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # it ended with our words unread; its own last words are still there
            except (OSError, msgspec.DecodeError) as error:
                self._down("crashed", f"link to the worker broke: {error}")
                return
            if message is None:
                run.link_ended_at = self.clock()
                self._see_off(run)
                return
            run.heard_at = self.clock()
            self._handle(run, message)

    def _see_off(self, run: WorkerRun) -> None:
        """Take note of the end of a worker that has closed its link, once it is known."""
        if run.replaced_by is not None:
            self._replace(run)
            return
        obituary = run.obituary(self.clock(), is_starting=self.state == "starting")
        if obituary is not None:
            self._down(*obituary)

    def _handle(self, run: WorkerRun, message: FromWorker) -> None:
        match message:
            case ResultOut():
                self._progress.note_result(message)
                run.has_progressed = True
                self.listener.on_result(message)
            case Beat():
                self._progress.note_beat(message)
                run.has_progressed |= any(one.processed for one in message.cameras.values())
                self.listener.on_beat(message)
                if message.invoke_p99_s is not None:
                    self._stages.note_invoke(message.invoke_p99_s)
                self._check_stages(message.stage_age_s)
            case Ready():
                self.state = "running"
                self._stages.note_invoke(message.first_invoke_s)
                run.ready_at = self.clock()
                self.failover.on_ready(
                    is_accelerated=message.is_accelerated,
                    fallbacks=message.fallbacks,
                    now=run.ready_at,
                )
                self.listener.on_ready(message)
                self._killed.tell_again()
            case Learned():
                self.listener.on_learned(message)
            case CameraChange():
                if message.state in ("online", "frozen"):
                    self._note_online(run, message.camera)
                self.listener.on_camera(message)
            case Failed():
                run.failure = message

    def _check_stages(self, ages_s: Mapping[str, float]) -> None:
        # Workers that a camera's driver keeps from ending cannot be collected without end.
        has_left_many = len(self._killed.pids) >= MOST_ABANDONED
        stage = self._stages.stuck(ages_s, but_cameras=has_left_many)
        if stage is not None:
            reason = f"stage {stage} stuck for {ages_s[stage]:.0f} s; worker replaced"
            self._down("camera_hang" if stage.startswith(CAPTURE) else "hang", reason)

    def _note_online(self, run: WorkerRun, camera: str) -> None:
        self._stages.note_online(camera)
        if camera not in run.cameras_seen:
            run.cameras_seen.add(camera)
            if self.memory is not None:  # its frames take memory from now on
                self.memory.warm_up(run.process.pid)

    def check(self) -> float:
        """Do what is due; return the seconds until something may be due again."""
        self._killed.check()
        run = self._run
        if run is None:
            return self._check_restart()
        if run.link_ended_at is not None:
            self._see_off(run)
            return ENDING_LOOK_S
        now = self.clock()
        if self.state == "running":
            if self._failures and run.ready_at is not None and now - run.ready_at > STABLE_S:
                self._failures = 0
                self.backoff.note_recovery(self.name)
            self._look_after_accelerator(run)
        if run.replaced_by is not None and now > run.replaced_by:
            self._replace(run)
            return ENDING_LOOK_S
        self._check_silence(run, now)
        if self._run is run and self.memory is not None:
            excess = self.memory.excess(run.process.pid, run.ready_at)
            if excess is not None:
                self._down("memory", excess)
        return 0.25

    def _check_restart(self) -> float:
        wait_s = self._restart_at - self.clock()
        if wait_s > 0:
            return min(wait_s, ENDING_LOOK_S) if self._killed.is_waiting else wait_s
        if self._killed.is_waiting:  # it may hold the camera and the accelerator
            return ENDING_LOOK_S
        self.start()
        return 0.1

    def _check_silence(self, run: WorkerRun, now: float) -> None:
        is_starting = self.state == "starting"
        limit = START_WITHIN_S if is_starting else SILENT_S
        silent_s = now - (run.started_at if is_starting else run.heard_at)
        if silent_s > limit and not is_starting:
            self.receive()  # perhaps it was us who did not listen
            silent_s = now - run.heard_at
        if self._run is run and run.link_ended_at is None and silent_s > limit:
            what = "did not become ready" if is_starting else "was silent"
            why: RestartReason = "slow_start" if is_starting else "silent"
            self._down(why, f"worker {what} for {silent_s:.0f} s; replaced")

    def _look_after_accelerator(self, run: WorkerRun) -> None:
        """Probe a resting accelerator when it is time; ask the worker to end when it is back."""
        now = self.clock()
        if self._probe is None:
            # One that tried it and is stuck would have another one get stuck beside it.
            if self.failover.is_probe_due(now) and not self._killed.pids:
                self._probe = self.start_probe(self.failover.resting)
            return
        failure = self._probe.poll()
        if failure is None:
            return
        self._end_probe()
        log.info("accelerator probed wanted=%s failure=%s", self.failover.wanted, failure or "none")
        if self.failover.on_probe(failure, now) and run.replaced_by is None:
            run.replaced_by = now + REPLACE_WITHIN_S
            try:
                send(run.link, Stop())
            except OSError:
                run.replaced_by = now

    def _replace(self, run: WorkerRun) -> None:
        """Have the next worker start in the place of one that was asked to end."""
        self._bury(run)
        self.state, self._why = "backing_off", "accelerator_back"
        self._restart_at = self.clock()
        self.listener.on_replaced()
        self._check_restart()

    def _bury(self, run: WorkerRun) -> None:
        self._run = None
        run.link.close()
        self._killed.kill(run.process)
        if self.memory is not None:
            self.memory.forget(run.process.pid)

    def _down(self, why: RestartReason, reason: str) -> None:
        """Bury the worker, and have the next one start in due time."""
        run = self._run
        assert run is not None
        rests_now = False
        is_refused = why == "model" and run.failure is not None  # says nothing of it, either
        if not is_refused and why not in CLEARS_ACCELERATOR:
            rests_now = self.failover.on_death(
                reason, self.clock(), was_ready=self.state == "running", is_hang=why in HANGS
            )
        self._bury(run)
        if run.has_progressed:
            self._deaths_without_progress = 0
        elif self.state == "running":
            self._deaths_without_progress += 1
        self._back_off(why, reason, at_once=rests_now)  # the next one has less to stumble over

    def _back_off(self, why: RestartReason, reason: str, *, at_once: bool = False) -> None:
        """Set the time for the next worker."""
        self.state, self._why = "backing_off", why
        delay = 0.0
        if self._failures and not at_once:
            delay = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** (self._failures - 1))
        self._failures = min(self._failures + 1, MOST_FAILURES)
        self.backoff.note_failure(self.name, self._failures)
        delay *= random.uniform(0.75, 1.25)
        self._restart_at = self.clock() + delay
        code = "model" if why == "model" else "worker"
        log.error("worker down code=%s reason=%s restart_in_s=%.1f", code, reason, delay)
        self.listener.on_down(code, reason)

    def ask_to_stop(self) -> None:
        """Ask the worker to finish what is under way; `stop` waits for it."""
        self._end_probe()
        if self._run is not None:
            with contextlib.suppress(OSError):
                send(self._run.link, Stop())

    def _end_probe(self) -> None:
        if self._probe is not None:
            for process in self._probe.end():
                self._killed.kill(process)
            self._probe = None

    def stop(self, within_s: float) -> None:
        """Take the last results of a worker that was asked to stop, then kill it."""
        run = self._run
        if run is None:
            return
        if self.state != "running":  # as far as we have heard, it has no results yet
            within_s = min(within_s, STOP_STARTING_WITHIN_S)
        deadline = self.clock() + within_s
        try:
            while run.link_ended_at is None and (left := deadline - self.clock()) > 0:
                run.link.settimeout(left)
                message = run.inbox.receive()
                if message is None:
                    break
                self._handle(run, message)
                if self._run is None:
                    return
        except (OSError, msgspec.DecodeError):
            pass
        self._bury(run)

    def see_off(self, within_s: float) -> None:
        """Wait for processes that were killed just now, and for none that is abandoned."""
        self._killed.wait(within_s)


def stop_all(supervisors: Sequence[Supervisor], within_s: float) -> None:
    """Stop workers side by side: all are asked before any is waited for."""
    deadline = time.monotonic() + within_s
    for supervisor in supervisors:
        supervisor.ask_to_stop()
    for supervisor in supervisors:
        supervisor.stop(max(0.2, deadline - time.monotonic()))
    gone_by = time.monotonic() + GONE_AT_STOP_WITHIN_S
    for supervisor in supervisors:
        supervisor.see_off(max(0.0, gone_by - time.monotonic()))
