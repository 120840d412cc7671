"""Delegates that work, refuse, fail, abort and hang, as real shared libraries on real models."""

import gc
import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from commands import PROJECT
from coral_trees import STATUS
from hypothesis import given
from hypothesis import strategies as st
from made_models import MadeInput, MadeTensor, made_model
from opened import DEFAULT, RUNTIMES, compiled_model, opened, run, unpreparable_model

from agent.config import ModelConfig
from agent.errors import ModelError
from agent.vision.accelerate import open_wanted
from agent.vision.engines import DelegateError, delegates
from agent.vision.engines.delegates import MAX_TEXT, Delegate, first_line
from agent.vision.engines.edgetpu import explain_crash
from agent.vision.model_files import read_model

every_runtime = pytest.mark.parametrize("runtime", RUNTIMES)
MODEL = (DEFAULT / "model.tflite").read_bytes()
NEWER = (
    "Failed to prepare for TPU. Failed precondition: Package requires runtime version (14), "
    "which is newer than this runtime version (13)."
)
# Opens the default model on a delegate and runs it; says after each run how far it is.
CHILD = """
import json, sys, threading, numpy as np
from agent.vision.engines import Wish, open_engine
runtime, library, options, runs = json.loads(sys.argv[1])
engine = open_engine(
    open("models/default/model.tflite", "rb").read(),
    Wish(runtime=runtime, accelerator="delegate:" + library, threads=1, delegate_options=options),
)
def work():
    for number in range(runs):
        engine.invoke()
        print("ran", number + 1, flush=True)
thread = threading.Thread(target=work, daemon=True)
thread.start()
thread.join(3.0 if options["mode"] == "hang" else None)
print("alive, and the thread is", "in invoke" if thread.is_alive() else "done", flush=True)
import os; os._exit(0)
"""


def in_child(runtime, plugin, runs, **options):
    request = json.dumps([runtime, str(plugin), options, runs])
    return subprocess.run(
        [sys.executable, "-c", CHILD, request], cwd=PROJECT, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def picture():
    return np.load(DEFAULT / "golden.npz", allow_pickle=False)["inputs"][:1]


@every_runtime
@pytest.mark.parametrize(("ops", "taken"), [("RESHAPE", 12), ("RESHAPE,LOGISTIC", 13)])
@pytest.mark.parametrize("xnnpack", [True, False])
def test_results_are_the_same(plugin, picture, runtime, ops, taken, xnnpack):
    plain = opened(MODEL, runtime, xnnpack=False)
    engine = opened(MODEL, runtime, f"delegate:{plugin}", options={"ops": ops}, xnnpack=xnnpack)
    assert engine.delegated == (taken, 117)
    assert (engine.accelerator, engine.reason) == (f"delegate:{plugin.name}", None)
    assert plain.delegated is None
    boxes, classes, scores, count = run(plain, picture)
    found = run(engine, picture)
    rows = int(count[0])
    assert rows > 0
    # Other kernels round otherwise; the delegate's own are exact.
    tolerance = 0.06 if xnnpack else 0.005
    best = scores[0, :rows] > 0.5
    assert best.any()
    assert np.array_equal(classes[0, :rows][best], found[1][0, :rows][best])
    assert np.abs(boxes[0, :rows][best] - found[0][0, :rows][best]).max() < tolerance
    assert np.abs(scores[0, :rows][best] - found[2][0, :rows][best]).max() < tolerance


@every_runtime
def test_a_part_of_a_made_graph(plugin, runtime):
    """The one ADD of float32 runs on the delegate, exactly; all else on the processor."""
    numbers = np.arange(6, dtype=np.float32).reshape(1, 6)
    data = made_model(
        [MadeTensor(numbers, name="sum", plus="state")],
        inputs=(MadeInput(), MadeInput(shape=(1, 6), dtype="float32", name="state")),
    )
    engine = opened(data, runtime, f"delegate:{plugin}", options={"ops": "ADD"})
    taken, total = engine.delegated
    assert taken == 1 < total
    state = np.float32([[10, 20, 30, 40, 50, 60]])
    [made] = run(engine, np.zeros((1, 320, 320, 3), np.uint8), state)
    assert np.array_equal(made, numbers + state)


@every_runtime
def test_a_delegate_that_takes_nothing(plugin, runtime):
    with pytest.raises(DelegateError, match="took no operator of this model") as caught:
        opened(MODEL, runtime, f"delegate:{plugin}", options={"mode": "none"})
    assert caught.value.fault == "refused"


@every_runtime
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mode": "no_create", "message": "no camel"}, "created no delegate: it says: no camel"),
        ({"mode": "no_create", "message": "silent"}, "it gave no reason"),
        ({"spede": "7"}, "it says: unknown option spede"),
    ],
)
def test_a_delegate_that_is_not_created(plugin, runtime, options, sentence):
    with pytest.raises(DelegateError, match=re.escape(sentence)) as caught:
        opened(MODEL, runtime, f"delegate:{plugin}", options=options)
    assert caught.value.fault == "failed"
    assert str(plugin) in str(caught.value)


@every_runtime
def test_a_delegate_that_refuses_the_model(plugin, runtime):
    options = {"mode": "no_prepare", "message": "tensor 7 is odd"}
    with pytest.raises(DelegateError, match="refused the model: tensor 7 is odd;") as caught:
        opened(MODEL, runtime, f"delegate:{plugin}", options=options)
    assert caught.value.fault == "refused"
    assert "Node number" not in str(caught.value)


@every_runtime
def test_a_device_that_is_pulled_out_and_plugged_in_again(plugin, tmp_path, picture, runtime):
    away = tmp_path / "away"
    options = {"mode": "gone", "message": "no device", "misbehave_file": str(away)}
    engine = opened(MODEL, runtime, f"delegate:{plugin}", options=options)
    before = run(engine, picture)
    away.touch()
    with pytest.raises(DelegateError, match="failed at work: no device") as caught:
        engine.invoke()
    assert caught.value.fault == "failed"
    assert engine.accelerator in str(caught.value)
    with pytest.raises(DelegateError, match="created no delegate: it says: no device"):
        opened(MODEL, runtime, f"delegate:{plugin}", options=options)
    away.unlink()
    again = opened(MODEL, runtime, f"delegate:{plugin}", options=options)
    assert int(run(again, picture)[3][0]) == int(before[3][0])


@every_runtime
def test_runs_until_it_fails(plugin, runtime):
    options = {"mode": "error", "after": "3"}
    engine = opened(MODEL, runtime, f"delegate:{plugin}", options=options)  # the first run
    engine.invoke()
    engine.invoke()
    with pytest.raises(DelegateError, match="failed at work"):
        engine.invoke()
    with pytest.raises(DelegateError, match="refused the model"):
        opened(MODEL, runtime, f"delegate:{plugin}", options={"mode": "error"})


@every_runtime
def test_the_processor_fails_as_what_it_is(runtime):
    """Only an accelerator's failure is one that another engine might not have."""
    engine = opened(MODEL, runtime)
    engine._interpreter._interpreter = None
    with pytest.raises(Exception) as caught:
        engine.invoke()
    assert not isinstance(caught.value, DelegateError)


@every_runtime
@pytest.mark.parametrize(
    ("options", "runs", "ended_by"),
    [
        ({"mode": "abort", "after": "3"}, 2, signal.SIGABRT),
        ({"mode": "crash_prepare"}, 0, signal.SIGSEGV),
    ],
)
def test_crashes_take_the_process(plugin, runtime, options, runs, ended_by):
    done = in_child(runtime, plugin, 9, **options)
    assert done.returncode == -ended_by, done.stderr
    assert done.stdout.splitlines() == [f"ran {number + 1}" for number in range(runs)]


@every_runtime
def test_a_hang_stops_its_thread_alone(plugin, runtime):
    done = in_child(runtime, plugin, 9, mode="hang", after="3")
    assert done.stdout.splitlines() == ["ran 1", "ran 2", "alive, and the thread is in invoke"]


def test_a_hang_while_it_is_created_stops_its_thread_alone(plugin):
    """The runtimes' own loader would hold the interpreter lock, and the heartbeat with it."""
    code = (
        "import os, sys, threading\n"
        "from agent.vision.engines.delegates import Delegate\n"
        "arguments = 'delegate:' + sys.argv[1], {'mode': 'hang_create'}\n"
        "thread = threading.Thread(target=Delegate, args=arguments, daemon=True)\n"
        "thread.start()\n"
        "thread.join(1.0)\n"
        "print('alive', thread.is_alive(), flush=True)\n"
        "os._exit(0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, plugin],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "alive True", done.stderr


@every_runtime
def test_delegates_outlive_their_interpreters(plugin, runtime, monkeypatch):
    """Either order of collection is one in which the interpreter goes first."""
    ended = []

    class Watched(Delegate):
        def __del__(self):
            ended.append(self._pointer)
            super().__del__()

    monkeypatch.setattr("agent.vision.engines.interpreter.Delegate", Watched)
    for _ in range(3):
        engine = opened(MODEL, runtime, f"delegate:{plugin}")
        gc.collect()
        assert not ended
        engine.invoke()
        del engine
        gc.collect()
        assert len(ended) == 1
        ended.clear()


# Libraries


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "there is no such file"),
        (b"", "no shared library, or damaged"),
        (b"\x7fELF" + bytes(60), "cannot be loaded"),
        (b"#!/bin/sh\n" * 99, "no shared library, or damaged"),
    ],
    ids=["missing", "empty", "damaged", "script"],
)
def test_files_that_are_no_library(tmp_path, content, sentence):
    path = tmp_path / "lib.so"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DelegateError, match=sentence) as caught:
        Delegate(f"delegate:{path}", {})
    assert caught.value.fault == "library_missing"
    assert str(path) in str(caught.value)


def test_a_library_that_is_no_delegate(tmp_path, plugin):
    library = tmp_path / "libother.so"
    source = tmp_path / "other.c"
    source.write_text("int other(void) { return 7; }\n")
    build = ["cc", "-shared", "-fPIC", "-o", library, source]
    subprocess.run(build, check=True)
    with pytest.raises(DelegateError, match="is no TFLite delegate") as caught:
        Delegate(f"delegate:{library}", {})
    assert caught.value.fault == "library_missing"


def test_a_library_that_lacks_another(tmp_path, plugin):
    """The loader's message names the other one, not the path that was given."""
    needed, library, source = tmp_path / "libneeded.so", tmp_path / "lib.so", tmp_path / "a.c"
    source.write_text("int needed(void) { return 7; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", needed, source], check=True)
    source.write_text("int needed(void); int mine(void) { return needed(); }\n")
    build = ["cc", "-shared", "-fPIC", "-o", library, source, f"-L{tmp_path}", "-lneeded"]
    subprocess.run(build, check=True)
    needed.unlink()
    with pytest.raises(DelegateError, match=r"it needs libneeded\.so, which is not installed"):
        Delegate(f"delegate:{library}", {})


@given(st.text())
def test_any_message_becomes_one_short_line(text):
    line = first_line(text)
    assert len(line) <= MAX_TEXT
    assert len(line.splitlines()) <= 1


def test_what_the_interpreter_adds_is_left_out():
    said = f"{NEWER}Node number 2 (EdgeTpuDelegateForCustomOp) failed to prepare."
    assert first_line(said) == NEWER.rstrip(".")
    assert (
        first_line("Node number 2 (ADD) failed to invoke.\n")
        == "Node number 2 (ADD) failed to invoke"
    )


# The Edge TPU, with a stand-in for its library


@pytest.fixture
def edgetpu(plugin, monkeypatch):
    """Let `edgetpu` load the plug-in; there is no device here."""
    monkeypatch.setattr(delegates, "EDGETPU_LIBRARY", str(plugin))


def bundle(folder, *, plain=None, compiled=None):
    """A folder with the given models."""
    manifest = {"schema": "edge-agent/manifest/1", "name": "made", "model": "model.tflite"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "model.tflite").write_bytes(plain or compiled)
    if plain and compiled:
        (folder / "model_edgetpu.tflite").write_bytes(compiled)
    return read_model(str(folder))


PLAIN = made_model(
    [MadeTensor(np.arange(4, dtype=np.uint8).reshape(1, 4), scale=1.0)],
    inputs=(MadeInput(shape=(1, 8, 8, 3)),),
)


@pytest.mark.parametrize("accelerator", ["auto", "edgetpu", "edgetpu:usb:1"])
def test_a_compiled_model_runs_on_it(edgetpu, tmp_path, accelerator):
    files = bundle(tmp_path, plain=PLAIN, compiled=compiled_model())
    found = open_wanted(files, ModelConfig(accelerator=accelerator))
    assert found.used is files.edgetpu
    assert (found.reason, found.is_fallback) == (None, False)
    assert found.engine.accelerator == ("edgetpu" if accelerator == "auto" else accelerator)
    assert found.engine.delegated == (1, 1)
    pixels = np.random.default_rng(7).integers(0, 255, (1, 8, 8, 3), dtype=np.uint8)
    assert np.array_equal(run(found.engine, pixels)[0], pixels)


def test_without_a_device_the_plain_twin_runs(edgetpu, tmp_path):
    files = bundle(tmp_path, plain=PLAIN, compiled=compiled_model())
    options = {"mode": "no_create", "message": "silent"}
    found = open_wanted(files, ModelConfig(accelerator="edgetpu", delegate_options=options))
    assert found.used is files.plain
    assert found.is_fallback
    assert found.engine.accelerator.startswith("cpu")
    assert "Coral" in found.reason


@pytest.mark.parametrize("accelerator", ["auto", "edgetpu", "edgetpu:pci:0"])
def test_without_a_device_and_twin_the_reason_is_said(edgetpu, tmp_path, accelerator):
    files = bundle(tmp_path, compiled=compiled_model())
    options = {"mode": "no_create", "message": "silent"}
    config = ModelConfig(accelerator=accelerator, delegate_options=options)
    with pytest.raises(DelegateError, match="the model is compiled for the Edge TPU") as caught:
        open_wanted(files, config)
    assert "use the uncompiled model" in str(caught.value)
    assert "Coral" in str(caught.value)


def test_a_compiled_model_on_the_processor_is_refused(tmp_path):
    files = bundle(tmp_path, compiled=compiled_model())
    with pytest.raises(ModelError, match="the model is compiled for the Edge TPU"):
        open_wanted(files, ModelConfig(accelerator="cpu"))


@pytest.mark.parametrize("accelerator", ["edgetpu", "edgetpu:usb:0"])
def test_a_model_that_is_not_compiled(tmp_path, accelerator):
    """Said without a library or device, and no reason to look for them again and again."""
    found = open_wanted(bundle(tmp_path, plain=PLAIN), ModelConfig(accelerator=accelerator))
    assert "the model is not compiled for the Edge TPU" in found.reason
    assert "edgetpu_compiler" in found.reason
    assert not found.is_fallback
    assert found.engine.accelerator.startswith("cpu")


@pytest.mark.parametrize(
    ("message", "fault", "sentence"),
    [
        (NEWER, "compiler_newer", "compiled for runtime 14 and libedgetpu here has runtime 13"),
        (
            "Internal: Unsupported data type in custom op handler: 0",
            "failed",
            "built for another TensorFlow Lite",
        ),
        ("Failed to prepare for TPU. Internal: x", "refused", "refused the model: Failed to"),
    ],
)
def test_what_libedgetpu_says_of_a_model(edgetpu, message, fault, sentence):
    options = {"mode": "no_prepare", "message": message}
    with pytest.raises(DelegateError, match=re.escape(sentence)) as caught:
        opened(compiled_model(), RUNTIMES[0], "edgetpu:usb:0", options=options)
    assert caught.value.fault == fault
    assert str(caught.value).startswith('accelerator = "edgetpu:usb:0": ')


def test_the_systems_loader_finds_the_library(plugin, tmp_path):
    (tmp_path / "libedgetpu.so.1").write_bytes(plugin.read_bytes())
    code = (
        "from agent.vision.engines.delegates import Delegate\n"
        "print(Delegate('edgetpu:usb:0', {}).name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env={"LD_LIBRARY_PATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "edgetpu:usb:0", done.stderr


# XNNPACK


@every_runtime
def test_what_xnnpack_cannot_prepare_runs_without_it(runtime, monkeypatch):
    engine = opened(unpreparable_model(monkeypatch), runtime)
    assert engine.accelerator == "cpu"
    if runtime == "litert":
        assert engine.reason == (
            "XNNPACK cannot prepare this model (failed to create XNNPACK runtime)"
        )
    else:  # it leaves quantized graphs to plain kernels
        assert engine.reason is None
    [made] = run(engine, np.int8([[0, -1, 1, 5]]))
    assert made.tolist() == [[0, -128, 127]]


@every_runtime
@pytest.mark.parametrize("xnnpack", [True, False])
def test_xnnpack_as_wished(runtime, xnnpack):
    data = made_model(
        [MadeTensor(np.float32([[0, 1]]), name="sum", plus="state")],
        inputs=(MadeInput(), MadeInput(shape=(1, 2), dtype="float32", name="state")),
    )
    engine = opened(data, runtime, xnnpack=xnnpack)
    assert engine.accelerator == ("cpu:xnnpack" if xnnpack else "cpu")
    assert engine.reason is None
    assert engine.threads == 1


@every_runtime
def test_the_first_run_sees_zeros(runtime):
    """Whatever lay in memory must not decide what a model is taken for."""
    data = made_model(
        [MadeTensor(np.float32([[3, 4]]), name="sum", plus="state")],
        inputs=(MadeInput(), MadeInput(shape=(1, 2), dtype="float32", name="state")),
    )
    engine = opened(data, runtime)
    outputs = [np.zeros((1, 2), np.float32)]
    engine.read_outputs(outputs)
    assert outputs[0].tolist() == [[3, 4]]


class Crashing:
    """A chooser whose child was ended by a signal, as old libedgetpu ends it."""

    def __init__(self, reason):
        self.reason = reason

    def on_processor(self, files, config):
        return None

    def on_accelerator(self, files, config):
        raise DelegateError(self.reason, fault="failed")


def test_a_crash_of_the_library_is_explained(tmp_path):
    files = bundle(tmp_path, plain=PLAIN, compiled=compiled_model())
    chooser = Crashing("the runtime crashed (SIGSEGV) while loading")
    found = open_wanted(files, ModelConfig(accelerator="edgetpu"), chooser=chooser)
    assert found.used is files.plain
    assert "crashed (SIGSEGV) while loading; " in found.reason
    assert "TensorFlow before 2.12" in found.reason


@pytest.mark.parametrize(
    ("version", "said"), [("16.0", "libedgetpu1-std 16.0 was built"), ("16.0tf2.16.1-1", None)]
)
def test_a_crash_is_not_blamed_on_a_library_that_fits(tmp_path, version, said):
    path = tmp_path / "var/lib/dpkg/status"
    path.parent.mkdir(parents=True)
    path.write_text(STATUS.format(status="install ok installed", version=version))
    crash = "it crashed (SIGSEGV)"
    assert (explain_crash(crash, tmp_path) == crash) is (said is None)
    assert said is None or said in explain_crash(crash, tmp_path)
    assert explain_crash("it crashed (SIGABRT)", tmp_path) == "it crashed (SIGABRT)"


def test_what_a_child_has_said_is_not_said_twice(tmp_path):
    files = bundle(tmp_path, compiled=compiled_model())
    chooser = Crashing("the model is compiled for the Edge TPU, which cannot be used: no device")
    with pytest.raises(DelegateError) as caught:
        open_wanted(files, ModelConfig(), chooser=chooser)
    assert str(caught.value).count("compiled for the Edge TPU") == 1
    assert caught.value.fault == "failed"
