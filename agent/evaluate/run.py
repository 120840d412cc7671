"""One model over the pictures of a reference, through the pipeline's own pre and post code.

Under the runtime that may crash this is done in a process of its own, so that a crash costs one
model's row of the table. What cannot be evaluated is named; everything else still is.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, Struct, field

from agent.config import ModelConfig
from agent.errors import EXIT_OK, AgentError, ModelError, UnavailableError
from agent.evaluate.average_precision import (
    INSTALL,
    LOWEST_SCORE,
    Precisions,
    Seen,
    average_precision,
    is_installed,
)
from agent.evaluate.boxes import BoxTally
from agent.evaluate.coco import category_of_class
from agent.evaluate.expected import choose_tolerance
from agent.evaluate.masks import on_frame, write_mask
from agent.evaluate.records import (
    Entry,
    ExpectedBox,
    ExpectedClass,
    Outcome,
    Reference,
    Tolerance,
    to_json,
)
from agent.evaluate.tally import ClassTally, Look, PoseTally, RegionTally, Tally
from agent.vision.cameras.images import SUFFIXES, load_image
from agent.vision.child import may_crash, run_in_child, serve
from agent.vision.detect import StillModel, shown_name
from agent.vision.heads import ClassMap
from agent.vision.model import Model, load_model, lowest_score
from agent.vision.model_files import read_model

SHOWN = 5  # reasons said one by one; all are in the document that --json prints


class Task(Struct, frozen=True, kw_only=True):
    """One model and what it should find; `is_saved` asks for all that it found as well."""

    name: str
    config: ModelConfig
    images: str
    reference: Reference
    least_iou: float
    tolerance: str = ""
    is_saved: bool = False
    masks: str | None = None  # folder for the masks of a reference that is saved
    answer: str | None = None  # file for the answer, where a child is asked


class Answer(Struct, frozen=True, kw_only=True):
    """The outcome, and what was found as a reference would say it."""

    outcome: Outcome
    found: dict[str, Entry] = field(default_factory=dict)


def evaluate_model(task: Task) -> Answer:
    """Return how a model fared; what is wrong with it is part of the outcome."""
    work = _in_child if may_crash(task.config.runtime) else _here
    return _answered(work, task)


def _answered(work: Callable[[Task], Answer], task: Task) -> Answer:
    """Do the work; turn what is wrong into the model's row and a sentence."""
    try:
        return work(task)
    except AgentError as error:
        print(f"edge-agent: {error}", file=sys.stderr)
        outcome = Outcome(name=task.name, reference=task.reference.where, error=str(error))
        return Answer(outcome=outcome)


def _in_child(task: Task) -> Answer:
    with tempfile.TemporaryDirectory(prefix="edge-agent-") as folder:
        file = Path(folder) / "answer.json"
        request = msgspec.structs.replace(task, answer=str(file))
        code = run_in_child(__name__, request, model=task.config.path)
        if code != EXIT_OK or not file.exists():
            raise ModelError(f"{task.config.path}: its process ended with exit code {code}")
        return msgspec.json.decode(file.read_bytes(), type=Answer)


def serve_task(task: Task) -> int:
    """Be the child: write the answer where it was asked for."""
    answer = _answered(_here, task)
    Path(task.answer or "").write_text(to_json(answer), encoding="utf-8")
    return EXIT_OK


def _here(task: Task) -> Answer:
    has_categories = bool(task.reference.categories)
    is_average_wanted = has_categories and is_installed()
    config = task.config
    if is_average_wanted:
        config = msgspec.structs.replace(config, score_threshold=LOWEST_SCORE)
    stills = StillModel(load_model(config))
    model = stills.model
    threshold = lowest_score(task.config, read_model(config.path).manifest, model.head.kind)
    judge = _Judge(task, model, threshold)
    found: dict[str, Entry] = {}
    not_evaluated: list[str] = []
    paths = _places(task.reference, Path(task.images), not_evaluated)
    with _progress(paths.items(), len(paths), task.name) as shown:
        for picture, path in shown:
            try:
                look = _look(stills, path)
                judge.add(picture, task.reference.pictures[picture], look)
            except _Unusable as error:
                not_evaluated.append(f"{picture}: {error}")
                continue
            if task.is_saved:
                found[picture] = _entry(task, picture, look, threshold)
    _tell(task.name, not_evaluated)
    if not judge.pictures:
        raise UnavailableError(
            f"{task.name}: not one of {len(task.reference.pictures)} pictures of "
            f"{task.reference.where} could be evaluated"
        )
    fields = judge.fields()
    if has_categories and not is_average_wanted:
        fields["notes"].append(INSTALL)
    outcome = Outcome(
        name=task.name,
        reference=task.reference.where,
        model=stills.used,
        threshold=threshold,
        not_evaluated=not_evaluated,
        **fields,
    )
    return Answer(outcome=outcome, found=found)


def _tell(name: str, not_evaluated: list[str]) -> None:
    for reason in not_evaluated[:SHOWN]:
        print(f"edge-agent: {name}: {reason}", file=sys.stderr)
    if len(not_evaluated) > SHOWN:
        rest = len(not_evaluated) - SHOWN
        print(f"edge-agent: {name}: and {rest} more not evaluated", file=sys.stderr)


class _Unusable(Exception):  # noqa: N818 - a reason, said once with its picture
    """One picture cannot be evaluated."""


def _look(stills: StillModel, path: Path) -> Look:
    try:
        if not path.is_file():
            raise _Unusable("not a file")  # a pipe or a device may have no end
        findings, _ = stills.find(load_image(path))
    except (OSError, ValueError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _Unusable(reason or "needs more memory than there is") from error
    decoded, where = stills.last
    return Look(findings=findings, decoded=decoded, where=where)


class _Judge:
    """Hands each picture to the tally of its kind, and collects boxes for average precision."""

    def __init__(self, task: Task, model: Model, threshold: float) -> None:
        self.pictures = 0
        self._task = task
        self._model = model
        self._threshold = threshold
        self._tolerance: Tolerance | None = choose_tolerance(
            task.reference, runtime=model.engine.runtime, wanted=task.tolerance
        )
        self._tally: Tally | None = None
        self._kind = ""
        self._seen: list[Seen] = []
        self._category_of: dict[int, int] | None = None
        self._notes = [note for note in (*model.notes, model.reason or "") if note]
        if task.reference.categories:
            used = {
                box.class_id
                for entry in task.reference.pictures.values()
                for box in entry.detections or ()
                if box.class_id is not None
            }
            self._category_of, notes = category_of_class(
                model.labels, task.reference.categories, used, task.reference.where
            )
            self._notes += notes
            if not used:
                self._notes.append(f"{task.reference.where}: annotates no object in any picture")

    def add(self, picture: str, entry: Entry, look: Look) -> None:
        """Take one picture."""
        kind = entry.kind
        if kind:
            if self._tally is None:
                self._kind, self._tally = kind, self._new(kind)
            elif kind != self._kind:
                raise UnavailableError(
                    f"{self._task.reference.where}: {picture}: expects {kind} where the pictures "
                    f"before expect {self._kind}; give each kind a file of its own"
                )
            try:
                self._tally.add(picture, entry, look)
            except UnavailableError as error:
                raise UnavailableError(
                    f"{self._task.reference.where}: {picture}: {error}"
                ) from error
        if self._category_of is not None:
            self._seen.append(_seen(entry, look, self._category_of))
        self.pictures += 1

    def _new(self, kind: str) -> Tally:
        labels, tolerance = self._model.labels, self._tolerance
        if kind == "detections":
            return BoxTally(
                labels=labels,
                tolerance=tolerance,
                threshold=self._threshold,
                least_iou=self._task.least_iou,
                category_of=self._category_of,
                categories=self._task.reference.categories,
            )
        if kind == "classes":
            return ClassTally(labels=labels, tolerance=tolerance)
        if kind == "keypoints":
            return PoseTally(tolerance=tolerance, are_shares=self._task.reference.points_are_shares)
        return RegionTally(label=self._model.label, tolerance=tolerance)

    def fields(self) -> dict[str, Any]:
        """Return the fields of the outcome."""
        tally = self._tally
        fields: dict[str, Any] = {"pictures": self.pictures, "notes": self._notes}
        if tally is not None:
            fields |= tally.figures()
            fields["notes"] = [*self._notes, *tally.notes]
            fields["outside"] = tally.outside
            fields["tolerance"] = self._tolerance
            if self._tolerance is not None:
                fields["verdict"] = "outside" if tally.outside else "within"
        if self._category_of is not None and is_installed():
            precisions = average_precision(
                self._seen, sorted(self._task.reference.categories.values())
            )
            fields["average_precision"] = precisions.total
            fields["classes"] = _with_precision(fields.get("classes", []), precisions)
        return fields


def _with_precision(classes: list[Any], precisions: Precisions) -> list[Any]:
    return [
        msgspec.structs.replace(
            row,
            ap=precisions.of_category[row.class_id][0],
            ap50=precisions.of_category[row.class_id][1],
        )
        if row.class_id in precisions.of_category
        else row
        for row in classes
    ]


def _seen(entry: Entry, look: Look, category_of: dict[int, int]) -> Seen:
    return Seen(
        expected=[] if entry.detections is UNSET else entry.detections,
        found=[
            (category_of[one.class_id], one.score, one.box)
            for one in look.findings.detections or ()
            if one.class_id in category_of
        ],
    )


def _entry(task: Task, picture: str, look: Look, threshold: float) -> Entry:
    """Return what was found as a reference says it."""
    findings, decoded = look.findings, look.decoded
    if isinstance(decoded, ClassMap):
        folder = Path(task.masks or "")
        path = folder / task.name / f"{Path(picture).name}.png"
        size = (look.where.frame_height, look.where.frame_width)
        try:
            write_mask(path, on_frame(decoded, look.where, size))
        except OSError as error:
            raise UnavailableError(f"{path}: cannot be written: {error.strerror}") from error
        return Entry(mask=str(path.relative_to(folder.parent)))
    if findings.detections is not UNSET:
        rows = [
            ExpectedBox(label=one.label, class_id=one.class_id, score=one.score, box=one.box)
            for one in findings.detections
            if one.score >= threshold
        ]
        return Entry(detections=rows)
    if findings.classes:
        return Entry(
            classes=[
                ExpectedClass(label=one.label, class_id=one.class_id, score=one.score)
                for one in findings.classes
            ]
        )
    if findings.keypoints is not UNSET:
        return Entry(keypoints=findings.keypoints)
    raise UnavailableError(
        f"{task.name}: {picture}: a {look.decoded.__class__.__name__} result cannot be saved as "
        "what should be found"
    )


def _places(reference: Reference, images: Path, lacking: list[str]) -> dict[str, Path]:
    """Return picture -> file; what is not there is added to `lacking`."""
    if not images.is_dir():
        chosen = [name for name in reference.pictures if Path(name).name == images.name]
        if not chosen:
            raise UnavailableError(
                f"{reference.where}: has no entry for the picture {shown_name(images.name)}"
            )
        return {chosen[0]: images}
    places = {}
    for name in reference.pictures:
        place = images / name
        if not place.resolve().is_relative_to(images.resolve()) or not place.exists():
            place = images / Path(name).name  # COCO's file names may begin with a folder
        if place.exists():
            places[name] = place
        else:
            lacking.append(f"{name}: is not in {shown_name(images)}")
    return places


def all_pictures(images: Path) -> dict[str, Entry]:
    """Return every picture of the folder, or the one, with nothing expected of it.

    Raises:
        UnavailableError: the folder cannot be listed or has none.
    """
    try:
        inside = sorted(images.iterdir()) if images.is_dir() else [images]
    except OSError as error:
        raise UnavailableError(
            f"--images {shown_name(images)}: cannot be listed: {error.strerror}"
        ) from error
    names = [path.name for path in inside if path.suffix.lower() in SUFFIXES]
    if not names:
        raise UnavailableError(f"--images {shown_name(images)}: no picture in it")
    to_json(names)  # refuses what cannot be saved before any work is done
    return {name: Entry() for name in names}


@contextmanager
def _progress(
    items: Iterable[tuple[str, Path]], count: int, name: str
) -> Iterator[Iterable[tuple[str, Path]]]:
    """Show a bar on a terminal."""
    bar: Any = None
    if count > 1 and sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from rich.console import Console
            from rich.progress import Progress

            console = Console(stderr=True)
            bar = Progress(console=console, redirect_stdout=False, transient=True)
    if bar is None:
        yield items
        return
    with bar as progress:
        yield progress.track(items, total=count, description=f"eval {name}")


if __name__ == "__main__":
    sys.exit(serve(Task, serve_task))
