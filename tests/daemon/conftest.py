"""A real broker, a second client that watches it, and links that are always stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from brokers import RunningBroker, mosquitto
from scripted_broker import ScriptedBroker
from watching import FAST, Watcher, gap_record

from agent.config import MqttConfig
from agent.daemon.mqtt import MqttLink, Timing
from agent.daemon.mqtt.subscriptions import OnMessage
from agent.daemon.outbox import Outbox


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    running = mosquitto(tmp_path, "max_queued_messages 0").start()
    yield running
    running.stop()


@pytest.fixture
def start_broker(tmp_path: Path) -> Iterator[Callable[[RunningBroker], RunningBroker]]:
    started: list[RunningBroker] = []

    def start(broker: RunningBroker) -> RunningBroker:
        started.append(broker)
        return broker.start()

    yield start
    for broker in started:
        broker.stop()


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedBroker]]:
    """Starts scripted brokers; none of them may have seen a client break the rules."""
    started: list[ScriptedBroker] = []

    def start(*script: object, **named: object) -> ScriptedBroker:
        started.append(ScriptedBroker(*script, **named).start())  # type: ignore[arg-type]
        return started[-1]

    yield start
    for broker in started:
        broker.stop()
    assert not [fault for broker in started for fault in broker.faults]


@pytest.fixture
def watch() -> Iterator[Callable[[int], Watcher]]:
    open_ones: list[Watcher] = []

    def start(port: int) -> Watcher:
        open_ones.append(Watcher(port).open())
        return open_ones[-1]

    yield start
    for watcher in open_ones:
        watcher.close()


@pytest.fixture
def make_link() -> Iterator[Callable[..., MqttLink]]:
    links: list[MqttLink] = []

    def make(
        port: int, *, host: str = "127.0.0.1", scheme: str = "mqtt", max_bytes: int = 1 << 24,
        timing: Timing = FAST, settings: dict[str, object] | None = None,
        subscriptions: Sequence[tuple[str, int, OnMessage]] = (), **arguments: object,
    ) -> MqttLink:  # fmt: skip
        link = MqttLink(
            MqttConfig(url=f"{scheme}://{host}:{port}", **(settings or {})),  # type: ignore[arg-type]
            client_id="edge-agent-test",
            availability_topic="edge/d/availability",
            outbox=Outbox(max_bytes=max_bytes, folder=None),
            timing=timing,
            **{"gap_record": gap_record, **arguments},  # type: ignore[arg-type]
        )
        for subscription in subscriptions:
            link.subscribe(*subscription)
        link.start()
        links.append(link)
        return link

    yield make
    for link in links:
        link.stop(0.2)
