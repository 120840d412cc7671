"""A model is loaded in a child with limits before it is loaded anywhere else, and measured there.

    try_model ── a child per runtime ──▶ measure.Search ──▶ candidates ──▶ pick ──▶ Choice

LiteRT and tflite-runtime each get a child of their own, so that a crash rules out only the one
that crashed: tflite-runtime 2.14 crashed on 417 of 2,000 damaged models. What is chosen is
remembered under `choice_key`, so a board does this once for each model, and for one model at a
time.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import logging
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from agent.choices import Candidate, Choice
from agent.config import ModelConfig
from agent.contract.manifest import Manifest
from agent.errors import EXIT_OK, ModelError
from agent.sensors.board import read_board_model, read_cpu_name
from agent.sensors.coral import edgetpu_package
from agent.trial_words import (
    ALONE_WITHIN_S,
    NO_ANSWER,
    PACKAGES,
    PROBE_INVOKES,
    THOROUGH_WITHIN_S,
    TRIAL_WITHIN_S,
    Doing,
    Measured,
    Passed,
    Refused,
    Reply,
    RuntimeName,
    TrialRequest,
    start_trial,
)
from agent.vision.confine import confine, confine_memory
from agent.vision.engines import DelegateError, DelegateFault, installed_runtimes
from agent.vision.measure import TOO_LARGE, Search, probe_accelerator
from agent.vision.model_files import ModelFiles, read_model

# Raise it when measuring changes so that old choices are to be made again.
SCHEMA = 1
# Times this close are the same: fewer threads leave more for others, and the order of
# runtimes is that of how well they are kept up.
SAME = 1.1
# What the last core must bring to be taken: capture, decoding and MQTT run on it, and an
# inference waits for the slowest of its threads. Perfect scaling from 3 to 4 brings 1.33.
LAST_CORE = 1.25
# An abstract socket's name, unix(7), held by whoever measures: needs no folder that can be written,
# and the kernel takes it from a process that ends. One for all users of the board.
ALONE_NAME = "\0edge-agent.measuring"
ALONE_POLL_S = 0.05

log = logging.getLogger(__name__)
Say = Callable[[str], None]


def try_model(
    files: ModelFiles,
    config: ModelConfig,
    *,
    most_threads: int,
    is_thorough: bool = False,
    say: Say | None = None,
) -> Choice:
    """Find out in children how the processor runs a model best; `say` hears what they do.

    Raises:
        ModelError: no runtime can load and run it; why, in a sentence.
    """
    with _alone(say):
        return _try_runtimes(files, config, most_threads, is_thorough, say)


@contextmanager
def _alone(say: Say | None) -> Iterator[None]:
    """Keep others on this board from measuring meanwhile; if that takes too long, go on anyway.

    A 21 ms model took 53 to 72 ms while three others were measured, and got too few threads.
    """
    deadline = time.monotonic() + ALONE_WITHIN_S
    has_waited = False
    with socket.socket(socket.AF_UNIX) as name:
        while True:
            try:
                name.bind(ALONE_NAME)
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    log.warning("model is not measured alone reason=%s", error.strerror)
                    break
            if say is not None and not has_waited:
                say("waiting until no other model is measured")
            has_waited = True
            time.sleep(ALONE_POLL_S)
        yield


def _try_runtimes(
    files: ModelFiles,
    config: ModelConfig,
    most_threads: int,
    is_thorough: bool,
    say: Say | None,
) -> Choice:
    """Have each installed runtime measured by a child of its own; return the best way of all."""
    candidates: list[Candidate] = []
    refusals: dict[RuntimeName, str] = {}
    for runtime in installed_runtimes(config.runtime):
        request = TrialRequest(
            model=config,
            runtime=runtime,
            sha256=files.plain.sha256,
            edgetpu_sha256=files.edgetpu.sha256 if files.edgetpu else "",
            most_threads=most_threads,
            to_beat_ms=min((ms for each in candidates if (ms := each.invoke_ms)), default=None),
            is_thorough=is_thorough,
            limit_s=THOROUGH_WITHIN_S if is_thorough else TRIAL_WITHIN_S,
        )
        answer = start_trial(request).wait(say)
        # What a crashed child measured before shows, but is not used.
        is_out = answer.refused is not None
        if answer.refused is not None:
            refusals[runtime] = answer.refused
        candidates += [
            msgspec.structs.replace(each, refused=each.refused or answer.refused, invoke_ms=None)
            if is_out
            else each
            for each in answer.candidates
        ]
    chosen = pick(candidates, cores=len(os.sched_getaffinity(0)))
    if chosen is None:
        raise ModelError(_why_none(refusals))
    return _choice_of(chosen, candidates)


def _why_none(refusals: Mapping[RuntimeName, str]) -> str:
    if len(set(refusals.values())) == 1:
        return next(iter(refusals.values()))
    return "; ".join(f"{runtime}: {reason}" for runtime, reason in refusals.items())


def try_accelerator(
    files: ModelFiles, config: ModelConfig, *, invokes: int = PROBE_INVOKES
) -> Choice:
    """Open the wanted accelerator in a child and run the model on it.

    Raises:
        DelegateError: it does not work, crashes, hangs, or gives other answers than promised.
    """
    request = TrialRequest(
        model=config,
        sha256=files.plain.sha256,
        edgetpu_sha256=files.edgetpu.sha256 if files.edgetpu else "",
        probe=invokes,
    )
    answer = start_trial(request).wait()
    if answer.choice is None:
        fault = msgspec.convert(answer.fault or "failed", DelegateFault)
        raise DelegateError(answer.refused or NO_ANSWER, fault=fault)
    return answer.choice


def _choice_of(chosen: Candidate, candidates: Sequence[Candidate]) -> Choice:
    return Choice(
        runtime="litert" if chosen.runtime.startswith("litert") else "tflite-runtime",
        xnnpack=chosen.xnnpack,
        threads=chosen.threads,
        invoke_ms=chosen.invoke_ms,
        candidates=tuple(candidates),
        measured_at=time.time(),
    )


def pick(candidates: Sequence[Candidate], *, cores: int) -> Candidate | None:
    """Return the best: by time, but fewer threads and the usual runtime where that costs little."""
    ways: dict[tuple[str, bool], dict[int, float]] = {}
    for each in candidates:
        if each.refused is None and each.invoke_ms is not None:
            ways.setdefault((each.runtime, each.xnnpack), {})[each.threads] = each.invoke_ms
    best: Candidate | None = None
    for (runtime, xnnpack), by_threads in ways.items():
        threads = pick_threads(by_threads, cores=cores)
        ms = by_threads[threads]
        if best is None or (best.invoke_ms is not None and ms * SAME < best.invoke_ms):
            best = Candidate(runtime=runtime, xnnpack=xnnpack, threads=threads, invoke_ms=ms)
    return best


def pick_threads(ms_by_threads: Mapping[int, float], *, cores: int) -> int:
    """Return the fewest threads that are as good as the best; all cores only for a clear gain."""
    allowed = dict(ms_by_threads)
    fewer = [ms for threads, ms in allowed.items() if threads < cores]
    for threads in [each for each in allowed if each >= cores > 1]:
        if fewer and allowed[threads] * LAST_CORE > min(fewer):
            del allowed[threads]
    best_ms = min(allowed.values())
    return min(threads for threads, ms in allowed.items() if ms <= SAME * best_ms)


def choice_key(files: ModelFiles, config: ModelConfig, most_threads: int) -> str:
    """Return what a choice for the processor is remembered under: a hash of all it depends on."""
    return _key(
        "processor",
        files.plain.sha256,
        files.manifest,
        [config.runtime, config.xnnpack, config.threads, most_threads],
    )


def accelerator_key(files: ModelFiles, config: ModelConfig) -> str:
    """Return what is remembered of an accelerator is kept under."""
    kind, _, library = config.accelerator.partition(":")
    made: object = edgetpu_package()
    if kind == "delegate":
        try:
            made = Path(library).stat().st_mtime_ns
        except OSError:
            made = None
    return _key(
        "accelerator",
        [files.plain.sha256, files.edgetpu.sha256 if files.edgetpu else None],
        files.manifest,
        [config.accelerator, sorted(config.delegate_options.items()), made, config.runtime],
        [config.xnnpack, config.threads],
    )


def _key(*facts: str | Manifest | Sequence[object]) -> str:
    board = [
        read_board_model(),
        platform.machine(),
        read_cpu_name(),
        len(os.sched_getaffinity(0)),
        [_version(package) for package in PACKAGES.values()],
        platform.python_version(),
    ]
    return hashlib.sha256(msgspec.json.encode([SCHEMA, board, facts])).hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> int:
    """Be the child: try what stdin asks for, and say on stdout how it goes."""
    request = msgspec.convert(json.loads(sys.stdin.buffer.read()), TrialRequest)
    confine(request)
    logging.basicConfig(level=logging.ERROR)
    try:
        passed = _serve(request)
    except DelegateError as error:
        _say(Refused(reason=str(error), fault=error.fault))
    except ModelError as error:
        _say(Refused(reason=str(error)))
    except MemoryError:
        _say(Refused(reason=TOO_LARGE))
    else:
        _say(passed)
    return EXIT_OK


def _serve(request: TrialRequest) -> Passed:
    _say(Doing(what="importing the runtime"))
    if request.runtime is not None:
        name = request.runtime.replace("-", "_")
        importlib.import_module(f"agent.vision.engines.{name}")
    confine_memory()
    _say(Doing(what="reading it"))
    files = read_model(request.model.path)
    found = (files.plain.sha256, files.edgetpu.sha256 if files.edgetpu else "")
    if request.sha256 and found != (request.sha256, request.edgetpu_sha256):
        raise ModelError("was replaced while it was tried; try it again")
    if request.probe:
        candidate = probe_accelerator(files, request, _say)
        _say(Measured(candidate=candidate))
        key = accelerator_key(files, request.model)
        return Passed(key=key, choice=_choice_of(candidate, [candidate]))
    Search(files, request, _say).run()
    return Passed()


def _say(reply: Reply) -> None:
    """Write a line at once: what follows may be a crash. File names may hold what is no text."""
    text = json.dumps(msgspec.to_builtins(reply), ensure_ascii=False)
    os.write(sys.stdout.fileno(), f"\n{text}\n".encode("utf-8", "replace"))


if __name__ == "__main__":
    # As the worker: leaving at once cannot hang or crash in a driver's destructor.
    os._exit(main())
