"""The wall clock jumps by ten years while the daemon runs: only the times in payloads move."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from brokers import mosquitto
from harness import DEVICE, Agent, Subscriber, config_text
from wall_clock import WallClock

YEAR_S = 31_557_600
FPS = 15.0
# Silence of a camera, and of a worker.
SHORTEST_TIMEOUT_S = 5.0


@pytest.fixture
def clock(tmp_path):
    made = WallClock(tmp_path)
    yield made
    made.close()


def said_times(environment: dict[str, str]) -> tuple[float, float]:
    """Wall and monotonic clock, as a program under that clock sees them."""
    done = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time(), time.monotonic())"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    wall, monotonic = map(float, done.stdout.split())
    return wall, monotonic


def test_setting_it_moves_the_wall_clock_alone(clock):
    clock.set(10 * YEAR_S)
    wall, monotonic = said_times(clock.environment)
    assert wall - time.time() == pytest.approx(10 * YEAR_S, abs=60)
    assert monotonic == pytest.approx(time.monotonic(), abs=60)


@pytest.fixture
def agent(broker, subscriber, clock, run_agent, monkeypatch):
    for name, value in clock.environment.items():
        monkeypatch.setenv(name, value)
    running = run_agent(
        config_text(broker.port, source="synthetic", camera=f"fps = {FPS}", telemetry_s=1.0)
    )
    subscriber.wait_results(10)
    subscriber.wait(lambda: subscriber.last("/telemetry"))
    return running


def heard_since(subscriber, moment):
    """Results that came after a moment of the test's own clock, with when they came."""
    return [
        (message.at, json.loads(message.payload))
        for message in list(subscriber.messages)
        if message.topic.endswith("/detections") and message.at > moment
    ]


# Years, and seconds until the next jump. Ahead, a timeout by that clock is over at once; back, it
# would be seen only when the shortest one is over by the other clock.
JUMPS = ((10, 2.0), (-10, SHORTEST_TIMEOUT_S + 1.5), (10, 2.0), (0, 2.0))


def test_nothing_times_out_when_the_clock_jumps(subscriber, clock, agent):
    worker = agent.worker().pid
    telemetry = subscriber.last("/telemetry")
    cameras_said = len([m for m in subscriber.messages if m.topic.endswith("door/status")])
    began = time.time()
    for years, watched_s in JUMPS:
        clock.set(years * YEAR_S)
        time.sleep(watched_s)
    heard = heard_since(subscriber, began)
    results = [one for _, one in heard]

    # They flow as before: no silence as long as the shortest timeout, and no hurry either.
    waits = [later - earlier for (earlier, _), (later, _) in pairwise(heard)]
    assert max(waits) < SHORTEST_TIMEOUT_S, "a timeout ran out"
    assert statistics.median(waits) < 5 / FPS
    seqs = [one["seq"] for one in results]
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
    for one in results:
        assert 0 <= one["latency_ms"] < 5000
        assert min(one["stage_ms"].values()) >= 0

    # The payloads say what the clock says, and are the only thing that does.
    shown = [round((one["captured_at"] - began) / YEAR_S) for one in results]
    assert {years for years, _ in JUMPS} <= set(shown)

    assert agent.process.poll() is None
    assert agent.worker().pid == worker, "the worker was replaced"
    now = subscriber.last("/telemetry")
    assert now["worker_restarts"] == telemetry["worker_restarts"] == 0
    assert now["mqtt"]["reconnects"] == telemetry["mqtt"]["reconnects"] == 0
    assert now["uptime_s"] - telemetry["uptime_s"] < 60
    said = [m.json for m in subscriber.messages if m.topic.endswith("door/status")]
    assert {one["state"] for one in said[cameras_said:]} <= {"online"}, "the camera was given up"
    assert subscriber.last("/gap") is None
    expected_at = began + JUMPS[-1][0] * YEAR_S
    subscriber.wait(  # for it to be said again
        lambda: abs(subscriber.last(f"{DEVICE}/status")["started_at"] - expected_at) < 300
    )
    intervals = [m.json["interval_s"] for m in subscriber.messages if m.topic.endswith("telemetry")]
    assert all(0 < interval < 5 for interval in intervals)


def test_stopping_takes_no_longer_after_a_jump(clock, agent):
    clock.set(-10 * YEAR_S)
    began = time.monotonic()
    assert agent.stop() == 0
    assert time.monotonic() - began < 12


def test_times_from_before_the_first_synchronization_are_corrected(tmp_path, clock, monkeypatch):
    """A board without a real-time clock starts in the past, and its broker comes late."""
    if Path("/run/systemd/timesync/synchronized").exists():
        pytest.skip("systemd-timesyncd calls this machine's clock synchronized, whatever it says")
    clock.set(-10 * YEAR_S, synced=False)
    late = mosquitto(tmp_path, "max_queued_messages 0")
    with monkeypatch.context() as around:
        for name, value in clock.environment.items():
            around.setenv(name, value)
        agent = Agent(
            tmp_path,
            config_text(
                late.port, source="synthetic", camera=f"fps = {FPS}", state_dir=tmp_path / "state"
            ),
        )
    subscriber = None
    try:
        wait_for_log(agent, "model ready", 90)
        time.sleep(3.0)  # results gather, in memory and on disk
        clock.set(0, synced=True)
        synced_at = time.time()
        time.sleep(1.5)
        late.start()
        subscriber = Subscriber(late.port)
        results = subscriber.wait_results(30)
        fresh = subscriber.wait(
            lambda: [one for one in subscriber.results() if one["captured_at"] > synced_at + 2.0]
        )
    finally:
        if subscriber is not None:
            subscriber.close()
        agent.stop()
        late.stop()
    repaired = [one for one in results if "clock_repaired" in one]
    assert repaired
    assert all(one["clock_synced"] is True for one in results)
    for one in results:
        assert abs(one["captured_at"] - synced_at) < 100, "ten years off"
    # Not only to the day: captures follow each other as they did.
    times = [one["captured_at"] for one in results]
    assert times == sorted(times)
    assert repaired[0]["captured_at"] < synced_at
    assert fresh[0]["clock_synced"] is True
    assert "clock_repaired" not in fresh[-1]


def wait_for_log(agent, words, within_s):
    ends = time.monotonic() + within_s
    while words not in agent.log:
        assert time.monotonic() < ends, agent.log
        assert agent.process.poll() is None, agent.log
        time.sleep(0.1)
