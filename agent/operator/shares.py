"""Numbers and shares of boards, as they are written on the command line. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence


def parse_waves(text: str) -> list[tuple[float, bool]]:
    """Read `1,10%,100%`: numbers and shares of all boards, each including those before it.

    Raises:
        ValueError: with what is allowed.
    """
    waves = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*([0-9]{1,7}(?:\.[0-9]{1,3})?)(%?)\s*", part)
        if found is None or not float(found[1]) or (found[2] and float(found[1]) > 100):
            raise ValueError("must be numbers or shares, such as 1,10%,100%")
        waves.append((float(found[1]), bool(found[2])))
    return waves


def wave_ends(waves: Sequence[tuple[float, bool]], count: int) -> list[int]:
    """Return after how many boards each wave ends, of those that add any."""
    ends: list[int] = []
    for number, is_share in waves:
        end = min(count, math.ceil(count * number / 100) if is_share else int(number))
        if end > (ends[-1] if ends else 0):
            ends.append(end)
    return ends


def parse_share(text: str) -> float:
    """Read `2%`.

    Raises:
        ValueError: with what is allowed.
    """
    found = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)%", text)
    if found is None or float(found[1]) > 100:
        raise ValueError("must be a share from 0% to 100%")
    return float(found[1]) / 100
