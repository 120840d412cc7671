"""What is sent when, and what each answer means, against a channel the test answers for."""

from __future__ import annotations

import pytest
from watching import gap_record, record

from agent.daemon.mqtt_delivery import PAUSE_FIRST_S, STRIKES, Delivery, packet_bytes
from agent.daemon.mqtt_session import MAX_IN_FLIGHT, ConnectionLostError
from agent.daemon.mqtt_words import QUOTA_EXCEEDED
from agent.daemon.outbox import Outbox, Record

HUNG_UP = ConnectionLostError("hung up", by_peer=True)


class FakeChannel:
    """Notes what is published; the test gives the answers."""

    def __init__(self, *, receive_maximum=None, max_packet=None):
        self.receive_maximum = receive_maximum
        self.max_packet = max_packet
        self.alive = True
        self.sent = []

    def publish(self, topic, payload, *, qos, retain):
        if "+" in topic:
            raise ValueError("wildcard")
        self.sent.append((topic, payload, qos, retain))
        return len(self.sent)

    @property
    def payloads(self):
        return [payload.strip() for _, payload, _, _ in self.sent]


class Bench:
    """A delivery with its outbox and a clock the test moves."""

    def __init__(self, qos=1):
        self.now = 0.0
        self.outbox = Outbox(1 << 20)
        self.delivery = Delivery(
            self.outbox, availability_topic="a", gap_record=gap_record, qos=qos,
            clock=lambda: self.now,
        )  # fmt: skip

    def connect(self, **limits):
        channel = FakeChannel(**limits)
        self.delivery.begin(channel)
        self.delivery.pump()
        return channel

    def put(self, *seqs, size=20):
        for seq in seqs:
            self.outbox.put(record(seq, size=size))
        self.delivery.pump()

    def answer(self, *mids, code=0):
        for mid in mids:
            self.delivery.settle(mid, code)
        self.delivery.pump()


@pytest.fixture
def bench():
    return Bench()


def test_state_then_online_then_gaps_then_results(bench):
    bench.outbox.put(Record(topic="t", payload=bytes(1 << 21), stream="s", seq=1))
    bench.put(2)
    bench.delivery.retain("status", b"state")
    channel = bench.connect()
    assert channel.payloads == [b"state", b"online", b"1-1 too_large", b"2"]
    assert [(qos, retain) for _, _, qos, retain in channel.sent] == [
        (1, True), (1, True), (1, False), (1, False),
    ]  # fmt: skip


@pytest.mark.parametrize(("allowed", "window"), [(None, MAX_IN_FLIGHT), (1, 1), (7, 7), (99, 20)])
def test_the_window_is_what_the_broker_allows(bench, allowed, window):
    bench.put(*range(1, 41))
    channel = bench.connect(receive_maximum=allowed)
    assert len(channel.sent) == window
    bench.answer(1)
    assert len(channel.sent) == window + 1


def test_everything_unanswered_is_sent_again_in_order(bench):
    bench.put(1, 2, 3)
    bench.connect()
    bench.answer(1, 3)
    bench.delivery.end(None)
    bench.put(4)
    assert bench.connect().payloads == [b"online", b"1", b"3", b"4"]


def test_quota_exceeded_keeps_the_record_and_asks_again_later(bench):
    channel = bench.connect()
    bench.answer(1)
    bench.put(1, 2, 3)
    bench.answer(3, code=QUOTA_EXCEEDED)
    bench.put(4)
    bench.answer(2, 4)
    assert channel.payloads == [b"online", b"1", b"2", b"3"]
    assert bench.delivery.wait_s(30) == PAUSE_FIRST_S
    bench.now = PAUSE_FIRST_S
    bench.delivery.pump()
    assert channel.payloads[4:] == [b"2", b"4"]
    assert (bench.outbox.dropped, bench.outbox.waiting) == (0, 2)


@pytest.mark.parametrize("code", [0x80, 0x87, 0x90, 0x99])
def test_a_refused_record_is_given_up_and_named(bench, code):
    channel = bench.connect()
    bench.put(1, 2)
    bench.answer(1, 3)
    bench.answer(2, code=code)
    bench.now += 2
    bench.delivery.pump()
    bench.delivery.hurry = True
    bench.delivery.pump()
    assert channel.payloads[-1] == b"1-1 refused"
    assert bench.outbox.published == 1


def test_a_topic_mqtt_does_not_allow_is_given_up(bench):
    bench.outbox.put(Record(topic="a/+", payload=b"", stream="s", seq=1))
    bench.connect()
    assert bench.outbox.dropped == 1


def test_a_poison_record_is_given_up_after_it_ended_three_connections_alone(bench):
    bench.put(1, size=5000)
    bench.put(2, 3)
    deaths = 0
    while bench.outbox.dropped == 0:
        bench.connect()
        while len(bench.delivery._in_flight) == 1 and not any(
            sent.id == 1 for sent in bench.delivery._in_flight.values()
        ):
            bench.answer(next(iter(bench.delivery._in_flight)))
        bench.delivery.end(HUNG_UP)
        deaths += 1
        assert deaths <= STRIKES + 1
    channel = bench.connect()
    while bench.delivery._in_flight:
        bench.answer(*list(bench.delivery._in_flight))
    assert channel.payloads == [b"online", b"1-1 too_large", b"2", b"3"]
    # Its size is remembered: the next one like it costs no connection.
    bench.put(4, size=5000)
    assert bench.outbox.dropped == 2


def test_records_of_a_size_the_broker_took_before_teach_no_limit(bench):
    bench.connect()
    bench.answer(1)
    bench.put(1, size=5000)
    bench.answer(2)
    bench.put(2, size=5000)
    for _ in range(STRIKES):
        bench.delivery.end(HUNG_UP)
        channel = bench.connect()
        bench.answer(1)
    bench.put(3, size=5000)
    bench.answer(2)
    assert channel.payloads == [b"online", b"2-2 too_large", b"3"]


def test_a_connection_that_dies_by_itself_accuses_nobody(bench):
    bench.put(1)
    for _ in range(STRIKES * 2):
        bench.connect()
        bench.answer(1)
        bench.delivery.end(ConnectionLostError("silence"))
    assert bench.outbox.dropped == 0


def test_a_state_too_large_is_said_once_and_skipped(bench, caplog):
    bench.delivery.retain("status", bytes(3000))
    for _ in range(2):
        assert bench.connect(max_packet=1000).payloads == [b"online"]
        bench.delivery.end(None)
    assert len([entry for entry in caplog.records if entry.levelname == "ERROR"]) == 1


def test_offline_is_the_last_word(bench):
    channel = bench.connect()
    bench.answer(1)
    bench.delivery.leave()
    bench.delivery.retain("status", b"late")
    bench.put(1)
    assert channel.payloads == [b"online", b"offline"]
    assert not bench.delivery.has_left
    bench.answer(2)
    assert bench.delivery.has_left
    assert not bench.delivery.delivered


def test_a_gap_note_that_cannot_be_built_does_not_stop_the_rest(bench, caplog):
    def fail(_):
        raise RuntimeError("injected")

    bench.delivery._gap_record = fail
    bench.outbox.put(Record(topic="t", payload=bytes(1 << 21), stream="s", seq=1))
    bench.put(2)
    assert bench.connect().payloads == [b"online", b"2"]
    assert "gap cannot be published" in caplog.text


@pytest.mark.parametrize("size", [0, 100, 127, 128, 16_000, 16_383, 2_097_151])
def test_packet_bytes_is_the_size_on_the_wire(size):
    from paho.mqtt import client as paho
    from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

    written = []

    class Sink:
        def send(self, data):
            written.append(len(data))
            return len(data)

        def close(self):
            pass

    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client._sock = Sink()
    client.publish("größe", bytes(size), qos=1)
    assert packet_bytes(Record(topic="größe", payload=bytes(size))) == sum(written)
