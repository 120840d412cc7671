"""The quick form of `scripts/reliability`: every scenario with a few seeds, a test each."""

from __future__ import annotations

import pytest
from brokers import MOSQUITTO
from rich.console import Console

from reliability.__main__ import SCENARIOS, run_all
from reliability.table import show_table


@pytest.mark.long
@pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
@pytest.mark.parametrize(
    "scenario", [one for one in SCENARIOS if one.quick_seeds], ids=lambda one: one.name
)
def test_no_guarantee_is_broken(scenario):
    [row] = run_all([scenario], quick=True)
    show_table([row], Console(width=150))
    assert row.bad == []
