"""The quick form of `scripts/reliability`: every scenario with a few seeds, side by side."""

from __future__ import annotations

import pytest
from brokers import MOSQUITTO
from rich.console import Console

from reliability.__main__ import SCENARIOS, run_all
from reliability.table import show_table


@pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
def test_no_guarantee_is_broken_by_any_scenario():
    rows = run_all(SCENARIOS, quick=True)
    show_table(rows, Console(width=150))
    assert {row.name: row.bad for row in rows if row.bad} == {}
