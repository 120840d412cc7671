"""A broker, an agent and a subscriber, ended with the test."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import brokers
import pytest
from brokers import MOSQUITTO, RunningBroker, mosquitto
from harness import Agent, Subscriber


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    (tmp_path / "broker").mkdir()
    keeps = (
        "persistence true",
        f"persistence_location {tmp_path}/broker/",
        "max_queued_messages 0",
    )
    running = mosquitto(tmp_path, *keeps).start()
    yield running
    running.stop()


@pytest.fixture
def subscriber(broker: RunningBroker) -> Iterator[Subscriber]:
    client = Subscriber(broker.port)
    yield client
    client.close()


@pytest.fixture
def run_agent(tmp_path: Path) -> Iterator[Callable[[str], Agent]]:
    """Return a function that starts the daemon with a configuration."""
    started: list[Agent] = []

    def run(config: str) -> Agent:
        started.append(Agent(tmp_path, config))
        return started[-1]

    yield run
    for agent in started:
        agent.stop()


@pytest.fixture
def free_port() -> int:
    return brokers.free_port()


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]
