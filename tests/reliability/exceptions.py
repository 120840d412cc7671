"""An exception in each method of the link, its session, its delivery and the outbox in turn."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeAlias

from agent.daemon.mqtt.delivery import Delivery
from agent.daemon.mqtt.link import MqttLink
from agent.daemon.mqtt.session import Session
from agent.daemon.outbox.disk import OutboxDisk
from agent.daemon.outbox.numbering import Numbering
from agent.daemon.outbox.reader import OutboxReader
from agent.daemon.outbox.spool import Spool
from agent.daemon.outbox.writer import OutboxWriter
from reliability import faults
from reliability.proxy import Proxy, Toxic
from reliability.rig import Outcome, Producer, Rig
from reliability.scenario import Scenario

Trouble: TypeAlias = Callable[[Proxy, Producer], None]

QUICK_TARGETS = 10
RECORDS = 12
RECOVERS_WITHIN_S = 60.0
# Called by whoever uses the object, or the loop's own frame: not what a turn of it may raise.
LINK_BUT = {
    MqttLink: {"start", "stop", "put", "retain", "wake", "ensure_running", "_live"},
    Delivery: {"retain"},
    Session: set[str](),
}
DISK_BUT = {
    OutboxDisk: {"start", "wake", "wait_for_turn", "close", "_run", "_turn", "_tick"},
    OutboxReader: set[str](),
    OutboxWriter: set[str](),
    Spool: set[str](),
    Numbering: {"begin"},
}


def methods(owners: dict[type[Any], set[str]]) -> list[str]:
    """Return the methods of these classes, as `faults` wants them, but for those left out."""
    return [
        f"{owner.__module__}:{owner.__name__}.{name}"
        for owner, left_out in owners.items()
        for name, value in vars(owner).items()
        if isinstance(value, FunctionType) and not name.startswith("__") and name not in left_out
    ]


def raised(rig: Rig, seed: int, targets: list[str], trouble: Trouble) -> Outcome:
    """Have each target raise once amid traffic, and wait until all has arrived again."""
    outcome = Outcome()
    if rig.is_quick:
        targets = random.Random(seed).sample(targets, min(QUICK_TARGETS, len(targets)))
    broker = rig.broker()
    collector = rig.collector(broker.port)
    proxy = rig.proxy(broker.port)
    producer = rig.producer(proxy.port, targets=tuple(targets))
    producer.wait_connected()
    slowest_s, reached = 0.0, 0
    for target in targets:
        rig.say(target.split(":")[1])
        began = time.monotonic()
        faults.switch_on(rig.folder, target, "raise")
        producer.produce(RECORDS, 300.0)
        trouble(proxy, producer)
        try:
            _recover(producer)
        except TimeoutError as error:
            outcome.bad.append(f"{target}: {error}")
            break
        if faults.has_happened(rig.folder, target):
            reached += 1
            slowest_s = max(slowest_s, time.monotonic() - began)
        faults.switch_off(rig.folder, target)
    outcome.figures["methods"] = len(targets)
    outcome.figures["of them reached"] = reached
    outcome.figures["slowest recovery (s)"] = slowest_s
    outcome.expect(reached >= len(targets) / 4, f"only {reached} of {len(targets)} were reached")
    code, _ = producer.stop()
    outcome.expect(code == 0, f"the producer ended with exit code {code}")
    rig.check(collector, outcome)
    return outcome


def _recover(producer: Producer) -> None:
    producer.wait_drained(RECOVERS_WITHIN_S)
    producer.wait_connected(RECOVERS_WITHIN_S)


def link_raises(rig: Rig, seed: int) -> Outcome:
    """In the link; a reset connection each time, so that connecting is done as well."""

    def reset(proxy: Proxy, _: Producer) -> None:
        proxy.set(Toxic("reset_peer", "up"))
        time.sleep(0.1)
        proxy.set()

    return raised(rig, seed, methods(LINK_BUT), reset)


def disk_raises(rig: Rig, seed: int) -> Outcome:
    """In the outbox's disk work; an outage each time, so that there is some."""

    def outage(proxy: Proxy, producer: Producer) -> None:
        proxy.set(Toxic("down"))
        producer.wait(lambda c: c["waiting"] and c["on_disk"] == c["waiting"], 30, "the spill")
        proxy.set()

    return raised(rig, seed, methods(DISK_BUT), outage)


SCENARIOS = (
    Scenario(
        name="link-exceptions",
        injected="an exception in each method of link, session (paho's callbacks) and delivery, "
        f"amid traffic and a reset connection (quick: {QUICK_TARGETS} by lot)",
        run=link_raises,
    ),
    Scenario(
        name="disk-exceptions",
        injected="an exception in each method of the outbox's disk work, amid an outage "
        f"(quick: {QUICK_TARGETS} by lot)",
        run=disk_raises,
    ),
)
