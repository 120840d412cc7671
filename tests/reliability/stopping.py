"""Scenarios of ends and new starts: SIGTERM at any moment, and the service restarted often."""

from __future__ import annotations

import random
import signal
import time

from reliability.daemons import Agent
from reliability.observed_agent import Observation
from reliability.rig import Outcome, Rig
from reliability.scenario import Scenario

ENDS_WITHIN_S = 10.0
FULL_STOPS, QUICK_STOPS = 100, 3
FULL_RESTARTS, QUICK_RESTARTS = 100, 3
LONGEST_RUN_S = 6.0
UNCLEAN = "Client edge-agent-board-1 closed its connection"


def sigterm(rig: Rig, seed: int) -> Outcome:
    """Stop the daemon at random moments, from its first second on; a last run says the rest."""
    outcome = Outcome()
    chance = random.Random(seed)
    broker = rig.broker()
    collector = rig.collector(broker.port)
    observation = Observation(log=str(rig.logbook), folder=str(rig.folder))
    slowest_s, connected, stops = 0.0, 0, QUICK_STOPS if rig.is_quick else FULL_STOPS
    for at in range(stops):
        rig.say(f"stop {at + 1}")
        log_bytes, said = broker.log.stat().st_size, len(collector.of("/availability"))
        agent = Agent(rig, broker.port, observation=observation)
        time.sleep(chance.uniform(0.3, LONGEST_RUN_S))
        code, took_s = agent.stop()
        slowest_s = max(slowest_s, took_s)
        outcome.expect(took_s <= ENDS_WITHIN_S, f"stop {at + 1}: took {took_s:.1f} s")
        collector.catch_up()
        spoken = [one.payload for one in collector.of("/availability")[said:]]
        # Before its handlers stand, SIGTERM itself ends it: systemd calls that clean as well.
        allowed = {0} if spoken else {0, -signal.SIGTERM}
        outcome.expect(code in allowed, f"stop {at + 1}: exit code {code}")
        if not spoken:
            continue  # it had not connected yet, so there is nobody to say goodbye to
        connected += 1
        outcome.expect(spoken[-1] == b"offline", f"stop {at + 1}: did not say offline")
        # mosquitto's words for a connection that ends without DISCONNECT, when it speaks the will.
        log = broker.log.read_bytes()[log_bytes:].decode(errors="replace")
        outcome.expect(UNCLEAN not in log, f"stop {at + 1}: no DISCONNECT, so the will was spoken")
    agent = Agent(rig, broker.port, observation=observation)
    agent.wait_heard(collector, 5)
    agent.stop()
    rig.check(collector, outcome)
    outcome.figures["stops"] = stops
    outcome.figures["of them connected"] = connected
    outcome.figures["slowest stop (s)"] = slowest_s
    return outcome


def restarts(rig: Rig, seed: int) -> Outcome:
    """Restart outbox and link, politely and not, with the broker there and not."""
    outcome = Outcome()
    chance = random.Random(seed)
    broker = rig.broker()
    collector = rig.collector(broker.port)
    times = QUICK_RESTARTS if rig.is_quick else FULL_RESTARTS
    killed: list[float] = []
    for at in range(times):
        rig.say(f"restart {at + 1}")
        is_away = chance.random() < 0.3
        if is_away:
            broker.stop()
        producer = rig.producer(broker.port)
        producer.produce(30, 200.0)
        time.sleep(chance.uniform(0.05, 0.5))
        producer.counters()
        if chance.random() < 0.5:
            killed.append(producer.kill())
        else:
            code, took_s = producer.stop()
            outcome.expect(code == 0, f"restart {at + 1}: exit code {code}")
            outcome.expect(took_s <= ENDS_WITHIN_S, f"restart {at + 1}: took {took_s:.1f} s")
        if is_away:
            broker.start()
    producer = rig.producer(broker.port)
    producer.produce(30, 200.0)
    producer.wait_drained()
    producer.stop()
    rig.check(collector, outcome, sudden_ends=killed)
    outcome.figures["restarts"] = times
    outcome.figures["of them kill -9"] = len(killed)
    return outcome


SCENARIOS = (
    Scenario(
        name="sigterm",
        injected=f"SIGTERM to the whole daemon {FULL_STOPS} times (quick: {QUICK_STOPS}), "
        f"0.3 to {LONGEST_RUN_S:g} s after its start",
        run=sigterm,
    ),
    Scenario(
        name="restarts",
        injected=f"{FULL_RESTARTS} runs (quick: {QUICK_RESTARTS}) of outbox and link, half ended "
        "by kill -9, half by SIGTERM, the broker away for a third of them",
        run=restarts,
    ),
)
