"""The supervisor with scripted workers and a clock of its own: death, silence, hang, back-off."""

import signal
import subprocess
import sys
from typing import get_args

import pytest
from msgspec import structs

from agent.choices import Choice
from agent.config import CameraConfig, ModelConfig
from agent.contract.payloads import MeasuredRun, ModelIdentity
from agent.daemon.workers import killed, memory_limit, stage_limits, worker_run
from agent.daemon.workers import supervisor as module
from agent.daemon.workers.backoff_memory import BackoffMemory
from agent.daemon.workers.failover import PROBE_FIRST_S, Failover
from agent.daemon.workers.restart_reasons import RestartReason
from agent.daemon.workers.stopping import stop_all
from agent.daemon.workers.supervisor import Supervisor
from agent.link import (
    Beat,
    CameraCounts,
    Failed,
    Inbox,
    Learned,
    Ready,
    ResultOut,
    Start,
    Stop,
    ToWorker,
    send,
)

ENDS_WITHIN_S = 60.0

READY = Ready(
    model=ModelIdentity(name="m", version=None, sha256="0" * 64),
    task="detection",
    head="ssd",
    accelerator="cpu",
    reason=None,
    is_accelerated=False,
    fallbacks=(),
    run=MeasuredRun(runtime="fake 1", threads=1, xnnpack=False, invoke_ms=None),
    first_invoke_s=0.02,
    notes=(),
)


class Heard:
    """A listener that keeps everything."""

    def __init__(self):
        self.results, self.downs, self.readies, self.beats = [], [], [], []
        self.learned, self.replaced, self.abandoned = [], 0, []

    def on_result(self, result):
        self.results.append(result)

    def on_ready(self, ready):
        self.readies.append(ready)

    def on_camera(self, change):
        raise AssertionError(change)

    def on_beat(self, beat):
        self.beats.append(beat)

    def on_learned(self, learned):
        self.learned.append(learned)

    def on_down(self, code, reason):
        self.downs.append((code, reason))

    def on_replaced(self):
        self.replaced += 1

    def on_abandoned(self, pid, reason):
        self.abandoned.append((pid, reason))


class ScriptedProbe:
    """Answers what the rig says; None while it is being tried."""

    def __init__(self, rig):
        self.rig = rig
        self.is_ended = False

    def poll(self):
        return self.rig.probe_answer

    def end(self):
        self.is_ended = True
        return []


class Unkillable(subprocess.Popen):
    """A process that SIGKILL does not end until it is let go, as if a driver held it."""

    is_held = True

    def kill(self):
        self.kills = getattr(self, "kills", 0) + 1

    def poll(self):
        return None if self.is_held else super().poll()

    def wait(self, timeout=None):
        if self.is_held:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return super().wait(timeout)

    def let_go(self):
        self.is_held = False
        super().kill()
        super().wait(ENDS_WITHIN_S)


class Rig:
    """A supervisor whose workers are `sleep` processes; the test speaks in their place."""

    def __init__(self, wanted="auto", **settings):
        self.now = 1000.0
        self.heard = Heard()
        self.starts = []
        self.avoided = []
        self.probes = []
        self.probe_answer = None
        self.theirs = None
        self.popen = subprocess.Popen
        self.processes = []
        self.supervisor = Supervisor(
            make_start=self._make_start,
            listener=self.heard,
            failover=Failover((wanted,)),
            start_probe=self._start_probe,
            spawn=self._spawn,
            clock=lambda: self.now,
            **settings,
        )

    def _start_probe(self, models):
        self.probes.append(ScriptedProbe(self))
        self.probed = models
        return self.probes[-1]

    def _make_start(self, resume, avoid):
        self.starts.append(resume)
        self.avoided.append(avoid)
        return Start(
            device="d", boot_id="b", model=ModelConfig(), cameras=(CameraConfig(),), resume=resume
        )

    def _spawn(self, worker_end):
        if self.theirs is not None:
            self.theirs.close()
        self.theirs = worker_end.dup()
        process = self.popen([sys.executable, "-c", "import time; time.sleep(60)"])
        self.processes.append(process)
        return process

    def start(self):
        self.supervisor.start()
        assert isinstance(Inbox(self.theirs, ToWorker).receive(), Start)

    def say(self, *messages):
        for message in messages:
            send(self.theirs, message)
        self.supervisor.receive()

    def die(self, number=signal.SIGKILL):
        self.processes[-1].send_signal(number)
        self.processes[-1].wait()
        self.theirs.close()
        self.supervisor.receive()

    def next_worker(self):
        """Let time pass until the next worker starts; return how long that took."""
        waited = 0.0
        count = len(self.starts)
        for process in self.processes:
            process.wait(ENDS_WITHIN_S)  # what was killed takes its own time, not the rig's
        while len(self.starts) == count:
            due = self.supervisor.check()
            if len(self.starts) == count:
                self.now += due
                waited += due
        Inbox(self.theirs, ToWorker).receive()
        return waited


@pytest.fixture
def rig():
    one = Rig()
    yield one
    for process in one.processes:
        process.let_go() if isinstance(process, Unkillable) else process.kill()
        process.wait()
    if one.supervisor.link is not None:
        one.supervisor.link.close()
    one.theirs.close()


def result(seq, frame_id):
    return ResultOut(camera="a", seq=seq, frame_id=frame_id, payload=b"{}")


def beat(last_frame_id=0, **ages):
    counts = CameraCounts(captured=9, dropped=0, still=0, processed=9, last_frame_id=last_frame_id)
    return Beat(stage_age_s=ages, cameras={"a": counts})


def test_results_before_death_are_kept_and_the_next_goes_on_behind_them(rig):
    rig.start()
    send(rig.theirs, READY)
    for seq in (1, 2, 3):
        send(rig.theirs, result(seq, 10 * seq))
    rig.die()
    assert [r.seq for r in rig.heard.results] == [1, 2, 3]
    assert rig.heard.downs == [("worker", "worker died of SIGKILL")]
    assert rig.next_worker() == 0.0, "the first restart is immediate"
    resume = rig.starts[-1]["a"]
    assert (resume.next_seq, resume.next_frame_id) == (4, 31)
    assert rig.supervisor.restarts == 1


def test_unpublished_frames_are_not_looked_at_again(rig):
    rig.start()
    rig.say(READY, result(1, 5), beat(last_frame_id=17))
    rig.die()
    rig.next_worker()
    assert rig.starts[-1]["a"].next_frame_id == 18


def test_back_off_grows_is_bounded_and_a_stable_run_resets_it(rig):
    rig.start()
    waits = []
    for _ in range(14):
        rig.die()
        waits.append(rig.next_worker())
    assert waits[0] == 0.0
    assert 0.3 < waits[1] < 0.7
    assert waits[1] < waits[3] < waits[6]
    assert max(waits) <= module.BACKOFF_MOST_S * 1.25
    rig.say(READY)
    for _ in range(8):
        rig.now += 2
        rig.say(beat())
        rig.supervisor.check()
    rig.die()
    assert rig.next_worker() == 0.0


def test_a_frame_that_kills_is_stepped_over(rig):
    rig.start()
    rig.say(READY, result(1, 5))
    for skip in [0, 0, 1, 2]:
        rig.die()
        rig.next_worker()
        assert rig.starts[-1]["a"].next_frame_id == 6
        assert rig.starts[-1]["a"].skip == skip
        rig.say(READY)
    rig.say(result(2, 9))
    rig.die()
    rig.next_worker()
    assert rig.starts[-1]["a"].skip == 0


def test_workers_that_never_become_ready_skip_nothing(rig):
    rig.start()
    rig.say(READY, result(1, 5))
    for _ in range(6):
        rig.die()
        rig.next_worker()
    assert rig.starts[-1]["a"].skip == 0


def test_last_words_of_a_worker_that_never_listened(rig):
    """The kernel says `reset` before it hands over what was sent; nothing of it may be lost."""
    rig.supervisor.start()  # its start message stays unread
    send(rig.theirs, Failed(code="worker", reason="ImportError: libGL.so.1"))
    rig.die()
    assert rig.heard.downs == [("worker", "ImportError: libGL.so.1")]


def test_no_process_can_be_started(rig):
    good = rig.supervisor.spawn

    def refuse(worker_end):
        raise OSError(12, "Cannot allocate memory")

    rig.supervisor.spawn = refuse
    rig.supervisor.start()
    assert "Cannot allocate memory" in rig.heard.downs[0][1]
    rig.supervisor.spawn = good
    rig.next_worker()
    rig.say(READY)
    assert rig.supervisor.state == "running"


def test_our_own_pause_is_not_the_workers(rig):
    rig.start()
    rig.say(READY)
    send(rig.theirs, beat())
    rig.now += 60
    rig.supervisor.check()
    assert rig.heard.downs == []


def test_silence_is_a_hang(rig):
    rig.start()
    rig.say(READY)
    rig.now += module.SILENT_S - 0.1
    rig.supervisor.check()
    assert rig.heard.downs == []
    rig.now += 0.2
    rig.supervisor.check()
    assert "was silent" in rig.heard.downs[0][1]
    assert rig.processes[-1].wait(ENDS_WITHIN_S) == -signal.SIGKILL


def test_a_slow_start_is_given_time_but_not_for_ever(rig):
    rig.start()
    rig.say(beat())
    rig.now += module.START_WITHIN_S - 1
    rig.say(beat())
    rig.supervisor.check()
    assert rig.heard.downs == []
    rig.now += 2
    rig.supervisor.check()
    assert "did not become ready" in rig.heard.downs[0][1]


@pytest.mark.parametrize(
    ("stage", "age_s", "is_stuck"),
    [
        ("inference", 9.0, False),
        ("inference", 11.0, True),
        ("capture.a", 11.0, False),
        ("capture.a", 26.0, True),
    ],
)
def test_a_stage_that_stops_ticking(rig, stage, age_s, is_stuck):
    rig.start()
    rig.say(READY, beat(**{stage: age_s}))
    assert bool(rig.heard.downs) == is_stuck
    if is_stuck:
        assert stage in rig.heard.downs[0][1]
        assert rig.processes[-1].wait(ENDS_WITHIN_S) == -signal.SIGKILL


@pytest.mark.parametrize(("stage", "is_avoided"), [("inference", True), ("capture.a", False)])
def test_a_camera_that_hangs_is_no_fault_of_the_accelerator(rig, stage, is_avoided):
    rig.start()
    rig.say(structs.replace(READY, is_accelerated=True), result(1, 1), beat(**{stage: 26.0}))
    rig.next_worker()
    assert bool(rig.avoided[-1]) == is_avoided


def test_workers_that_cannot_be_killed_are_not_collected_without_end(rig):
    rig.popen = Unkillable
    rig.start()
    age_s = 26.0
    for _ in range(8):
        rig.say(READY, beat(**{"capture.a": age_s}))
        rig.now += killed.GONE_WITHIN_S + 0.1
        rig.supervisor.check()
        rig.now += 2.0  # the back-off is over
        rig.supervisor.check()
        age_s *= 2.1
    assert len(rig.starts) == module.MOST_ABANDONED + 1
    rig.say(READY, beat(inference=1e5))
    assert "stage inference stuck" in rig.heard.downs[-1][1]


def test_a_slow_model_is_not_a_hung_one(rig):
    rig.start()
    rig.say(structs.replace(READY, first_invoke_s=3.0), beat(inference=40.0))
    assert rig.heard.downs == []
    rig.say(beat(inference=61.0))
    assert "stage inference stuck" in rig.heard.downs[0][1]


def test_last_words_are_the_reason(rig):
    rig.start()
    send(rig.theirs, Failed(code="model", reason="x.tflite: is empty"))
    rig.die(signal.SIGTERM)
    assert rig.heard.downs == [("model", "x.tflite: is empty")]


def test_a_crash_while_loading_points_at_the_model(rig):
    rig.start()
    rig.die(signal.SIGSEGV)
    assert rig.heard.downs[0][0] == "model"
    assert "SIGSEGV" in rig.heard.downs[0][1]
    rig.next_worker()
    rig.say(READY)
    rig.die(signal.SIGSEGV)
    assert rig.heard.downs[1] == ("worker", "worker died of SIGSEGV")


def test_garbage_on_the_link_costs_the_worker_not_the_daemon(rig):
    rig.start()
    rig.theirs.send(b"\xc1 not a message")
    rig.supervisor.receive()
    assert "link to the worker broke" in rig.heard.downs[0][1]
    rig.next_worker()
    rig.say(READY)
    assert rig.supervisor.state == "running"


def test_stop_takes_the_last_results(rig):
    rig.start()
    send(rig.theirs, READY)
    send(rig.theirs, result(1, 1))
    rig.theirs.shutdown(1)  # its last word is said
    rig.supervisor.stop(within_s=1.0)
    assert [r.seq for r in rig.heard.results] == [1]
    assert rig.processes[-1].wait(ENDS_WITHIN_S) == -signal.SIGKILL


def on_delegate(rig):
    rig.say(structs.replace(READY, accelerator="delegate:/x.so", is_accelerated=True))


def test_an_accelerator_that_kills_three_times_rests_and_the_next_starts_at_once(rig):
    rig.supervisor.failover.wanted = ("delegate:/x.so",)
    rig.start()
    for _ in range(3):
        on_delegate(rig)
        rig.die(signal.SIGABRT)
        waited = rig.next_worker()
    assert waited == 0.0
    assert rig.avoided[:3] == ["", "", ""]
    assert "died 3 times" in rig.avoided[3]


def test_a_probe_that_succeeds_replaces_the_worker(rig):
    rig.supervisor.failover.wanted = ("delegate:/x.so",)
    rig.start()
    rig.say(structs.replace(READY, fallbacks=("",)), result(1, 5))
    assert not rig.probes
    rig.now += PROBE_FIRST_S
    rig.say(beat())
    rig.supervisor.check()
    assert len(rig.probes) == 1
    rig.supervisor.check()
    assert len(rig.probes) == 1, "one at a time"
    rig.probe_answer = ""
    rig.supervisor.check()
    assert isinstance(Inbox(rig.theirs, ToWorker).receive(), Stop)
    send(rig.theirs, result(2, 9))  # finished on its way out
    rig.die(signal.SIGTERM)
    assert (rig.heard.replaced, rig.heard.downs) == (1, [])
    assert rig.avoided == ["", ""]
    assert rig.starts[-1]["a"].next_seq == 3
    assert rig.supervisor.state == "starting"


def test_a_worker_that_does_not_end_as_asked_is_killed(rig):
    rig.supervisor.failover.wanted = ("delegate:/x.so",)
    rig.start()
    rig.say(structs.replace(READY, fallbacks=("",)))
    rig.now += PROBE_FIRST_S
    rig.say(beat())
    rig.probe_answer = ""
    rig.supervisor.check()
    rig.supervisor.check()
    rig.now += module.REPLACE_WITHIN_S + 0.1
    rig.say(beat())
    rig.supervisor.check()
    assert rig.processes[0].wait(ENDS_WITHIN_S) == -signal.SIGKILL
    assert (rig.heard.replaced, rig.heard.downs) == (1, [])


def test_a_probe_that_fails_leaves_the_worker_alone(rig):
    rig.supervisor.failover.wanted = ("edgetpu",)
    rig.start()
    rig.say(structs.replace(READY, fallbacks=("",)))
    rig.now += PROBE_FIRST_S
    rig.say(beat())
    rig.probe_answer = "no Edge TPU is plugged in"
    rig.supervisor.check()
    rig.supervisor.check()
    assert (rig.heard.replaced, rig.heard.downs, len(rig.starts)) == (0, [], 1)
    rig.supervisor.check()
    assert len(rig.probes) == 1, "the next one comes later"


def test_a_known_percentile_bounds_a_hang(rig):
    rig.start()
    rig.say(structs.replace(READY, first_invoke_s=3.0))
    rig.say(structs.replace(beat(inference=11.0), invoke_p99_s=0.03))
    assert "stage inference stuck" in rig.heard.downs[0][1]


def test_what_was_learned_is_handed_on(rig):
    choice = Choice(
        runtime="litert", xnnpack=True, threads=2, invoke_ms=9.5, candidates=(), measured_at=1.0
    )
    rig.start()
    rig.say(Learned(key="k", choice=choice))
    assert [(one.key, one.choice) for one in rig.heard.learned] == [("k", choice)]


def test_ending_ends_the_probe(rig):
    rig.supervisor.failover.wanted = ("edgetpu",)
    rig.start()
    rig.say(structs.replace(READY, fallbacks=("",)))
    rig.now += PROBE_FIRST_S
    rig.say(beat())
    rig.supervisor.check()
    rig.supervisor.ask_to_stop()
    assert rig.probes[0].is_ended


def test_what_is_probed_are_the_models_that_do_without(rig):
    rig.supervisor.failover.wanted = ("cpu", "edgetpu")
    rig.start()
    rig.say(structs.replace(READY, fallbacks=("breeds",)))
    rig.now += PROBE_FIRST_S
    rig.say(beat())
    rig.supervisor.check()
    assert rig.probed == ("breeds",)


def test_deaths_with_a_second_stage_on_an_accelerator_are_counted(rig):
    rig.supervisor.failover.wanted = ("cpu", "delegate:/x.so")
    rig.start()
    for _ in range(3):
        rig.say(structs.replace(READY, is_accelerated=True))
        rig.die(signal.SIGABRT)
        rig.next_worker()
    assert "died 3 times" in rig.avoided[-1]


def test_an_accelerator_that_hangs_while_it_is_opened_is_not_waited_for_long(rig):
    rig.supervisor.failover.wanted = ("edgetpu",)
    rig.start()
    rig.say(beat(opening=stage_limits.OPEN_STUCK_S - 1))
    assert rig.heard.downs == []
    rig.say(beat(opening=stage_limits.OPEN_STUCK_S + 1))
    assert "stage opening stuck" in rig.heard.downs[0][1]
    assert rig.next_worker() == 0.0
    assert "stage opening stuck" in rig.avoided[-1]


def test_a_start_that_cannot_be_sent_is_a_death(rig):
    def too_large(resume, avoid):
        start = rig._make_start(resume, avoid)
        return structs.replace(start, boot_id="x" * (8 << 20))

    rig.supervisor.make_start = too_large
    rig.supervisor.start()
    assert "cannot be told its work" in rig.heard.downs[0][1]


def test_a_slow_start_earns_no_quick_restart(rig):
    rig.start()
    for _ in range(2):
        rig.now += 2 * module.STABLE_S
        rig.say(READY)
        rig.supervisor.check()
        rig.die()
        waited = rig.next_worker()
    assert waited > 0.0


def stuck_rig(rig):
    """Have the rig's first worker be silent and not end when it is killed."""
    rig.popen = Unkillable
    rig.start()
    rig.popen = subprocess.Popen
    rig.say(READY, result(1, 5))
    rig.now += module.SILENT_S + 0.1
    rig.supervisor.check()
    assert "was silent" in rig.heard.downs[0][1]
    return rig.processes[0]


def test_a_worker_that_cannot_be_killed_is_abandoned_and_replaced(rig):
    stuck = stuck_rig(rig)
    rig.supervisor.check()
    assert len(rig.starts) == 1, "it may hold the camera until it is known to be stuck"
    assert not rig.heard.abandoned
    rig.now += killed.GONE_WITHIN_S + 0.1
    rig.supervisor.check()
    [(pid, reason)] = rig.heard.abandoned
    assert pid == stuck.pid
    assert f"process {stuck.pid} was killed but has not ended (state " in reason
    assert "until the board is restarted" in reason
    assert len(rig.starts) == 2, "another one works beside it"
    rig.say(READY)
    assert rig.heard.abandoned[1:] == [(pid, reason)], "said again, as Ready clears problems"
    rig.supervisor.check()
    assert len(rig.heard.abandoned) == 2
    assert stuck.kills == 1


def test_a_worker_that_ends_after_all_is_no_problem_any_more(rig):
    stuck = stuck_rig(rig)
    rig.now += killed.GONE_WITHIN_S + 0.1
    rig.supervisor.check()
    stuck.let_go()
    rig.supervisor.check()
    assert rig.heard.abandoned[-1] == (stuck.pid, "")
    rig.say(READY)
    assert rig.heard.abandoned[-1] == (stuck.pid, "")


def test_what_holds_a_process_in_the_kernel_is_said(rig, monkeypatch):
    stuck_rig(rig)
    monkeypatch.setattr(killed, "read_state", lambda pid: "D")
    rig.now += killed.GONE_WITHIN_S + 0.1
    rig.supervisor.check()
    assert "a driver holds it in uninterruptible sleep (state D)" in rig.heard.abandoned[0][1]


def test_the_end_waits_for_nobody_who_is_abandoned(rig, monkeypatch):
    stuck = stuck_rig(rig)
    rig.now += killed.GONE_WITHIN_S + 0.1
    rig.supervisor.check()
    waited = []
    monkeypatch.setattr(Unkillable, "wait", lambda self, timeout=None: waited.append(self))
    stop_all([rig.supervisor], 0.1)
    assert waited == []
    monkeypatch.undo()
    assert stuck.poll() is None


def test_a_worker_that_closes_its_link_but_lives_holds_nobody_up(rig):
    rig.popen = Unkillable
    rig.start()
    rig.popen = subprocess.Popen
    rig.say(READY)
    rig.theirs.shutdown(2)
    rig.supervisor.receive()
    assert rig.supervisor.link is None, "else a loop that waits on it would spin"
    rig.supervisor.check()
    assert rig.heard.downs == []
    rig.now += worker_run.ENDS_WITHIN_S
    rig.supervisor.check()
    assert rig.heard.downs == [("worker", "worker closed its link but did not end; killed")]


def test_a_worker_that_takes_its_time_to_die_is_still_asked_why(rig):
    rig.popen = Unkillable
    rig.start()
    rig.popen = subprocess.Popen
    send(rig.theirs, Failed(code="model", reason="x.tflite: is empty"))
    rig.theirs.shutdown(2)
    rig.supervisor.receive()
    assert rig.heard.downs == []
    rig.processes[0].let_go()
    rig.supervisor.check()
    assert rig.heard.downs == [("model", "x.tflite: is empty")]


def test_no_accelerator_is_probed_while_a_probe_is_stuck(rig):
    rig.supervisor.failover.wanted = ("edgetpu",)
    rig.start()
    rig.say(structs.replace(READY, fallbacks=("",)))
    stuck = Unkillable([sys.executable, "-c", "import time; time.sleep(60)"])
    rig.processes.append(stuck)
    rig.now += PROBE_FIRST_S
    rig.say(beat())
    rig.supervisor.check()
    rig.probes[0].end = lambda: [stuck]
    rig.probe_answer = "could not be tried within 50 s"
    rig.supervisor.check()
    assert stuck.kills == 1
    for _ in range(4):
        rig.now += killed.GONE_WITHIN_S
        rig.say(beat())
        rig.supervisor.check()
    assert [pid for pid, _ in rig.heard.abandoned] == [stuck.pid]
    rig.now += 10 * PROBE_FIRST_S
    rig.say(beat())
    rig.supervisor.check()
    assert len(rig.probes) == 1
    stuck.let_go()
    rig.supervisor.check()
    assert len(rig.probes) == 2


def test_a_worker_that_leaks_is_replaced_and_says_how_much_it_had():
    sizes = iter([*[100] * 6, 150, 190, 210, 220, 230, 240])
    mib = 1 << 20
    rig = Rig()
    rig.supervisor.memory = memory_limit.WorkerMemory(
        memory_limit.Budget(200 * mib, 400 * mib),
        read_rss=lambda pid: next(sizes) * mib,
        clock=lambda: rig.now,
    )
    rig.start()
    rig.say(READY)
    for _ in range(60):
        rig.now += 0.5
        if rig.heard.downs:
            break
        rig.say(beat())
        rig.supervisor.check()
    assert rig.heard.downs == [("worker", "worker used 230 MiB of 200 MiB allowed; replaced")]
    rig.processes[0].wait(ENDS_WITHIN_S)
    rig.theirs.close()


def test_back_off_goes_on_where_the_last_daemon_stopped(tmp_path):
    def failing_rig():
        one = Rig(backoff=BackoffMemory(tmp_path / "backoff.json"), name="breeds")
        one.start()
        return one

    before = failing_rig()
    for _ in range(4):
        before.die()
        before.next_worker()
    assert before.supervisor.backoff.flush(10)
    after = failing_rig()
    after.die()
    assert after.next_worker() > 0.75 * module.BACKOFF_FIRST_S * 2**3
    after.say(READY)
    after.now += module.STABLE_S + 0.1
    after.say(beat())
    after.supervisor.check()
    assert after.supervisor.backoff.flush(10)
    last = failing_rig()
    last.die()
    assert last.next_worker() == 0.0
    for rig in (before, after, last):
        rig.supervisor.stop(0.0)
        rig.processes[-1].wait(ENDS_WITHIN_S)
        rig.theirs.close()


def test_numbers_go_on_where_the_last_daemon_stopped(rig):
    rig.supervisor = Supervisor(
        make_start=rig._make_start, listener=rig.heard, failover=Failover(("cpu",)),
        start_probe=rig._start_probe, spawn=rig._spawn, clock=lambda: rig.now,
        first_seq={"a": 513},
    )  # fmt: skip
    rig.start()
    assert rig.starts[0]["a"].next_seq == 513
    assert rig.starts[0]["a"].next_frame_id == 1


def test_a_first_worker_may_be_put_off(rig):
    rig.supervisor.start_later(20.0)
    assert 19.0 < rig.supervisor.check() <= 20.0
    rig.now += 20.1
    rig.supervisor.check()
    assert len(rig.starts) == 1
    assert rig.supervisor.restarts == 0


def test_a_camera_that_hangs_again_and_again_is_left_alone_for_longer(rig):
    rig.start()
    for most_s in (25.0, 50.0, 100.0):
        rig.say(READY, beat(**{"capture.a": most_s - 1}))
        count = len(rig.heard.downs)
        rig.say(beat(**{"capture.a": most_s + 1}))
        assert len(rig.heard.downs) == count + 1
        rig.next_worker()
    rig.say(READY)
    rig.supervisor._stages.note_online("a")
    rig.say(beat(**{"capture.a": 26.0}))
    assert len(rig.heard.downs) == 4


def _stuck(rig, **ages):
    rig.say(READY, beat(**ages))


def _falls_silent(rig):
    rig.say(READY)
    rig.now += module.SILENT_S + 0.1
    rig.supervisor.check()


def _never_ready(rig):
    rig.now += module.START_WITHIN_S + 1
    rig.supervisor.check()


def _refuses_its_model(rig):
    send(rig.theirs, Failed(code="model", reason="x.tflite: is empty"))
    rig.die(signal.SIGTERM)


def _uses_too_much(rig):
    rig.supervisor.memory = Excessive()
    rig.say(READY)
    rig.supervisor.check()


def _accelerator_returns(rig):
    rig.supervisor.failover.wanted = ("edgetpu",)
    rig.say(structs.replace(READY, fallbacks=("",)))
    rig.now += PROBE_FIRST_S
    rig.say(beat())
    rig.probe_answer = ""
    rig.supervisor.check()
    rig.supervisor.check()
    rig.die(signal.SIGTERM)  # the next one starts at once


def _makes_room(rig):
    rig.say(READY)
    rig.supervisor.replace("swap")
    rig.die(signal.SIGTERM)


class Excessive:
    """A memory limit that every worker has passed."""

    def excess(self, pid, ready_at):
        return "worker used too much"

    def forget(self, pid):
        pass


ENDS = {
    "crashed": lambda rig: rig.die(),
    "model": _refuses_its_model,
    "hang": lambda rig: _stuck(rig, inference=11.0),
    "camera_hang": lambda rig: _stuck(rig, **{"capture.a": 26.0}),
    "silent": _falls_silent,
    "slow_start": _never_ready,
    "memory": _uses_too_much,
    "accelerator_back": _accelerator_returns,
    "swap": _makes_room,
}
ASKED = ("accelerator_back", "swap")


@pytest.mark.parametrize("why", [one for one in get_args(RestartReason) if one != "not_started"])
def test_restarts_are_counted_by_reason(rig, why):
    rig.start()
    ENDS[why](rig)
    assert why in ASKED or not rig.supervisor.restarts, "at the restart, no sooner"
    if why not in ASKED:
        rig.next_worker()
    assert dict(rig.supervisor.restarts_by_reason) == {why: 1}
    rig.supervisor.memory = None
    rig.die()
    rig.next_worker()
    assert rig.supervisor.restarts_by_reason["crashed"] == 1 + (why == "crashed")
    assert rig.supervisor.restarts == sum(rig.supervisor.restarts_by_reason.values()) == 2


def test_a_start_that_the_kernel_refuses_is_a_reason_of_its_own(rig):
    def refuse(worker_end):
        raise OSError(12, "Cannot allocate memory")

    good, rig.supervisor.spawn = rig.supervisor.spawn, refuse
    rig.supervisor.start()
    rig.supervisor.spawn = good
    rig.next_worker()
    assert dict(rig.supervisor.restarts_by_reason) == {"not_started": 1}
