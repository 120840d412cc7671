"""The figures of the table: fitted lines, delays, rows of several seeds."""

from __future__ import annotations

import io
import random

import pytest
from rich.console import Console

from reliability.__main__ import SCENARIOS, parse, parse_seeds
from reliability.checker import Findings, Heard, Put
from reliability.outage import delays
from reliability.rig import Outcome
from reliability.soak import fit
from reliability.table import Row, show_table


def test_a_line_is_found_and_noise_widens_its_error():
    times = [float(t) for t in range(100)]
    exact = fit(times, [3.0 + 0.5 * t for t in times])
    assert exact.slope == pytest.approx(0.5)
    assert exact.error == pytest.approx(0.0, abs=1e-9)
    chance = random.Random(1)
    noisy = fit(times, [3.0 + 0.5 * t + chance.gauss(0, 5) for t in times])
    assert noisy.least < 0.5 < noisy.slope + 2 * noisy.error


def test_a_delay_is_that_of_the_first_delivery_and_what_never_came_has_none():
    puts = [Put("a", 1, "x", 10.0), Put("a", 2, "y", 11.0)]
    heard = [Heard("a", 1, "x", 10.5), Heard("a", 1, "x", 12.0)]
    assert delays(puts, heard) == [0.5]


def test_a_row_adds_its_seeds_up_and_says_which_was_bad():
    row = Row("network", "toxics")
    row.outcomes[1] = Outcome(Findings(produced=3, received=3), figures={"took (s)": 1.0})
    row.outcomes[2] = Outcome(
        Findings(produced=3, received=2, lost=[("a", 3)]),
        figures={"took (s)": 2.5},
        bad=["1 lost [a, 3]"],
    )
    assert row.counts["produced"] == 6
    assert row.counts["lost"] == 1
    assert row.bad == ["seed 2: 1 lost [a, 3]"]
    console = Console(width=150, record=True, file=io.StringIO())
    show_table([row], console)
    text = console.export_text()
    assert "took (s): 1 to 2.5" in text
    assert "BAD" in text
    assert "seed 2: 1 lost [a, 3]" in text


def test_a_row_whose_seeds_were_all_skipped_says_why():
    row = Row("disk-full", "a small disk")
    row.outcomes[1] = Outcome(skipped="mounting is not permitted")
    assert (row.verdict, row.skipped) == ("skipped", "mounting is not permitted")


def test_arguments_and_names():
    assert parse_seeds("3") == range(3, 4)
    assert parse_seeds("1-50") == range(1, 51)
    assert parse(["--quick", "--only", "network", "--seeds", "2-3"]).seeds == range(2, 4)
    names = [one.name for one in SCENARIOS]
    assert len(names) == len(set(names))
