"""The link against a broker that follows a script: limits on the wire, and every answer."""

from __future__ import annotations

import itertools
import logging
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_broker import ACK, CLIENT_WINDOW, Answer, Connack, ScriptedBroker, ended_with, puback
from watching import FAST, LIVELY, STREAM, eventually, gap_record, record

from agent.config import MqttConfig
from agent.daemon.mqtt import MqttLink
from agent.daemon.mqtt import delivery as mqtt_delivery
from agent.daemon.mqtt.session import KEEP_ALIVE_S
from agent.daemon.outbox import Outbox

AVAILABILITY = "edge/d/availability"
GAP = "edge/d/gap"
TOPIC = f"edge/d/{STREAM}"
YARD = "camera/yard/detections"


@pytest.fixture(autouse=True)
def _quick_pauses(monkeypatch):
    monkeypatch.setattr(mqtt_delivery, "PAUSE_FIRST_S", 0.02)
    monkeypatch.setattr(mqtt_delivery, "PAUSE_MAX_S", 0.05)
    monkeypatch.setattr(mqtt_delivery, "GAPS_EVERY_S", 0.05)


def is_up(link):
    return lambda: link.connection.connected


def seqs(broker, stream=STREAM):
    return [int(payload) for payload in broker.payloads(f"edge/d/{stream}")]


def once(sequence, answer, topic=TOPIC):
    """Return a script that gives `answer` to the first message with this number, else a PUBACK."""
    given_already = []

    def script(published):
        asked = published.topic == topic and published.payload.strip() == f"{sequence}".encode()
        if asked and not given_already:
            given_already.append(published)
            return answer
        return ACK

    return script


def each(codes):
    """Return a script that answers messages of a number, by `codes`, else with a PUBACK."""

    def script(published):
        return Answer(code=codes.get((published.topic, published.payload.strip().decode()), 0))

    return script


@pytest.mark.parametrize("allowed", [1, 2, 19, 20, 21, None, 65_535])
def test_never_more_unanswered_than_both_sides_allow(scripted, make_link, allowed):
    broker = scripted(Connack(receive_maximum=allowed), lambda _: Answer(after_s=0.03))
    broker.holds.set()
    link = make_link(broker.port)
    link.retain("edge/d/status", b"1")
    count = 100 if (allowed or 20) > 2 else 12
    for seq in range(1, count + 1):
        link.put(record(seq))
    # Held up as it was, it reached its window, and never passed it.
    window = min(CLIENT_WINDOW, allowed or CLIENT_WINDOW)
    eventually(lambda: broker.most_unanswered >= window)
    broker.holds.clear()
    eventually(lambda: link.outbox.published == count)
    assert broker.most_unanswered == window
    assert seqs(broker) == list(range(1, count + 1))
    assert link.connection.receive_maximum == (allowed or 65_535)


def test_answers_out_of_order_do_not_widen_the_window(scripted, make_link):
    delays = itertools.cycle([0.05, 0.0, 0.02])
    broker = scripted(Connack(receive_maximum=3), lambda _: Answer(after_s=next(delays)))
    link = make_link(broker.port)
    for seq in range(1, 61):
        link.put(record(seq))
    eventually(lambda: link.outbox.published == 60)
    assert seqs(broker) == list(range(1, 61))


def test_a_window_of_one_is_kept_to_by_heartbeats_too(scripted, make_link):
    broker = scripted(Connack(receive_maximum=1, server_keep_alive=1))
    link = make_link(broker.port)
    eventually(lambda: len(broker.payloads(AVAILABILITY)) >= 3)
    assert broker.most_unanswered == 1
    assert link.connection.keep_alive_s == 1


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=15, deadline=None)
@given(
    allowed=st.one_of(st.none(), st.integers(1, 25)),
    delays_ms=st.lists(st.integers(0, 8), min_size=1, max_size=7),
    codes=st.lists(st.sampled_from([0, 0, 0, 0x10, 0x97, 0x87]), min_size=1, max_size=9),
    hangs_up=st.sets(st.integers(1, 60), max_size=2),
)
def test_whatever_a_broker_answers_the_window_holds_and_nothing_is_lost(
    allowed, delays_ms, codes, hangs_up
):
    delays, answers = itertools.cycle(delays_ms), itertools.cycle(codes)
    counts, refused, accepted = itertools.count(1), set(), set()

    def script(published):
        if published.topic != TOPIC:
            return ACK
        if next(counts) in hangs_up:
            return Answer(hang_up=True)
        code, seq = next(answers), int(published.payload)
        if code == 0x97 and next(counts) > 80:
            code = 0
        {0x87: refused, 0x97: set()}.get(code, accepted).add(seq)
        return Answer(code=code, after_s=next(delays) / 1000)

    broker = ScriptedBroker(Connack(receive_maximum=allowed), script).start()
    link = MqttLink(
        MqttConfig(url=f"mqtt://127.0.0.1:{broker.port}"), client_id="x",
        availability_topic=AVAILABILITY, outbox=Outbox(max_bytes=1 << 20, folder=None),
        gap_record=gap_record, timing=FAST,
    )  # fmt: skip
    link.start()
    try:
        for seq in range(1, 31):
            link.put(record(seq))
        eventually(lambda: link.outbox.waiting == 0)
        assert accepted | refused == set(range(1, 31))
        assert link.outbox.published + link.outbox.dropped == 30
    finally:
        link.stop(1.0)
        broker.stop()
    assert not broker.faults


def test_a_tiny_packet_limit_costs_what_is_larger_and_nothing_else(scripted, make_link):
    broker = scripted(Connack(max_packet=60))
    link = make_link(broker.port)
    for seq in range(1, 9):
        link.put(record(seq, size=40 if seq in (3, 4) else 5))
    eventually(lambda: seqs(broker) == [1, 2, 5, 6, 7, 8])
    eventually(lambda: broker.payloads(GAP) == [b"3-4 too_large"])
    assert link.connection.max_packet == 60
    assert len(broker.connects) == 2


def test_a_packet_limit_below_everything_neither_spins_nor_disconnects(scripted, make_link):
    broker = scripted(Connack(max_packet=10))
    link = make_link(broker.port, timing=LIVELY)
    link.put(record(1))
    eventually(lambda: link.outbox.dropped == 1)
    turns = []
    link._delivery.pump, pump = lambda: (turns.append(1), pump()), link._delivery.pump
    time.sleep(1.2)  # a heartbeat was due, and cannot be sent either
    assert len(turns) < 50
    assert link.connection.connected


@pytest.mark.parametrize("code", [0x88, 0x89, 0x91, 0x96, 0x97])
def test_not_now_keeps_the_record_for_as_long_as_it_takes(scripted, make_link, code):
    refusals = itertools.count()

    def script(published):
        if published.payload.strip() == b"3" and next(refusals) < 8:
            return Answer(code=code)
        return ACK

    broker = scripted(answer=script)
    link = make_link(broker.port)
    for seq in range(1, 31):
        link.put(record(seq))
    eventually(lambda: link.outbox.waiting == 0)
    assert (link.outbox.published, link.outbox.dropped) == (30, 0)
    assert seqs(broker).count(3) == 9
    # What was on the wire beside the first refusal cannot be called back; after that, the
    # refused one is alone until it is taken, and what follows it is in order.
    last = len(seqs(broker)) - seqs(broker)[::-1].index(3) - 1
    assert seqs(broker)[last + 1 :] == sorted(seqs(broker)[last + 1 :])
    assert len(broker.connects) == 2
    assert broker.connects[-1].keep_alive_s == KEEP_ALIVE_S


def test_with_a_window_of_one_a_refusal_for_now_keeps_the_order(scripted, make_link):
    broker = scripted(Connack(receive_maximum=1), once(3, Answer(code=0x97)))
    link = make_link(broker.port)
    for seq in range(1, 7):
        link.put(record(seq))
    eventually(lambda: seqs(broker) == [1, 2, 3, 3, 4, 5, 6])


@pytest.mark.parametrize("code", [0x80, 0x83])
def test_an_unclear_refusal_that_passes_loses_nothing(scripted, make_link, code):
    broker = scripted(answer=once(3, Answer(code=code)))
    link = make_link(broker.port)
    for seq in range(1, 11):
        link.put(record(seq))
    eventually(lambda: link.outbox.published == 10)
    assert link.outbox.dropped == 0


@pytest.mark.parametrize("code", [0x80, 0x83])
def test_an_unclear_refusal_that_stays_costs_that_topic_and_not_the_others(
    scripted, make_link, code
):
    broker = scripted(answer=each({(f"edge/d/{YARD}", f"{seq}"): code for seq in range(1, 21)}))
    link = make_link(broker.port)
    for seq in range(1, 21):
        link.put(record(seq))
        link.put(record(seq, stream=YARD))
    eventually(lambda: link.outbox.waiting == 0)
    assert (link.outbox.published, link.outbox.dropped) == (20, 20)
    assert sorted(set(seqs(broker))) == list(range(1, 21))


@pytest.mark.parametrize("code", [0x80, 0x83, 0x97])
def test_a_broker_that_refuses_everything_for_a_while_costs_nothing(scripted, make_link, code):
    is_full = [True]
    broker = scripted(answer=lambda one: Answer(code=code if is_full and one.topic == TOPIC else 0))
    link = make_link(broker.port)
    for seq in range(1, 31):
        link.put(record(seq))
    eventually(lambda: len(seqs(broker)) >= 30)
    is_full.clear()
    eventually(lambda: link.outbox.waiting == 0)
    assert (link.outbox.published, link.outbox.dropped) == (30, 0)


@pytest.mark.parametrize("code", [0x87, 0x90, 0x99, 0x9A])
def test_never_costs_that_topic_and_is_said_once(scripted, make_link, caplog, code):
    broker = scripted(answer=each({(f"edge/d/{YARD}", f"{seq}"): code for seq in range(1, 21)}))
    with caplog.at_level(logging.ERROR):
        link = make_link(broker.port)
        for seq in range(1, 21):
            link.put(record(seq))
            link.put(record(seq, stream=YARD))
        eventually(lambda: link.outbox.published == 20)
        eventually(lambda: link.outbox.dropped == 20)
    assert seqs(broker) == list(range(1, 21))
    assert seqs(broker, YARD) == list(range(1, 21))
    eventually(lambda: sum(_counts(broker.payloads(GAP))) == 20)
    assert {payload.split()[1] for payload in broker.payloads(GAP)} == {b"refused"}
    (said,) = [entry for entry in caplog.records if entry.levelno == logging.ERROR]
    assert f"0x{code:02X}" in said.getMessage()
    assert YARD in said.getMessage()
    assert link.connection.reconnects == 0


def _counts(gaps):
    for gap in gaps:
        first, last = gap.split()[0].split(b"-")
        yield int(last) - int(first) + 1


@pytest.mark.parametrize(
    "answer",
    [
        ended_with(0x8B), ended_with(0x97), ended_with(0x93), ended_with(0x8E),
        Answer(hang_up=True), Answer(raw=b"\x40", hang_up=True),
    ],
    ids=["shutting down", "quota", "window", "taken over", "hang up", "half a packet"],
)  # fmt: skip
def test_an_end_in_the_middle_loses_nothing(scripted, make_link, answer):
    broker = scripted(answer=once(5, answer))
    link = make_link(broker.port)
    for seq in range(1, 31):
        link.put(record(seq))
    eventually(lambda: link.outbox.waiting == 0)
    assert (link.outbox.published, link.outbox.dropped) == (30, 0)
    assert link.connection.reconnects == 1
    by_connection = [
        [int(one.payload) for one in broker.published if (one.connection, one.topic) == (n, TOPIC)]
        for n in (1, 2)
    ]
    assert all(sent == sorted(sent) for sent in by_connection)


def test_a_disconnect_that_accuses_nobody_never_costs_a_record(scripted, make_link):
    # As when two boards have the same id: each connection ends with one message on the wire.
    ends = itertools.count()

    def script(published):
        takes_over = published.topic == TOPIC and next(ends) < 12
        return ended_with(0x8E) if takes_over else ACK

    broker = scripted(Connack(receive_maximum=1), script)
    link = make_link(broker.port)
    link.put(record(1))
    eventually(lambda: link.outbox.published == 1)
    assert link.outbox.dropped == 0


def test_a_disconnect_over_the_size_costs_that_record_alone(scripted, make_link):
    broker = scripted(answer=lambda one: ended_with(0x95) if len(one.payload) > 1000 else ACK)
    link = make_link(broker.port)
    for seq in range(1, 11):
        link.put(record(seq, size=2000 if seq == 4 else 20))
    eventually(lambda: link.outbox.waiting == 0)
    assert (link.outbox.published, link.outbox.dropped) == (9, 1)
    eventually(lambda: broker.payloads(GAP) == [b"4-4 too_large"])


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 64, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x40\x00", b"\x40\x01\x00",
        b"\x40\x03\x00\x01\xee", b"\x30\x02\xff\xff", b"\x30\x05\x00\x01\xff\x00\x00",
        b"\x40\x05\x00\x01\x00\x7f\x7f", b"\xe0\x02\x8b\x05", b"\x00\x00", b"\xd0\x05abcde",
        b"\x40\xff\xff\xff\xff\xff", b"\x20\x03\x00\x00\x00",
    ],
)  # fmt: skip
def test_garbage_costs_a_connection_at_most(scripted, make_link, garbage):
    broker = scripted(answer=once(2, Answer(raw=garbage)))
    link = make_link(broker.port, timing=LIVELY)
    for seq in range(1, 5):
        link.put(record(seq))
    eventually(lambda: link.outbox.waiting == 0)
    assert (link.outbox.published, link.outbox.dropped) == (4, 0)
    assert link._thread.is_alive()


@settings(max_examples=25, deadline=None)
@given(garbage=st.one_of(st.binary(max_size=40), st.builds(
    lambda kind, body: bytes((kind << 4, len(body))) + body,
    st.integers(0, 15), st.binary(max_size=20),
)))  # fmt: skip
def test_no_bytes_whatever_end_the_thread(garbage):
    broker = ScriptedBroker(answer=once(1, Answer(raw=garbage, hang_up=True))).start()
    link = MqttLink(
        MqttConfig(url=f"mqtt://127.0.0.1:{broker.port}"), client_id="x",
        availability_topic=AVAILABILITY, outbox=Outbox(max_bytes=1 << 20, folder=None),
        gap_record=gap_record, timing=FAST,
    )  # fmt: skip
    link.start()
    try:
        link.put(record(1))
        link.put(record(2))
        eventually(lambda: link.outbox.waiting == 0)
        assert link._thread.is_alive()
        assert not link.ensure_running()
    finally:
        link.stop(1.0)
        broker.stop()
    # A PUBACK made up by chance may have accepted what was on the wire.
    assert not broker.faults


def test_half_a_puback_and_then_silence_is_noticed(scripted, make_link):
    broker = scripted(answer=once(1, Answer(raw=puback(1, 0)[:3])))
    link = make_link(broker.port, timing=LIVELY)
    link.put(record(1))
    eventually(lambda: link.connection.reason)
    eventually(lambda: link.outbox.published == 1)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0x86, "refuses the user or password"), (0x87, "does not authorize"), (0x88, "unavailable"),
        (0x89, "busy"), (0x97, "out of quota"), (0x9F, "limiting its connections"),
        (0x85, "client's id"), (0x8A, "banned"), (0x9C, "use another server"), (0x80, "0x80"),
    ],
)  # fmt: skip
def test_a_refused_connection_is_explained_and_tried_again(scripted, make_link, code, words):
    broker = scripted(Connack(code=code))
    link = make_link(broker.port)
    link.put(record(1))
    eventually(lambda: link.connection.reason)
    assert words in link.connection.reason
    broker.connack = Connack()
    eventually(lambda: link.outbox.published == 1)


def test_stop_says_offline_and_disconnects_in_the_middle_of_a_refusal(scripted, make_link):
    broker = scripted(answer=lambda one: Answer(code=0x97 if one.topic == TOPIC else 0))
    link = make_link(broker.port)
    link.put(record(1))
    eventually(lambda: seqs(broker))
    assert not link.stop(3.0)
    eventually(lambda: broker.payloads(AVAILABILITY)[-1] == b"offline")
    eventually(lambda: len(broker.farewells) == 2)
    assert broker.published[-1].payload == b"offline"


def test_where_offline_is_refused_the_last_will_says_it(scripted, make_link):
    broker = scripted(answer=lambda one: Answer(code=0x97 if one.payload == b"offline" else 0))
    link = make_link(broker.port)
    eventually(is_up(link))
    link.stop(3.0)
    eventually(lambda: broker.payloads(AVAILABILITY) == [b"online", b"offline"])
    assert len(broker.farewells) == 1  # of the connection that only asked for MQTT 5
    assert broker.connects[-1].has_will
