"""What is sent when, and what each answer means, against a channel the test answers for."""

from __future__ import annotations

import pytest
from watching import gap_record, record

from agent.daemon.mqtt.delivery import ONE_AT_A_TIME_S, PACE_S, PAUSE_FIRST_S, Delivery
from agent.daemon.mqtt.refusals import STRIKES, TRIES, packet_bytes
from agent.daemon.mqtt.session import MAX_IN_FLIGHT, ConnectionLostError
from agent.daemon.mqtt.words import QUOTA_EXCEEDED
from agent.daemon.outbox import Outbox, Record

HUNG_UP = ConnectionLostError("hung up", by_peer=True)


class FakeChannel:
    """Notes what is published; the test gives the answers."""

    def __init__(self, *, receive_maximum=None, max_packet=None, keep_alive_s=30.0):
        self.receive_maximum = receive_maximum
        self.max_packet = max_packet
        self.keep_alive_s = keep_alive_s
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
        self.outbox = Outbox(max_bytes=1 << 20, folder=None)
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
    # One at a time from now on, so that the next refusal leaves the order as it is.
    assert channel.payloads[4:] == [b"2"]
    bench.answer(5)
    assert channel.payloads[4:] == [b"2", b"4"]
    assert (bench.outbox.dropped, bench.outbox.waiting) == (0, 1)
    bench.answer(6)
    bench.now += ONE_AT_A_TIME_S
    bench.put(5, 6, 7)
    assert channel.payloads[6:] == [b"online", b"5", b"6", b"7"]


def test_pauses_grow_while_all_is_refused_and_shrink_again(bench):
    channel = bench.connect()
    bench.answer(1)
    bench.put(1)
    waits = []
    for _ in range(9):
        assert channel.payloads[-1] == b"1"
        bench.answer(len(channel.sent), code=QUOTA_EXCEEDED)
        waits.append(bench.delivery._resume_at - bench.now)
        while bench.delivery._resume_at is not None:
            bench.now = min(bench.delivery._resume_at, bench.now + bench.delivery.wait_s(60))
            bench.delivery.pump()
            if channel.payloads[-1] == b"online":
                bench.answer(len(channel.sent))  # a heartbeat during the pause
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert channel.payloads.count(b"online") > 1
    bench.answer(len(channel.sent))
    assert bench.delivery._pause_s == 15
    assert bench.outbox.published == 1


def test_a_refused_heartbeat_is_an_answer_and_does_not_spin(bench, caplog):
    channel = bench.connect()
    for code in (0x97, 0x87, 0x80, 0x97):
        bench.answer(len(channel.sent), code=code)
        before = len(channel.sent)
        bench.delivery.pump()
        bench.delivery.pump()
        assert len(channel.sent) == before
        assert bench.delivery.wait_s(60) > 0
        bench.now += 40
        bench.delivery.pump()
        assert len(channel.sent) == before + 1
    assert len([entry for entry in caplog.records if entry.levelname == "ERROR"]) == 1


def test_a_full_window_on_a_slow_network_is_no_silence(bench):
    bench.put(*range(1, 61))
    channel = bench.connect()
    for mid in range(1, 61):
        bench.now += 15
        assert bench.delivery.unanswered_s() == 15
        bench.answer(mid)
    bench.now += 15
    assert bench.delivery.unanswered_s() == 15
    assert len(channel.sent) == 61


def test_one_message_that_is_never_answered_is_noticed_beside_others_that_are(bench):
    bench.connect()
    bench.answer(1)
    bench.put(1)
    for seq in range(2, 22):
        bench.put(seq)
        bench.now += 1
        bench.answer(seq + 1)
    assert bench.delivery.unanswered_s() == 20


def test_the_outbox_sets_the_pace(bench, monkeypatch):
    monkeypatch.setattr(Outbox, "wait_s", 0.25)
    bench.connect()
    bench.answer(1)
    assert bench.delivery.wait_s(10) == 0.25
    monkeypatch.setattr(Outbox, "wait_s", 0.0)
    assert bench.delivery.wait_s(10) == PACE_S
    monkeypatch.setattr(Outbox, "wait_s", None)
    assert bench.delivery.wait_s(10) == 10


def test_what_is_on_disk_holds_no_goodbye_up(bench, monkeypatch):
    bench.put(1, 2)
    assert not bench.delivery.is_safe
    monkeypatch.setattr(Outbox, "on_disk", 2)
    assert bench.delivery.is_safe
    assert bench.delivery.idle
    assert not bench.delivery.delivered


@pytest.mark.parametrize("code", [0x80, 0x83])
def test_an_unclear_refusal_is_the_message_once_others_were_taken(bench, code):
    channel = bench.connect()
    bench.answer(1)
    bench.put(1)
    for _ in range(TRIES * 3):
        bench.answer(len(channel.sent), code=code)
        bench.now += 30
        bench.delivery.pump()
        if channel.payloads[-1] == b"online":
            bench.answer(len(channel.sent))  # a heartbeat is not enough
    assert bench.outbox.dropped == 0
    bench.delivery.retain("status", b"state")
    bench.delivery.pump()
    while channel.payloads[-1] != b"state":
        bench.answer(len(channel.sent), code=code)
        bench.now += 30
        bench.delivery.pump()
    bench.answer(len(channel.sent))
    bench.answer(len(channel.sent), code=code)
    assert bench.outbox.dropped == 1
    # Its topic has no second chance until something is taken there.
    bench.put(2)
    bench.answer(len(channel.sent), code=code)
    assert bench.outbox.dropped == 2
    bench.now += 2
    bench.put(3)
    while bench.outbox.published == 0:
        bench.answer(len(channel.sent))
    bench.put(4)
    bench.answer(len(channel.sent), code=code)
    assert bench.outbox.dropped == 2


@pytest.mark.parametrize("code", [0x87, 0x90, 0x99, 0x9A])
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
    assert channel.payloads == [b"online", b"2-2 refused", b"3"]


def test_a_broker_that_hangs_up_on_everything_costs_no_record(bench):
    bench.put(1)
    for _ in range(STRIKES * 4):
        bench.connect()
        bench.delivery.end(HUNG_UP)
    assert bench.outbox.dropped == 0
    # `online` is passed over by now, and no limit was learned from it.
    channel = bench.connect()
    assert channel.payloads == [b"1"]
    bench.answer(1)
    bench.put(2, size=5000)
    assert channel.payloads == [b"1", b"2"]


@pytest.mark.parametrize("code", [0x8B, 0x8E, 0x97, 0x98])
def test_a_disconnect_for_another_reason_accuses_nobody(bench, code):
    bench.put(1)
    for _ in range(STRIKES * 2):
        bench.connect()
        bench.answer(1)
        bench.delivery.end(ConnectionLostError("ended", by_peer=True, code=code))
    assert bench.outbox.dropped == 0


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


def test_a_gap_is_told_only_when_the_broker_has_taken_it(bench, monkeypatch):
    told = []
    monkeypatch.setattr(Outbox, "gap_told", lambda _, note: told.append(note.from_seq))
    bench.outbox.put(Record(topic="t", payload=bytes(1 << 21), stream="s", seq=7))
    bench.connect()
    bench.answer(1)
    bench.delivery.end(None)
    assert not told
    assert bench.connect().payloads == [b"online", b"7-7 too_large"]
    bench.answer(1, 2)
    assert told == [7]


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
