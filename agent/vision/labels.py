"""Which label belongs to which class: from a file, the manifest, or the model itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.contract.manifest import FileEntry
from agent.errors import ModelError
from agent.vision.exporter_notes import MAX_CLASSES, names_of
from agent.vision.model_files import ModelFiles, read_listed
from agent.vision.tflite_file import TfliteFile

MAX_LABELS_BYTES = 1 << 20
# ImageNet models of the TensorFlow zoo count a background class first; label files often do not.
IMAGENET_CLASSES_WITH_BACKGROUND = 1001
# First labels that stand for no class, as in the label maps of the TensorFlow examples; there is
# none where a list numbers its classes from 1.
BACKGROUND = ("", "???", "background", "unlabeled", "__background__")
# "16  cat" or "16: cat", as Coral and Teachable Machine ship them (pycoral/utils/dataset.py).
NUMBERED = re.compile(r"([0-9]+)[\s:]+(\S.*)")


@dataclass(frozen=True, slots=True)
class _List:
    """Labels that were asked for, in each way they can be read, the likelier one first."""

    source: str
    readings: tuple[tuple[str, ...], ...]


def read_labels(
    labels_file: str, files: ModelFiles, file: TfliteFile, class_count: int | None
) -> tuple[str, ...]:
    """Return one label per class, or nothing where the model brings none.

    Order: the configured file, the manifest's, the exporter's notes, the TFLite metadata.

    Raises:
        ModelError: a list that was asked for cannot belong to this model.
    """
    asked = _asked(labels_file, files, file)
    if asked is None:
        return _from_metadata(file, class_count)
    if class_count is None:
        return asked.readings[0]
    for labels in asked.readings:
        if (fitted := _fitted(labels, class_count)) is not None:
            return fitted
    raise ModelError(
        f"{asked.source}: has {len(asked.readings[0])} labels, but the model has {class_count} "
        "classes; give the list this model was trained with"
    )


def label_counts(labels_file: str, files: ModelFiles, file: TfliteFile) -> frozenset[int]:
    """Return the numbers of classes that the labels `read_labels` would take can be for.

    Raises:
        ModelError: a list that was asked for cannot be read.
    """
    asked = _asked(labels_file, files, file)
    return _counts(asked.readings) if asked else counts_inside(file)


def counts_inside(file: TfliteFile) -> frozenset[int]:
    """Return the numbers of classes that labels inside the model can be for."""
    if names := names_of(file.exporter.get("names")):
        return _counts([names])
    return _counts(_trimmed(lines) for lines in file.label_files.values())


def _counts(lists: Iterable[tuple[str, ...]]) -> frozenset[int]:
    counts = set()
    for labels in lists:
        counts |= {len(labels)} - {0}
        if labels and labels[0] in BACKGROUND:
            counts.add(len(labels) - 1)
        if len(labels) + 1 == IMAGENET_CLASSES_WITH_BACKGROUND:
            counts.add(IMAGENET_CLASSES_WITH_BACKGROUND)
    return frozenset(counts)


def _asked(labels_file: str, files: ModelFiles, file: TfliteFile) -> _List | None:
    """Return the list that has a place of its own; the metadata's are only what may fit."""
    if labels_file:
        return _read_list(Path(labels_file), {})
    if files.manifest.labels is not None:
        return _read_list(files.folder / files.manifest.labels, files.manifest.files)
    names = names_of(file.exporter.get("names"))
    return _List("the exporter's notes", (_trimmed(names),)) if names else None


def _read_list(path: Path, listed: Mapping[str, FileEntry]) -> _List:
    try:
        text = read_listed(path, MAX_LABELS_BYTES, listed).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    lines = _trimmed(text.splitlines())
    numbered = _by_number(lines, path)
    if numbered is None:
        return _List(str(path), (lines,))
    # Classes count from 0 or 1; names that begin with a number ("5 euro") may from anywhere.
    is_surely = any(numbered[:2])
    return _List(str(path), (numbered,) if is_surely else (numbered, lines))


def _by_number(lines: tuple[str, ...], path: Path) -> tuple[str, ...] | None:
    """Return labels by the number that every line begins with, "" in gaps; None without.

    Raises:
        ModelError: two lines have one number.
    """
    labels: dict[int, str] = {}
    for line in filter(None, lines):
        found = NUMBERED.fullmatch(line)
        number = int(found[1]) if found and len(found[1]) < 6 else MAX_CLASSES
        if not found or number >= MAX_CLASSES:
            return None
        if number in labels:
            raise ModelError(
                f"{path}: numbers two lines {number}, `{labels[number]}` and `{found[2]}`; give "
                "each class one line"
            )
        labels[number] = found[2]
    if not labels:
        return None
    return tuple(labels.get(number, "") for number in range(max(labels) + 1))


def _from_metadata(file: TfliteFile, class_count: int | None) -> tuple[str, ...]:
    """Return the one label file inside the model whose length fits; none is no error."""
    for lines in file.label_files.values():
        labels = tuple(line.strip() for line in lines)
        if class_count is None or len(labels) == class_count:
            return labels
        if len(labels) == class_count + 1 and labels[0] in BACKGROUND:
            return labels[1:]
    return ()


def _trimmed(lines: Iterable[str]) -> tuple[str, ...]:
    """Return lines without the space round them and without empty ones at the end."""
    labels = [line.strip() for line in lines]
    while labels and not labels[-1]:
        labels.pop()
    return tuple(labels)


def _fitted(labels: tuple[str, ...], class_count: int) -> tuple[str, ...] | None:
    """Return a list as this model counts its classes; None if it is another model's."""
    if len(labels) == class_count:
        return labels
    # For a model that counts its background, which this one does not, or numbered from 1.
    if len(labels) == class_count + 1 and labels[0] in BACKGROUND:
        return labels[1:]
    if class_count == IMAGENET_CLASSES_WITH_BACKGROUND == len(labels) + 1:
        return ("background", *labels)
    return None
