"""COCO's annotation format: which boxes of which categories each picture shows.

Format: cocodataset.org/#format-data, "object detection". Only the fields needed are decoded,
so outlines of hundreds of megabytes are passed over, not built. Boxes are [x, y, width, height]
in pixels of the picture.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from agent.errors import UnavailableError
from agent.evaluate.matching import is_sound
from agent.evaluate.records import Entry, ExpectedBox


class Picture(Struct, frozen=True):
    """One row of `images`."""

    id: int
    file_name: str


class Category(Struct, frozen=True):
    """One row of `categories`."""

    id: int
    name: str


class Annotation(Struct, frozen=True):
    """One row of `annotations`; one without a box is a picture's caption or outline."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    id: int | None = None
    area: float | None = None
    iscrowd: int = 0


class Instances(Struct, frozen=True):
    """The file."""

    images: list[Picture]
    annotations: list[Annotation]
    categories: list[Category]


def read_coco(data: bytes, where: str) -> tuple[dict[str, Entry], dict[str, int]]:
    """Return (file name -> boxes with category ids, category name -> its id).

    Raises:
        UnavailableError: naming the file and the row that cannot be used.
    """
    try:
        document = msgspec.json.decode(data, type=Instances)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UnavailableError(
            f"{where}: is not COCO annotations of objects with boxes: {error}"
        ) from error
    for what, rows in (("images", document.images), ("categories", document.categories)):
        if not rows:
            raise UnavailableError(f"{where}: `{what}` is empty, so there is nothing to compare")
    _refuse_doubles(where, "images", "id", [row.id for row in document.images])
    _refuse_doubles(where, "images", "file_name", [row.file_name for row in document.images])
    _refuse_doubles(where, "categories", "id", [row.id for row in document.categories])
    _refuse_doubles(where, "categories", "name", [row.name for row in document.categories])
    names = {row.id: row.file_name for row in document.images}
    categories = {row.name: row.id for row in document.categories}
    known = set(categories.values())
    boxes: dict[int, list[ExpectedBox]] = {row.id: [] for row in document.images}
    for at, row in enumerate(document.annotations):
        place = f"{where}: annotations[{at}]" + ("" if row.id is None else f" (id {row.id})")
        if row.image_id not in boxes:
            raise UnavailableError(f"{place}: image_id {row.image_id} is not among the images")
        if row.category_id not in known:
            raise UnavailableError(
                f"{place}: category_id {row.category_id} is not among the categories"
            )
        boxes[row.image_id].append(_box(row, place))
    return {names[key]: Entry(detections=rows) for key, rows in boxes.items()}, categories


def _refuse_doubles(where: str, rows: str, key: str, values: Sequence[object]) -> None:
    value, count = Counter(values).most_common(1)[0]
    if count > 1:
        raise UnavailableError(f"{where}: {count} rows of `{rows}` have the {key} {value!r}")


def _box(row: Annotation, place: str) -> ExpectedBox:
    left, top, width, height = row.bbox
    box = (left, top, left + width, top + height)
    if not is_sound(box):
        raise UnavailableError(
            f"{place}: bbox is {list(row.bbox)}; it must be x, y, width, height in pixels"
        )
    return ExpectedBox(
        box=box,
        class_id=row.category_id,
        is_crowd=bool(row.iscrowd),
        area=width * height if row.area is None else row.area,
    )


def category_of_class(
    labels: Sequence[str], categories: dict[str, int], used: set[int], where: str
) -> tuple[dict[int, int], list[str]]:
    """Return (class id -> category id, notes): by name where the model has labels, else by id.

    used: the categories of which objects are annotated

    Raises:
        UnavailableError: the model and the annotations have no class in common.
    """
    if not labels:
        note = (
            f"the model has no labels, so its class 0 is taken for the category with id 0 of "
            f"{where}, and so on; give --labels FILE to match by name"
        )
        return {number: number for number in categories.values()}, [note]
    mapping = {at: categories[label] for at, label in enumerate(labels) if label in categories}
    if not mapping:
        shown = ", ".join(list(categories)[:5])
        raise UnavailableError(
            f"{where}: none of its {len(categories)} categories ({shown}, …) is a label of the "
            "model; give --labels FILE with the names that these annotations use"
        )
    known = set(mapping.values())
    lacking = [name for name, number in categories.items() if number in used - known]
    if not lacking:
        return mapping, []
    close = [
        f"{name} (did you mean {near[0]}?)"
        if (near := difflib.get_close_matches(name, labels, n=1))
        else name
        for name in lacking
    ]
    return mapping, [
        f"{where}: the model has no label for {_count(len(lacking), 'category', 'categories')} of "
        f"it, whose objects count as missed: {', '.join(close)}"
    ]


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
