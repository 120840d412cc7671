"""What is sent over a connection, in which order, and what an answer means.

Order on each connection: retained state, `online`, gap notes, then results from the outbox.
At most a window of messages is unanswered at a time. What was not answered when a connection
ends is sent again on the next one: results by the outbox, state because all of it is always
sent again, gap notes from the backlog here. Only `retain` may be called from any thread; all
else belongs to the link's thread. Knows reason codes, but neither sockets nor paho.

A message no broker will take must not stop those behind it:
- a PUBACK that refuses it, or a known packet limit, gives it up at once;
- a broker that can only hang up (MQTT 3.1.1) leaves a suspect. After a connection ended by
  the broker, messages go one at a time until as many are answered as had been in flight. A
  message that was alone on the wire when the broker hung up within `HANGS_UP_WITHIN_S` has a
  strike; `STRIKES` in a row and it is given up as too large. If it was larger than anything
  this broker ever took, its size counts as the limit for `LIMIT_HOLDS_S`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from agent.daemon.mqtt_session import MAX_IN_FLIGHT, OFFLINE, ONLINE, ConnectionLostError
from agent.daemon.mqtt_words import FAILURE, PACKET_TOO_LARGE, QUOTA_EXCEEDED
from agent.daemon.outbox import GapNote, GapReason, Outbox, Record

logger = logging.getLogger(__name__)

Kind = Literal["state", "availability", "gap", "result"]

STRIKES = 3
HANGS_UP_WITHIN_S = 5.0
LIMIT_HOLDS_S = 600.0
# A note waits this long for more of its kind, so that a burst of drops is one message.
GAPS_EVERY_S = 1.0
SAY_DROPS_EVERY_S = 60.0
PAUSE_FIRST_S, PAUSE_MAX_S = 0.5, 30.0


class Channel(Protocol):
    """The part of a session that delivery needs."""

    max_packet: int | None
    receive_maximum: int | None

    @property
    def alive(self) -> bool:
        """Return whether it is still connected."""
        ...

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> int:
        """Send a message and return its id."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A message on its way, or about to be."""

    kind: Kind
    record: Record
    id: int = 0
    at: float = 0.0

    @property
    def key(self) -> tuple[object, ...]:
        """Return what stays the same when it is sent again."""
        if self.kind == "state":
            return (self.kind, self.record.topic)
        return (self.kind, self.id) if self.id else (self.kind, self.record)


class Delivery:
    """Everything that is owed to the broker, across connections."""

    def __init__(
        self,
        outbox: Outbox,
        *,
        availability_topic: str,
        gap_record: Callable[[GapNote], Record],
        qos: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.hurry = False
        self._outbox = outbox
        self._availability_topic = availability_topic
        self._gap_record = gap_record
        self._qos = qos
        self._clock = clock
        # any thread, guarded by _lock
        self._lock = threading.Lock()
        self._retained: dict[str, bytes] = {}
        self._dirty: dict[str, None] = {}
        # owned by the link's thread: of this connection
        self._channel: Channel | None = None
        self._in_flight: dict[int, Sent] = {}
        self._availability: bytes | None = None
        self._leaving = False
        self._one_at_a_time = 0
        self._resume_at: float | None = None
        # owned by the link's thread: across connections
        self._gap_backlog: deque[Record] = deque()
        self._gaps_due: float | None = None
        self._pause_s = PAUSE_FIRST_S
        self._suspect: tuple[tuple[object, ...], int] = ((), 0)
        self._unsendable: dict[str, bytes] = {}
        self._largest_taken = 0
        self._limit = (0, 0.0)  # packets from this size on are given up, until then
        self._said_at = -SAY_DROPS_EVERY_S
        self._said_dropped = 0

    @property
    def delivered(self) -> bool:
        """Return whether every result, and every note about missing ones, was taken over."""
        return not (self._outbox.waiting or self._gap_backlog or self._outbox.has_gaps)

    @property
    def idle(self) -> bool:
        """Return whether nothing at all is left to say on this connection."""
        return self.delivered and not (self._dirty or self._availability or self._in_flight)

    @property
    def has_left(self) -> bool:
        """Return whether the `offline` of `leave` was answered."""
        waiting = any(sent.kind == "availability" for sent in self._in_flight.values())
        return self._leaving and self._availability is None and not waiting

    def retain(self, topic: str, payload: bytes) -> None:
        """Set the newest state of a topic."""
        with self._lock:
            self._retained[topic] = payload
            self._dirty[topic] = None

    def begin(self, channel: Channel) -> None:
        """Start on an accepted connection."""
        with self._lock:
            self._dirty = dict.fromkeys(self._retained)
        self._channel = channel
        self._availability = ONLINE
        self._leaving = False
        self._resume_at = None
        self._gaps_due = self._clock()  # those that are there already
        if self._one_at_a_time:
            self._one_at_a_time += len(self._dirty) + 1

    def pump(self) -> None:
        """Send what may be sent now."""
        channel = self._channel
        if channel is None or self._is_paused():
            return
        window = self._window(channel)
        while len(self._in_flight) < window and channel.alive:
            message = self._next()
            if message is None:
                return
            self._send(channel, message)

    def settle(self, mid: int, code: int) -> None:
        """Act on the broker's answer to a message."""
        sent = self._in_flight.pop(mid, None)
        if sent is None:
            return
        self._one_at_a_time = max(0, self._one_at_a_time - 1)
        if code == QUOTA_EXCEEDED:
            self._keep(sent)
            if self._resume_at is None:
                self._resume_at = self._clock() + self._pause_s
                self._pause_s = min(PAUSE_MAX_S, self._pause_s * 2)
        elif code >= FAILURE:
            self._give_up(sent, "too_large" if code == PACKET_TOO_LARGE else "refused", code)
        else:
            self._pause_s = PAUSE_FIRST_S
            self._largest_taken = max(self._largest_taken, packet_bytes(sent.record))
            if sent.kind == "result":
                self._outbox.acknowledged(sent.id)

    def wait_s(self, longest_s: float) -> float:
        """Return how long to wait at most before `pump` has something to do by itself."""
        due_s = longest_s
        if self._resume_at is not None:
            due_s = self._resume_at - self._clock()
        elif self._gaps_due is not None:
            due_s = self._gaps_due - self._clock()
        # What is due already was held up by a full window, so an answer comes first.
        return min(longest_s, due_s) if due_s > 0 else longest_s

    def unanswered_s(self) -> float:
        """Return how long the oldest message on the wire has been waiting for its answer."""
        first = next(iter(self._in_flight.values()), None)
        return 0.0 if first is None else self._clock() - first.at

    def leave(self) -> None:
        """Say `offline` as the last thing on this connection, and nothing after it."""
        self._availability = OFFLINE
        self._leaving = True

    def end(self, lost: ConnectionLostError | None) -> None:
        """Take back what the ended connection leaves unanswered."""
        self._channel = None
        unanswered = list(self._in_flight.values())
        self._in_flight.clear()
        by_peer = lost is not None and lost.by_peer
        self._one_at_a_time = len(unanswered) if by_peer else 0
        if lost is not None and by_peer and len(unanswered) == 1:
            self._strike(unanswered[0], lost.code)
        else:
            for sent in reversed(unanswered):
                self._keep(sent)
        self._availability = None
        self._outbox.requeue_in_flight()

    def _window(self, channel: Channel) -> int:
        if self._one_at_a_time:
            return 1
        # An MQTT 5 broker may allow fewer; 3.1.1 has no way to say so.
        return min(MAX_IN_FLIGHT, channel.receive_maximum or MAX_IN_FLIGHT)

    def _is_paused(self) -> bool:
        """Return whether the broker's quota makes us wait; ends the pause when it is over."""
        if self._resume_at is None:
            return False
        if self._in_flight or self._clock() < self._resume_at:
            return True
        # Everything else was answered, so what is left in flight there was held back.
        self._outbox.requeue_in_flight()
        self._resume_at = None
        return False

    def _next(self) -> Sent | None:
        if not self._leaving:
            with self._lock:
                topic = next(iter(self._dirty), None)
                if topic is not None:
                    del self._dirty[topic]
                    return Sent(kind="state", record=self._state(topic))
        if self._availability is not None:
            payload, self._availability = self._availability, None
            record = Record(topic=self._availability_topic, payload=payload)
            return Sent(kind="availability", record=record)
        if self._leaving:
            return None
        self._note_gaps()
        if self._gap_backlog:
            return Sent(kind="gap", record=self._gap_backlog.popleft())
        for record_id, record in self._outbox.take(1):
            return Sent(kind="result", record=record, id=record_id)
        return None

    def _state(self, topic: str) -> Record:
        return Record(topic=topic, payload=self._retained[topic])

    def _send(self, channel: Channel, message: Sent) -> None:
        record = message.record
        if self._unsendable.get(record.topic) == record.payload and message.kind == "state":
            return
        if packet_bytes(record) > self._packet_limit(channel):
            self._give_up(message, "too_large", PACKET_TOO_LARGE)
            return
        state = message.kind in ("state", "availability")
        qos = 1 if state or message.kind == "gap" else self._qos
        at = self._clock()
        try:
            mid = channel.publish(record.topic, record.payload, qos=qos, retain=state)
        except ValueError:
            logger.exception("message cannot be published topic=%s", record.topic)
            self._give_up(message, "refused", FAILURE)
            return
        self._in_flight[mid] = Sent(kind=message.kind, record=record, id=message.id, at=at)

    def _packet_limit(self, channel: Channel) -> float:
        size, until = self._limit
        learned = size - 1 if self._clock() < until else float("inf")
        return min(learned, channel.max_packet or float("inf"))

    def _keep(self, sent: Sent) -> None:
        """Arrange for an unanswered message to be sent again; results stay with the outbox."""
        if sent.kind == "state":
            with self._lock:
                self._dirty[sent.record.topic] = None
        elif sent.kind == "gap":
            self._gap_backlog.appendleft(sent.record)
        elif sent.kind == "availability":
            self._availability = sent.record.payload

    def _give_up(self, sent: Sent, reason: GapReason, code: int) -> None:
        if sent.kind == "result":
            self._outbox.refused(sent.id, reason)
            return
        if sent.kind == "state":
            self._unsendable[sent.record.topic] = sent.record.payload
        logger.error(
            "broker does not take a message topic=%s bytes=%d reason_code=0x%02X",
            sent.record.topic,
            len(sent.record.payload),
            code,
        )

    def _strike(self, sent: Sent, code: int) -> None:
        """Count a hang-up against the only message that was on the wire."""
        key, strikes = self._suspect
        if self._clock() - sent.at <= HANGS_UP_WITHIN_S:
            strikes = strikes + 1 if key == sent.key else 1
            self._suspect = (sent.key, strikes)
            if strikes >= STRIKES or code == PACKET_TOO_LARGE:
                self._suspect = ((), 0)
                size = packet_bytes(sent.record)
                if size > self._largest_taken:
                    self._limit = (size, self._clock() + LIMIT_HOLDS_S)
                self._give_up(sent, "too_large", PACKET_TOO_LARGE)
                return
        self._keep(sent)

    def _note_gaps(self) -> None:
        now = self._clock()
        if not self._outbox.has_gaps:
            self._gaps_due = None
            return
        if self._gaps_due is None:
            self._gaps_due = now + GAPS_EVERY_S
        if now < self._gaps_due and not self.hurry:
            return
        self._gaps_due = None
        for note in self._outbox.take_gaps():
            self._add_gap(note)
        if now - self._said_at >= SAY_DROPS_EVERY_S:
            dropped = self._outbox.dropped
            logger.warning("records given up count=%d", dropped - self._said_dropped)
            self._said_at, self._said_dropped = now, dropped

    def _add_gap(self, note: GapNote) -> None:
        try:
            self._gap_backlog.append(self._gap_record(note))
        except Exception:  # one note that cannot be built must not stop all that follows
            logger.exception("gap cannot be published %s", note)


def packet_bytes(record: Record) -> int:
    """Return the size of a QoS 1 PUBLISH without properties (MQTT 5, 3.3)."""
    remaining = 2 + len(record.topic.encode()) + 2 + 1 + len(record.payload)
    length_bytes = 1 + (remaining > 0x7F) + (remaining > 0x3FFF) + (remaining > 0x1FFFFF)
    return 1 + length_bytes + remaining
