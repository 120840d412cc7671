"""An engine's model exchanged, as an updater sees it: scripted workers, then real ones."""

import os
import select
import signal
import sys
import time
from pathlib import Path

import pytest
from msgspec import structs
from test_supervisor import READY, Heard

from agent.config import CameraConfig, ModelConfig
from agent.contract.payloads import ModelIdentity
from agent.daemon.workers import exchange as module
from agent.daemon.workers import stage_limits
from agent.daemon.workers.engine_faults import down_of
from agent.daemon.workers.exchange import ModelExchange
from agent.daemon.workers.failover import Failover
from agent.daemon.workers.stopping import stop_all
from agent.daemon.workers.supervisor import Supervisor
from agent.link import (
    Failed,
    Keep,
    LendFrames,
    Lent,
    ResultOut,
    Revert,
    Start,
    Swap,
    SwapFailed,
    Swapped,
)
from agent.ota.selftest import ExamReport, ExamRequest
from agent.ota.steps import Refused, Succeeded, Working

sys.path.append(str(Path(__file__).parent.parent / "vision"))
from bad_models import made_at, made_classifier, model_folder, pictures
from live import chosen, model
from plugins import build_plugin

OLD, NEW = ModelConfig(path="/m/old"), ModelConfig(path="/m/new")
OLD_READY = structs.replace(READY, path=OLD.path)
NEW_ID = ModelIdentity(name="new", version=None, sha256="1" * 64)
NEW_READY = structs.replace(READY, path=NEW.path, model=NEW_ID)


class ScriptedWorkers:
    """Takes every word, unless told not to."""

    def __init__(self):
        self.told, self.replaced, self.is_there = [], [], True
        self.failover = Failover(("auto",))

    def tell(self, message):
        if self.is_there:
            self.told.append(message)
        return self.is_there

    def replace(self, why):
        self.replaced.append(why)


@pytest.fixture
def workers():
    return ScriptedWorkers()


@pytest.fixture
def faults():
    return []


@pytest.fixture
def exchange(workers, faults):
    one = ModelExchange("cam", workers, faults.append)
    one.on_ready(OLD_READY)
    return one


def swapped(step, model=NEW_ID, gap_ms=40.0):
    return Swapped(token=step.token, model=model, gap_ms=gap_ms, load_ms=300.0)


def result(at_ns=0):
    return ResultOut(camera="door", seq=1, frame_id=1, payload=b"{}", encoded_ns=at_ns)


def test_a_swap_beside_the_model_that_runs(exchange, workers):
    step = exchange.swap(NEW, manifest_sha256="2" * 64)
    [order] = workers.told
    assert (order.token, order.model, order.manifest_sha256) == (step.token, NEW, "2" * 64)
    assert isinstance(step.poll(), Working)
    exchange.on_swap(Swapped(token="another", model=NEW_ID, gap_ms=1.0, load_ms=1.0))
    assert isinstance(step.poll(), Working)
    exchange.on_swap(swapped(step))
    assert step.poll() == Succeeded(model=NEW_ID)
    assert (step.gap_ms, step.load_ms, workers.replaced) == (40.0, 300.0, [])


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("refused", ("E_SELFTEST", True)),
        ("frame_failed", ("E_FRAME", True)),
        ("busy", ("E_SYSTEM", False)),
    ],
)
def test_what_the_worker_refuses(exchange, faults, code, expected):
    step = exchange.swap(NEW)
    exchange.on_swap(SwapFailed(token=step.token, code=code, reason="why"))
    reply = step.poll()
    assert (reply.code, reply.is_final, reply.message) == (*expected, "why")
    assert faults == [], "the step has said it"


def test_the_model_before_takes_over_at_once_while_it_is_held(exchange, workers):
    exchange.on_swap(swapped(exchange.swap(NEW)))
    exchange.on_ready(NEW_READY)
    step = exchange.swap(OLD)
    assert workers.told[-1] == Revert(token=step.token)
    exchange.on_swap(swapped(step, READY.model))
    assert step.poll() == Succeeded(model=READY.model)


def test_what_fails_is_not_what_runs_any_more(exchange, workers, faults):
    step = exchange.swap(NEW)
    exchange.on_ready(NEW_READY)  # a first good frame, but the second one
    exchange.on_swap(SwapFailed(token=step.token, code="frame_failed", reason="-"))
    assert exchange.swap(OLD).poll() == Succeeded(model=READY.model)
    step = exchange.swap(NEW)
    exchange.on_ready(NEW_READY)
    exchange.on_swap(swapped(step))
    exchange.on_swap(SwapFailed(token=step.token, code="frame_failed", reason="-"))
    assert exchange.swap(OLD).poll() == Succeeded(model=READY.model)
    assert len(workers.told) == 2
    assert len(faults) == 1


@pytest.mark.parametrize("ends", ["swapped", "refused", "replaced"])
def test_what_is_recalled_while_it_loads_does_not_stay(exchange, workers, ends):
    there = exchange.swap(NEW)
    there.stop()
    back = exchange.swap(OLD)
    assert isinstance(back.poll(), Working), "the worker will have the new one soon"
    if ends == "swapped":
        exchange.on_ready(NEW_READY)
        exchange.on_swap(swapped(there))
        assert workers.told[-1] == Revert(token=back.token)
        exchange.on_swap(swapped(back, READY.model))
    elif ends == "refused":
        exchange.on_swap(SwapFailed(token=there.token, code="refused", reason="-"))
    else:
        exchange.on_replaced()
        exchange.on_ready(OLD_READY)
        assert isinstance(back.poll(), Working)
        exchange.on_result(result())
    assert back.poll() == Succeeded(model=READY.model)
    assert isinstance(there.poll(), Refused)


def test_what_was_given_up_while_it_waited_is_not_begun(exchange, workers):
    there, back = exchange.swap(NEW), exchange.swap(OLD)
    back.stop()
    exchange.on_ready(NEW_READY)
    exchange.on_swap(swapped(there))
    assert len(workers.told) == 1
    again = exchange.swap(OLD)
    again.stop()
    exchange.on_swap(SwapFailed(token=again.token, code="nothing_held", reason="-"))
    assert isinstance(workers.told[-1], Revert)


def test_an_accelerator_that_rests_is_left_alone(exchange, workers):
    workers.failover.avoid = "it died"
    exchange.swap(NEW)
    assert workers.told[-1].avoid == "it died"


def test_what_is_no_longer_held_is_loaded_anew(exchange, workers):
    exchange.on_swap(swapped(exchange.swap(NEW)))
    exchange.on_ready(NEW_READY)
    step = exchange.swap(OLD)
    exchange.on_swap(SwapFailed(token=step.token, code="nothing_held", reason="-"))
    assert isinstance(workers.told[-1], Swap)
    assert (workers.told[-1].model, workers.replaced) == (OLD, [])
    exchange.on_swap(swapped(step, READY.model))
    assert isinstance(step.poll(), Succeeded)


def test_after_keep_nothing_is_asked_back(exchange, workers):
    exchange.on_swap(swapped(exchange.swap(NEW)))
    exchange.on_ready(NEW_READY)
    exchange.keep()
    assert workers.told[-1] == Keep()
    exchange.swap(OLD)
    assert isinstance(workers.told[-1], Swap)


def test_what_runs_already_need_not_be_swapped(exchange, workers):
    assert exchange.swap(OLD).poll() == Succeeded(model=READY.model)
    assert workers.told == []


@pytest.mark.parametrize("why", ["accelerated", "no worker", "not told"])
def test_where_it_cannot_be_done_beside_it_another_worker_does(exchange, workers, why):
    exchange.on_result(result(10_000_000))
    if why == "accelerated":
        exchange.on_ready(structs.replace(OLD_READY, is_accelerated=True))
    elif why == "no worker":
        exchange.ready = None
    else:
        workers.is_there = False
    step = exchange.swap(NEW)
    assert (workers.told, workers.replaced) == ([], ["swap"])
    exchange.on_result(result(20_000_000))  # the last ones of the model before
    assert isinstance(step.poll(), Working)
    exchange.on_ready(NEW_READY)
    assert isinstance(step.poll(), Working)
    exchange.on_result(result(260_000_000))
    assert step.poll() == Succeeded(model=NEW_ID)
    assert step.gap_ms == 240.0


def test_a_new_worker_is_believed_without_frames(exchange, workers, monkeypatch):
    workers.is_there = False
    step = exchange.swap(NEW)
    exchange.on_ready(NEW_READY)
    monkeypatch.setattr(module, "NO_FRAME_S", -1.0)
    assert step.poll() == Succeeded(model=NEW_ID)


def test_a_new_worker_that_runs_something_else_is_no_swap(exchange, workers):
    workers.is_there = False
    step = exchange.swap(NEW)
    exchange.on_ready(OLD_READY)
    assert step.poll().code == "E_SELFTEST"


def test_what_fails_after_its_swap_is_told(exchange, faults):
    step = exchange.swap(NEW)
    exchange.on_swap(swapped(step))
    exchange.on_swap(SwapFailed(token=step.token, code="frame_failed", reason="ValueError: x"))
    [fault] = faults
    assert (fault.engine, fault.code, fault.reason, fault.is_native) == (
        "cam", "E_FRAME", "ValueError: x", True,
    )  # fmt: skip
    assert isinstance(step.poll(), Succeeded)


def test_a_step_that_was_given_up_takes_no_answer(exchange):
    step = exchange.swap(NEW)
    step.stop()
    exchange.on_swap(swapped(step))
    assert isinstance(step.poll(), Refused)


def test_how_the_examined_model_ran_goes_with_the_swap(exchange, workers):
    way = exchange.way
    assert (way.runtime, way.threads) == ("tflite-runtime", 1)
    exchange.learn(ExamReport(ok=True, choice_key="k" * 64, choice=way))
    exchange.swap(NEW)
    assert workers.told[-1].choices == {"k" * 64: way}
    exchange.on_ready(structs.replace(OLD_READY, accelerator="edgetpu"))
    assert exchange.way is None


# Shadow.


class ScriptedExam:
    progress = 0.5

    def __init__(self, request, frames):
        self.request, self.frames, self.report, self.is_stopped = request, frames, None, False
        self.content = os.pread(frames, 10, 0)

    def poll(self):
        return self.report

    def stop(self):
        self.is_stopped = True


@pytest.fixture
def exams(monkeypatch):
    started = []

    def start(request, frames):
        started.append(ScriptedExam(request, frames))
        return started[-1]

    monkeypatch.setattr(module, "start_shadow", start)
    return started


def lend(exchange, step):
    descriptor = os.memfd_create("frames")
    os.write(descriptor, b"pixels")
    exchange.on_lent(Lent(token=step.token, frames=2, size=6), descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_frames_go_from_the_worker_to_the_child(exchange, workers, exams):
    request = ExamRequest(model=NEW)
    step = exchange.shadow(request)
    [order] = workers.told
    assert (order.token, order.count) == (step.token, 24)
    assert isinstance(order, LendFrames)
    assert isinstance(step.poll(), Working)
    lend(exchange, step)
    [exam] = exams
    assert (exam.request, exam.content) == (request, b"pixels")
    assert step.poll() == Working(progress=0.5)
    exam.report = ExamReport(ok=True, agreement=0.75, p95_ms=9.0)
    assert step.poll() == Succeeded(agreement=0.75, p95_ms=9.0)
    lend(exchange, step)  # nobody waits for these
    assert len(exams) == 1


def test_without_frames_there_is_nothing_to_agree_on(exchange, exams):
    step = exchange.shadow(ExamRequest(model=NEW))
    exchange.on_lent(Lent(token=step.token, frames=0, size=0), None)
    assert step.poll() == Succeeded(agreement=None)


def test_a_worker_that_does_not_lend_is_not_waited_for(exchange, workers, exams, monkeypatch):
    monkeypatch.setattr(module, "LENT_GRACE_S", -100.0)
    nothing = Succeeded(agreement=None)
    assert exchange.shadow(ExamRequest(model=NEW)).poll() == nothing
    monkeypatch.undo()
    step = exchange.shadow(ExamRequest(model=NEW))
    assert isinstance(step.poll(), Working)
    exchange.on_down(down_of("cam", "crashed", "SIGSEGV", None))
    assert step.poll() == nothing
    workers.is_there = False
    assert exchange.shadow(ExamRequest(model=NEW)).poll() == nothing, "it may heal what is down"


def test_a_shadow_run_that_is_given_up_ends_its_child(exchange, exams):
    step = exchange.shadow(ExamRequest(model=NEW))
    lend(exchange, step)
    step.stop()
    assert exams[0].is_stopped
    assert isinstance(step.poll(), Refused)


# What a worker's end says of its model.


@pytest.mark.parametrize(
    ("why", "said", "code", "is_native"),
    [
        ("crashed", None, "E_CRASH", True),
        ("crashed", Failed(code="frame", reason="ValueError"), "E_CRASH", True),
        ("crashed", Failed(code="worker", reason="capture of x"), "E_CRASH", False),
        ("model", None, "E_CRASH", True),
        ("model", Failed(code="model", reason="x: is empty"), "E_COMPAT", True),
        ("hang", None, "E_HANG", True),
        ("silent", None, "E_HANG", True),
        ("slow_start", None, "E_HANG", True),
        ("camera_hang", None, "E_HANG", False),
        ("memory", None, "E_CRASH", True),
        ("not_started", None, "E_SYSTEM", False),
    ],
)
def test_whose_fault_an_end_is(why, said, code, is_native):
    down = down_of("cam", why, "reason", said)
    assert (down.engine, down.code, down.reason, down.is_native) == (
        "cam", code, "reason", is_native,
    )  # fmt: skip


# Real workers under a real supervisor.


class Board:
    """One engine with its supervisor, driven as the main loop does; `runs` is what is to run."""

    def __init__(self, first, others, camera):
        self.runs = first
        self.heard, self.faults = Heard(), []
        self.heard.on_camera = lambda change: None
        choices = chosen(first, *others)

        def make_start(resume, avoid):
            return Start(
                device="d", boot_id="b", model=self.runs, cameras=(camera,), resume=resume,
                avoid=avoid, most_threads=1, choices=choices,
            )  # fmt: skip

        self.supervisor = Supervisor(
            make_start=make_start,
            listener=self.heard,
            failover=Failover(("cpu",)),
            start_probe=lambda names: None,
        )
        self.exchange = ModelExchange("", self.supervisor, self.faults.append, choices)
        self.supervisor.attendant = self.exchange
        self.supervisor.start()

    def until(self, claim, within_s=90.0):
        deadline = time.monotonic() + within_s
        while not claim():
            assert time.monotonic() < deadline, (self.heard.downs, self.faults)
            due_s = min(self.supervisor.check(), 0.05)
            link = self.supervisor.link
            if link is None:
                time.sleep(due_s)
            elif select.select([link], [], [], due_s)[0]:
                self.supervisor.receive()

    def results(self, count):
        target = len(self.heard.results) + count
        self.until(lambda: len(self.heard.results) >= target)

    def swap(self, wanted, **settings):
        self.runs = wanted
        step = self.exchange.swap(wanted, **settings)
        self.until(lambda: not isinstance(step.poll(), Working))
        return step


@pytest.fixture
def board(tmp_path):
    made = []
    shown = pictures(tmp_path / "shown", [20] * 40 + [200])

    def make(first, *others):
        camera = CameraConfig(name="door", source=shown, loop=True, realtime=True, fps=30.0)
        made.append(Board(first, others, camera))
        return made[-1]

    yield make
    for one in made:
        stop_all([one.supervisor], 0.5)
        one.supervisor.see_off(60.0)


@pytest.fixture
def folders(tmp_path):
    return {
        "good": model(model_folder(tmp_path / "good", made_classifier(1), name="good")),
        "better": model(model_folder(tmp_path / "better", made_classifier(2), name="better")),
        "hangs": model(model_folder(tmp_path / "hangs", made_at(200, "endless"), name="hangs")),
    }


def test_a_model_that_hangs_live_is_told_and_the_next_worker_runs_what_it_is_given(
    board, folders, monkeypatch
):
    engine = board(folders["good"], folders["hangs"])
    engine.results(5)
    with monkeypatch.context() as soon:  # and not for the worker after it
        soon.setattr(stage_limits, "STAGE_STUCK_S", 3.0)
        assert isinstance(engine.swap(folders["hangs"]).reply, Succeeded)
    engine.until(lambda: engine.faults)
    [fault] = engine.faults
    assert (fault.code, fault.is_native) == ("E_HANG", True)
    assert "stage inference stuck" in fault.reason
    engine.runs = folders["good"]  # as the updater's `for_worker` says after a roll back
    engine.results(5)
    assert engine.exchange.ready.path == folders["good"].path
    assert engine.supervisor.restarts == 1


def test_a_model_that_crashes_natively_is_told(board, folders, tmp_path):
    library = build_plugin(tmp_path)
    options = {"mode": "abort", "after": "60"}  # a trial of it runs 21 times
    crashes = model(model_folder(tmp_path / "crashes", made_classifier(3), name="crashes"))
    crashes = structs.replace(crashes, accelerator=f"delegate:{library}", delegate_options=options)
    engine = board(folders["good"], crashes)
    engine.results(5)
    assert isinstance(engine.swap(crashes).reply, Succeeded)
    engine.until(lambda: engine.faults)
    [fault] = engine.faults
    assert (fault.code, fault.is_native) == ("E_CRASH", True)
    assert "SIGABRT" in fault.reason
    engine.runs = folders["good"]
    engine.results(5)
    assert engine.exchange.ready.path == folders["good"].path


def test_a_worker_that_dies_while_it_swaps_is_replaced_by_one_that_runs_what_it_is_given(
    board, folders, tmp_path
):
    slow = model(model_folder(tmp_path / "slow", made_at(0, "endless"), name="slow"))
    engine = board(folders["good"], slow)
    engine.results(5)
    step = engine.exchange.swap(slow)
    engine.results(5)  # while it loads, which does not end
    os.kill(engine.supervisor.worker_pid, signal.SIGKILL)
    engine.until(lambda: engine.faults)
    assert (engine.faults[0].code, engine.faults[0].is_native) == ("E_CRASH", True)
    engine.results(5)
    assert step.reply.message == "the new worker runs good instead"
    assert isinstance(engine.swap(folders["good"]).reply, Succeeded)


def test_swapped_there_and_back_without_another_worker(board, folders):
    engine = board(folders["good"], folders["better"])
    engine.results(5)
    pid = engine.supervisor.worker_pid
    there = engine.swap(folders["better"])
    back = engine.swap(folders["good"])
    again = engine.swap(folders["better"], hold_s=0.0)
    loaded = engine.swap(folders["good"])
    for step in (there, back, again, loaded):
        assert isinstance(step.reply, Succeeded), step
        assert step.gap_ms < 5000.0
    assert back.load_ms == 0.0, "it was held"
    assert loaded.load_ms > 0.0
    assert engine.supervisor.worker_pid == pid
    assert engine.faults == []
    assert [one.seq for one in engine.heard.results] == list(
        range(1, len(engine.heard.results) + 1)
    )


def test_another_worker_takes_over_where_it_must(board, folders):
    engine = board(folders["good"], folders["better"])
    engine.results(5)
    engine.exchange.ready = structs.replace(engine.exchange.ready, is_accelerated=True)
    step = engine.swap(folders["better"])
    assert isinstance(step.reply, Succeeded)
    assert step.gap_ms > 0
    assert dict(engine.supervisor.restarts_by_reason) == {"swap": 1}
    assert engine.faults == [], "it was asked to end"
