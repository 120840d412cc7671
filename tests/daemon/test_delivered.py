"""What the link says of results that have arrived, and what the latency book makes of it."""

from __future__ import annotations

import dataclasses

import pytest
from test_mqtt_delivery import HUNG_UP, FakeChannel
from watching import STREAM, gap_record, record

from agent.daemon.delivered import note_delivered
from agent.daemon.mqtt.delivery import Delivery
from agent.daemon.mqtt.words import FAILURE, QUOTA_EXCEEDED
from agent.daemon.outbox import Outbox
from agent.telemetry.latency import LatencyBook

S = 10**9


class Link:
    """A delivery whose broker is the test; `now` is in seconds."""

    def __init__(self, qos=1):
        self.now = 100.0
        self.outbox = Outbox(max_bytes=1 << 20, folder=None)
        self.told = []
        self.delivery = Delivery(
            self.outbox,
            availability_topic="a",
            gap_record=gap_record,
            qos=qos,
            clock=lambda: self.now,
            on_delivered=lambda *told: self.told.append(told),
        )

    def connect(self):
        """Connect; the broker has taken `online`."""
        channel = FakeChannel()
        self.delivery.begin(channel)
        self.delivery.pump()
        self.delivery.settle(len(channel.sent), 0)
        return channel

    def put(self, one):
        self.outbox.put(one)
        self.delivery.pump()


def stamped(seq, **fields):
    stamps = {"captured_ns": 90 * S, "encoded_ns": 95 * S}
    return dataclasses.replace(record(seq), **{**stamps, **fields})


@pytest.mark.parametrize(("qos", "acknowledged"), [(1, 103 * S), (0, 0)])
def test_a_result_is_told_of_once_it_has_arrived(qos, acknowledged):
    link = Link(qos)
    link.connect()
    link.now = 101.0
    link.put(stamped(1))
    assert link.told == []
    link.now = 103.0
    link.delivery.settle(2, 0)
    assert link.told == [(stamped(1), 101 * S, acknowledged)]
    link.delivery.settle(2, 0)
    assert len(link.told) == 1


def test_of_one_that_was_sent_twice_the_time_that_counted_is_told():
    link = Link()
    link.connect()
    link.put(stamped(1))
    link.delivery.end(HUNG_UP)
    link.now = 200.0
    channel = link.connect()
    link.delivery.pump()
    assert channel.payloads[-1] == b"1"
    link.now = 201.0
    link.delivery.settle(2, 0)
    assert link.told == [(stamped(1), 200 * S, 201 * S)]


def test_one_that_is_refused_is_not_told_of():
    link = Link()
    link.connect()
    link.put(stamped(1))
    link.delivery.settle(2, QUOTA_EXCEEDED)
    assert QUOTA_EXCEEDED >= FAILURE
    assert link.told == []


def test_the_book_counts_results_and_no_telemetry():
    book = LatencyBook({"door": 0.0})
    on_delivered = note_delivered(book, {STREAM: "door"})
    on_delivered(stamped(1), 101 * S, 103 * S)
    on_delivered(stamped(2, stream="telemetry"), 101 * S, 103 * S)
    shown = {stage: times.max for stage, times in book.window("door").items() if times.count}
    assert shown == {"publish": 6000.0, "acknowledge": 2000.0, "end_to_end": 13000.0}
