"""The bench of recording measures each part, and says so when the worker's takes too long."""

import json

import pytest

from agent.bench import recording
from agent.bench.recording import HOT, Cost, measure, run_recording
from agent.errors import AgentError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(recording, "FEWEST_BATCHES", 2)


def test_every_part_is_measured():
    costs = {cost.what: cost for cost in measure(0.001)}
    assert len(costs) == 4
    assert HOT in costs
    assert all(cost.median_us <= cost.p99_us for cost in costs.values())


@pytest.mark.parametrize(("median_us", "code"), [(4.9, 0), (5.1, 1)])
def test_the_table_the_file_and_the_verdict(tmp_path, capsys, monkeypatch, median_us, code):
    cost = Cost(what=HOT, median_us=median_us, p99_us=9.0)
    monkeypatch.setattr(recording, "measure", lambda seconds: [cost])
    file = tmp_path / "figures.json"
    assert run_recording(seconds=1.0, json_file=file) == code
    assert f"{median_us:.2f}" in capsys.readouterr().out
    written = json.loads(file.read_text())
    assert written["costs"] == [{"what": HOT, "median_us": median_us, "p99_us": 9.0}]


def test_times_that_cannot_be_are_refused():
    with pytest.raises(AgentError, match="above 0"):
        run_recording(seconds=0.0, json_file=None)
