"""Names, ids and templates for Home Assistant.

A template may be given anything: a part of a message may be missing or null. Pure.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Any

Component = dict[str, Any]
MAX_NAME = 64

# The model of one engine in `status`, as `m`.
FINDING = (
    "{{% set m = (value_json.engines|default([],true)|selectattr('name', 'eq', '{engine}')|list"
    "|first|default({{}},true)).model|default({{}},true) %}}"
)


def component(platform: str, name: str, topic: str, template: str, **more: object) -> Component:
    """Return a component that reads a topic."""
    return {"p": platform, "name": name, "stat_t": topic, "val_tpl": template, **more}


def path(*keys: str) -> str:
    """Return an expression for a value of the message; it is undefined where a part is missing."""
    expression = "value_json"
    for key in keys[:-1]:
        expression = f"({expression}[{quoted(key)}]|default({{}},true))"
    return f"{expression}[{quoted(keys[-1])}]"


def value_template(*keys: str) -> str:
    """Return a template for a value, unknown where that is null or missing."""
    return "{{ " + path(*keys) + "|default(none) }}"


def occupancy_template(expression: str) -> str:
    """Return a template for whether there is any, unknown where the number is."""
    return (
        "{% set n = " + expression + "|default(none) %}"
        "{{ none if n is not number else 'ON' if n > 0 else 'OFF' }}"
    )


def truth_template(*expressions: str) -> str:
    """Return a template for the first of these that is true or false, else unknown."""
    found = ", ".join(f"{one}|default(none)" for one in expressions)
    return (
        "{% set v = [" + found + "]|select('boolean')|list|first|default(none) %}"
        "{{ 'ON' if v is true else 'OFF' if v is false else none }}"
    )


def quoted(text: str) -> str:
    """Return a Jinja string of any text: its lexer reads Python's escapes (jinja2/lexer.py)."""
    escaped = text.encode("unicode_escape").decode("ascii")
    for char in "'\"{}%#":
        escaped = escaped.replace(char, f"\\x{ord(char):02x}")
    return f"'{escaped}'"


def printable(text: str) -> str:
    """Return a text as it can be shown in a line."""
    return "".join(char if char.isprintable() else " " for char in text).strip()[:MAX_NAME]


def slug(text: str) -> str:
    """Return a text in the letters of an entity id (core.py, VALID_ENTITY_ID): `a-z0-9_`."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")


def identifier(text: str) -> str:
    """Return a label's or a sensor's part of a component's id: never another's, whatever they are.

    What the letters of an id do not hold is in eight letters of a hash, after a dot that no text
    has that needs none.
    """
    if re.fullmatch(r"[a-z0-9_-]{1,64}", text):
        return text
    return f"{slug(text)[:48]}.{hashlib.sha256(text.encode()).hexdigest()[:8]}"
