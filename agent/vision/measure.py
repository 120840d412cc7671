"""In the child: load a model every way that is allowed, see that it works, and take the time.

A search, not the full product: each way of running (XNNPACK or plain kernels) at the usual
number of threads first, then other numbers of threads for the better one. Nothing here is
believed about the model; what it does wrong becomes a refused candidate.
"""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version

import msgspec
import numpy as np

from agent.choices import Candidate, Choice
from agent.config import ModelConfig
from agent.errors import ModelError
from agent.trial_words import PACKAGES, Doing, Measured, Reply, RuntimeName, TrialRequest
from agent.vision.engines import DelegateError, default_threads
from agent.vision.golden import check_golden
from agent.vision.heads import Boxes, ClassMap, Decoded, Poses, Scores, Tensors
from agent.vision.model import Model, build_model
from agent.vision.model_files import ModelFiles

# For each candidate; six runs of a 20 ms model.
MEASURE_S = 0.12
LEAST_RUNS, MOST_RUNS = 3, 100
# Where three runs take longer than this, fewer have to do: a slow model differs less.
LONGEST_S = 1.0
# Beyond this no further candidate is begun: a model that takes seconds must not take minutes.
SEARCH_S = 5.0
# With `is_thorough`, as in `edge-agent model tune`, where somebody waits for good figures.
THOROUGH_MEASURE_S, THOROUGH_LONGEST_S, THOROUGH_SEARCH_S = 0.5, 3.0, 40.0
# What is this much slower than the best so far is not measured beyond two runs.
HOPELESS = 2.0
HOPELESS_RUNS = 2
# Fewer threads than ones that are already this much slower are not tried.
FEWER_HOPELESS = 1.5
GREY = 128
TOO_LARGE = "the model needs more memory than there is"

Say = Callable[[Reply], None]


class Search:
    """The candidates of one runtime, measured one after the other and said as they come.

    request.runtime must be given; `say` hears what is done before it is done.
    """

    def __init__(self, files: ModelFiles, request: TrialRequest, say: Say) -> None:
        assert request.runtime is not None
        self._files = files
        self._request = request
        self._say = say
        self._config = msgspec.structs.replace(
            request.model, accelerator="cpu", runtime=request.runtime
        )
        self._runtime = runtime_title(request.runtime)
        self._verified: set[bool] = set()  # with XNNPACK, without: answers are as promised
        self._best_ms = request.to_beat_ms
        self._ends = time.monotonic() + (THOROUGH_SEARCH_S if request.is_thorough else SEARCH_S)

    def run(self) -> None:
        """Measure until it is clear what is best, or time is up.

        Raises:
            ModelError: no candidate can be used; why the first one cannot.
        """
        request, config = self._request, self._config
        usual = config.threads or min(default_threads(), request.most_threads)
        found: list[Candidate] = []
        for xnnpack in {"auto": (True, False), "on": (True,), "off": (False,)}[config.xnnpack]:
            is_known = any(each.xnnpack == xnnpack for each in found)  # XNNPACK took nothing
            if not is_known and not (_usable(found) and self._is_late()):
                found += self._measure(xnnpack, usual)
        good = _usable(found)
        if not good:
            raise ModelError(found[-1].refused or "cannot be run")
        if config.threads:
            return
        for each in good if request.is_thorough else good[:1]:
            self._try_other_threads(each)

    def _is_late(self) -> bool:
        return time.monotonic() > self._ends

    def _try_other_threads(self, usual: Candidate) -> None:
        """Measure more threads than usual, then fewer for as long as those may be as good."""
        request = self._request
        best_ms = usual.invoke_ms or 0.0
        is_beaten = request.to_beat_ms is not None and best_ms > request.to_beat_ms
        if is_beaten and not request.is_thorough:
            return
        more = range(usual.threads + 1, request.most_threads + 1)
        for threads in (*more, *range(usual.threads - 1, 0, -1)):
            if self._is_late():
                return
            good = _usable(self._measure(usual.xnnpack, threads))
            if not good:
                continue
            ms = good[0].invoke_ms or 0.0
            best_ms = min(best_ms, ms)
            is_slow = threads < usual.threads and ms > FEWER_HOPELESS * best_ms
            if is_slow and not request.is_thorough:
                return

    def _measure(self, xnnpack: bool, threads: int) -> list[Candidate]:
        """Measure one way; where XNNPACK takes nothing, say that, and how plain kernels do."""
        wanted = Candidate(runtime=self._runtime, xnnpack=xnnpack, threads=threads, invoke_ms=None)
        self._say(Doing(what=f"loading and running it on {wanted.way()}", candidate=wanted))
        found = []
        try:
            config = msgspec.structs.replace(
                self._config, threads=threads, xnnpack="on" if xnnpack else "off"
            )
            with no_longer_than(self._request.run_within_s):
                model = build_model(self._files, config)
                run_on_grey(model)
            if xnnpack and model.engine.accelerator == "cpu":
                reason = model.engine.reason or "takes no operator of this model"
                found.append(msgspec.structs.replace(wanted, refused=reason[:1000]))
                wanted = msgspec.structs.replace(wanted, xnnpack=False)
            ms = self._time(model)
            if self._best_ms is None or ms <= HOPELESS * self._best_ms or self._request.is_thorough:
                self._verify(model, config, wanted)
            found.append(msgspec.structs.replace(wanted, invoke_ms=ms))
            self._best_ms = ms if self._best_ms is None else min(self._best_ms, ms)
        except (ModelError, RuntimeError, ValueError) as error:  # the latter two: an invoke's
            found.append(msgspec.structs.replace(wanted, refused=str(error)[:1000]))
        except MemoryError:
            found.append(msgspec.structs.replace(wanted, refused=TOO_LARGE))
        for each in found:
            self._say(Measured(candidate=each))
        return found

    def _verify(self, model: Model, config: ModelConfig, candidate: Candidate) -> None:
        """Hold the answers against the promised ones; threads do not change them."""
        if candidate.xnnpack in self._verified or self._files.manifest.golden is None:
            return
        self._say(Doing(what=f"comparing its answers on {candidate.way()}", candidate=candidate))
        verify(model, self._files, config)
        self._verified.add(candidate.xnnpack)

    def _time(self, model: Model) -> float:
        """Return the median of some runs in ms; of few where it is slow or hopeless."""
        runs_s: list[float] = []
        with no_longer_than(self._request.run_within_s):
            while not runs_s or not self._is_enough(runs_s):
                started = time.perf_counter()
                model.engine.invoke()
                runs_s.append(time.perf_counter() - started)
        return median_ms(runs_s)

    def _is_enough(self, runs_s: list[float]) -> bool:
        if self._request.is_thorough:
            enough_s, longest_s, best_ms = THOROUGH_MEASURE_S, THOROUGH_LONGEST_S, None
        else:
            enough_s, longest_s, best_ms = MEASURE_S, LONGEST_S, self._best_ms
        spent_s = sum(runs_s)
        count = len(runs_s)
        if spent_s >= longest_s or (spent_s >= enough_s and count >= LEAST_RUNS):
            return True
        if count >= MOST_RUNS:
            return True
        is_hopeless = best_ms is not None and min(runs_s, default=0) * 1e3 > HOPELESS * best_ms
        return is_hopeless and count >= HOPELESS_RUNS


class OnlyAccelerator:
    """A `Chooser` for whom the processor is no way out."""

    def __init__(self, most_threads: int) -> None:
        self.most_threads = most_threads

    def on_processor(self, files: ModelFiles, config: ModelConfig) -> Choice | None:
        """Refuse: what the processor does would say nothing of the accelerator."""
        raise ModelError(f'{files.where}: accelerator = "{config.accelerator}" wants none')

    def on_accelerator(self, files: ModelFiles, config: ModelConfig) -> None:
        """Go on: this is the process where it is tried."""


def probe_accelerator(files: ModelFiles, request: TrialRequest, say: Say) -> Candidate:
    """Open the wanted accelerator and run it `request.probe` times, at least once.

    Raises:
        DelegateError: it does not work or does not take the model.
        ModelError: its answers are wrong, or the processor was wanted.
    """
    config = request.model
    say(Doing(what=f"loading and running it on {config.accelerator}"))
    with no_longer_than(request.run_within_s):
        try:
            model = build_model(files, config, chooser=OnlyAccelerator(request.most_threads))
        except ModelError as error:
            # Why the processor was turned to.
            cause = error.__context__
            raise cause if isinstance(cause, DelegateError) else error from None
        run_on_grey(model)
    verify(model, files, config)
    runs_s = []
    for _ in range(max(1, request.probe)):
        with no_longer_than(request.run_within_s):
            started = time.perf_counter()
            model.engine.invoke()
            runs_s.append(time.perf_counter() - started)
    return Candidate(
        runtime=model.engine.runtime,
        xnnpack=False,
        threads=model.engine.threads,
        invoke_ms=median_ms(runs_s),
    )


def verify(model: Model, files: ModelFiles, config: ModelConfig) -> None:
    """Hold a model's answers against its manifest's, without thresholds that hide some."""
    if files.manifest.golden is None:
        return
    plain = ModelConfig(
        path=config.path,
        accelerator=config.accelerator,
        delegate_options=config.delegate_options,
        runtime=config.runtime,
        xnnpack=config.xnnpack,
        threads=config.threads,
        then=config.then,
    )
    check_golden(model if config == plain else build_model(files, plain), files)


def run_on_grey(model: Model) -> None:
    """Run once on a grey picture and decode what comes.

    Raises:
        ModelError: it gives no numbers, or findings that are none.
    """
    plan, engine = model.plan, model.engine
    tensor = plan.new_tensor()
    plan.store(np.full((plan.height, plan.width, plan.channels), GREY, np.uint8), tensor)
    engine.load_input(tensor, model.image_input)
    engine.invoke()
    outputs = model.new_outputs()
    engine.read_outputs(outputs)
    if not any(output.dtype.kind != "f" or np.isfinite(output).any() for output in outputs):
        raise ModelError("gives no numbers, only NaN, for a grey picture; convert it again")
    if not is_finite(model.decode(outputs)):
        raise ModelError("gives findings that are no numbers for a grey picture; convert it again")


def is_finite(found: Decoded) -> bool:
    """Return whether everything found is a number. Tensors nobody reads may hold anything."""
    match found:
        case Boxes():
            arrays = [found.xyxy_norm, found.scores, found.keypoints]
        case Scores():
            arrays = [found.scores]
        case Poses():
            arrays = [found.keypoints, found.scores, found.xyxy_norm]
        case ClassMap() | Tensors():
            arrays = []
    return all(array is None or bool(np.isfinite(array).all()) for array in arrays)


@contextmanager
def no_longer_than(limit_s: float) -> Iterator[None]:
    """End this process by SIGALRM if what is inside takes longer: nothing stops an invoke."""
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def median_ms(runs_s: list[float]) -> float:
    """Return the median in ms, to three digits: more would be noise."""
    return float(f"{statistics.median(runs_s) * 1e3:.3g}")


def runtime_title(runtime: RuntimeName) -> str:
    """Return "litert 2.3.0"."""
    return f"{runtime} {version(PACKAGES[runtime])}"


def _usable(candidates: list[Candidate]) -> list[Candidate]:
    """Return those that were measured, fastest first."""
    good = [each for each in candidates if each.invoke_ms is not None]
    return sorted(good, key=lambda each: each.invoke_ms or 0.0)
