"""A connection that is dead and looks alive: noticed by what is not acknowledged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from brokers import MOSQUITTO
from hypothesis import given
from hypothesis import strategies as st
from scripted_broker import ACK, Connack
from test_mqtt_delivery import Bench
from valve import Valve
from watching import LIVELY, STREAM, WITHIN_S, eventually, record

import agent
from agent.daemon.mqtt import MqttLink, Timing
from agent.daemon.mqtt.session import KEEP_ALIVE_S, MISC_EVERY_S, Session

AVAILABILITY = "edge/d/availability"
TOPIC = f"edge/d/{STREAM}"


def is_up(link):
    return lambda: link.connection.connected


def test_the_defaults_keep_what_is_promised():
    timing = Timing()
    assert timing.notices_within_s == 36.0
    assert timing.notices_within_s <= 1.5 * KEEP_ALIVE_S
    assert LIVELY.notices_within_s - MISC_EVERY_S <= 1.5 * LIVELY.keep_alive_s


@given(
    qos=st.sampled_from([0, 1]),
    puts=st.lists(st.floats(0, 100), max_size=30),
    dies_at=st.floats(0, 60),
    server_keep_alive=st.sampled_from([None, 0, 10, 600]),
)
def test_silence_is_noticed_in_time_whatever_is_sent(qos, puts, dies_at, server_keep_alive):
    bench = Bench(qos)
    timing = Timing()
    channel = bench.connect(keep_alive_s=30 if server_keep_alive is None else server_keep_alive)
    answered, due = 0, sorted(puts)
    while bench.delivery.unanswered_s() < timing.answer_within_s:
        while due and due[0] <= bench.now:
            due.pop(0)
            bench.outbox.put(record(len(due) + 1))
        bench.delivery.pump()
        while answered < len(channel.sent):
            answered += 1
            if bench.now < dies_at or not channel.sent[answered - 1][2]:
                bench.delivery.settle(answered, 0)
            bench.delivery.pump()
        left_s = timing.answer_within_s - bench.delivery.unanswered_s()
        bench.now += max(0.001, min(bench.delivery.wait_s(MISC_EVERY_S), left_s))
        assert bench.now - dies_at <= timing.notices_within_s
    assert bench.now >= dies_at


@pytest.mark.parametrize("qos", [0, 1])
def test_a_broker_that_never_acknowledges_is_left(scripted, make_link, qos):
    broker = scripted()
    link = make_link(broker.port, timing=LIVELY, settings={"qos": qos})
    eventually(is_up(link))
    eventually(lambda: broker.payloads(AVAILABILITY))
    broker.holds.set()
    reason = eventually(lambda: link.connection.reason)
    assert "acknowledged nothing for 1.33 s" in reason
    broker.holds.clear()
    eventually(is_up(link))
    link.put(record(1))
    eventually(lambda: link.outbox.waiting == 0)


def test_heartbeats_are_sent_only_while_nothing_else_is_acknowledged(scripted, make_link):
    broker = scripted()
    link = make_link(broker.port, timing=LIVELY)
    eventually(lambda: len(broker.payloads(AVAILABILITY)) >= 3)  # online, and two heartbeats
    assert len(broker.connects) == 3 - 1  # asked for MQTT 5, connected, and still is
    said = len(broker.payloads(AVAILABILITY))
    until = time.monotonic() + 1.5 * LIVELY.keep_alive_s
    seq, longest_s, before = 0, 0.0, time.monotonic()
    while time.monotonic() < until:
        seq += 1
        link.put(record(seq))
        time.sleep(0.05)
        before, longest_s = time.monotonic(), max(longest_s, time.monotonic() - before)
    if longest_s < LIVELY.keep_alive_s / 4:  # else this machine has kept us from it
        assert len(broker.payloads(AVAILABILITY)) <= said + 1
    assert {one.retain for one in broker.published if one.topic == AVAILABILITY} == {True}


def test_a_shorter_keep_alive_of_the_broker_is_kept_to(scripted, make_link):
    broker = scripted(Connack(server_keep_alive=2))
    link = make_link(broker.port, settings={"qos": 0})
    eventually(lambda: len(broker.payloads(AVAILABILITY)) >= 4)
    assert link.connection.keep_alive_s == 2
    assert broker.connects[-1].keep_alive_s == KEEP_ALIVE_S
    assert len(broker.connects) == 2


def test_paho_itself_takes_the_keep_alive_of_the_broker(scripted, make_link, monkeypatch):
    clients = []
    opened = Session.open
    monkeypatch.setattr(
        Session, "open", lambda self, patience: (clients.append(self), opened(self, patience))
    )
    broker = scripted(Connack(server_keep_alive=7))
    link = make_link(broker.port)
    eventually(is_up(link))
    assert clients[-1]._client._keepalive == 7


@pytest.mark.parametrize("qos", [0, 1])
def test_a_connection_through_which_nothing_passes_is_noticed(broker, make_link, watch, qos):
    watcher = watch(broker.port)
    valve = Valve(broker.port).start()
    try:
        link = make_link(valve.port, timing=LIVELY, settings={"qos": qos})
        link.put(record(1))
        eventually(lambda: watcher.seqs() == [1])
        valve.freeze()
        began = time.monotonic()
        reason = eventually(lambda: link.connection.reason)
        print(f"noticed after {time.monotonic() - began:.2f} s, qos={qos}")
        assert "acknowledged nothing" in reason
        link.put(record(2))
        valve.thaw()
        # Twice where the acknowledgement was behind the valve.
        eventually(lambda: sorted(set(watcher.seqs())) == [1, 2])
    finally:
        valve.stop()


def test_stop_comes_in_time_where_nothing_passes(broker, make_link, watch):
    watcher = watch(broker.port)
    valve = Valve(broker.port).start()
    try:
        link = make_link(valve.port)
        link.put(record(1))
        eventually(lambda: watcher.seqs() == [1])
        valve.freeze()
        link.put(record(2))
        assert not link.stop(0.5)
        eventually(lambda: not link._thread.is_alive())  # the rest is scheduling
    finally:
        valve.stop()
    eventually(lambda: watcher.payloads(AVAILABILITY)[-1] == b"offline")


def namespaces_are_allowed():
    if not all(shutil.which(name) for name in ("unshare", "nsenter", "ip")):
        return False
    command = ["unshare", "--map-root-user", "--net", "ip", "link", "add", "near", "type", "veth"]
    return subprocess.run(command, capture_output=True).returncode == 0


def unplug(folder, timing):
    """Return what `unplugged.py` printed."""
    script = Path(__file__).with_name("unplugged.py")
    done = subprocess.run(
        [
            "unshare", "--map-root-user", "--net", sys.executable, str(script), str(MOSQUITTO),
            str(folder), str(timing.keep_alive_s), str(timing.answer_within_s),
        ],
        env={**os.environ, "PYTHONPATH": str(Path(agent.__file__).parents[1])},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_cable_that_is_pulled_is_noticed(tmp_path):
    if not namespaces_are_allowed():
        pytest.skip("this user may not make network namespaces and veth pairs")
    told = unplug(tmp_path, LIVELY)
    print(told)
    assert "acknowledged nothing" in told["reason"]


def test_the_thread_ticks_in_every_state(scripted, make_link, monkeypatch):
    broker = scripted()
    resting, rest = threading.Event(), MqttLink._rest
    monkeypatch.setattr(MqttLink, "_rest", lambda self: (resting.set(), rest(self)))
    timing = Timing(connect_timeout_s=60.0, retry_first_s=60.0, retry_max_s=60.0)
    link = make_link(broker.port, timing=timing)

    def ticks():
        before = link.ticked_at
        eventually(lambda: link.ticked_at > before)

    eventually(is_up(link))
    for _ in range(2):
        ticks()  # serving
    broker.stop()
    assert resting.wait(WITHIN_S)
    for _ in range(2):
        ticks()  # resting
    mute = scripted(Connack(raw=b""))
    link = make_link(mute.port, timing=timing)
    eventually(lambda: mute.connects)
    for _ in range(2):
        ticks()  # connecting


def test_a_call_wakes_the_thread(scripted, make_link):
    broker = scripted(answer=lambda _: ACK)
    link = make_link(broker.port)
    eventually(is_up(link))
    link.outbox.put(record(1))  # behind the link's back, as a disk does that is done reading
    link.wake()
    eventually(lambda: broker.payloads(TOPIC) == [b"1"])
