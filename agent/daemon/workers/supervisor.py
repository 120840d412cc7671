"""Keep one vision worker running: start it, listen to it, notice death and hang, replace it.

    backing_off ──restart_at──▶ starting ──Ready──▶ running
         ▲                          │                  │
         └── died / failed / too slow to start / silent / a stage stuck / memory ──┘

The supervisor owns the worker's process and its end of the link; it never touches MQTT.
What it learns goes to a `Listener`, and to an `Attendant` what concerns the exchange of its model.
Whether the worker may use its accelerator is `Failover`'s word; when a probe finds it well again,
the worker is asked to end and replaced. All times are monotonic.

Nothing here waits for a process for longer than a moment, as engines beside this one are served
by the same thread. The next worker starts when the one before has ended, or is stuck in the
kernel and abandoned: `KilledProcesses`.
"""

from __future__ import annotations

import logging
import random
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from agent.daemon.workers.backoff_memory import MOST_FAILURES, BackoffMemory
from agent.daemon.workers.engine_faults import down_of
from agent.daemon.workers.failover import Failover
from agent.daemon.workers.killed import KilledProcesses
from agent.daemon.workers.listener import Attendant, Listener, Nobody, Probe
from agent.daemon.workers.memory_limit import WorkerMemory
from agent.daemon.workers.probing import ProbeWatch
from agent.daemon.workers.restart_reasons import CLEARS_ACCELERATOR, HANGS, RestartReason
from agent.daemon.workers.stage_limits import CAPTURE, StageLimits
from agent.daemon.workers.stream_progress import StreamProgress
from agent.daemon.workers.worker_run import WorkerRun, launch, spawn_worker
from agent.link import (
    Beat,
    CameraChange,
    Failed,
    FromWorker,
    Learned,
    Lent,
    Ready,
    ResultOut,
    Resume,
    Start,
    Stop,
    SwapFailed,
    Swapped,
    ToWorker,
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
ENDING_LOOK_S = 0.02  # at a process that is ending

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
    attendant: Attendant = field(default_factory=Nobody)
    state: State = "backing_off"
    restarts: int = 0
    restarts_by_reason: Counter[RestartReason] = field(default_factory=Counter)
    _why: RestartReason = "crashed"  # why the next worker will be another one
    _run: WorkerRun | None = None
    _restart_at: float = 0.0
    _is_first: bool = True
    _failures: int = 0
    _deaths_without_progress: int = 0
    _stages: StageLimits = field(default_factory=StageLimits)
    _progress: StreamProgress = field(init=False)
    _killed: KilledProcesses = field(init=False)
    _probes: ProbeWatch = field(init=False)

    def __post_init__(self) -> None:
        self._progress = StreamProgress(self.first_seq)
        self._killed = KilledProcesses(self.listener.on_abandoned, self.clock)
        self._probes = ProbeWatch(self.start_probe, self.failover, self._killed)
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
        # When workers die again and again without progress, a frame of a file is skipped for each
        # death after the first.
        skip = max(0, self._deaths_without_progress - 1)
        start = self.make_start(self._progress.resume(skip), self.failover.avoid)
        if not self._is_first:
            self.restarts += 1
            self.restarts_by_reason[self._why] += 1
        self._is_first = False
        try:
            self._run = launch(self.spawn, self.clock())
        except OSError as error:
            self._back_off("not_started", f"no worker can be started: {error.strerror}")
            return
        self.state = "starting"
        try:
            send(self._run.link, start)
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
                self.attendant.on_result(message)
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
                self.attendant.on_ready(message)
                self._killed.tell_again()
            case CameraChange():
                if message.state in ("online", "frozen"):
                    self._note_online(run, message.camera)
                self.listener.on_camera(message)
            case Failed():
                run.failure = message
            case _:
                self._pass_on(run, message)

    def _pass_on(self, run: WorkerRun, message: FromWorker) -> None:
        """Hand on what changes nothing here."""
        match message:
            case Learned():
                self.listener.on_learned(message)
            case Swapped() | SwapFailed():
                self._warm_up(run)
                self.attendant.on_swap(message)
            case Lent():
                self.attendant.on_lent(message, run.inbox.take_descriptor())

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
            self._warm_up(run)  # its frames take memory from now on

    def _warm_up(self, run: WorkerRun) -> None:
        if self.memory is not None:
            self.memory.warm_up(run.process.pid)

    def tell(self, message: ToWorker) -> bool:
        """Tell the worker something beside its work; False: there is none that runs."""
        run = self._run
        if run is None or self.state != "running" or run.replaced_by is not None:
            return False
        self._warm_up(run)
        return run.ask(message)

    def replace(self, why: RestartReason) -> None:
        """Have another worker take over, as soon as the one that is there has ended in order."""
        run = self._run
        if run is None:
            self.state, self._restart_at = "backing_off", self.clock()
        elif run.replaced_by is None:
            run.replaced_for = why
            is_asked = run.ask(Stop())
            run.replaced_by = self.clock() + (REPLACE_WITHIN_S if is_asked else 0.0)

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
            if self._probes.is_back(now):
                self.replace("accelerator_back")
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

    def _replace(self, run: WorkerRun) -> None:
        """Have the next worker start in the place of one that was asked to end."""
        self._bury(run)
        self.state, self._why = "backing_off", run.replaced_for
        self._restart_at = self.clock()
        self.listener.on_replaced()
        self.attendant.on_replaced()
        self._check_restart()

    def _bury(self, run: WorkerRun) -> None:
        self._run = None
        run.inbox.close()
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
        self.attendant.on_down(down_of(self.name, why, reason, run.failure))
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
        self._probes.end()
        if self._run is not None:
            self._run.ask(Stop())

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
