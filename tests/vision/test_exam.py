"""Models that are examined in a child: what is measured, what is refused with which code: A19."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bad_models import made_at, made_classifier, model_folder
from commands import PROJECT
from fakes import FakeEngine, fake_model
from hostile_files import made_boxes, made_endless, made_giant, made_nan
from made_models import MadeInput, MadeTensor, _first_value, _Graph, _serialized, made_model

from agent.choices import Choice
from agent.config import ModelConfig
from agent.ota import selftest
from agent.ota.refusal import RefusalError
from agent.ota.selftest import ExamReport, ExamRequest, ExamStep, exam_command, start_exam
from agent.ota.steps import Refused, Succeeded, Working
from agent.sensors.waits import waits_ns
from agent.vision import examine, own_time
from agent.vision.exam import refusal
from agent.vision.model_files import read_model
from agent.vision.sealed import MACHINES, program
from agent.vision.trial import choice_key

WITHIN_S = 60.0
CASES = os.environ.get("EXAM_CASES", "5")


def wait(exam):
    while (report := exam.poll()) is None:
        time.sleep(0.01)
    exam.process.wait(WITHIN_S)  # one that was killed has to get some processor time to end
    return report


def exam(path, **fields):
    """Examine a model that is to run on the processor; few runs, unless told."""
    settings = {"runs": 12, "most_threads": 1, "stands_back": "no", **fields}
    config = ModelConfig(path=str(path), accelerator="cpu", threads=1)
    return wait(start_exam(ExamRequest(model=config, **settings)))


def exam_here(path, **fields):
    """As `exam`, in this process: for what does no harm; a child's start takes a second."""
    config = ModelConfig(path=str(path), accelerator="cpu", threads=1)
    try:
        request = ExamRequest(model=config, **{"runs": 3, "most_threads": 1, **fields})
        return examine.examine(request, lambda stage: None)
    except RefusalError as error:
        return refusal(error)


def promised(best):
    """Return the golden answers of `made_classifier(best)`."""
    scores = np.full((2, 10), 5 / 256, np.float32)
    scores[:, best] = 200 / 256
    return {"inputs": np.zeros((2, 1, 8, 8, 3), np.uint8), "scores": scores}


@pytest.fixture
def folder(tmp_path):
    def write(data, **fields):
        return model_folder(tmp_path / "bundle", data, **fields)

    return write


# What passes.


def test_a_good_model_passes_with_its_figures_and_it_is_said_what_is_done(folder):
    path = folder(made_classifier(3), golden=promised(3))
    way = Choice(
        runtime="litert", xnnpack=False, threads=1, invoke_ms=None, candidates=(), measured_at=0.0
    )
    config = ModelConfig(path=path, accelerator="cpu", threads=1)
    request = ExamRequest(
        model=config, runs=50, p95_ms=1000.0, rss_mib=1000.0, task="classification", way=way,
        most_threads=1, stands_back="no",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "agent.vision.exam"], input=msgspec.json.encode(request),
        capture_output=True, cwd=PROJECT, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.split(b"\n") if line.startswith(b"{")]
    assert [line["type"] for line in lines] == ["stage"] * (len(lines) - 1) + ["report"]
    progress = [line["progress"] for line in lines[:-1]]
    assert sorted(progress) == progress
    report = msgspec.convert(lines[-1], ExamReport)
    assert report.ok, report
    assert (report.runs, report.golden, report.threads) == (50, 2, 1)
    assert report.accelerator == "cpu"
    assert 0 <= report.p50_ms <= report.p95_ms <= report.wall_p95_ms
    assert 20 < report.rss_mib < 1000
    assert report.choice_key == choice_key(read_model(path), config, 1)
    assert (report.choice.xnnpack, report.choice.threads) == (False, 1)


# What does not.

TWO_INPUTS = made_model(
    [MadeTensor(np.zeros((1, 4), np.uint8))],
    inputs=(MadeInput(), MadeInput(name="other", shape=(1, 7))),
)


def flex():
    """Return a model with an operator that its manifest may call what it likes."""
    graph = _Graph()
    image = graph.tensor("image", (1, 8, 8, 3), "uint8")
    made = graph.tensor("made", (1, 4), "float32")
    graph.run("FlexErf", [_first_value(graph, image, 4)], [made], b"x")
    return _serialized(graph, [image], [made], "flex")


def assert_refused(report, code, reason):
    assert (report.ok, report.code, report.is_final) == (False, code, True), report
    assert reason in report.message
    assert "\n" not in report.message


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (made_giant(1 << 32), "E_MEMORY", "memory"),
        (made_endless(), "E_HANG", "did not finish one run within 0.5 s; it was loading it"),
        (made_endless(is_nested=True), "E_CRASH", "crashed (SIGSEGV); it was loading it"),
        (made_at(128, "endless"), "E_HANG", "one run within 0.5 s; it was running it on a grey"),
    ],
    ids=["giant", "hangs at load", "crashes at load", "hangs"],
)
def test_what_would_do_harm_ends_in_its_child(folder, data, code, reason):
    assert_refused(exam(folder(data), run_within_s=0.5), code, reason)


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (made_nan(), "E_NAN", "gives no numbers, only NaN"),
        (made_giant(), "E_MEMORY", "memory"),
        (b"\x18\0\0\0TFL3", "E_COMPAT", "truncated or damaged"),
        (TWO_INPUTS, "E_COMPAT", 'input "other" (uint8 [1, 7]) is not the image'),
        (flex(), "E_COMPAT", "FlexErf, which is no operator of the runtimes here"),
        (made_at(128, "fail"), "E_CRASH", "gather index out of bounds"),
    ],
    ids=["NaN", "giant", "8 bytes", "no image", "flex", "fails"],
)
def test_bad_but_whole_models_are_refused_with_a_code(folder, data, code, reason):
    assert_refused(exam_here(folder(data, custom_ops=["FlexErf"])), code, reason)


def test_other_answers_than_promised(folder):
    report = exam_here(folder(made_classifier(4), golden=promised(3)))
    assert_refused(report, "E_GOLDEN", "gives other answers than its manifest promises")


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        ({"p95_ms": 15.0}, "95 % of its runs take up to 30"),
        ({"rss_mib": 10.0}, "its process takes"),
    ],
)
def test_twice_over_the_budget(folder, monkeypatch, budget, reason):
    monkeypatch.setattr(examine, "timed", lambda work: (work(), own_time.Took(0.1, 0.03))[1])
    path = folder(made_classifier(3))
    assert_refused(exam_here(path, **budget), "E_BUDGET", reason)
    assert exam_here(path, **dict.fromkeys(budget, 100000.0)).ok


def test_files_that_are_not_those_of_the_manifest(folder):
    path = folder(made_classifier(3), labels=[f"class {at}" for at in range(10)])
    good = (Path(path) / "labels.txt").read_bytes()
    (Path(path) / "labels.txt").write_bytes(good.replace(b"3", b"4"))
    assert exam_here(path).code == "E_HASH"
    (Path(path) / "labels.txt").unlink()
    assert exam_here(path).code == "E_BUNDLE"
    (Path(path) / "labels.txt").write_bytes(good)
    assert exam_here(path, manifest_sha256="0" * 64).code == "E_HASH"
    assert exam_here(path).ok


def test_another_task_than_the_one_that_is_wanted(folder):
    report = exam_here(folder(made_classifier(3)), task="detection")
    assert_refused(report, "E_COMPAT", "its task is classification")


def test_what_sleeps_is_ended_by_its_parent(folder):
    """It computes nothing, so no timer of its own ends it."""
    request = ExamRequest(model=ModelConfig(path=folder(made_classifier(3))), limit_s=0.5)
    running = start_exam(request)
    os.kill(running.process.pid, signal.SIGSTOP)
    report = wait(running)
    running.process.wait(WITHIN_S)
    assert (report.code, report.is_final) == ("E_HANG", True)
    assert "was not done within 0.5 s" in report.message
    assert running.process.poll() == -signal.SIGKILL


# In the child, with engines that misbehave.


def runs_of(engine, **fields):
    request = ExamRequest(model=ModelConfig(), **{"runs": 40, **fields})
    return examine.Runs(request, fake_model(engine), lambda stage: None)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(examine, "LONGEST_REST_S", 0.0)


def test_a_leak_is_found(quick):
    engine, kept = FakeEngine(), []
    engine.invoke = lambda: kept.append(np.ones(1 << 18))  # 2 MiB
    with pytest.raises(RefusalError, match=r"grew by \d+ MiB in \d+ runs") as refused:
        runs_of(engine).run()
    assert refused.value.code == "E_MEMORY"
    assert len(kept) < 40


def test_a_run_that_raises_is_a_crash(quick):
    engine = FakeEngine()
    engine.fail_at = 9
    with pytest.raises(RefusalError, match="RuntimeError: invoke failed") as refused:
        runs_of(engine).run()
    assert refused.value.code == "E_CRASH"


def test_slow_models_are_run_less_often(quick, monkeypatch):
    monkeypatch.setattr(examine, "RUNS_WITHIN_S", 0.01)
    runs = runs_of(FakeEngine(invoke_s=0.005))
    runs.run()
    assert len(runs.took) == examine.LEAST_RUNS


def test_waits_for_others_are_no_part_of_a_run(monkeypatch):
    waits = iter([{"1": 5_000_000, "2": 0}, {"1": 30_000_000, "2": 1_000_000}])
    monkeypatch.setattr(own_time, "waits_ns", lambda: next(waits))
    took = own_time.timed(lambda: time.sleep(0.05))
    assert took.wall_s - took.own_s == pytest.approx(0.025)
    assert own_time.percentile([float(at) for at in range(1, 101)], 0.95) == 95.0
    assert own_time.percentile([7.0], 0.5) == 7.0


def test_waits_are_read_for_each_thread(tmp_path):
    for thread, text in (("7", "100 2000 3\n"), ("8", "1 2\n"), ("9", "odd\n")):
        folder = tmp_path / "proc/7/task" / thread
        folder.mkdir(parents=True)
        (folder / "schedstat").write_text(text)
    assert waits_ns(7, tmp_path) == {"7": 2000, "8": 2}
    assert waits_ns(8, tmp_path) == {}


# The parent's side.


@pytest.mark.parametrize(
    ("code", "complaints", "expected"),
    [
        (-signal.SIGSEGV, "", ("E_CRASH", "crashed (SIGSEGV)", True)),
        (-signal.SIGABRT, "what():  std::bad_alloc", ("E_MEMORY", "more memory", True)),
        (-signal.SIGKILL, "", ("E_MEMORY", "stopped from outside", True)),
        (-signal.SIGPROF, "", ("E_HANG", "one run within 20 s", True)),
        (-signal.SIGXCPU, "", ("E_HANG", "within 60 s", True)),
        (None, "", ("E_HANG", "within 60 s", True)),
        (1, "Traceback\nImportError: no numpy\n", ("E_SELFTEST", "ImportError: no numpy", False)),
        (0, "", ("E_SELFTEST", "no reason given", False)),
    ],
)
def test_every_end_has_a_code(code, complaints, expected):
    report = selftest._conclude(
        ExamRequest(model=ModelConfig()), "reading rtsp://u:s3cret@h/x", complaints, code
    )
    assert (report.code, expected[1] in report.message, report.is_final) == (
        expected[0], True, expected[2],
    )  # fmt: skip
    assert "s3cret" not in report.message


@pytest.fixture
def scripted(monkeypatch):
    """Children that only say that all is well, each after its time; the last is the others'."""
    said = msgspec.json.encode(ExamReport(ok=True, p95_ms=5.0)).decode()
    take_s = [0.1]

    def command(*_):
        own_s = take_s.pop(0) if len(take_s) > 1 else take_s[0]
        code = f"import time; time.sleep({own_s}); print(); print({said!r})"
        return [sys.executable, "-S", "-c", code]

    monkeypatch.setattr(selftest, "exam_command", command)
    return take_s


def starved(**fields):
    return ExamRequest(model=ModelConfig(), **{"limit_s": 0.01, **fields})


@pytest.mark.usefixtures("scripted")
def test_time_spent_waiting_for_others_is_given_back(monkeypatch):
    monkeypatch.setattr(selftest, "waits_ns", lambda pid: {"1": 60 * 10**9})
    assert wait(start_exam(starved(stands_back="no"))).ok


def test_a_child_without_processor_time_is_begun_anew_with_some(scripted, monkeypatch):
    scripted[:] = [60.0, 0.1]
    monkeypatch.setattr(selftest, "waits_ns", lambda pid: {"1": 60 * 10**9})
    running = start_exam(starved())
    first = running.process
    assert wait(running).ok
    assert running.process is not first
    assert first.wait(WITHIN_S) == -signal.SIGKILL
    assert running.request.stands_back == "nice"


def test_a_board_without_any_time_left_is_no_fault_of_the_models(scripted, monkeypatch):
    scripted[:] = [60.0]
    monkeypatch.setattr(selftest, "waits_ns", lambda pid: {"1": 10**7})
    report = wait(start_exam(starved(stands_back="nice")))
    assert (report.code, report.is_final) == ("E_SELFTEST", False)
    assert "no processor time left" in report.message


@pytest.mark.usefixtures("scripted")
def test_an_exam_is_a_step_of_the_updater():
    learnt = []
    step = ExamStep(start_exam(ExamRequest(model=ModelConfig())), learnt.append)
    while isinstance(reply := step.poll(), Working):
        time.sleep(0.01)
    assert isinstance(reply, Succeeded)
    assert reply.p95_ms == learnt[0].p95_ms
    assert step.poll() == reply
    assert len(learnt) == 1
    step.stop()


def test_a_refusal_in_the_updaters_words():
    report = ExamReport(ok=False, code="E_NAN", message="no")
    assert selftest.reply_of(report) == Refused(code="E_NAN", message="no")


def test_giving_up_ends_the_child(folder):
    running = start_exam(ExamRequest(model=ModelConfig(path=folder(made_endless()))))
    running.stop()
    assert running.process.wait(WITHIN_S) == -signal.SIGKILL


def test_a_child_whose_parent_has_gone_does_nothing():
    command = [*exam_command(os.getppid())[:-1], "/nonexistent"]
    request = msgspec.json.encode(ExamRequest(model=ModelConfig()))
    done = subprocess.run(command, input=request, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


# What the child may do.

SEALED = """
import ctypes, os, resource, socket, sys, threading
from pathlib import Path
from agent.vision.confine import LAST_NICE, confine_to
from agent.vision.sealed import seal
confine_to(cpu_s=7, may_write=False, nice=LAST_NICE)
why = seal(may_write={may_write})
print(why)
if why is not None:
    sys.exit()
libc = ctypes.CDLL(None, use_errno=True)
def tried(name, work):
    try:
        work()
        print(name, "done")
    except OSError as error:
        print(name, error.strerror)
def clone():
    if os.fork() == 0:
        os._exit(0)
def run_thread():
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
tried("inet", lambda: socket.socket(socket.AF_INET).close())
tried("unix", lambda: socket.socket(socket.AF_UNIX).close())
tried("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close())
tried("write", lambda: Path(sys.argv[1]).write_text("x"))
tried("append", lambda: open(sys.argv[1], "a").close())
tried("unlink", lambda: Path(sys.argv[1]).unlink(missing_ok=True))
tried("fork", clone)
tried("exec", lambda: os.execv("/bin/true", ["true"]))
tried("kill", lambda: os.kill(os.getppid(), 0))
def unshare():
    if libc.unshare(0x10000000) != 0:  # linux/sched.h: CLONE_NEWUSER
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
tried("unshare", unshare)
tried("read", lambda: Path("/proc/self/stat").read_bytes())
tried("thread", run_thread)
import numpy, cv2
os.abort()
"""


@pytest.mark.parametrize("may_write", [False, True])
def test_the_child_can_compute_and_read_and_nothing_else(tmp_path, may_write):
    done = subprocess.run(
        [sys.executable, "-c", SEALED.format(may_write=may_write), str(tmp_path / "x")],
        capture_output=True, text=True, cwd=PROJECT, start_new_session=True,
    )  # fmt: skip
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines()[1:])
    if not said:
        pytest.skip(f"this kernel takes no filter: {done.stdout}")
    no, may = "Operation not permitted", "done" if may_write else "Operation not permitted"
    assert said == {
        "inet": no, "unix": no, "netlink": may, "write": may, "append": may, "unlink": may,
        "fork": no, "exec": no, "kill": no, "unshare": no, "read": "done", "thread": "done",
    }  # fmt: skip
    assert done.returncode == -signal.SIGABRT, "a library that aborts still does"


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("may_write", [False, True])
def test_the_filter_is_a_program_the_kernel_could_run(name, may_write):
    steps = program(MACHINES[name], may_write=may_write, pid=4711)
    for at, (code, if_true, if_false, operand) in enumerate(steps):
        assert 0 <= operand < 1 << 32
        if code & 0x07 == 0x05:  # linux/bpf_common.h: BPF_JMP
            assert at + 1 + max(if_true, if_false) < len(steps)
        else:
            assert (if_true, if_false) == (0, 0)
    assert steps[-1] == (0x06, 0, 0, 0x7FFF0000)


def test_the_child_stands_behind_everything(folder):
    running = start_exam(ExamRequest(model=ModelConfig(path=folder(made_endless()))))
    try:
        deadline = time.monotonic() + 30
        while True:
            fields = Path(f"/proc/{running.process.pid}/stat").read_text().rsplit(") ", 1)[1]
            nice = int(fields.split()[16])
            if nice == 19 or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        assert nice == 19
        assert os.sched_getscheduler(running.process.pid) in (os.SCHED_IDLE, os.SCHED_OTHER)
        assert os.getsid(running.process.pid) == running.process.pid
    finally:
        running.stop()
        running.process.wait(WITHIN_S)


def open_in(pid):
    """Yield what a process has open; what it closes meanwhile is left out."""
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield str(file.readlink())


def test_no_socket_is_open_in_the_child(folder):
    """Not even ones of its parent's."""
    with socket.socket() as ours:
        ours.set_inheritable(True)
        running = start_exam(ExamRequest(model=ModelConfig(path=folder(made_boxes()))))
        try:
            links = list(open_in(running.process.pid))
        finally:
            running.stop()
            running.process.wait(WITHIN_S)
    assert links
    assert not [link for link in links if link.startswith("socket:")]


# Damaged ones, rightly signed. EXAM_CASES=100: so many of each base and kind, 900 in all.


def test_damage_that_is_signed_ends_with_a_code_or_with_the_promised_answers():
    bases = ["classifier", "boxes"]
    if "EXAM_CASES" in os.environ:
        bases.append(str(PROJECT / "models/default"))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("exam_farm.py")), CASES, *bases],
        capture_output=True, text=True, cwd=PROJECT, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])},
    )  # fmt: skip
    print(done.stdout)
    groups = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(groups) == 3 * len(bases)
    for one in groups:
        assert sum(one["codes"].values()) == int(CASES), one
        assert (one["faults"], one["silent"]) == ({}, []), "each end is the model's, and says why"
        if one["kind"] == "truncated" and one["base"] != "default":  # whose labels may be cut off
            assert "ok" not in one["codes"]
