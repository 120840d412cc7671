"""The list of attacks on updates, and that each is tried by a test that says so.

A test says so by its name (`test_a03_...`), in its docstring, or in that of its file.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
ATTACKS = {
    "A01": "other bytes under a signed name, another signature",
    "A02": "yesterday's metadata",
    "A03": "yesterday's metadata after a power cut emptied those on the disk",
    "A04": "an order that goes below the security floor",
    "A05": "a repository that is frozen for ever",
    "A06": "the same, with a clock that is slow or was never set",
    "A07": "a clock that is years ahead",
    "A08": "data without end",
    "A09": "a server that drips",
    "A10": "metadata of different days, a manifest of one model with the file of another",
    "A11": "signed, and for another board, program or name",
    "A12": "a bundle with a file, library or operator more",
    "A13": "versions put to the highest there is by a stolen key",
    "A14": "fewer stolen keys than it takes, and keys that were replaced",
    "A15": "keys that changed many times while a board was away",
    "A16": "malicious mirrors",
    "A17": "archives that are none",
    "A18": "JSON with two meanings, or with too much of it",
    "A19": "malicious models, correctly signed",
    "A20": "models that are good in the self-test and bad with cameras",
    "A21": "files that are swapped between check and load",
    "A22": "orders that are replayed, forged, huge or too many",
    "A23": "somebody who says to be the broker",
    "A24": "a board that speaks for another one, or listens to it",
    "A25": "models and state files that are changed on the disk",
    "A26": "secrets in logs, messages, arguments and core dumps",
    "A27": "all that the TUF project's own suite tries",
    "A28": "any bytes at all, for each parser",
}
NUMBER = re.compile(r"\bA([0-2][0-9])\b")
NAME = re.compile(r"^test_a([0-2][0-9])_")
NAMED = re.compile(r"def test_a[0-2][0-9]_")
RANGE = re.compile(r"\bA([0-2][0-9]) to A([0-2][0-9])\b")


def said_in(text: str) -> set[str]:
    found = set(NUMBER.findall(text))
    for first, last in RANGE.findall(text):
        found |= {f"{number:02}" for number in range(int(first), int(last) + 1)}
    return found


@cache
def tried() -> dict[str, set[str]]:
    """Return of each number the tests: a function's, or all of a file."""
    found: dict[str, set[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        if path == Path(__file__):
            continue
        text = path.read_text(encoding="utf-8")
        if not said_in(text) and not NAMED.search(text):  # spares most files the parser
            continue
        tree = ast.parse(text)
        place = path.relative_to(TESTS).as_posix()
        for number in said_in(ast.get_docstring(tree) or ""):
            found.setdefault(number, set()).add(place)
        for one in ast.walk(tree):
            if isinstance(one, ast.FunctionDef) and one.name.startswith("test_"):
                for number in {*NAME.findall(one.name), *said_in(ast.get_docstring(one) or "")}:
                    found.setdefault(number, set()).add(f"{place}::{one.name}")
    return found


@pytest.mark.parametrize("attack", ATTACKS)
def test_each_attack_is_tried(attack):
    found = tried().get(attack[1:])
    assert found, f"{attack}: nothing tries {ATTACKS[attack]}"
    print(f"{attack} {ATTACKS[attack]}: {', '.join(sorted(found))}")


def test_no_test_names_an_attack_that_is_not_on_the_list():
    assert {f"A{number}" for number in tried()} <= {*ATTACKS}
