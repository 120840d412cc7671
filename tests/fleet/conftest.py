"""Fixtures: a broker, boards on it, and the fleet commands as people run them."""

from __future__ import annotations

import threading

import pytest
from brokers import mosquitto
from fleet_rig import Rig

from agent.operator import exchange, rollout_run


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    """A broker on this machine hands out what is retained at once, and boards are quick."""
    for module in (exchange, rollout_run):
        monkeypatch.setattr(module, "QUIET_S", 0.15)
    monkeypatch.setattr(rollout_run, "TICK_S", 0.05)


@pytest.fixture
def broker(tmp_path):
    running = mosquitto(tmp_path, "allow_anonymous true").start()
    yield running
    if running.process is not None:
        running.process.kill()  # it has nothing to write down
    running.stop()


@pytest.fixture
def rig(broker, tmp_path):
    """Return how to put boards on the broker; they are taken off afterwards."""
    rigs = []

    def make(count=20, **options):
        made = Rig(broker, tmp_path, count, **options)
        rigs.append(made)
        return made

    yield make
    for made in rigs:
        made.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "simulated"]
