"""JSON from outside: one meaning or none.

msgspec refuses by itself what is no JSON (NaN, comments, byte order marks, lone surrogates, bytes
that are not UTF-8, anything behind the document), wrong types and, where types say so, unknown
keys. What it takes, and is refused here: a key given twice (the last would count, elsewhere
perhaps the first), whole numbers that not every reader keeps exact (it takes 4,300 digits), and
nesting up to the interpreter's recursion limit, which differs from one Python to the next.
"""

from __future__ import annotations

import json
import re
from typing import TypeVar

import msgspec

from agent.ota.refusal import RefusalError

T = TypeVar("T")
MAX_DEPTH = 32
# Beyond this, readers that keep numbers as float64 take another one: RFC 8259 section 6.
MAX_INTEGER = 2**53
# A string, even one without an end, is one match: so no input is looked at twice.
_STRING_OR_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]', re.DOTALL)


def decode(raw: bytes, kind: type[T], *, most_bytes: int, where: str) -> T:
    """Decode one document into a type of msgspec's.

    Raises:
        RefusalError: E_SIZE longer than `most_bytes`, which is told before anything is read;
            E_JSON all else, with the key where there is one.
    """
    if len(raw) > most_bytes:
        raise RefusalError("E_SIZE", f"{where}: has more than {most_bytes} bytes")
    try:
        _check_depth(raw)
        document = msgspec.json.decode(raw, type=kind)
        json.loads(raw.decode(), object_pairs_hook=_without_twins, parse_int=_check_integer)
    except (ValueError, RecursionError) as error:  # msgspec's errors and UnicodeDecodeError too
        raise RefusalError("E_JSON", f"{where}: {error}") from error
    return document


def _check_depth(raw: bytes) -> None:
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(raw):
        first = raw[found.start()]
        depth += (first in b"[{") - (first in b"]}")
        if depth > MAX_DEPTH:
            raise ValueError(f"is nested more than {MAX_DEPTH} deep")


def _without_twins(pairs: list[tuple[str, object]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f"has the key {json.dumps(key[:80])} twice")
        seen.add(key)


def _check_integer(digits: str) -> None:
    # The length first: making a number of very many digits takes long.
    if len(digits) > len(str(-MAX_INTEGER)) or abs(int(digits)) > MAX_INTEGER:
        raise ValueError(f"has a whole number beyond {MAX_INTEGER}: {digits[:20]}")
