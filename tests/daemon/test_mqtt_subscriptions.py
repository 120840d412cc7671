"""What the link hears: on each connection anew, whatever brokers and publishers send."""

from __future__ import annotations

import logging
import threading
import tracemalloc

import pytest
from brokers import amqtt, mosquitto
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub
from scripted_broker import Answer, publish, suback
from watching import STREAM, WITHIN_S, eventually, record

from agent.daemon.mqtt import subscriptions
from agent.daemon.mqtt.client import MAX_INCOMING, MAX_PACKET_BYTES, MAX_PAYLOAD_BYTES
from agent.daemon.mqtt.session import MAX_IN_FLIGHT, MAX_INCOMING_A_TURN, Incoming, Session
from agent.daemon.mqtt.subscriptions import HOLDS_S, Subscriptions, matches

BIRTH = "homeassistant/status"
AVAILABILITY = "edge/d/availability"


class Heard(list):
    """What a subscriber was told: (topic, payload, retained)."""

    def __call__(self, topic, payload, retained):
        assert threading.current_thread().name == "agent.mqtt"
        self.append((topic, payload, retained))


@pytest.fixture
def heard():
    return Heard()


def is_up(link):
    return lambda: link.connection.connected


def subscribed(log, topic_filter, times=1):
    """Return whether mosquitto has granted a filter so often: `<client> <qos> <filter>`."""
    return lambda: log.read_text().count(f"edge-agent-test 1 {topic_filter}\n") >= times


@pytest.mark.parametrize("start", [mosquitto, amqtt])
def test_what_is_published_later_and_what_was_kept_arrive(
    start, tmp_path, start_broker, watch, make_link, heard
):
    broker = start_broker(start(tmp_path))
    other = watch(broker.port)
    other.client.publish(BIRTH, b"kept", qos=1, retain=True).wait_for_publish(WITHIN_S)
    link = make_link(broker.port, subscriptions=[(BIRTH, 1, heard)])
    eventually(lambda: (BIRTH, b"kept", True) in heard)  # twice, from amqtt
    for number in range(3):

        def is_heard(number=number):
            other.client.publish(BIRTH, b"%d" % number, qos=number % 2)
            return (BIRTH, b"%d" % number, False) in heard

        # Again and again: amqtt grants a subscription before it has made it.
        eventually(is_heard)
    assert link.connection.reconnects == 0
    assert link.connection.refused_subscriptions == ()
    assert link.connection.protocol == ("3.1.1" if start is amqtt else "5")


def test_subscriptions_are_made_again_on_each_connection(broker, watch, make_link, heard):
    make_link(broker.port, subscriptions=[(BIRTH, 1, heard), ("edge/+/command/#", 1, heard)])
    for times in (1, 2):
        eventually(subscribed(broker.log, "edge/+/command/#", times))
        watcher = watch(broker.port)
        watcher.client.publish("edge/d/command/reload", b"%d" % times)
        watcher.client.publish("edge/d/commands", b"no")
        eventually(lambda times=times: len(heard) == times)
        watcher.close()
        broker.stop()
        broker.start()
    assert heard == [("edge/d/command/reload", b"%d" % times, False) for times in (1, 2)]


def test_retained_state_and_online_come_before_the_first_subscription(scripted, make_link, heard):
    order = []
    broker = scripted(answer=lambda one: (order.append(one.topic), Answer())[1])
    broker.grant = lambda asked: (order.append(asked.topic_filter), asked.qos)[1]
    make_link(broker.port, subscriptions=[(BIRTH, 1, heard), ("a/#", 0, heard)])
    eventually(lambda: len(broker.subscribed) == 2)
    assert order.index(AVAILABILITY) < order.index(BIRTH) < order.index("a/#")
    assert [one.qos for one in broker.subscribed] == [1, 0]


def test_the_broker_is_told_what_may_be_sent(scripted, make_link, heard):
    broker = scripted()
    link = make_link(broker.port, subscriptions=[(BIRTH, 1, heard)])
    eventually(is_up(link))
    question, connect = broker.connects[0], broker.connects[-1]
    assert (question.max_packet, question.receive_maximum) == (None, None)
    assert (connect.max_packet, connect.receive_maximum) == (MAX_PACKET_BYTES, MAX_INCOMING)


def test_refused_by_the_access_rules_is_said_once_and_all_else_goes_on(
    tmp_path, start_broker, watch, make_link, heard, caplog
):
    rules = tmp_path / "rules"
    rules.write_text("topic readwrite edge/#\ntopic write homeassistant/#\n")
    # Since 2.0 mosquitto itself grants every subscription and filters each message; 0x80 and 0x87
    # come of a rule for subscriptions, which a plug-in or another broker has.
    broker = start_broker(mosquitto(tmp_path, f"acl_file {rules}"))
    link = make_link(broker.port, subscriptions=[(BIRTH, 1, heard), ("edge/x", 1, heard)])
    eventually(subscribed(broker.log, "edge/x"))
    other = watch(broker.port)
    other.client.publish(BIRTH, b"online")
    other.client.publish("edge/x", b"1")
    eventually(lambda: heard)
    assert heard == [("edge/x", b"1", False)]
    link.put(record(1))
    eventually(lambda: other.seqs() == [1])


@pytest.mark.parametrize("code", [0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2, 0x89])
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_refusal_is_remembered_said_once_and_ends_no_connection(
    scripted, make_link, heard, caplog, code, protocol
):
    broker = scripted()
    code = code if protocol == "5" else 0x80
    if protocol == "3.1.1":
        answer_of_an_old_broker(broker)
    refused = [True]
    broker.grant = lambda asked: code if refused and asked.topic_filter == BIRTH else asked.qos
    with caplog.at_level(logging.WARNING, "agent.daemon.mqtt.subscriptions"):
        link = make_link(broker.port, subscriptions=[(BIRTH, 1, heard), ("edge/x", 1, heard)])
        eventually(lambda: link.connection.refused_subscriptions == (BIRTH,))
        eventually(lambda: broker.subscribed[-1].topic_filter == "edge/x")
        link.put(record(1))
        eventually(lambda: link.outbox.published == 1)
        first = len(broker.connects)
        hang_up(broker)
        eventually(lambda: len(broker.connects) > first and len(broker.subscribed) == 4)
        eventually(lambda: link.connection.refused_subscriptions == (BIRTH,))
        assert link.connection.protocol == protocol
    said = [one.getMessage() for one in caplog.records if "not subscribed" in one.message]
    assert len(said) == 1
    assert f"0x{code:02X}" in said[0]
    assert BIRTH in said[0]
    refused.clear()
    hang_up(broker)
    eventually(lambda: len(broker.subscribed) == 6)
    eventually(lambda: link.connection.refused_subscriptions == ())


def answer_of_an_old_broker(broker):
    """Let a scripted broker refuse MQTT 5."""
    encode = broker.connack.encode

    class Old:
        code = receive_maximum = max_packet = None

        def encode(self, protocol):
            self.code = 1 if protocol > 4 else 0
            return bytes((0x20, 3, 0, 0x84, 0)) if protocol > 4 else encode(protocol)

    broker.connack = Old()


def hang_up(broker):
    """Have the broker say that it shuts down; for MQTT 3.1.1 that is no packet at all."""
    broker.send(bytes((0xE0, 2, 0x8B, 0)))


def test_a_broker_that_hangs_up_over_a_filter_keeps_all_else(scripted, make_link, heard, caplog):
    broker = scripted()
    broker.grant = lambda asked: Answer(hang_up=True) if asked.topic_filter == BIRTH else asked.qos
    link = make_link(broker.port, subscriptions=[(BIRTH, 1, heard), ("edge/x", 1, heard)])
    link.retain("edge/d/status", b"state")
    for seq in range(1, 51):
        link.put(record(seq))
    eventually(lambda: link.outbox.published == 50)
    eventually(lambda: link.connection.refused_subscriptions == (BIRTH,))
    eventually(lambda: "edge/x" in [one.topic_filter for one in broker.subscribed])
    asked = [one.topic_filter for one in broker.subscribed]
    assert asked.count(BIRTH) == subscriptions.STRIKES
    # No message is accused: nothing was given up.
    assert link.outbox.dropped == 0
    assert [int(one) for one in broker.payloads(f"edge/d/{STREAM}")][-1] == 50
    broker.send(publish(b"edge/x", b"1"))
    eventually(lambda: heard == [("edge/x", b"1", False)])
    hang_up(broker)
    eventually(lambda: asked.count("edge/x") < len(broker.subscribed) - subscriptions.STRIKES)
    assert [one.topic_filter for one in broker.subscribed].count(BIRTH) == subscriptions.STRIKES


def test_a_filter_that_is_not_answered_does_not_hold_up_the_next(
    scripted, make_link, heard, monkeypatch
):
    monkeypatch.setattr(subscriptions, "ANSWERS_WITHIN_S", 0.1)
    broker = scripted()
    broker.grant = lambda asked: None if asked.topic_filter == BIRTH else asked.qos
    link = make_link(broker.port, subscriptions=[(BIRTH, 1, heard), ("edge/x", 1, heard)])
    eventually(lambda: len(broker.subscribed) == 2)
    assert link.connection.connected
    eventually(lambda: link.connection.refused_subscriptions == (BIRTH,))
    link.put(record(1))
    eventually(lambda: link.outbox.published == 1)


@pytest.mark.parametrize("codes", [b"", b"\x00\x00\x00", b"\x02"])
def test_subacks_of_the_wrong_size_end_no_connection(scripted, make_link, heard, codes):
    broker = scripted()
    broker.grant = lambda asked: Answer(
        raw=bytes((0x90, 3 + len(codes), asked.mid >> 8, asked.mid & 0xFF, 0)) + codes
        + suback(asked.mid + 1000, 0x87)
    )  # fmt: skip
    link = make_link(broker.port, subscriptions=[(BIRTH, 1, heard)])
    eventually(lambda: broker.subscribed)
    broker.send(publish(BIRTH.encode(), b"1"))
    eventually(lambda: heard)
    assert len(broker.connects) == 2  # the question for MQTT 5, and the connection
    assert link.connection.refused_subscriptions == ((BIRTH,) if not codes else ())


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_what_nobody_can_use_is_acknowledged_and_dropped(
    scripted, make_link, heard, caplog, protocol
):
    broker = scripted()
    if protocol == "3.1.1":
        answer_of_an_old_broker(broker)
    number = 5 if protocol == "5" else 4

    def fail(topic, payload, retained):
        raise ValueError(payload)

    link = make_link(broker.port, subscriptions=[("a/#", 1, heard), ("bad", 1, fail)])
    eventually(lambda: len(broker.subscribed) == 2)

    def send(topic, payload, mid, **named):
        broker.send(publish(topic, payload, qos=1, mid=mid, protocol=number, **named))

    send(b"a/\xff\xfe", b"topic is not UTF-8", 1)
    send(b"a/b", b"x" * MAX_PAYLOAD_BYTES, 2)
    send(b"a/c", b"x" * (MAX_PAYLOAD_BYTES + 1), 3)
    send(b"a/d", b"x" * (8 << 20), 4)  # a broker of 3.1.1 cannot be told what we take
    send(b"bad", b"the subscriber fails", 5)
    send(b"not/asked/for", b"", 6)
    send(b"a/\x00\xc2\x80", b"\xff\xfe", 7, retain=True)
    eventually(lambda: broker.acknowledged == list(range(1, 8)))
    eventually(lambda: len(heard) == 2)
    assert heard[0] == ("a/b", b"x" * MAX_PAYLOAD_BYTES, False)
    assert heard[1] == ("a/\x00\x80", b"\xff\xfe", True)
    assert link.connection.connected
    assert len(broker.connects) == 2
    said = [one.getMessage() for one in caplog.records]
    assert len([one for one in said if "message dropped" in one]) == 1
    assert len([one for one in said if "could not be used" in one]) == 1


def test_a_large_message_takes_no_memory(scripted, make_link, heard):
    broker = scripted()
    answer_of_an_old_broker(broker)
    link = make_link(broker.port, subscriptions=[("a/#", 1, heard)])
    eventually(lambda: broker.subscribed)
    large = publish(b"a/large", bytes(32 << 20), qos=1, mid=9, protocol=4)
    after = publish(b"a/small", b"1", protocol=4)
    tracemalloc.start()
    try:
        broker.send(large)
        broker.send(after)
        eventually(lambda: heard == [("a/small", b"1", False)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # What is read at once, and what is kept of a packet, several times over.
    assert peak < 4 << 20
    eventually(lambda: broker.acknowledged == [9])
    assert link.connection.connected


def test_a_message_over_the_limit_is_not_even_sent_by_a_broker_of_mqtt_5(
    broker, watch, make_link, heard
):
    make_link(broker.port, subscriptions=[("a/#", 1, heard)])
    eventually(subscribed(broker.log, "a/#"))
    other = watch(broker.port)
    other.client.publish("a/large", bytes(MAX_PACKET_BYTES + 1), qos=1)
    other.client.publish("a/small", b"1", qos=1)
    eventually(lambda: heard == [("a/small", b"1", False)])


def test_a_flood_does_not_keep_us_from_publishing(scripted, make_link, heard, monkeypatch):
    heard_by, send = [], Session.publish

    def hear(topic, payload, retained):
        heard(topic, payload, retained)
        if len(heard) == 1:
            for seq in range(1, 101):
                link.put(record(seq))

    def note_and_send(self, topic, *args, **named):
        if topic == f"edge/d/{STREAM}":
            heard_by.append(len(heard))
        return send(self, topic, *args, **named)

    monkeypatch.setattr(Session, "publish", note_and_send)
    broker = scripted()
    link = make_link(broker.port, subscriptions=[("flood", 0, hear)])
    eventually(lambda: broker.subscribed)
    count = 8_000
    broker.send(publish(b"flood", b"1") * count)
    # What the broker acknowledges comes behind what it has sent before, so a window of them.
    eventually(lambda: len(broker.payloads(f"edge/d/{STREAM}")) >= MAX_IN_FLIGHT - 1)
    assert heard_by[MAX_IN_FLIGHT - 2] < count
    eventually(lambda: link.outbox.published == 100)
    assert len(heard) == count


def test_at_most_so_many_are_taken_in_a_turn(scripted, make_link, monkeypatch):
    batches, batch = [], []
    settle = Subscriptions.refused.fget
    monkeypatch.setattr(
        Subscriptions,
        "refused",
        property(lambda self: (batches.append(len(batch)), batch.clear(), settle(self))[2]),
    )
    broker = scripted()
    make_link(broker.port, subscriptions=[("a", 1, lambda *message: batch.append(message))])
    eventually(lambda: broker.subscribed)
    broker.send(publish(b"a", b"1") * 1000)
    eventually(lambda: sum(batches) == 1000)
    assert max(batches) == MAX_INCOMING_A_TURN


def test_a_subscription_the_broker_hung_up_over_is_tried_again_after_a_long_time():
    now = [0.0]
    wanted = Subscriptions(lambda: now[0])
    wanted.add("a", 1, lambda *_: None)

    class Line:
        asked = 0

        def subscribe(self, topic_filter, qos):
            self.asked += 1
            return self.asked

    line = Line()
    for _ in range(subscriptions.STRIKES):
        wanted.begin()
        wanted.pump(line)
        assert wanted.end(0)
    assert wanted.refused == ("a",)
    wanted.begin()
    wanted.pump(line)
    assert line.asked == subscriptions.STRIKES
    assert not wanted.end(0)
    now[0] += HOLDS_S + 1
    wanted.begin()
    wanted.pump(line)
    wanted.settle(line.asked, [1])
    assert wanted.refused == ()


@pytest.mark.parametrize(
    ("code", "after_s"),
    [(None, 0.0), (0x8B, 0.0), (0x8E, 0.0), (0, subscriptions.HANGS_UP_WITHIN_S + 1)],
)
def test_an_end_that_has_other_reasons_is_not_held_against_a_filter(code, after_s):
    now = [0.0]
    wanted = Subscriptions(lambda: now[0])
    wanted.add("a", 1, lambda *_: None)

    class Line:
        def subscribe(self, topic_filter, qos):
            return 7

    for _ in range(5):
        wanted.begin()
        wanted.pump(Line())
        now[0] += after_s
        assert not wanted.end(code)
    assert wanted.refused == ()


level = st.sampled_from(["", "a", "b", "$s", "é"])
topics = st.lists(level, min_size=1, max_size=4).map("/".join).filter(bool)
filters = st.builds(
    lambda levels, end: "/".join(levels + end),
    st.lists(st.one_of(level, st.just("+")), max_size=4),
    st.sampled_from([[], ["#"]]),
).filter(bool)


@given(topic_filter=filters, topic=topics)
def test_filters_match_as_the_standard_says(topic_filter, topic):
    assert matches(topic_filter, topic) == topic_matches_sub(topic_filter, topic)


@given(topic=st.one_of(st.none(), st.text()), payload=st.one_of(st.none(), st.binary()))
def test_no_message_raises(topic, payload):
    told = []
    wanted = Subscriptions()
    wanted.add("+/#", 1, lambda *message: told.append(message))
    wanted.hand_out(Incoming(topic, payload, retained=False, size=0))
    is_told = topic is not None and payload is not None and not topic.startswith("$")
    assert told == ([(topic, payload, False)] if is_told else [])
