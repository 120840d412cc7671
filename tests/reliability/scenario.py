"""What a scenario is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from reliability.rig import Outcome, Rig


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A fault, how it is injected, and with which seeds; `run` is called once for each seed."""

    name: str
    injected: str
    run: Callable[[Rig, int], Outcome]
    seeds: range = range(1, 2)
    quick_seeds: range = range(1, 2)
    # It measures times or rates, so nothing else may run beside it.
    alone: bool = False
