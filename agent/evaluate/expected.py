"""From the file that `--expected` names to what each model should find in each picture.

Four forms, told by the name and by what is inside: JSON of this agent (`--save` writes it),
COCO annotations, a CSV with one figure's points, a mask picture or a folder of them. Whatever
is wrong is said with the file and the entry; nothing is skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import UNSET, Struct, field

from agent.errors import UnavailableError
from agent.evaluate.coco import read_coco
from agent.evaluate.matching import is_sound
from agent.evaluate.pose import read_points
from agent.evaluate.records import (
    DEFAULT_TOLERANCES,
    OTHER_RUNTIME,
    SAME_RUNTIME,
    Entry,
    ExpectedBox,
    ExpectedClass,
    Reference,
    Tolerance,
)
from agent.vision.cameras.images import SUFFIXES
from agent.vision.detect import shown_name

MAX_FILE_BYTES = 1 << 30  # COCO's largest instances file has 450 MB
# Keys of our own form beside the entries themselves.
OWN_KEYS = ("note", "runtime", "tolerance")
ENTRY_KEYS = frozenset(Entry.__struct_fields__)
T = TypeVar("T")


class Expected(Struct, frozen=True, kw_only=True):
    """All that a file says: entries of single models by name, or entries for any model."""

    where: str
    by_model: dict[str, dict[str, Entry]] = field(default_factory=dict)
    for_any: dict[str, Entry] = field(default_factory=dict)
    tolerances: dict[str, Tolerance] = field(default_factory=lambda: dict(DEFAULT_TOLERANCES))
    runtime: str = "litert"
    categories: dict[str, int] = field(default_factory=dict)
    points_are_shares: bool = False

    def of(self, names: Sequence[str]) -> Reference:
        """Return what a model that goes by these names should find.

        Raises:
            UnavailableError: the file has no entry for it.
        """
        pictures = next((self.by_model[n] for n in names if n in self.by_model), self.for_any)
        if not pictures:
            known = ", ".join(f'"{name}"' for name in sorted(self.by_model))
            has = f"; it has {known}" if known else ", nor any that is for all models"
            raise UnavailableError(f'{self.where}: has no entry for the model "{names[0]}"{has}')
        return Reference(
            where=self.where,
            pictures=pictures,
            tolerances=self.tolerances,
            runtime=self.runtime,
            categories=self.categories,
            points_are_shares=self.points_are_shares,
        )


def read_expected(path: Path, images: Path) -> Expected:
    """Read what should be found; `images` is the folder, or the one picture, it is about.

    Raises:
        UnavailableError: it cannot be read or understood, with the entry at fault.
    """
    where = shown_name(path)
    if path.is_dir():
        return Expected(where=where, for_any=_mask_folder(path, images))
    if path.suffix.lower() in SUFFIXES:
        entries = {_only_picture(images, where): Entry(mask=str(path.resolve()))}
        return Expected(where=where, for_any=entries)
    data = _read(path)
    if path.suffix.lower() == ".csv":
        figures = _figures(data, where, images)
        return Expected(where=where, for_any=figures, points_are_shares=True)
    content = decode(data, dict[str, msgspec.Raw], where)
    if {"images", "annotations"} <= content.keys():
        pictures, categories = read_coco(data, where)
        return Expected(where=where, for_any=pictures, tolerances={}, categories=categories)
    return _own(content, where, path.parent)


def choose_tolerance(reference: Reference, *, runtime: str, wanted: str) -> Tolerance | None:
    """Return the rules for this runtime: those asked for by name, else by who made the reference.

    Raises:
        UnavailableError: no such name, or several and none that fits.
    """
    named = reference.tolerances
    names = ", ".join(f'"{name}"' for name in named)
    if wanted:
        if wanted not in named:
            has = names if any(named) else "none by name"
            raise UnavailableError(
                f'{reference.where}: has no tolerance "{wanted}" (--tolerance); it has {has}'
            )
        return named[wanted]
    if len(named) <= 1:
        return next(iter(named.values()), None)
    is_same = _package(runtime) == _package(reference.runtime)
    usual = SAME_RUNTIME if is_same else OTHER_RUNTIME
    if usual not in named:
        raise UnavailableError(f"{reference.where}: say which tolerance with --tolerance: {names}")
    return named[usual]


def _package(runtime: str) -> str:
    """Return "litert" for "litert 2.3.0"."""
    return runtime.partition(" ")[0]


def decode(data: bytes | msgspec.Raw, kind: type[T], where: str) -> T:
    """Decode JSON.

    Raises:
        UnavailableError: naming file and place.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        said = str(error) or type(error).__name__
        if kind is not Entry and "got `array`" in said and "`$" not in said:
            said += "; a list of results is not what should be found"
        raise UnavailableError(f"{where}: {said}") from error


def _read(path: Path) -> bytes:
    where = shown_name(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            limit = MAX_FILE_BYTES >> 20
            raise UnavailableError(f"{where}: is larger than {limit} MiB; split it by pictures")
        return path.read_bytes()
    except OSError as error:
        raise UnavailableError(f"{where}: cannot be read: {error.strerror}") from error


def _own(content: dict[str, msgspec.Raw], where: str, folder: Path) -> Expected:
    tolerances = _tolerances(content.get("tolerance"), where)
    runtime = decode(content["runtime"], str, f"{where}: runtime") if "runtime" in content else ""
    if "expected" in content:
        content = decode(content["expected"], dict[str, msgspec.Raw], f"{where}: expected")
    else:
        content = {name: raw for name, raw in content.items() if name not in OWN_KEYS}
    if not content:
        raise UnavailableError(f"{where}: expects nothing; it has no picture and no model")
    levels = {
        name: decode(raw, dict[str, msgspec.Raw], f"{where}: {name}")
        for name, raw in content.items()
    }
    are_pictures = [bool(ENTRY_KEYS & level.keys()) for level in levels.values()]
    if any(are_pictures) and not all(are_pictures):
        picture, other = (list(levels)[are_pictures.index(is_one)] for is_one in (True, False))
        raise UnavailableError(
            f'{where}: "{picture}" is a picture\'s entry and "{other}" is not; give either pictures'
            " or models, and in an entry one of " + ", ".join(sorted(ENTRY_KEYS))
        )
    if all(are_pictures):
        by_model, for_any = {}, _entries(content, where, folder)
    else:
        by_model = {
            name: _entries(level, f"{where}: {name}", folder) for name, level in levels.items()
        }
        for_any = {}
    return Expected(
        where=where,
        by_model=by_model,
        for_any=for_any,
        tolerances=tolerances,
        runtime=runtime or "litert",
    )


def _tolerances(raw: msgspec.Raw | None, where: str) -> dict[str, Tolerance]:
    if raw is None:
        return DEFAULT_TOLERANCES
    where = f"{where}: tolerance"
    values = decode(raw, dict[str, msgspec.Raw], where)
    if any(bytes(value).lstrip().startswith(b"{") for value in values.values()):
        return decode(raw, dict[str, Tolerance], where)
    return {"": decode(raw, Tolerance, where)}


def _entries(raws: dict[str, msgspec.Raw], where: str, folder: Path) -> dict[str, Entry]:
    return {name: _entry(raw, f"{where}: {name}", folder) for name, raw in raws.items()}


def _entry(raw: msgspec.Raw, where: str, folder: Path) -> Entry:
    entry = decode(raw, Entry, where)
    if not entry.kind:
        known = ", ".join(sorted(ENTRY_KEYS))
        raise UnavailableError(f"{where}: must have exactly one of {known}")
    for at, box in enumerate(entry.detections or ()):
        if not is_sound(box.box):
            raise UnavailableError(
                f"{where}: detections[{at}].box is {list(box.box)}; it must be x_min, y_min, "
                "x_max, y_max in pixels, in that order"
            )
    rows: Sequence[ExpectedBox | ExpectedClass] = entry.detections or entry.classes or ()
    for at, row in enumerate(rows):
        if row.label is None and row.class_id is None:
            raise UnavailableError(f"{where}: {entry.kind}[{at}] needs a label or a class_id")
    if entry.classes is not UNSET and not entry.classes:
        raise UnavailableError(f"{where}: classes is empty; give the best class at least")
    if entry.mask is not UNSET:
        return Entry(mask=str((folder / entry.mask).resolve()))
    return entry


def _figures(data: bytes, where: str, images: Path) -> dict[str, Entry]:
    figures = read_points(data, where)
    return {
        name or _only_picture(images, where): Entry(keypoints=poses)
        for name, poses in figures.items()
    }


def _only_picture(images: Path, where: str) -> str:
    if images.is_dir():
        raise UnavailableError(
            f"{where}: does not say which picture it is about: give that one picture as --images,"
            " instead of a folder"
        )
    return images.name


def _mask_folder(folder: Path, images: Path) -> dict[str, Entry]:
    """Return the masks of pictures: the same name before the suffix, with or without `_mask`."""
    where = shown_name(folder)
    try:
        masks = {e.stem: e for e in sorted(folder.iterdir()) if e.suffix.lower() in SUFFIXES}
        names = sorted(images.iterdir()) if images.is_dir() else [images]
    except OSError as error:
        raise UnavailableError(f"{where}: cannot be listed: {error.strerror}") from error
    is_same = images.is_dir() and folder.samefile(images)
    entries = {}
    for picture in names:
        mask = masks.get(f"{picture.stem}_mask") or (None if is_same else masks.get(picture.stem))
        if mask is not None and picture.suffix.lower() in SUFFIXES and picture != mask:
            entries[picture.name] = Entry(mask=str(mask.resolve()))
    if not entries:
        raise UnavailableError(
            f"{where}: has no mask for any picture of {shown_name(images)}; a mask has its "
            "picture's name before the suffix, or that and _mask"
        )
    return entries
