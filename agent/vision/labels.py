"""Which label belongs to which class: from a file, the manifest, or the model itself."""

from __future__ import annotations

from pathlib import Path

from agent.errors import ModelError
from agent.vision.model_files import ModelFiles, read_bounded
from agent.vision.tflite_file import TfliteFile

MAX_LABELS_BYTES = 1 << 20
# ImageNet models of the TensorFlow zoo count a background class first; label files often do not.
IMAGENET_CLASSES_WITH_BACKGROUND = 1001
# First lines that stand for no class, as in the label maps of the TensorFlow examples.
BACKGROUND = ("???", "background", "unlabeled", "__background__")


def read_labels(
    labels_file: str, files: ModelFiles, file: TfliteFile, class_count: int | None
) -> tuple[str, ...]:
    """Return one label per class, or nothing where the model brings none.

    Order: the configured file, the manifest's, the exporter's notes, the TFLite metadata.

    Raises:
        ModelError: a list that was asked for cannot belong to this model.
    """
    if labels_file:
        labels, source = _read_lines(Path(labels_file)), labels_file
    elif files.manifest.labels is not None:
        path = files.folder / files.manifest.labels
        labels, source = _read_lines(path), str(path)
    elif isinstance(file.exporter.get("names"), dict):
        labels, source = _exporter_names(file.exporter["names"]), "the exporter's notes"
    else:
        return _from_metadata(file, class_count)
    return _fitted(labels, class_count, source)


def _read_lines(path: Path) -> tuple[str, ...]:
    try:
        text = read_bounded(path, MAX_LABELS_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    return tuple(line.strip() for line in text.splitlines())


def _exporter_names(names: dict[object, object]) -> tuple[str, ...]:
    """Return Ultralytics' {0: "person", …} as a list; its keys are numbers or their text."""
    numbered = {int(str(key)): str(name) for key, name in names.items() if str(key).isdigit()}
    return tuple(numbered.get(index, "") for index in range(min(len(numbered), 1 << 16)))


def _from_metadata(file: TfliteFile, class_count: int | None) -> tuple[str, ...]:
    """Return the one label file inside the model whose length fits; none is no error."""
    for lines in file.label_files.values():
        labels = tuple(line.strip() for line in lines)
        if class_count is None or len(labels) == class_count:
            return labels
        if len(labels) == class_count + 1 and labels[0] in BACKGROUND:
            return labels[1:]
    return ()


def _fitted(labels: tuple[str, ...], class_count: int | None, source: str) -> tuple[str, ...]:
    while labels and not labels[-1]:
        labels = labels[:-1]
    if class_count is None or len(labels) == class_count:
        return labels
    if len(labels) == class_count + 1 and labels[0] in BACKGROUND:
        return labels[1:]  # a list for a model that counts its background, which this one does not
    if class_count == IMAGENET_CLASSES_WITH_BACKGROUND == len(labels) + 1:
        return ("background", *labels)
    raise ModelError(
        f"{source}: has {len(labels)} labels, but the model has {class_count} classes; give the "
        "list this model was trained with"
    )
