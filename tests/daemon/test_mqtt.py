"""The link against real brokers: what subscribers see, and what survives."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from brokers import amqtt, free_port, mosquitto
from watching import STREAM, WITHIN_S, eventually, record

from agent.config import MqttConfig
from agent.daemon.mqtt import MqttLink, probe
from agent.daemon.mqtt.session import MAX_IN_FLIGHT
from agent.daemon.outbox import Outbox

AVAILABILITY = "edge/d/availability"
STATUS = "edge/d/status"
GAP = "edge/d/gap"


def is_up(link):
    return lambda: link.connection.connected


def test_retained_state_comes_before_online_and_both_are_there_for_late_subscribers(
    broker, watch, make_link
):
    watcher = watch(broker.port)
    link = make_link(broker.port)
    link.retain(STATUS, b"one")
    eventually(lambda: watcher.payloads(AVAILABILITY) and watcher.payloads(STATUS))
    link.retain(STATUS, b"two")
    eventually(lambda: watcher.payloads(STATUS)[-1] == b"two")
    late = watch(broker.port)
    eventually(lambda: (AVAILABILITY, b"online", True) in late.heard)
    eventually(lambda: (STATUS, b"two", True) in late.heard)


def test_state_set_before_the_connection_is_sent_before_online(broker, watch, make_link):
    watcher = watch(broker.port)
    broker.stop()
    link = make_link(broker.port)
    link.retain(STATUS, b"one")
    broker.start()
    eventually(lambda: watcher.payloads(AVAILABILITY))
    topics = [topic for topic, payload, _ in watcher.heard if payload != b"offline"]
    assert topics.index(STATUS) < topics.index(AVAILABILITY)


def test_results_arrive_in_order_and_stop_says_offline_once(broker, watch, make_link):
    watcher = watch(broker.port)
    link = make_link(broker.port)
    for seq in range(1, 301):
        link.put(record(seq))
    assert link.stop(WITHIN_S)
    eventually(lambda: watcher.payloads(AVAILABILITY)[-1:] == [b"offline"])
    assert watcher.seqs() == list(range(1, 301))
    assert watcher.payloads(AVAILABILITY) == [b"online", b"offline"]
    goodbye = "Received DISCONNECT from edge-agent-test"
    eventually(lambda: goodbye in broker.log.read_text())
    assert link.outbox.published == 300
    assert (link.connection.connected, link.connection.reason) == (False, "stopped")


def test_qos_0_counts_what_was_written(broker, watch, make_link):
    watcher = watch(broker.port)
    link = make_link(broker.port, settings={"qos": 0})
    for seq in range(1, 101):
        link.put(record(seq))
    eventually(lambda: watcher.seqs() == list(range(1, 101)))
    eventually(lambda: link.outbox.published == 100)


def test_what_was_put_before_a_quick_stop_still_arrives(broker, watch, make_link):
    watcher = watch(broker.port)
    link = make_link(broker.port)
    link.put(record(1))
    assert link.stop(WITHIN_S)
    eventually(lambda: watcher.seqs() == [1])


def test_stop_without_a_broker_gives_up_in_time(make_link):
    link = make_link(free_port())
    link.put(record(1))
    assert not link.stop(0.3)
    assert link.outbox.waiting == 1


def test_a_killed_process_leaves_its_last_will(broker, watch):
    watcher = watch(broker.port)
    code = (
        "import sys, time\n"
        "from agent.config import MqttConfig\n"
        "from agent.daemon.mqtt import MqttLink\n"
        "from agent.daemon.outbox import Outbox\n"
        "link = MqttLink(MqttConfig(url=sys.argv[1]), client_id='killed',\n"
        f"    availability_topic='{AVAILABILITY}', gap_record=None,\n"
        "    outbox=Outbox(max_bytes=1 << 20, folder=None))\n"
        "link.start()\n"
        "sys.stdin.read()\n"
    )
    root = Path(__file__).resolve().parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", code, f"mqtt://127.0.0.1:{broker.port}"],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    with child:
        eventually(lambda: watcher.payloads(AVAILABILITY) == [b"online"])
        child.send_signal(signal.SIGKILL)
    eventually(lambda: watcher.payloads(AVAILABILITY) == [b"online", b"offline"])


@pytest.fixture
def gate(monkeypatch):
    """While cleared, a link that lost its broker makes no new attempt."""
    opened = threading.Event()
    monkeypatch.setattr(MqttLink, "_rest", lambda _: opened.wait(WITHIN_S))
    yield opened
    opened.set()


def test_a_broker_restart_mid_stream_loses_nothing_and_keeps_the_order(
    broker, watch, make_link, gate
):
    before = watch(broker.port)
    link = make_link(broker.port)
    streams = (STREAM, "camera/yard/detections")
    half_way = threading.Event()

    def feed():
        for seq in range(1, 501):
            for stream in streams:
                link.put(record(seq, stream=stream))
            if seq == 250:
                half_way.set()
            threading.Event().wait(0.001)

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert half_way.wait(WITHIN_S)
    broker.stop()
    eventually(lambda: not link.connection.connected)
    before.read_to_the_end()
    broker.start()
    after = watch(broker.port)
    gate.set()
    feeder.join()
    for stream in streams:
        eventually(lambda stream=stream: after.seqs(stream)[-1:] == [500])
    eventually(lambda: link.outbox.waiting == 0)
    assert (link.outbox.published, link.outbox.dropped) == (1000, 0)
    assert link.connection.reconnects == 1
    for stream in streams:
        first, second = before.seqs(stream), after.seqs(stream)
        assert first == sorted(set(first))
        assert second == sorted(set(second))
        assert sorted({*first, *second}) == list(range(1, 501))
        # Only what was on the wire when the broker ended is sent twice.
        assert len({*first} & {*second}) <= MAX_IN_FLIGHT


def test_the_last_of_several_reasons_is_logged_once_each(make_link, caplog):
    port = free_port()
    with caplog.at_level(logging.INFO, logger="agent.daemon.mqtt.link"):
        link = make_link(port)
        attempts = []
        link._rest, rest = lambda: (attempts.append(1), rest()), link._rest
        eventually(lambda: len(attempts) >= 5)
        said = [entry for entry in caplog.records if entry.name == "agent.daemon.mqtt.link"]
        assert len(said) == 1
    assert "connection refused" in (link.connection.reason or "")
    assert "mqtt.url" in link.connection.reason


def test_an_outbox_that_overflows_while_the_broker_is_away_names_what_is_missing(
    broker, watch, make_link, gate
):
    broker.stop()
    link = make_link(broker.port, max_bytes=10_000)
    for seq in range(1, 501):
        link.put(record(seq))
    kept = link.outbox.waiting
    broker.start()
    watcher = watch(broker.port)
    gate.set()
    eventually(lambda: watcher.seqs() == list(range(501 - kept, 501)))
    assert watcher.payloads(GAP) == [f"1-{500 - kept} queue_full".encode()]
    eventually(lambda: link.outbox.waiting == 0)
    assert link.outbox.dropped == 500 - kept
    assert [topic for topic, _, _ in watcher.heard][:2] == [AVAILABILITY, GAP]


def test_a_topic_the_broker_forbids_does_not_hold_up_the_others(
    tmp_path, start_broker, watch, make_link
):
    rules = tmp_path / "acl"
    rules.write_text("topic readwrite #\ntopic deny edge/d/camera/yard/detections\n")
    rules.chmod(0o600)
    broker = start_broker(mosquitto(tmp_path, f"acl_file {rules}"))
    watcher = watch(broker.port)
    link = make_link(broker.port)
    for seq in range(1, 51):
        link.put(record(seq))
        link.put(record(seq, stream="camera/yard/detections"))
    eventually(lambda: watcher.seqs() == list(range(1, 51)))
    eventually(lambda: watcher.payloads(GAP) == [b"1-50 refused"])
    assert (link.outbox.published, link.outbox.dropped) == (50, 50)
    assert link.connection.reconnects == 0


def test_a_broker_that_hangs_up_after_each_refusal_loses_only_what_it_refused(
    tmp_path, start_broker, watch, make_link
):
    # So does mosquitto 2.0.11 with this setting: it takes 0 for a full queue (handle__publish.c).
    rules = tmp_path / "acl"
    rules.write_text("topic readwrite #\ntopic deny edge/d/camera/yard/detections\n")
    rules.chmod(0o600)
    broker = start_broker(mosquitto(tmp_path, f"acl_file {rules}", "max_queued_messages 0"))
    watcher = watch(broker.port)
    link = make_link(broker.port)
    for seq in range(1, 21):
        link.put(record(seq))
        link.put(record(seq, stream="camera/yard/detections"))
    eventually(lambda: link.outbox.waiting == 0)
    eventually(lambda: sorted(set(watcher.seqs())) == list(range(1, 21)))
    assert (link.outbox.published, link.outbox.dropped) == (20, 20)


def test_rights_that_are_given_later_are_noticed(tmp_path, start_broker, watch, make_link, caplog):
    rules = tmp_path / "acl"
    rules.write_text(f"topic read #\ntopic write {AVAILABILITY}\ntopic write {STATUS}\n")
    rules.chmod(0o600)
    broker = start_broker(mosquitto(tmp_path, f"acl_file {rules}"))
    watcher = watch(broker.port)
    link = make_link(broker.port)
    link.put(record(1))
    eventually(lambda: link.outbox.dropped == 1)
    rules.write_text("topic readwrite #\n")
    broker.process.send_signal(signal.SIGHUP)  # mosquitto(8): reads its rules again
    seq = 1

    def arrives():
        nonlocal seq
        seq += 1
        link.put(record(seq))
        return watcher.seqs()

    eventually(arrives)
    said = [entry.getMessage() for entry in caplog.records if "message given up" in entry.message]
    assert [line for line in said if STREAM in line] == said[:1]
    assert "access rules" in said[0]


def test_results_over_the_packet_limit_are_named_and_the_rest_flows(
    tmp_path, start_broker, watch, make_link
):
    broker = start_broker(mosquitto(tmp_path, "max_packet_size 2000"))
    watcher = watch(broker.port)
    link = make_link(broker.port)
    for seq in range(1, 11):
        link.put(record(seq, size=5000 if seq in (4, 5) else 20))
    eventually(lambda: watcher.seqs() == [1, 2, 3, 6, 7, 8, 9, 10])
    eventually(lambda: watcher.payloads(GAP) == [b"4-5 too_large"])
    assert link.connection.max_packet == 2000
    assert link.connection.reconnects == 0


def test_a_puback_that_says_too_large_gives_up_that_record_alone(
    tmp_path, start_broker, watch, make_link
):
    broker = start_broker(mosquitto(tmp_path, "message_size_limit 1000"))
    watcher = watch(broker.port)
    link = make_link(broker.port)
    for seq in range(1, 11):
        link.put(record(seq, size=5000 if seq == 4 else 20))
    eventually(lambda: watcher.seqs() == [1, 2, 3, 5, 6, 7, 8, 9, 10])
    eventually(lambda: watcher.payloads(GAP) == [b"4-4 too_large"])
    assert link.connection.reconnects == 0


def speak_only_311(monkeypatch):
    connect = MqttLink._connect
    monkeypatch.setattr(MqttLink, "_connect", lambda self, _, topic: connect(self, "3.1.1", topic))


def test_a_broker_that_can_only_hang_up_does_not_stop_the_stream(
    tmp_path, start_broker, watch, make_link, monkeypatch
):
    speak_only_311(monkeypatch)
    broker = start_broker(mosquitto(tmp_path, "max_packet_size 2000", "max_queued_messages 0"))
    watcher = watch(broker.port)
    link = make_link(broker.port)
    for seq in range(1, 41):
        link.put(record(seq, size=5000 if seq in (4, 5, 30) else 20))
    eventually(lambda: link.outbox.waiting == 0)
    eventually(lambda: watcher.seqs()[-1:] == [40])
    assert sorted(set(watcher.seqs())) == [seq for seq in range(1, 41) if seq not in (4, 5, 30)]
    assert link.outbox.dropped == 3

    def named():
        return {payload.decode().split()[0] for payload in watcher.payloads(GAP)}

    eventually(lambda: named() in ({"4-5", "30-30"}, {"4-4", "5-5", "30-30"}))


def test_amqtt_is_spoken_to_in_3_1_1(tmp_path, start_broker, watch, make_link):
    broker = start_broker(amqtt(tmp_path))
    watcher = watch(broker.port)
    link = make_link(broker.port)
    link.put(record(1))
    eventually(lambda: watcher.seqs() == [1])
    assert link.connection.protocol == "3.1.1"
    assert probe(MqttConfig(url=f"mqtt://127.0.0.1:{broker.port}"), WITHIN_S) == "3.1.1"


def test_a_broker_that_spoke_5_is_not_left_on_3_1_1(broker, make_link):
    link = make_link(broker.port)
    eventually(is_up(link))
    broker.stop()
    # Something on the port that hangs up without a word, as a broker on its way down does.
    with socket.create_server(("127.0.0.1", broker.port)) as server:
        for _ in range(3):
            server.accept()[0].close()
    broker.start()
    eventually(is_up(link))
    if link.connection.protocol != "5":  # it may have met the new broker half-way
        broker.stop()
        eventually(lambda: not link.connection.connected)
        broker.start()
        eventually(is_up(link))
    assert link.connection.protocol == "5"


def test_a_listener_that_raises_harms_nobody(broker, watch, make_link):
    watcher = watch(broker.port)

    def complain(_):
        raise RuntimeError("injected")

    link = make_link(broker.port, on_change=complain)
    link.put(record(1))
    eventually(lambda: watcher.seqs() == [1])


def test_the_outbox_hears_of_each_change(broker, make_link, monkeypatch):
    told = []
    set_online = Outbox.set_online
    monkeypatch.setattr(
        Outbox, "set_online", lambda self, is_up: (told.append(is_up), set_online(self, is_up))
    )
    link = make_link(broker.port)
    eventually(is_up(link))
    assert told[-1] is True
    broker.stop()
    eventually(lambda: not link.connection.connected)
    assert told[-1] is False
    broker.start()
    eventually(is_up(link))
    assert told[-1] is True
    link.stop(2.0)
    assert told[-1] is False


def test_listeners_hear_of_each_change(broker, make_link):
    heard = []
    link = make_link(broker.port, on_change=heard.append)
    eventually(is_up(link))
    broker.stop()
    eventually(lambda: not link.connection.connected)
    broker.start()
    eventually(is_up(link))
    # A listener hears of it after it is so.
    eventually(lambda: heard[-1].reconnects == 1 and heard[-1].connected)
    assert heard[0].protocol == "5"
    assert [change.connected for change in (heard[0], heard[1], heard[-1])] == [True, False, True]
