"""Scenarios of the network between the agent and its broker."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from brokers import RunningBroker, amqtt, free_port

from agent.daemon.mqtt.session import KEEP_ALIVE_S
from reliability.proxy import Proxy, Toxic, random_schedule
from reliability.rig import Outcome, Producer, Rig
from reliability.scenario import Scenario

PER_S = 30.0
SCHEDULE_S = 6.0
DRAINS_WITHIN_S = 60.0
AEDES = "aedes@0.51.3"  # from 1.0 on it is made in another way
AEDES_FOLDER = Path(tempfile.gettempdir()) / f"edge-agent-{AEDES}"
AEDES_SERVER = """
const broker = require('aedes')();
require('net').createServer(broker.handle).listen(Number(process.argv[2]), '127.0.0.1');
"""


def play(proxy: Proxy, seed: int) -> None:
    """Go through the schedule of a seed; the network is clean afterwards."""
    began = time.monotonic()
    for at, toxics in random_schedule(seed, SCHEDULE_S):
        time.sleep(max(0.0, began + at - time.monotonic()))
        proxy.set(*toxics)


def through_faults(rig: Rig, port: int, seed: int, *, mqtt5: bool) -> Outcome:
    """Put at a steady rate while the network of the seed is what it is, then drain."""
    outcome = Outcome()
    collector = rig.collector(port, mqtt5=mqtt5)
    proxy = rig.proxy(port)
    producer = rig.producer(proxy.port)
    producer.wait_connected()
    producer.produce(int(SCHEDULE_S * PER_S), PER_S)
    play(proxy, seed)
    drained_s = drain(producer, outcome)
    rig.check(collector, outcome)
    outcome.figures["drained after the last fault (s)"] = drained_s
    outcome.figures["connections"] = proxy.accepted
    return outcome


def drain(producer: Producer, outcome: Outcome) -> float:
    """Wait for everything to arrive and end the producer; return the seconds it took."""
    drained_s = producer.wait_drained(DRAINS_WITHIN_S)
    code, _ = producer.stop()
    outcome.expect(code == 0, f"the producer ended with exit code {code}")
    return drained_s


def network(rig: Rig, seed: int) -> Outcome:
    """Toxics between the agent and mosquitto."""
    return through_faults(rig, rig.broker().port, seed, mqtt5=True)


def second_broker(rig: Rig, seed: int) -> Outcome:
    """Toxics between the agent and a broker that speaks MQTT 3.1.1."""
    broker = _aedes(rig) or amqtt(rig.folder)
    broker.start()
    rig.keep(broker.stop)
    return through_faults(rig, broker.port, seed, mqtt5=False)


def _aedes(rig: Rig) -> RunningBroker | None:
    """Return aedes on Node.js, not started; None where it is not and cannot be had."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    if not (AEDES_FOLDER / "node_modules" / "aedes").exists():
        install = [npm, "install", "--silent", "--no-audit", "--no-fund", AEDES]
        AEDES_FOLDER.mkdir(exist_ok=True)
        with (rig.folder / "npm.txt").open("wb") as log:
            environment = {**os.environ, "npm_config_prefix": str(AEDES_FOLDER)}
            command = [*install, "--prefix", str(AEDES_FOLDER)]
            if subprocess.run(command, stdout=log, stderr=log, env=environment).returncode:
                return None
    server = AEDES_FOLDER / "server.js"
    server.write_text(AEDES_SERVER)
    port = free_port()
    return RunningBroker([node, str(server), str(port)], port, rig.folder / "mosquitto-aedes.log")


def half_open(rig: Rig, seed: int) -> Outcome:
    """Everything swallowed both ways and nothing closed; odd seeds publish, even ones are idle."""
    outcome = Outcome()
    broker = rig.broker()
    collector = rig.collector(broker.port)
    proxy = rig.proxy(broker.port)
    producer = rig.producer(proxy.port, timing={})
    producer.wait_connected()
    is_publishing = seed % 2 == 1
    if is_publishing:
        producer.produce(50, 2.0)
        collector.wait_heard(2)
    proxy.set(Toxic("timeout", "up"), Toxic("timeout", "down"))
    longest_s = 1.5 * KEEP_ALIVE_S
    noticed_s = producer.wait(lambda c: not c["connected"], 2 * longest_s, "the loss")
    how = "publishing" if is_publishing else "idle"
    outcome.figures[f"noticed, {how} (s)"] = noticed_s
    outcome.expect(
        noticed_s <= longest_s, f"noticed after {noticed_s:.1f} s, allowed are {longest_s:g} s"
    )
    proxy.set()
    outcome.figures["then drained in (s)"] = producer.wait_drained(2 * DRAINS_WITHIN_S)
    rig.check(collector, outcome)
    return outcome


SCENARIOS = (
    Scenario(
        name="network",
        injected="random schedule of 8 toxics through a proxy for 6 s at 30 records/s, "
        "link's back-off at most 0.5 s instead of 30 s",
        run=network,
        seeds=range(1, 51),
        quick_seeds=range(1, 3),
    ),
    Scenario(
        name="second-broker",
        injected="the same, with aedes (where there is Node.js) or amqtt, over MQTT 3.1.1",
        run=second_broker,
        seeds=range(1, 6),
    ),
    Scenario(
        name="half-open",
        injected="the connection swallows all bytes and stays open; the link's own times",
        run=half_open,
        seeds=range(1, 3),
    ),
)
