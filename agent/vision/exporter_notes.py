"""What Ultralytics' exporters note inside a model: task, names of the classes, and more.

The notes are anybody's bytes. What comes out of here has texts for keys, texts that can be
encoded, and `names` in one form, so that nobody who reads a note has to expect less.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

# A literal becomes a tree of some 400 bytes of memory per byte of text before it is a value.
MAX_LITERAL_BYTES = 1 << 17
MAX_CLASSES = 1 << 16
CLASS_NUMBER = re.compile("[0-9]{1,5}")


def parse_notes(text: str) -> dict[str, Any] | None:
    """Return a file's notes, or None where it is another sort of file (or damaged).

    JSON in new exports (`metadata.json`), a Python literal in old ones (`temp_meta.txt` of
    ultralytics/engine/exporter.py, `meta.txt` of YOLOv5's export.py). Where the notes have
    `names`, they come as {0: label, 1: label, …} without gaps.
    """
    if not text.lstrip("\ufeff \t\r\n").startswith("{"):
        return None
    parsers: tuple[Callable[[str], Any], ...] = (json.loads, _literal)
    for parse in parsers:
        try:
            notes = parse(text.strip("\ufeff \t\r\n"))
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        return _sound(notes) if isinstance(notes, dict) else None
    return None


def _literal(text: str) -> object:
    if len(text) > MAX_LITERAL_BYTES:
        raise ValueError("too long for a literal")
    return ast.literal_eval(text)


def _sound(notes: dict[Any, Any]) -> dict[str, Any]:
    sound = {
        key: encodable(value) if isinstance(value, str) else value
        for key, value in notes.items()
        if isinstance(key, str)
    }
    if not isinstance(sound.get("task"), str):
        sound.pop("task", None)
    if "names" in sound:
        sound["names"] = dict(enumerate(names_of(sound["names"])))
    return sound


def names_of(noted: object) -> tuple[str, ...]:
    """Return the labels of `names`: {0: "person", …} with numbers or their text, or a list.

    Classes that are not named have an empty label; what is no name of a class is left out.
    """
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(noted, dict):
        pairs = noted.items()
    elif isinstance(noted, list | tuple):
        pairs = enumerate(noted)
    else:
        return ()
    names = {}
    for key, name in pairs:
        number = _class_number(key)
        if number is not None:
            names[number] = _label(name)
    return tuple(names.get(number, "") for number in range(max(names, default=-1) + 1))


def _class_number(key: object) -> int | None:
    if isinstance(key, str) and CLASS_NUMBER.fullmatch(key):
        key = int(key)
    is_number = isinstance(key, int) and not isinstance(key, bool) and 0 <= key < MAX_CLASSES
    return key if is_number and isinstance(key, int) else None


def _label(name: object) -> str:
    if isinstance(name, str):
        return encodable(name).strip()
    try:
        return str(name) if isinstance(name, int | float) else ""
    except ValueError:  # Python writes no numbers of more than 4300 digits
        return ""


def encodable(text: str) -> str:
    """Return a text without the halves of characters that JSON's escapes can leave behind."""
    return text.encode("utf-8", "replace").decode("utf-8")
