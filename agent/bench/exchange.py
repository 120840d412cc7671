"""`edge-agent bench exchange`: what an update costs what runs, and the gap when a model is swapped.

A worker plays a clip in real time, without a broker. Beside it a model is examined over and over,
then it looks at lent frames, and both are stopped every other second: quiet and busy slices lie so
close together that a machine's drift falls on both. Then models are swapped, and each result is
held against the model it says it is of.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from msgspec import structs

from agent.bench.bench import write_json
from agent.bench.beside import (
    KINDS,
    SETTLE_S,
    START_WITHIN_S,
    Kind,
    Part,
    Player,
    measure_part,
)
from agent.bench.session import demo_clip
from agent.choices import Choice, most_threads
from agent.config import ModelConfig
from agent.contract.payloads import ModelIdentity
from agent.daemon.workers.exchange import way_of
from agent.errors import EXIT_OK, AgentError
from agent.link import FromWorker, Ready, ResultOut, Swap, Swapped
from agent.ota.selftest import ExamReport, ExamRequest, start_exam
from agent.vision.model_files import read_model

POLL_S = 0.02
RUNS = 8  # to be told how it is run is all that is wanted


Round = dict[Kind, Part]
FIGURES: dict[str, Callable[[Part], float]] = {
    "quiet_p50_ms": lambda part: part.quiet.p50_ms,
    "p50_ms": lambda part: part.busy.p50_ms,
    "quiet_p99_ms": lambda part: part.quiet.p99_ms,
    "p99_ms": lambda part: part.busy.p99_ms,
    "p99_ratio": lambda part: part.p99_ratio,
    "times": lambda part: part.times,
    "cores": lambda part: part.cores,
    "load": lambda part: part.load,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OneSwap:
    """One swap: `gap_ms` between results of two models, `longest_ms` of any two while it loaded.

    usual_ms: between two results just before it, the median
    """

    usual_ms: float
    gap_ms: float
    load_ms: float
    longest_ms: float


def measure_swaps(
    player: Player, models: Sequence[ModelConfig], choices: Mapping[str, Choice], *, swaps: int
) -> tuple[list[OneSwap], int]:
    """Swap from one model to the next; return the swaps, and results that were not as they said.

    choices: how the models run best, so that none is tried in a child first

    A result is as it says where it comes between the status that names its model and the next.
    """
    done, mixed = [], 0
    for number in range(swaps):
        heard = player.listen(SETTLE_S)
        usual_ms = statistics.median(_intervals(heard))
        token = f"swap {number}"
        wanted = models[(number + 1) % len(models)]
        player.run.ask(Swap(token=token, model=wanted, choices=dict(choices), hold_s=0.0))
        heard += player.listen(START_WITHIN_S, until=Swapped)
        answer = heard[-1]
        assert isinstance(answer, Swapped)
        heard += player.listen(SETTLE_S)
        done.append(
            OneSwap(
                usual_ms=usual_ms,
                gap_ms=answer.gap_ms or 0.0,
                load_ms=answer.load_ms,
                longest_ms=max(answer.gap_ms or 0.0, *_intervals(heard)),
            )
        )
        mixed += _mixed(heard)
    return done, mixed


def _intervals(heard: Sequence[FromWorker]) -> list[float]:
    """Return the milliseconds between results, of which there must be two."""
    stamps = [one.encoded_ns / 1e6 for one in heard if isinstance(one, ResultOut)]
    if len(stamps) < 2:
        raise AgentError("no results; the clip or the model gives none")
    return [after - before for before, after in pairwise(stamps)]


def _mixed(heard: Sequence[FromWorker]) -> int:
    """Count results of a model that the status does not name."""
    named: ModelIdentity | None = None
    mixed = 0
    for message in heard:
        if isinstance(message, Ready):
            named = message.model
        elif isinstance(message, ResultOut):
            shown = json.loads(message.payload)["model"]
            mixed += named is not None and (shown["name"], shown["sha256"]) != (
                named.name,
                named.sha256,
            )
    return mixed


def run_exchange(
    *,
    model: str,
    other: str,
    clip: str,
    fps: float,
    rounds: int,
    seconds: float,
    swaps: int,
    json_file: Path | None,
) -> int:
    """Measure, print a table, and write the figures.

    other: what to examine and to swap to; empty: a copy of the model under another name

    Raises:
        AgentError: a model cannot be used.
    """
    clip = str(Path(clip or demo_clip()).resolve())
    done: list[Round] = []
    with tempfile.TemporaryDirectory(prefix="edge-agent-") as folder:
        configs = [ModelConfig(path=model), ModelConfig(path=other or _copy(model, Path(folder)))]
        player = Player(configs[0], clip, fps)
        try:
            ready = player.listen(START_WITHIN_S, until=Ready)[-1]
            assert isinstance(ready, Ready)
            choices, request = _examined(configs, ready)
            for number in range(1, rounds + 1):
                done.append(
                    {kind: measure_part(player, kind, request, seconds=seconds) for kind in KINDS}
                )
                print(f"round {number} of {rounds}", file=sys.stderr)
            exchanged, mixed = measure_swaps(player, configs, choices, swaps=swaps)
        finally:
            player.stop()
    document = document_of(done, exchanged, mixed)
    for line in table(document):
        print(line)
    if json_file is not None:
        write_json(json_file, {"model": model, "clip": clip, "fps": fps, **document})
    return EXIT_OK


def document_of(rounds: Sequence[Round], swaps: Sequence[OneSwap], mixed: int) -> dict[str, Any]:
    """Return medians over rounds, and everything they are made of."""
    return {
        "medians": {
            kind: {
                name: statistics.median(read(one[kind]) for one in rounds)
                for name, read in FIGURES.items()
            }
            for kind in KINDS
            if rounds
        },
        "usual_ms": _spread([one.usual_ms for one in swaps]),
        "gap_ms": _spread([one.gap_ms for one in swaps]),
        "load_ms": _spread([one.load_ms for one in swaps]),
        "longest_ms": _spread([one.longest_ms for one in swaps]),
        "mixed": mixed,
        "rounds": [{kind: asdict(part) for kind, part in one.items()} for one in rounds],
        "swaps": [asdict(one) for one in swaps],
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "most": max(values)} if values else {}


def table(document: dict[str, Any]) -> list[str]:
    """Return the figures as lines."""
    lines = []
    if document["medians"]:
        lines.append(
            "ms            p50  beside      p99  beside   p99 ratio   times   cores   load"
        )
    for kind, one in document["medians"].items():
        lines.append(
            f"{kind:<9} {one['quiet_p50_ms']:7.1f} {one['p50_ms']:7.1f}"
            f" {one['quiet_p99_ms']:8.1f} {one['p99_ms']:7.1f} {one['p99_ratio']:11.2f}"
            f" {one['times']:7.0f} {one['cores']:7.2f} {one['load']:6.1f}"
        )
    for name, what in (
        ("usual_ms", "between results, as ever"),
        ("gap_ms", "gap between results of two models"),
        ("longest_ms", "longest gap while one loads"),
        ("load_ms", "loading, while results go on"),
    ):
        if document[name]:
            spread = document[name]
            lines.append(f"{what:<36} {spread['median']:7.1f} ms, at most {spread['most']:.1f}")
    lines.append(f"{'results of two models':<36} {document['mixed']:7}")
    return lines


def _copy(model: str, folder: Path) -> str:
    """Copy a model's folder under another name, by which its results can be told."""
    files = read_model(model)
    copy = folder / "copy"
    shutil.copytree(files.folder, copy)
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    manifest["name"] = f"{files.manifest.name}-copy"
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return str(copy)


def _examined(models: Sequence[ModelConfig], ready: Ready) -> tuple[dict[str, Choice], ExamRequest]:
    """Examine each model at full speed, run as what runs; return what a daemon knows by then.

    Raises:
        AgentError: one of them cannot be used.
    """
    choices = {}
    way = way_of(ready)
    for model in models:
        request = ExamRequest(model=model, most_threads=most_threads(), way=way)
        report = _report_of(request)
        if report.choice is None:
            raise AgentError(f"{model.path}: {report.message or 'runs on an accelerator'}")
        choices[report.choice_key] = report.choice
    return choices, request


def _report_of(request: ExamRequest) -> ExamReport:
    exam = start_exam(structs.replace(request, stands_back="no", runs=RUNS))
    while (report := exam.poll()) is None:
        time.sleep(POLL_S)
    return report
