"""Scenarios of a broker that is away for long: what is kept, how it drains, what that costs."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence

from reliability.checker import Heard, Put
from reliability.collector import Collector
from reliability.rig import Outcome, Producer, Rig
from reliability.scenario import Scenario

LIVE_PER_S = 30.0
AWAY_S = 600.0  # of produced time
QUICK_AWAY_S = 40.0
# How fast the outage's records are put: what the outbox must write to disk meanwhile.
COMPRESSED_PER_S = 600.0
LIVE_S, QUICK_LIVE_S = 10.0, 3.0
# A camera that was off during the outage has no backlog of its own in front of it.
FRESH = ("camera/fresh/detections",)
DRAINS_WITHIN_S = 900.0


def broker_away(rig: Rig, seed: int) -> Outcome:
    """Live, away with a kill -9 in the middle, back, drained, live again."""
    outcome = Outcome()
    chance = random.Random(seed)
    away_s, live_s = (QUICK_AWAY_S, QUICK_LIVE_S) if rig.is_quick else (AWAY_S, LIVE_S)
    count = int(away_s * LIVE_PER_S)
    broker = rig.broker()
    collector = rig.collector(broker.port)
    producer = rig.producer(broker.port)
    producer.wait_connected()
    rig.say("live before")
    before = _live(producer, live_s)
    collector.catch_up()
    broker.stop()
    rig.say("broker away")
    producer.produce(count, COMPRESSED_PER_S)
    # From the first quarter to the last: the order is under way all the time.
    time.sleep(count / COMPRESSED_PER_S * chance.uniform(0.25, 0.75))
    killed_at = producer.kill()
    done = len([put for put in rig.puts() if put.at > before[1]])
    restarted = time.monotonic()
    producer = rig.producer(broker.port)
    producer.counters()
    outcome.figures["restart after kill -9 (s)"] = time.monotonic() - restarted
    producer.produce(max(1, count - done), COMPRESSED_PER_S)
    producer.wait(lambda c: not c["to_put"], 120, "putting the second half")
    rig.say("draining")
    during = _drain(rig, producer, broker.start, outcome)
    rig.say("live after")
    after = _live(producer, live_s)
    producer.wait_drained(60)
    code, _ = producer.stop()
    outcome.expect(code == 0, f"the producer ended with exit code {code}")
    rig.check(collector, outcome, sudden_ends=[killed_at])
    _latencies(rig, collector, outcome, {"before": before, "during": during, "after": after})
    return outcome


Span = tuple[float, float]


def _live(producer: Producer, length_s: float) -> Span:
    """Produce at the live rate; return from when to when."""
    began = time.monotonic()
    producer.produce(int(length_s * LIVE_PER_S), LIVE_PER_S)
    time.sleep(length_s)
    return began, time.monotonic()


def _drain(
    rig: Rig, producer: Producer, start_broker: Callable[[], object], outcome: Outcome
) -> Span:
    """Bring the broker back while live records go on; note how fast the backlog goes."""
    backlog = producer.counters()["waiting"]
    start_broker()
    producer.wait_connected(60)
    began = time.monotonic()
    published = producer.counters()["published"]
    deadline = began + DRAINS_WITHIN_S
    # Records of the backlogged cameras and of one without a backlog, in turn.
    streams = (*producer.settings.streams, *FRESH)
    while (counters := producer.counters())["waiting"] > 5:
        if counters["to_put"] < LIVE_PER_S:
            producer.produce(int(LIVE_PER_S), LIVE_PER_S, streams=streams)
        if time.monotonic() > deadline:
            raise TimeoutError(f"the backlog did not drain within {DRAINS_WITHIN_S:g} s")
        time.sleep(0.05)
        rig.say(f"draining, {counters['waiting']} left")
    took_s = time.monotonic() - began
    outcome.figures["backlog (records)"] = backlog
    outcome.figures["drain (records/s)"] = (counters["published"] - published) / took_s
    outcome.figures["drain (s)"] = took_s
    return began, time.monotonic()


def _latencies(rig: Rig, collector: Collector, outcome: Outcome, spans: dict[str, Span]) -> None:
    """Note how long live records took from their put to the subscriber."""
    puts = rig.puts()
    for name, span in spans.items():
        for kind, streams in (("", ()), (", fresh camera", FRESH)):
            wanted = [
                put
                for put in puts
                if span[0] <= put.at < span[1] and (put.stream in FRESH) == bool(streams)
            ]
            taken = delays(wanted, collector.heard)
            if len(taken) < 10:
                continue
            hundredths = statistics.quantiles(taken, n=100)
            outcome.figures[f"latency {name}{kind}, p50 (ms)"] = hundredths[49] * 1e3
            outcome.figures[f"latency {name}{kind}, p95 (ms)"] = hundredths[94] * 1e3


def delays(puts: Sequence[Put], heard: Sequence[Heard]) -> list[float]:
    """Return the seconds from each put to its first delivery; what never came is left out."""
    first: dict[tuple[str, int], float] = {}
    for one in heard:
        first.setdefault(one.key, one.at)
    return [first[put.key] - put.at for put in puts if put.key in first]


SCENARIOS = (
    Scenario(
        name="broker-away",
        injected=f"mosquitto stopped for {AWAY_S:g} s of results at {LIVE_PER_S:g}/s "
        f"(quick: {QUICK_AWAY_S:g} s), put at {COMPRESSED_PER_S:g}/s; kill -9 at a random moment "
        "of it, restart; then back, with live results going on",
        run=broker_away,
        alone=True,
    ),
)
