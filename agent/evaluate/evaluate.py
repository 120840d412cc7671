"""The command: read what should be found, try each model, print, save, judge."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from agent import __version__
from agent.config import ModelConfig
from agent.errors import EXIT_FAILURE, EXIT_OK, EXIT_UNAVAILABLE, UnavailableError
from agent.evaluate.expected import Expected, read_expected
from agent.evaluate.records import Entry, Outcome, Reference, Saved, to_json
from agent.evaluate.report import lines
from agent.evaluate.run import Answer, Task, all_pictures, evaluate_model
from agent.vision.detect import shown_name


class Report(Struct, frozen=True, kw_only=True):
    """The document that `--json` prints; `agrees` is what the exit code 0 says."""

    agent_version: str
    images: str
    least_iou: float
    agrees: bool
    models: list[Outcome]


def run_eval(
    configs: Sequence[ModelConfig],
    *,
    images: Path,
    expected: Path | None,
    least_iou: float,
    tolerance: str,
    as_json: bool,
    save: Path | None,
) -> int:
    """Evaluate models on pictures; return 0 within the tolerance, 1 outside, 69 if not done.

    Raises:
        UnavailableError: nothing can be evaluated at all, with the reason.
    """
    if expected is None and save is None:
        raise UnavailableError(
            "say what should be found with --expected FILE, or write down what is with --save FILE"
        )
    if not images.exists():
        raise UnavailableError(f"--images {shown_name(images)}: no such folder or picture")
    if save is not None and not save.absolute().parent.is_dir():
        raise UnavailableError(f"--save {shown_name(save)}: there is no such folder; make it first")
    names = _names(configs)
    content = None if expected is None else read_expected(expected, images)
    outcomes, found, runtimes = [], {}, []
    for name, config in zip(names, configs, strict=True):
        task = Task(
            name=name,
            config=config,
            images=str(images),
            reference=Reference(where=shown_name(images), pictures={}, tolerances={}),
            least_iou=least_iou,
            tolerance=tolerance,
            is_saved=save is not None,
            masks=None if save is None else str(save.parent / f"{save.stem}_masks"),
        )
        answer = _evaluate(task, content, images, is_alone=len(configs) == 1)
        outcomes.append(answer.outcome)
        if answer.outcome.model is not None:
            found[name] = answer.found
            runtimes.append(answer.outcome.model.runtime)
    agrees = not any(one.outside or one.error or one.not_evaluated for one in outcomes)
    if as_json:
        report = Report(
            agent_version=__version__,
            images=shown_name(images),
            least_iou=least_iou,
            agrees=agrees,
            models=outcomes,
        )
        print(to_json(report))
    elif content is not None:
        print("\n".join(lines(outcomes)))
    if save is not None:
        _save(save, found, runtimes)
    if any(one.error or one.not_evaluated for one in outcomes):
        return EXIT_UNAVAILABLE
    return EXIT_OK if agrees else EXIT_FAILURE


def _evaluate(task: Task, content: Expected | None, images: Path, *, is_alone: bool) -> Answer:
    """Evaluate one model; one of several that the file does not know leaves the others to do."""
    try:
        reference = _reference(content, images, task.name, task.config.path)
    except UnavailableError as error:
        if is_alone:
            raise
        print(f"edge-agent: {error}", file=sys.stderr)
        outcome = Outcome(name=task.name, reference=task.reference.where, error=str(error))
        return Answer(outcome=outcome)
    return evaluate_model(msgspec.structs.replace(task, reference=reference))


def _names(configs: Sequence[ModelConfig]) -> list[str]:
    """Return what each model is called in the file: its own name without .tflite."""
    names = []
    for config in configs:
        path = Path(config.path)
        names.append(path.stem if path.suffix == ".tflite" else path.resolve().name)
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise UnavailableError(
            f"two of the models are called {doubles[0]}; evaluate them one after the other"
        )
    return names


def _reference(content: Expected | None, images: Path, name: str, path: str) -> Reference:
    if content is None:
        return Reference(
            where=f"--images {shown_name(images)}", pictures=all_pictures(images), tolerances={}
        )
    return content.of([name, path])


def _save(path: Path, found: dict[str, dict[str, Entry]], runtimes: list[str]) -> None:
    """Write what was found in the form that --expected reads."""
    saved = Saved(
        note=f"found by edge-agent {__version__}",
        runtime=runtimes[0] if runtimes else "",
        expected=found,
    )
    try:
        path.write_text(to_json(saved) + "\n", encoding="utf-8")
    except OSError as error:
        raise UnavailableError(
            f"--save {shown_name(path)}: cannot be written: {error.strerror}"
        ) from error
    for name, pictures in found.items():
        print(f"{name}: {len(pictures)} pictures saved as {shown_name(path)}", file=sys.stderr)
