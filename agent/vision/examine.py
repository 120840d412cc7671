"""What a model has to show before it serves cameras; runs in the child, in this order.

files as listed ▶ operators ▶ loads ▶ numbers, not NaN ▶ N timed runs ▶ memory ▶ golden answers

What is not as it must be is a `RefusalError` with a code. A crash, a hang or too much memory ends
the child instead, and its parent concludes the code from that.
"""

from __future__ import annotations

import importlib
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from agent.choices import Choice
from agent.config import ModelConfig
from agent.errors import ModelError
from agent.ota.refusal import Code, RefusalError
from agent.ota.selftest import ExamReport, ExamRequest, Stage
from agent.sensors.coral import find_corals
from agent.vision.accelerate import explain
from agent.vision.engines import DelegateError, installed_runtimes
from agent.vision.golden import MAX_PICTURES, read_golden
from agent.vision.measure import is_finite, run_on_grey, verify
from agent.vision.model import KNOWN_CUSTOM_OPS, Model, build_model
from agent.vision.model_files import MAX_MODEL_BYTES, ModelFiles, read_listed, read_model
from agent.vision.own_time import Took, percentile, timed
from agent.vision.tflite_file import EDGETPU_CUSTOM_OP, parse_tflite
from agent.vision.trial import choice_key

MIB = 1 << 20
# Slow models are not run so often: runs end after this, and count from so many on.
RUNS_WITHIN_S = 20.0
LEAST_RUNS = 8
# Between runs the board is left to others for as long as one took, up to this.
LONGEST_REST_S = 0.1
# What a run may leave behind: 24 MiB in 40 runs is 18 MiB/s at 30 frames/s. Allocators settle
# within the first runs.
SETTLED_RUNS = 10
LEAK_BYTES = 24 * MIB

# How the runtimes' adapters say that there is not enough memory.
TOO_LARGE = ("more memory than there is", "larger than memory")

Say = Callable[[Stage], None]


def import_runtime(request: ExamRequest) -> None:
    """Import what will run the model, so that memory limits count from there."""
    for runtime in installed_runtimes(request.model.runtime)[:1]:
        importlib.import_module(f"agent.vision.engines.{runtime.replace('-', '_')}")


def examine(request: ExamRequest, say: Say) -> ExamReport:
    """Examine a model.

    Raises:
        RefusalError: it must not be used; why, with its code.
    """
    files, config = prepare(request, say)
    say(Stage(what="loading it", progress=0.1))
    with as_refusal("E_CRASH", of_model="E_COMPAT"), no_longer_than(request):
        try:
            model = build_model(files, config, choice=request.way)
        except ModelError as error:
            raise explain(error, files) from error
    _require_task(model, request)
    say(Stage(what="running it on a grey picture", progress=0.2))
    with as_refusal("E_CRASH", of_model="E_NAN"), no_longer_than(request):
        run_on_grey(model)
    runs = Runs(request, model, say)
    runs.run()
    rss_mib = peak_mib()
    golden = None
    if files.manifest.golden is not None:
        say(Stage(what="comparing its answers", progress=0.9))
        with as_refusal("E_CRASH", of_model="E_GOLDEN"), no_longer_than(request, MAX_PICTURES):
            verify(model, files, config)
            golden = min(MAX_PICTURES, len(read_golden(files.manifest.golden, files)["inputs"]))
    key, choice = _way(request, files, model, runs)
    report = ExamReport(
        ok=True,
        task=model.head.task,
        runtime=model.engine.runtime,
        accelerator=model.engine.accelerator,
        threads=model.engine.threads,
        runs=len(runs.took),
        p50_ms=runs.own_ms(0.5),
        p95_ms=runs.own_ms(0.95),
        wall_p95_ms=_ms(percentile([each.wall_s for each in runs.took], 0.95)),
        rss_mib=rss_mib,
        not_comparable="accelerator" if is_other_engine(request, files) else None,
        golden=golden,
        choice_key=key,
        choice=choice,
    )
    return _within_budget(report, request)


def prepare(request: ExamRequest, say: Say) -> tuple[ModelFiles, ModelConfig]:
    """Read all files of a model and check them; return them with how it is to be opened.

    Raises:
        RefusalError: E_HASH, E_BUNDLE or E_COMPAT.
    """
    say(Stage(what="reading it", progress=0.05))
    path = request.model.path
    try:
        files = read_model(path, manifest_sha256=request.manifest_sha256)
        for name in sorted(files.manifest.files):
            read_listed(files.folder / name, MAX_MODEL_BYTES, files.manifest.files)
    except ModelError as error:
        is_other = "is not the" in str(error)
        raise RefusalError("E_HASH" if is_other else "E_BUNDLE", str(error)) from error
    _refuse_operators(files)
    if request.may_use_accelerator:
        return files, request.model
    if _is_compiled_alone(files):
        raise RefusalError(
            "E_COMPAT",
            f"{files.where}: is compiled for the Edge TPU alone, so it cannot be examined while "
            "that is in use; add the model it was compiled from",
        )
    return files, msgspec.structs.replace(request.model, accelerator="cpu")


def _refuse_operators(files: ModelFiles) -> None:
    """Refuse operators that are no part of the runtimes, whatever the manifest says of them."""
    for part in (files.plain, files.edgetpu):
        if part is None:
            continue
        with as_refusal("E_COMPAT"):
            unknown = parse_tflite(part.data, where=part.where).custom_ops - KNOWN_CUSTOM_OPS
        if unknown:
            raise RefusalError(
                "E_COMPAT",
                f"{part.where}: needs {', '.join(sorted(unknown))[:300]}, which is no operator of "
                "the runtimes here",
            )


def _is_compiled_alone(files: ModelFiles) -> bool:
    return EDGETPU_CUSTOM_OP in parse_tflite(files.plain.data, where=files.where).custom_ops


def is_other_engine(request: ExamRequest, files: ModelFiles) -> bool:
    """Return whether it would run on an accelerator, of which nothing is known here."""
    wanted = request.model.accelerator
    if request.may_use_accelerator or wanted == "cpu":
        return False
    return wanted != "auto" or (files.edgetpu is not None and bool(find_corals()))


def _require_task(model: Model, request: ExamRequest) -> None:
    if request.task not in (None, model.head.task):
        raise RefusalError(
            "E_COMPAT",
            f"its task is {model.head.task}; what runs now, and whoever listens to it, does "
            f"{request.task}",
        )


@dataclass(slots=True)
class Runs:
    """Timed runs on noise, so that whatever the model does for busy pictures is in them."""

    request: ExamRequest
    model: Model
    say: Say
    took: list[Took] = field(default_factory=list)

    def run(self) -> None:
        """Run it often enough.

        Raises:
            RefusalError: E_NAN or E_MEMORY.
        """
        engine, plan = self.model.engine, self.model.plan
        tensor, outputs = plan.new_tensor(), self.model.new_outputs()
        noise = np.random.default_rng(1)
        began = time.monotonic()
        settled_bytes = 0
        for number in range(self.request.runs):
            self.say(Stage(what="timing it", progress=0.2 + 0.7 * number / self.request.runs))
            pixels = noise.integers(0, 256, (plan.height, plan.width, plan.channels), np.uint8)
            plan.store(pixels, tensor)
            engine.load_input(tensor, self.model.image_input)
            with as_refusal("E_CRASH"), no_longer_than(self.request):
                took = timed(engine.invoke)
                engine.read_outputs(outputs)
                is_good = is_finite(self.model.decode(outputs))
            if not is_good:
                raise RefusalError("E_NAN", "gives findings that are no numbers for noise")
            self.took.append(took)
            if number < SETTLED_RUNS:
                settled_bytes = resident_bytes()
            elif resident_bytes() - settled_bytes > LEAK_BYTES:
                grown_mib = (resident_bytes() - settled_bytes) / MIB
                raise RefusalError(
                    "E_MEMORY",
                    f"its process grew by {grown_mib:.0f} MiB in {number + 1 - SETTLED_RUNS} runs",
                )
            if number + 1 >= LEAST_RUNS and time.monotonic() - began > RUNS_WITHIN_S:
                return
            time.sleep(min(took.wall_s, LONGEST_REST_S))

    def own_ms(self, share: float) -> float:
        """Return a percentile of the runs' own times."""
        return _ms(percentile([each.own_s for each in self.took], share))


def _way(
    request: ExamRequest, files: ModelFiles, model: Model, runs: Runs
) -> tuple[str, Choice | None]:
    """Return how the model was run, to be run so again: what the worker need not measure."""
    engine = model.engine
    if not engine.accelerator.startswith("cpu"):
        return "", None
    choice = Choice(
        runtime="litert" if engine.runtime.startswith("litert") else "tflite-runtime",
        xnnpack=engine.accelerator == "cpu:xnnpack",
        threads=engine.threads,
        invoke_ms=runs.own_ms(0.5),
        candidates=(),
        measured_at=time.time(),
    )
    return choice_key(files, request.model, request.most_threads), choice


def _within_budget(report: ExamReport, request: ExamRequest) -> ExamReport:
    """Return the report, refused where the model takes more than its manifest allows it here."""
    excess = ""
    is_slow = None not in (request.p95_ms, report.p95_ms) and report.not_comparable is None
    if is_slow and (report.p95_ms or 0.0) > (request.p95_ms or 0.0):
        excess = f"95 % of its runs take up to {report.p95_ms:g} ms; {request.p95_ms:g} ms"
    elif request.rss_mib is not None and (report.rss_mib or 0.0) > request.rss_mib:
        excess = f"its process takes {report.rss_mib:g} MiB; {request.rss_mib:g} MiB"
    if not excess:
        return report
    message = f"{excess} are allowed on this board"
    return msgspec.structs.replace(report, ok=False, code="E_BUDGET", message=message)


@contextmanager
def as_refusal(code: Code, *, of_model: Code | None = None) -> Iterator[None]:
    """Give what is raised inside a code, and a `ModelError` another; lack of memory has its own.

    Raises:
        RefusalError: instead of it.
    """
    try:
        yield
    except (RefusalError, MemoryError):
        raise
    except DelegateError as error:  # the accelerator may be busy or gone
        raise RefusalError("E_COMPAT", str(error), is_final=False) from error
    except ModelError as error:
        is_large = any(words in str(error) for words in TOO_LARGE)
        raise RefusalError("E_MEMORY" if is_large else of_model or code, str(error)) from error
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise RefusalError(code, text) from error


@contextmanager
def no_longer_than(request: ExamRequest, times: int = 1) -> Iterator[None]:
    """End this process by SIGPROF if what is inside computes for longer: nothing stops an invoke.

    Processor time, as the wall's may be others'; what waits without computing is the parent's to
    end.
    """
    threads = max(1, request.model.threads or request.most_threads)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, request.run_within_s * threads * times)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def resident_bytes() -> int:
    """Return what of this process is in memory now: proc_pid_statm(5)."""
    pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    return pages * resource.getpagesize()


def peak_mib() -> float:
    """Return the most that this process has had in memory: VmHWM of proc_pid_status(5), in KiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return round(int(value.split()[0]) / 1024, 1)
    return round(resident_bytes() / MIB, 1)


def _ms(seconds: float) -> float:
    return float(f"{seconds * 1e3:.4g}")
