"""What every reader of power is, and what it gives: the seam between chips and totals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from agent.contract.reading import Power, Rail, Scope

# More is no draw of one chip, but a bus that answers nonsense, or a counter that began anew.
MOST_W = 2000.0
# A counter that was read longer ago may have run through more than once: RAPL's 32 bits are 65 kJ
# or more (intel_rapl_common.c), so 1 kW for as long.
LONGEST_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerReading:
    """One look at what the board draws.

    `energy_j` grows since the reader was made, by a counter of the total's scope that does not
    miss what happens between looks; None: there is none, or it cannot be read or trusted now, and
    then what lies between the looks before and after is unknown.
    """

    power: Power
    energy_j: float | None = None


class PowerSource(Protocol):
    """One kind of sensor on this board; a scope of "none" says that it has no total."""

    # Said of its rails where another source measures the total; "" where that needs no word.
    part_of: str
    # What it reads; a source of the same layout is the same one.
    layout: object

    def read(self, at_s: float) -> PowerReading:
        """Return what it says now; nothing is ever raised."""


class EnergyCounter:
    """A counter of microjoules that runs through, as energy since the first look and power."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None
        self._joules = 0.0
        self._is_whole = False

    @property
    def energy_j(self) -> float | None:
        """Return what was counted since the first step; None: not all since the step before."""
        return self._joules if self._is_whole else None

    def step(self, now_uj: int | None, at_s: float, wraps_at_uj: int | None = None) -> float | None:
        """Return the mean watts since the last step with a value; None where that is unknown.

        A counter that fell has run through, if it is known where it does so; else, and if that
        would be an impossible draw, it has begun anew (a processor's does so after sleep).
        """
        self._is_whole = False
        if now_uj is None:
            return None
        last, self._last = self._last, (now_uj, at_s)
        if last is None:
            self._is_whole = True
            return None
        grown_uj = now_uj - last[0]
        if grown_uj < 0:
            grown_uj += wraps_at_uj or 0
        elapsed_s = at_s - last[1]
        if grown_uj < 0 or not 0 < elapsed_s <= LONGEST_S:
            return None
        watts = grown_uj / 1e6 / elapsed_s
        if watts > MOST_W:
            return None
        self._is_whole = True
        self._joules += grown_uj / 1e6
        return watts


def rail_of(volt_v: float | None, curr_a: float | None, watts: float | None = None) -> Rail | None:
    """Return a supply, of volts times amperes where the chip says no watts; None: unknown.

    More than MOST_W in either direction is no reading.
    """
    if watts is None and volt_v is not None and curr_a is not None:
        watts = volt_v * curr_a
    if watts is None or abs(watts) > MOST_W:
        return None
    return Rail(volt_v=volt_v, curr_a=curr_a, power_w=watts)


def per(number: int | None, unit: float) -> float | None:
    """Return a driver's number in SI units, of which `unit` make one; None: unknown."""
    return None if number is None else number / unit


def add_unique(rails: dict[str, Rail], name: str, rail: Rail) -> str:
    """Put a rail to others, under a name that none of them has; return that name."""
    unique, number = name, 2
    while unique in rails:
        unique, number = f"{name} {number}", number + 1
    rails[unique] = rail
    return unique


def unavailable(reason: str, scope: Scope = "none", *unreadable: str) -> Power:
    """Return what is said where there is nothing to read, or it cannot be."""
    return Power(
        kind="unavailable",
        scope=scope,
        total_w=None,
        rails={},
        in_total=[],
        excluded_from_total=[],
        sensor=None,
        reason=reason,
        rails_unreadable=list(unreadable),
    )
