"""Scenarios of brokers that allow little: what they refuse must never hold up the rest."""

from __future__ import annotations

import time
from collections.abc import Callable

from reliability.checker import Findings
from reliability.proxy import Toxic
from reliability.rig import Outcome, Rig
from reliability.scenario import Scenario

ROUND_TRIP_S = 0.05
SMALL_BYTES, LARGE_BYTES = 400, 5000
LIMIT_BYTES = 2000
DOOR, YARD = "camera/door/detections", "camera/yard/detections"


def receive_maximum(rig: Rig, _seed: int) -> Outcome:
    """With one message allowed at a time, each costs a round trip, so the window can be timed."""
    outcome = Outcome()
    broker = rig.broker("max_inflight_messages 1")
    collector = rig.collector(broker.port)
    proxy = rig.proxy(broker.port)
    producer = rig.producer(proxy.port)
    producer.wait_connected()
    count = 60
    proxy.set(Toxic("latency", "down", ROUND_TRIP_S))
    began = time.monotonic()
    producer.produce(count, 10_000.0)
    producer.wait_drained()
    per_s = count / (time.monotonic() - began)
    told = producer.counters()["receive_maximum"]
    producer.stop()
    rig.check(collector, outcome)
    outcome.figures["Receive Maximum"] = told
    outcome.figures[f"records/s at {ROUND_TRIP_S * 1e3:g} ms"] = per_s
    outcome.expect(told == 1, f"the broker said Receive Maximum {told}, not 1")
    outcome.expect(
        per_s <= 1 / ROUND_TRIP_S, f"{per_s:.0f}/s is more than one message at a time can be"
    )
    return outcome


def _oversize(rig: Rig, line: str) -> Outcome:
    outcome = Outcome()
    broker = rig.broker(line)
    collector = rig.collector(broker.port)
    producer = rig.producer(broker.port)
    producer.wait_connected()
    for _ in range(5):
        producer.produce(20, 300.0, payload_bytes=SMALL_BYTES)
        producer.produce(1, 300.0, payload_bytes=LARGE_BYTES)
    producer.wait_drained()
    producer.stop()
    rig.check(collector, outcome, may_give_up=["too_large"])
    _expect_lost(outcome, lambda findings: len(findings.lost) == 5, "the 5 large records alone")
    return outcome


def _expect_lost(outcome: Outcome, so: Callable[[Findings], bool], what: str) -> None:
    findings = outcome.findings
    outcome.expect(so(findings), f"{len(findings.lost)} given up, expected are {what}")


def packet_limit(rig: Rig, _seed: int) -> Outcome:
    """The broker tells its Maximum Packet Size."""
    return _oversize(rig, f"max_packet_size {LIMIT_BYTES}")


def size_limit(rig: Rig, _seed: int) -> Outcome:
    """The broker tells nothing, and answers with a reason code."""
    return _oversize(rig, f"message_size_limit {LIMIT_BYTES}")


def credentials(rig: Rig, _seed: int) -> Outcome:
    """The password is wrong at first, and corrected in its file while the agent runs."""
    outcome = Outcome()
    password = rig.folder / "password"
    password.write_text("wrong\n")
    broker = rig.broker(users={"board": "right", "reader": "read"})
    collector = rig.collector(broker.port, user=("reader", "read"))
    login = {"username": "board", "password_file": str(password)}
    producer = rig.producer(broker.port, mqtt=login)
    producer.produce(30, 300.0)
    producer.wait(lambda c: c["reason"] and not c["to_put"], 20, "a refusal")
    reason = producer.counters()["reason"]
    outcome.expect(
        any(word in reason for word in ("password", "username", "credentials")),
        f"the reason does not name the credentials: {reason}",
    )
    password.write_text("right\n")
    began = time.monotonic()
    producer.wait_drained()
    outcome.figures["drained after the correction (s)"] = time.monotonic() - began
    producer.stop()
    rig.check(collector, outcome)
    return outcome


def denied_topic(rig: Rig, _seed: int) -> Outcome:
    """An access list denies one camera's topic; the other streams go on."""
    outcome = Outcome()
    rules = rig.folder / "acl"
    allowed = (DOOR, "telemetry", "gap", "availability")
    lines = ["topic read #", "topic write edge/sentinel"]
    lines += [f"topic write edge/board-1/{topic}" for topic in allowed]
    rules.write_text("\n".join(lines) + "\n")
    broker = rig.broker(f"acl_file {rules}")
    collector = rig.collector(broker.port)
    producer = rig.producer(broker.port)
    producer.wait_connected()
    producer.produce(90, 300.0)
    producer.wait_drained()
    producer.stop()
    rig.check(collector, outcome, may_give_up=["refused"])
    _expect_lost(
        outcome,
        lambda findings: {stream for stream, _ in findings.lost} == {YARD},
        f"all of {YARD}, and nothing else",
    )
    return outcome


SCENARIOS = (
    Scenario(
        name="receive-maximum",
        injected=f"broker that allows one message in flight, {ROUND_TRIP_S * 1e3:g} ms away",
        run=receive_maximum,
    ),
    Scenario(
        name="packet-limit",
        injected=f"Maximum Packet Size {LIMIT_BYTES}, 5 records of {LARGE_BYTES} bytes among 100",
        run=packet_limit,
    ),
    Scenario(
        name="size-limit",
        injected=f"message_size_limit {LIMIT_BYTES}, the same records",
        run=size_limit,
    ),
    Scenario(
        name="credentials",
        injected="wrong password, then corrected in its file",
        run=credentials,
    ),
    Scenario(
        name="denied-topic",
        injected="access list that denies one camera's topic",
        run=denied_topic,
    ),
)
