"""A model is tried in a child: what it may do to itself there, what is measured, what is chosen."""

import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import pytest
from commands import PROJECT
from fakes import FakeEngine, fake_model
from hostile_files import made_boxes, made_classifier, made_endless, made_giant, made_nan
from made_models import MadeInput, MadeTensor, made_model
from plugins import build_plugin

from agent import trial_words
from agent.choices import Candidate
from agent.config import ModelConfig
from agent.errors import ModelError
from agent.trial_words import (
    Doing,
    Measured,
    Passed,
    Refused,
    TrialRequest,
    explain_signal,
    signal_name,
    start_trial,
    trial_command,
)
from agent.vision import measure, trial
from agent.vision.chooser import FirstLook
from agent.vision.engines import DelegateError
from agent.vision.manifest import parse_manifest
from agent.vision.measure import Search, is_finite
from agent.vision.model_files import EDGETPU_FILE, read_model
from agent.vision.trial import (
    accelerator_key,
    choice_key,
    pick,
    pick_threads,
    try_accelerator,
    try_model,
)

RUNTIMES = [
    name
    for name, module in (("litert", "ai_edge_litert"), ("tflite-runtime", "tflite_runtime"))
    if find_spec(module)
]
runtimes = pytest.mark.parametrize("runtime", RUNTIMES)


def candidate(threads, ms, *, xnnpack=True, runtime="litert 2.3.0", refused=None):
    return Candidate(
        runtime=runtime, xnnpack=xnnpack, threads=threads, invoke_ms=ms, refused=refused
    )


# What is chosen.


@pytest.mark.parametrize(
    ("ms_by_threads", "cores", "chosen"),
    [
        ({1: 40.0}, 4, 1),
        ({1: 40.0, 2: 21.0, 3: 15.0, 4: 12.5}, 4, 3),  # 1.2 times: the last core stays free
        ({1: 40.0, 2: 21.0, 3: 15.0, 4: 11.0}, 4, 4),  # 1.36 times
        ({1: 40.0, 2: 21.0, 3: 20.0, 4: 19.0}, 4, 2),  # 3 brings less than a tenth
        ({1: 40.0, 2: 39.0}, 2, 1),
        ({1: 40.0, 2: 21.0}, 2, 2),
        ({1: 40.0, 2: 33.0}, 2, 1),  # 1.21 times
        ({1: 40.0, 2: 33.0}, 4, 2),  # not the last core
        ({1: 1.0, 2: 3.0}, 4, 1),
        ({4: 10.0}, 4, 4),  # told so, nothing to compare with
        ({1: 10.0}, 1, 1),
    ],
)
def test_threads(ms_by_threads, cores, chosen):
    assert pick_threads(ms_by_threads, cores=cores) == chosen


def test_fastest_way_is_picked_and_refused_ones_are_not():
    ways = [
        candidate(1, 30.0),
        candidate(1, 10.0, xnnpack=False),
        candidate(2, 1.0, refused="gives other answers"),
        candidate(2, None, refused="crashed"),
    ]
    assert pick(ways, cores=4) == ways[1]


def test_usual_runtime_stays_where_the_other_gains_little():
    usual, other = candidate(1, 10.0), candidate(1, 9.5, runtime="tflite-runtime 2.14.0")
    assert pick([usual, other], cores=4) == usual
    much = candidate(1, 5.0, runtime="tflite-runtime 2.14.0")
    assert pick([usual, much], cores=4) == much


def test_nothing_usable_is_nothing_picked():
    assert pick([candidate(1, None, refused="crashed")], cores=4) is None


# How it is searched for.


@pytest.fixture
def searched(monkeypatch, tmp_path):
    """Return a function that searches with given times: (xnnpack, threads) -> ms or an error."""

    def build(files, config):
        engine = FakeEngine()
        is_on = config.xnnpack == "on"
        engine.accelerator = "cpu:xnnpack" if is_on else "cpu"
        engine.way = (is_on, config.threads)
        return fake_model(engine)

    def run(times, *, takes_xnnpack=True, golden_fails=(), **request):
        opened = []

        def build_here(files, config):
            model = build(files, config)
            opened.append(model.engine.way)
            if not takes_xnnpack:
                model.engine.accelerator = "cpu"
            return model

        def verify(model, files, config):
            if model.engine.way[0] in golden_fails:
                raise ModelError("gives other answers than its manifest promises")

        def took(self, model):
            ms = times[model.engine.way]
            if isinstance(ms, Exception):
                raise ms
            return ms

        monkeypatch.setattr(measure, "build_model", build_here)
        monkeypatch.setattr(measure, "verify", verify)
        monkeypatch.setattr(Search, "_time", took)
        monkeypatch.setattr(measure, "runtime_title", lambda name: f"{name} 1")
        (tmp_path / "m.tflite").write_bytes(made_boxes())
        files = read_model(str(tmp_path / "m.tflite"))
        if golden_fails:
            manifest = b'{"name":"m","golden":{"file":"g.npz","score_tolerance":0,"iou":0}}'
            files = type(files)(
                plain=files.plain, folder=tmp_path, manifest=parse_manifest(manifest, where="m")
            )
        usual = {"runtime": "litert", "model": ModelConfig(path="m"), "most_threads": 4}
        said = []
        try:
            Search(files, TrialRequest(**{**usual, **request}), said.append).run()
        finally:
            measured = [reply.candidate for reply in said if isinstance(reply, Measured)]
        return opened, measured

    return run


SCALING = {
    **{(True, threads): 40.0 / threads for threads in range(1, 5)},
    **{(False, threads): 120.0 / threads for threads in range(1, 5)},
}


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))


def test_search_begins_with_the_usual_threads_and_follows_the_better_way(searched, four_cores):
    opened, _ = searched(SCALING)
    assert opened == [(True, 3), (False, 3), (True, 4), (True, 2)]  # 1 cannot be as good


def test_thorough_search_leaves_nothing_out(searched, four_cores):
    opened, _ = searched(SCALING, is_thorough=True)
    assert sorted(opened) == sorted(SCALING)


@pytest.mark.parametrize(
    ("settings", "opened"),
    [
        ({"threads": 2}, [(True, 2), (False, 2)]),
        ({"xnnpack": "off"}, [(False, 3), (False, 4), (False, 2)]),
        ({"xnnpack": "on", "threads": 1}, [(True, 1)]),
    ],
)
def test_settings_narrow_the_search(searched, four_cores, settings, opened):
    assert searched(SCALING, model=ModelConfig(path="m", **settings))[0] == opened


def test_what_xnnpack_does_not_take_is_measured_once(searched, four_cores):
    times = {(True, threads): 40.0 / threads for threads in range(1, 5)}
    times |= {(False, threads): 40.0 / threads for threads in range(1, 5)}
    opened, measured = searched(times, takes_xnnpack=False)
    assert opened == [(True, 3), (False, 4), (False, 2)]
    assert measured[0].refused == "takes no operator of this model"
    assert [each.xnnpack for each in measured[1:]] == [False] * 3


def test_runtime_that_is_beaten_is_not_searched_further(searched, four_cores):
    opened, _ = searched(SCALING, to_beat_ms=5.0)
    assert opened == [(True, 3), (False, 3)]


def test_search_out_of_time_ends_with_what_it_has(searched, four_cores, monkeypatch):
    monkeypatch.setattr(measure, "SEARCH_S", -1.0)
    opened, measured = searched(SCALING)
    assert opened == [(True, 3)]
    assert measured[0].invoke_ms == SCALING[True, 3]


def test_wrong_answers_rule_one_way_out(searched, four_cores):
    _, measured = searched(SCALING, golden_fails=[True])
    assert "other answers" in measured[0].refused
    assert measured[1].refused is None


def test_failing_invoke_rules_one_way_out(searched, four_cores):
    times = {**SCALING, (True, 3): RuntimeError("node 3 failed")}
    opened, measured = searched(times)
    assert measured[0].refused == "node 3 failed"
    assert opened == [(True, 3), (False, 3), (False, 4), (False, 2)]


def test_no_way_left_is_a_refusal(searched, four_cores):
    with pytest.raises(ModelError, match="too much"):
        searched(dict.fromkeys(SCALING, MemoryError()) | {(False, 3): ModelError("too much")})


def test_slow_model_is_measured_by_few_runs(monkeypatch):
    now = [0.0]
    engine = FakeEngine()
    engine.invoke = lambda: now.__setitem__(0, now[0] + 3.0)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    request = TrialRequest(model=ModelConfig(), runtime=RUNTIMES[0])
    search = Search(read_model("default"), request, lambda reply: None)
    assert search._time(fake_model(engine)) == 3000.0
    assert now[0] == 3.0


# One at a time on a board.


@pytest.fixture
def held(monkeypatch):
    """The name that says that somebody measures, held by somebody; not the one of the board."""
    monkeypatch.setattr(trial, "ALONE_NAME", f"\0edge-agent.test.{os.getpid()}")
    with socket.socket(socket.AF_UNIX) as name:
        name.bind(trial.ALONE_NAME)
        yield name


def is_held():
    with socket.socket(socket.AF_UNIX) as name:
        try:
            name.bind(trial.ALONE_NAME)
        except OSError:
            return True
    return False


class Good:
    """A child that finds one way to run a model, while its parent holds the name."""

    def __init__(self, request):
        pass

    def wait(self, say):
        assert is_held()
        return trial_words._conclude(TrialRequest(model=ModelConfig()), [GOOD, Passed()], "", 0)


def test_others_are_not_disturbed_while_they_measure(model_file, monkeypatch, held):
    path = model_file(made_boxes())
    said, naps = [], []

    def sleep(seconds):
        naps.append(seconds)
        if len(naps) == 3:
            held.close()

    monkeypatch.setattr(trial.time, "sleep", sleep)
    monkeypatch.setattr(trial, "start_trial", Good)
    choice = try_model(read_model(path), ModelConfig(path=path), most_threads=1, say=said.append)
    assert choice.invoke_ms == 20.0
    assert len(naps) == 3
    assert said == ["waiting until no other model is measured"]
    assert not is_held()


def test_others_are_not_waited_for_for_ever(model_file, monkeypatch, held, caplog):
    path = model_file(made_boxes())
    monkeypatch.setattr(trial, "ALONE_WITHIN_S", -1.0)
    monkeypatch.setattr(trial, "start_trial", Good)
    assert try_model(read_model(path), ModelConfig(path=path), most_threads=1).invoke_ms == 20.0
    assert "not measured alone" in caplog.text


def test_measuring_ends_with_its_process(monkeypatch, held):
    held.close()
    code = (
        "import os, signal, sys; from agent.vision import trial; "
        f"trial.ALONE_NAME = {trial.ALONE_NAME!r}\n"
        "with trial._alone(None): print('held', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, **pipes) as other:
        assert other.stdout.readline() == b"held\n"
        assert is_held()
        other.kill()
    assert not is_held()


# What a child says, and what is concluded from how it ends.


@pytest.fixture
def model_file(tmp_path):
    def write(data, name="m.tflite"):
        path = tmp_path / name
        path.write_bytes(data)
        return str(path)

    return write


@runtimes
def test_good_model_is_measured(model_file, runtime):
    config = ModelConfig(path=model_file(made_boxes()), runtime=runtime)
    heard = []
    choice = try_model(read_model(config.path), config, most_threads=1, say=heard.append)
    assert choice.runtime == runtime
    assert choice.threads == 1
    assert choice.invoke_ms >= 0
    assert choice.chosen() in choice.candidates
    assert all(each.runtime.startswith(f"{runtime} ") for each in choice.candidates)
    waiting = "waiting until no other model is measured"  # by a test beside this one
    assert set(heard) <= {"importing the runtime", "reading it", waiting} | {
        f"loading and running it on {each.way()}" for each in choice.candidates
    }


@runtimes
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (made_nan(), "gives no numbers, only NaN"),
        (made_giant(), "memory"),
        (made_giant(1 << 32), "memory"),
        (made_endless(), "did not finish one run within 2 s"),
        (made_endless(is_nested=True), "the runtime crashed (SIGSEGV) while loading and running"),
        (b"\x18\0\0\0TFL3", "truncated or damaged"),
        (
            made_model([MadeTensor(np.zeros((1, 2), np.uint8))], inputs=(MadeInput(shape=(1, 4)),)),
            "input",
        ),
    ],
    ids=["NaN", "giant", "16 GiB", "endless", "recursion", "8 bytes", "no image"],
)
def test_bad_model_is_refused_with_a_sentence(model_file, runtime, data, reason):
    within_s = 2.0 if reason.endswith("2 s") else 30.0  # what ends by itself is never hurried
    request = TrialRequest(
        model=ModelConfig(path=model_file(data)), runtime=runtime, run_within_s=within_s
    )
    answer = start_trial(request).wait()
    assert reason in answer.refused
    assert "\n" not in answer.refused
    assert all(each.refused for each in answer.candidates)


@runtimes
def test_try_model_raises_the_reason(model_file, runtime):
    config = ModelConfig(path=model_file(made_nan()), runtime=runtime)
    with pytest.raises(ModelError, match="no numbers"):
        try_model(read_model(config.path), config, most_threads=1)


def test_file_that_was_replaced_meanwhile_is_refused(model_file):
    path = model_file(made_boxes())
    files = read_model(path)
    model_file(made_classifier())
    with pytest.raises(ModelError, match="was replaced while it was tried"):
        try_model(files, ModelConfig(path=path), most_threads=1)


@pytest.mark.parametrize("name", ["m\udcff\udcfe.tflite", "mödel \n.tflite"])
def test_any_file_name_can_be_asked_about(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"<html>")
    answer = start_trial(
        TrialRequest(model=ModelConfig(path=str(path)), runtime=RUNTIMES[0])
    ).wait()
    assert "a web page" in answer.refused


DOING = Doing(what="loading it", candidate=candidate(2, None))
GOOD = Measured(candidate=candidate(1, 20.0))


@pytest.mark.parametrize(
    ("replies", "complaints", "code", "reason"),
    [
        ([GOOD, Passed()], "", 0, None),
        ([DOING, Refused(reason="no")], "", 0, "no"),
        ([DOING], "", -signal.SIGSEGV, "crashed (SIGSEGV) while loading it; the model is probably"),
        ([GOOD, DOING], "", -signal.SIGSEGV, "crashed (SIGSEGV)"),  # however well it began
        ([DOING], "what():  std::bad_alloc", -signal.SIGABRT, "needs more memory"),
        ([DOING], "", -signal.SIGKILL, "loading it was stopped from outside (SIGKILL)"),
        ([DOING], "", -signal.SIGALRM, "did not finish one run within 20 s; it was loading it"),
        ([DOING], "", None, "could not be tried within 50 s; it was loading it"),
        ([DOING], "", -signal.SIGXCPU, "could not be tried within 50 s"),
        ([GOOD, DOING], "", -signal.SIGALRM, None),  # what was measured in time stands
        ([GOOD, DOING], "", None, None),
        ([], "Traceback\nIndexError: no such row\n", 1, "could not be tried: IndexError: no such"),
        ([], "", 0, "could not be tried: no reason given"),
        ([], "rtsp://u:s3cret@h/x: no", 1, "rtsp://"),
    ],
)
def test_every_end_has_a_sentence(replies, complaints, code, reason):
    request = TrialRequest(model=ModelConfig())
    answer = trial_words._conclude(request, replies, complaints, code)
    if reason is None:
        assert answer.refused is None
    else:
        assert reason in answer.refused
    assert "s3cret" not in (answer.refused or "")
    unfinished = [each for each in answer.candidates if each.threads == 2]
    assert all(each.refused for each in unfinished)


def test_what_was_measured_before_a_crash_is_shown_and_not_used(model_file, monkeypatch):
    path = model_file(made_boxes())

    class Crashed:
        def wait(self, say):
            return trial_words._conclude(
                TrialRequest(model=ModelConfig()), [GOOD, DOING], "", -signal.SIGSEGV
            )

    monkeypatch.setattr(trial, "start_trial", lambda request: Crashed())
    with pytest.raises(ModelError, match="SIGSEGV"):
        try_model(read_model(path), ModelConfig(path=path), most_threads=2)


def test_crash_of_one_runtime_leaves_the_other(model_file, monkeypatch):
    path = model_file(made_boxes())

    class Answered:
        def __init__(self, request):
            self.request = request

        def wait(self, say):
            if self.request.runtime == "tflite-runtime":
                return trial_words._conclude(self.request, [DOING], "", -signal.SIGSEGV)
            return trial_words._conclude(self.request, [GOOD, Passed()], "", 0)

    monkeypatch.setattr(trial, "start_trial", Answered)
    monkeypatch.setattr(trial, "installed_runtimes", lambda wanted: ["litert", "tflite-runtime"])
    choice = try_model(read_model(path), ModelConfig(path=path), most_threads=2)
    assert (choice.runtime, choice.invoke_ms) == ("litert", 20.0)
    assert "SIGSEGV" in choice.candidates[1].refused


def test_both_runtimes_refusing_are_both_heard():
    assert trial._why_none({"litert": "a", "tflite-runtime": "b"}) == "litert: a; tflite-runtime: b"
    assert trial._why_none({"litert": "a", "tflite-runtime": "a"}) == "a"


def test_libraries_may_print_between_the_lines():
    with trial_words._memory_file("a") as answers, trial_words._memory_file("b") as complaints:
        answers.write(b'INFO: {\n{"type":"nobody"}\n{broken\n{"type":"passed"}\n')
        one = trial_words.Trial(
            request=TrialRequest(model=ModelConfig()),
            process=None,
            answers=answers,
            complaints=complaints,
            ends_at=0.0,
        )
        assert list(one.replies()) == [Passed()]


def test_polling_never_waits_and_an_end_is_an_end(model_file):
    running = start_trial(TrialRequest(model=ModelConfig(path=model_file(made_endless()))))
    assert running.poll() is None
    running.end()
    assert running.process.wait(60) == -signal.SIGKILL


def test_whole_trial_has_a_limit(model_file):
    request = TrialRequest(model=ModelConfig(path=model_file(made_boxes())), limit_s=0.01)
    assert "could not be tried within 0.01 s" in start_trial(request).wait().refused


def is_gone(process):
    """Wait until a process that is not our child has ended."""
    for _ in range(3000):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1][0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    os.kill(process, signal.SIGKILL)
    return False


def test_child_whose_parent_has_gone_does_nothing():
    # Not even look for its libraries, which are not in that folder.
    command = [*trial_command(os.getppid())[:-1], "/nonexistent"]
    question = msgspec.json.encode(TrialRequest(model=ModelConfig(), runtime=RUNTIMES[0]))
    done = subprocess.run(command, input=question, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


def test_parent_that_dies_at_once_leaves_no_child(model_file):
    code = (
        "import os, signal, sys; from agent.config import ModelConfig; "
        "from agent.trial_words import TrialRequest, start_trial; "
        f"trial = start_trial(TrialRequest(model=ModelConfig(path=sys.argv[1]), "
        f"runtime={RUNTIMES[0]!r}, run_within_s=300.0, limit_s=300.0)); "
        "os.write(1, b'%d\\n' % trial.process.pid); os.kill(os.getpid(), signal.SIGKILL)"
    )
    parent = subprocess.run(
        [sys.executable, "-c", code, model_file(made_endless())],
        capture_output=True,
        cwd=PROJECT,
        check=False,
    )
    assert parent.returncode == -signal.SIGKILL
    assert is_gone(int(parent.stdout))


def test_child_dies_with_whoever_started_it(model_file):
    code = (
        "import sys, time; from agent.config import ModelConfig; "
        "from agent.trial_words import TrialRequest, start_trial; "
        f"trial = start_trial(TrialRequest(model=ModelConfig(path=sys.argv[1]), "
        f"runtime={RUNTIMES[0]!r}, run_within_s=300.0, limit_s=300.0)); "
        "print(trial.process.pid, flush=True)\n"
        "while not any('loading' in str(reply) for reply in trial.replies()): time.sleep(0.02)\n"
        "print('loading', flush=True); time.sleep(300)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, model_file(made_endless())],
        stdout=subprocess.PIPE,
        cwd=PROJECT,
    )
    with parent:
        child = int(parent.stdout.readline())
        assert parent.stdout.readline() == b"loading\n"
        parent.kill()
    assert is_gone(child)


CONFINED = """
import os, resource, sys
from agent.config import ModelConfig
from agent.trial_words import MAX_ANSWER_BYTES, TrialRequest
from agent.vision.confine import confine, confine_memory
confine(TrialRequest(model=ModelConfig(), most_threads=2, limit_s=7))
confine_memory()
limits = {name: resource.getrlimit(getattr(resource, "RLIMIT_" + name))
          for name in ("CORE", "CPU", "NOFILE", "FSIZE", "AS")}
assert limits["CORE"] == (0, 0), limits
assert limits["CPU"] == (14, 19), limits
assert limits["NOFILE"][1] <= 256, limits
assert limits["FSIZE"] == (MAX_ANSWER_BYTES, MAX_ANSWER_BYTES), limits
assert 512 << 20 < limits["AS"][1] < 1 << 50, limits
file = os.memfd_create("x")
try:
    while os.write(file, bytes(1 << 16)):
        pass
except OSError as error:
    print(os.fstat(file).st_size, error.strerror)
try:
    bytes(1 << 45)
except MemoryError:
    print("no memory")
print(open("/proc/self/oom_score_adj").read().strip())
"""


def test_limits_of_the_child():
    done = subprocess.run(
        [sys.executable, "-c", CONFINED], capture_output=True, text=True, cwd=PROJECT
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"{1 << 20} File too large", "no memory", "1000"]


def test_child_that_used_up_its_processor_time_says_so():
    code = (
        "from agent.config import ModelConfig; from agent.trial_words import TrialRequest; "
        "from agent.vision.confine import confine\n"
        "confine(TrialRequest(model=ModelConfig(), limit_s=1.0))\n"
        "while True: pass"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False)
    assert done.returncode == -signal.SIGXCPU
    request = TrialRequest(model=ModelConfig(), limit_s=1.0)
    answer = trial_words._conclude(request, [DOING], "", done.returncode)
    assert answer.refused == "could not be tried within 1 s; it was loading it"


def test_signals_have_sentences():
    assert signal_name(signal.SIGSEGV) == "SIGSEGV"
    assert signal_name(40) == "signal 40"  # of the real-time ones, most have no name
    assert "crashed (signal 40)" in explain_signal(40)
    assert "enough memory" in explain_signal(signal.SIGKILL)
    assert "crashed (SIGBUS)" in explain_signal(signal.SIGBUS)


def test_numbers_that_are_none_are_noticed():
    from agent.vision.heads import Boxes, Poses, Scores, Tensors

    one = np.ones(1, np.float32)
    bad = np.full(1, np.nan, np.float32)
    box = np.ones((1, 4), np.float32)
    ids = np.zeros(1, np.intp)
    assert is_finite(Boxes(xyxy_norm=box, scores=one, class_ids=ids))
    assert not is_finite(Boxes(xyxy_norm=box * np.inf, scores=one, class_ids=ids))
    assert not is_finite(Scores(scores=bad, class_ids=ids))
    assert not is_finite(Poses(keypoints=bad[:, None, None], scores=one))
    assert is_finite(Tensors(values=(("x", bad),)))


# Accelerators.


def test_accelerator_that_is_not_there(model_file):
    config = ModelConfig(path=model_file(made_boxes()), accelerator="delegate:/no/such.so")
    with pytest.raises(DelegateError, match="no such file") as caught:
        try_accelerator(read_model(config.path), config)
    assert caught.value.fault == "library_missing"


@runtimes
def test_accelerator_that_works(model_file, tmp_path, runtime):
    config = ModelConfig(
        path=model_file(made_boxes()),
        runtime=runtime,
        accelerator=f"delegate:{build_plugin(tmp_path)}",
        xnnpack="off",
    )
    choice = try_accelerator(read_model(config.path), config, invokes=3)
    assert choice.runtime == runtime
    assert choice.invoke_ms is not None


def test_probe_tells_what_a_worker_would_look_for(model_file, tmp_path):
    config = ModelConfig(
        path=model_file(made_boxes()), accelerator=f"delegate:{build_plugin(tmp_path)}"
    )
    answer = start_trial(TrialRequest(model=config, probe=3)).wait()
    assert answer.refused is None
    assert answer.key == accelerator_key(read_model(config.path), config)
    known, learned = {answer.key: answer.choice}, []
    chooser = FirstLook(known, 1, lambda *each: learned.append(each))
    chooser.on_accelerator(read_model(config.path), config)  # without another trial
    assert not learned
    assert chooser.measured_ms == answer.choice.invoke_ms


@pytest.mark.parametrize("change", ["replaced", "added", "removed"])
def test_compiled_model_that_was_replaced_meanwhile_is_refused(tmp_path, change):
    (tmp_path / "model.tflite").write_bytes(made_boxes())
    (tmp_path / "manifest.json").write_text('{"name": "made"}')
    compiled = tmp_path / EDGETPU_FILE
    if change != "added":
        compiled.write_bytes(made_boxes())
    config = ModelConfig(path=str(tmp_path), accelerator="edgetpu")
    files = read_model(config.path)
    compiled.unlink(missing_ok=True)
    if change != "removed":
        compiled.write_bytes(made_classifier())
    with pytest.raises(DelegateError, match="was replaced while it was tried"):
        try_accelerator(files, config)
    with pytest.raises(ModelError, match="was replaced while it was tried"):
        try_model(files, config, most_threads=1)


@runtimes
@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("no_create", "message of its own"),
        ("crash_prepare", "crashed (SIGSEGV)"),
        ("abort", "crashed (SIGABRT)"),
        ("hang", "did not finish one run within 3 s"),
        ("none", "took no operator"),
    ],
)
def test_accelerator_that_does_not(model_file, tmp_path, runtime, mode, reason):
    config = ModelConfig(
        path=model_file(made_boxes()),
        runtime=runtime,
        accelerator=f"delegate:{build_plugin(tmp_path)}",
        delegate_options={"mode": mode, "after": "3", "message": "message of its own"},
    )
    within_s = 3.0 if mode == "hang" else 30.0
    request = TrialRequest(model=config, probe=5, run_within_s=within_s)
    answer = start_trial(request).wait()
    assert reason in answer.refused


def test_processor_is_no_accelerator(model_file):
    config = ModelConfig(path=model_file(made_boxes()), accelerator="cpu")
    with pytest.raises(DelegateError, match="wants none"):
        try_accelerator(read_model(config.path), config)


# What a choice is remembered under.


def test_key_changes_with_all_it_depends_on(tmp_path, model_file, monkeypatch):
    path = model_file(made_boxes())
    files, config = read_model(path), ModelConfig(path=path)

    def key(files=files, threads=2, **changes):
        return choice_key(files, msgspec.structs.replace(config, **changes), threads)

    assert key() == choice_key(read_model(path), config, 2)
    keys = [key(), key(threads=1), key(threads=3), key(runtime="litert"), key(xnnpack="off")]
    keys += [choice_key(files, msgspec.structs.replace(config, threads=1), 2)]
    keys += [key(files=read_model(model_file(made_classifier(), "other.tflite")))]
    keys += [accelerator_key(files, config)]
    keys += [accelerator_key(files, msgspec.structs.replace(config, accelerator="edgetpu"))]
    for name, value in [
        ("read_cpu_name", lambda: "another"),
        ("read_board_model", lambda: "another"),
        ("_version", lambda package: "9.9"),
        ("SCHEMA", 99),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(trial, name, value)
            keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key(score_threshold=0.9) == key()  # thresholds change nothing of how it runs
    assert all(len(each) == 64 for each in keys)
