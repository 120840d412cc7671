"""The words in which faults of the configuration are said.

What is shown is shown as TOML has it, on one line, cut short, and without secrets: passwords
belong in files of their own, but this is where people first write them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Any

from agent.redaction import HIDDEN, redact

# A shown value is there to be recognized; text beyond the second limit is not even looked at.
SHOWN_CHARACTERS = 80
READABLE_CHARACTERS = 2000

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SECRET = re.compile(r"(?i)pass|pwd|secret|token|key(?!_file)")
# Keys whose last part is a word of the operator's choice: a model's name, a label. What stands
# before it is no reason to hide a value.
_CHOSEN_NAME = re.compile(r"^models\.[^.]+\.")
_LABELS = re.compile(r"^model(s\.[^.]+)?\.labels\.")


def allowed(schema: dict[str, Any]) -> str:
    """Say in words what a JSON Schema of one key allows."""
    if "title" in schema:
        return str(schema["title"])
    if "anyOf" in schema:
        return " or ".join(allowed(part) for part in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(text(choice) for choice in schema["enum"])
    words: dict[str, Callable[[], str]] = {
        "integer": lambda: "a whole number" + _range(schema),
        "number": lambda: "a number" + _range(schema),
        "string": lambda: _allowed_text(schema),
        "array": lambda: _allowed_list(schema),
        "object": lambda: f"a table, each value {allowed(schema['additionalProperties'])}",
        "boolean": lambda: "true or false",
        "null": lambda: "absent",
    }
    return words[schema["type"]]()


def _range(schema: dict[str, Any]) -> str:
    high = schema.get("maximum")
    if "exclusiveMinimum" in schema:
        return f" above {schema['exclusiveMinimum']:g}, at most {high:g}"
    low = schema.get("minimum")
    return "" if low is None or high is None else f" from {low:g} to {high:g}"


def _allowed_text(schema: dict[str, Any]) -> str:
    """A key whose help lists its forms is best described by them."""
    description = str(schema.get("description", ""))
    if "|" in description or "://" in description:
        return description
    if str(schema.get("pattern")).startswith("^[A-Za-z0-9_-]"):
        return "letters, digits, - and _, at most 64 characters"
    return "text that is not empty" if schema.get("minLength") else "text in quotes"


def _allowed_list(schema: dict[str, Any]) -> str:
    item = schema["items"]
    if item.get("type") == "string":
        return f"a list of names ({allowed(item)})"
    return f"a list, each {allowed(item)}"


def choices_of(schema: dict[str, Any]) -> list[str]:
    """Return the words that a key can be, where only certain words are allowed."""
    parts = schema.get("anyOf", [schema])
    return [word for part in parts for word in part.get("enum", []) if isinstance(word, str)]


def nearest(word: str, known: list[str]) -> str:
    """Return what to write instead of a word, to be put behind a fault."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; known: {', '.join(known)}" if known else ""


def bare(name: str) -> str:
    """Return one part of a key as TOML writes it."""
    return name if _BARE_KEY.fullmatch(name) else text(name)


def shown(key: str, value: object) -> str:
    """Return `key = value`, with the value cut short."""
    words = text(value, key)
    if len(words) > SHOWN_CHARACTERS:
        words = words[: SHOWN_CHARACTERS - 3] + "..."
    return f"{key} = {words}"


def text(value: object, key: str = "") -> str:
    """Return a value as TOML has it; the key tells whether it is a secret."""
    if _is_secret(key, value):
        return HIDDEN
    if isinstance(value, str):
        return f'"{_readable(value)}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(text(one, key) for one in value) + "]"
    if isinstance(value, dict):
        entries = ((bare(name), one) for name, one in value.items())
        inner = (f"{name} = {text(one, f'{key}.{name}')}" for name, one in entries)
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, int):
        return f"{value:#x}" if value.bit_length() > 64 else str(value)
    return str(value)  # numbers with a point, dates and times


def _is_secret(key: str, value: object) -> bool:
    """Return whether a value is hidden whole; where that is unclear, it is."""
    if isinstance(value, str) and "PRIVATE KEY" in value:
        return True
    # Labels are words of any kind, such as `keyboard`, and their values are thresholds.
    if _LABELS.match(key) or not _SECRET.search(_CHOSEN_NAME.sub("", key)):
        return False
    # A path is no secret, but people also write the password itself into `password_file`.
    return not (key.endswith("_file") and isinstance(value, str) and value.startswith("/"))


def _readable(words: str) -> str:
    """Return text without passwords and with its control characters spelled out."""
    if len(words) > READABLE_CHARACTERS:
        return f"... {len(words)} characters ..."
    words = redact(words)
    before, at, _ = words.partition("@")
    if at and "://" not in before:
        # Credentials without a scheme, which `redact` leaves alone.
        words = HIDDEN + words[words.rindex("@") :]
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in words
    )
