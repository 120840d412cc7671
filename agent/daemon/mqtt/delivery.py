"""What is sent over a connection, in which order, and when it has proved to be alive.

Order on each connection: retained state, `online`, gap notes, then results from the outbox.
At most a window of messages is unanswered at a time. What was not answered when a connection
ends is sent again on the next one: results by the outbox, state because all of it is always
sent again, gap notes from the backlog here, and by the next run until the broker took them.
Only `retain` may be called from any thread; all else belongs to the link's thread. Knows reason
codes, but neither sockets nor paho.

Alive is what acknowledges. When no PUBACK came for half a keep-alive and none is on its way,
`online` is said again: it needs a PUBACK like any other message, also where results go with
QoS 0, and it puts right a retained `offline` that some last will left behind. A message that
is not answered in time is for the link to notice (`unanswered_s`).

What the broker refuses, `mqtt_refusals` judges. What it may take later holds up all that
follows, for a back-off, so that order is kept; from the first such answer on, messages go one
at a time for `ONE_AT_A_TIME_S`: those that were on the wire beside the first one cannot be
called back. After a connection that the broker ended they go one at a time until as many are
answered as had been in flight, so that it shows which of them it hangs up on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from agent.contract.payloads import GapReason
from agent.daemon.mqtt.refusals import Refusals, Sent, packet_bytes
from agent.daemon.mqtt.session import (
    KEEP_ALIVE_S,
    MAX_IN_FLIGHT,
    OFFLINE,
    ONLINE,
    ConnectionLostError,
)
from agent.daemon.mqtt.words import FAILURE, PACKET_TOO_LARGE, TOPIC_INVALID
from agent.daemon.outbox import GapNote, Outbox, Record

logger = logging.getLogger(__name__)

# A note waits this long for more of its kind, so that a burst of drops is one message.
GAPS_EVERY_S = 1.0
SAY_DROPS_EVERY_S = 60.0
PAUSE_FIRST_S, PAUSE_MAX_S = 0.5, 30.0
ONE_AT_A_TIME_S = 60.0
# Told of each result that has arrived, once: the record, and on the monotonic clock in nanoseconds
# when it was handed to the connection for the time that counted, and when the broker had it: 0 for
# QoS 0, where only our own socket answers. Called by the link's thread.
OnDelivered = Callable[[Record, int, int], None]
# Least wait for the outbox's pace: a loop that comes back sooner only burns the processor.
PACE_S = 0.002


class Channel(Protocol):
    """The part of a session that delivery needs."""

    max_packet: int | None
    receive_maximum: int | None
    keep_alive_s: float

    @property
    def alive(self) -> bool:
        """Return whether it is still connected."""
        ...

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> int:
        """Send a message and return its id."""
        ...


class Delivery:
    """Everything that is owed to the broker, across connections."""

    def __init__(
        self,
        outbox: Outbox,
        *,
        availability_topic: str,
        gap_record: Callable[[GapNote], Record],
        qos: int,
        keep_alive_s: float = KEEP_ALIVE_S,
        clock: Callable[[], float] = time.monotonic,
        on_delivered: OnDelivered | None = None,
    ) -> None:
        self.hurry = False
        self.has_heard = False
        self._outbox = outbox
        self._availability_topic = availability_topic
        self._gap_record = gap_record
        self._qos = qos
        self._keep_alive_s = keep_alive_s
        self._clock = clock
        self._on_delivered = on_delivered
        # any thread, guarded by _lock
        self._lock = threading.Lock()
        self._retained: dict[str, bytes] = {}
        self._dirty: dict[str, None] = {}
        # owned by the link's thread: of this connection
        self._channel: Channel | None = None
        self._in_flight: dict[int, Sent] = {}
        self._oldest_since = 0.0
        self._beat_s = keep_alive_s / 2
        self._quiet_since = 0.0
        self._was_refused = False  # the last answer on this connection
        self._availability: bytes | None = None
        self._leaving = False
        self._suspects = 0
        self._resume_at: float | None = None
        # owned by the link's thread: across connections
        self._refusals = Refusals(clock)
        self._notes: deque[GapNote] = deque()
        self._gap_backlog: deque[Sent] = deque()
        self._gaps_due: float | None = None
        self._pause_s = PAUSE_FIRST_S
        self._one_at_a_time_until = 0.0
        self._said_at = -SAY_DROPS_EVERY_S
        self._said_dropped = 0

    @property
    def delivered(self) -> bool:
        """Return whether every result, and every note about missing ones, was taken over."""
        return not (self._outbox.waiting or self._owes_gaps)

    @property
    def is_safe(self) -> bool:
        """Return whether nothing is lost if the process ends now: delivered, or on disk."""
        return self._outbox.waiting <= self._outbox.on_disk and not self._owes_gaps

    @property
    def idle(self) -> bool:
        """Return whether nothing that would be lost is left to say on this connection."""
        return self.is_safe and not (self._dirty or self._availability or self._in_flight)

    @property
    def has_left(self) -> bool:
        """Return whether the `offline` of `leave` was answered."""
        waiting = any(sent.kind == "availability" for sent in self._in_flight.values())
        return self._leaving and self._availability is None and not waiting

    @property
    def _owes_gaps(self) -> bool:
        return bool(self._notes or self._gap_backlog or self._outbox.has_gaps)

    def retain(self, topic: str, payload: bytes) -> None:
        """Set the newest state of a topic; an empty one is none, said until the broker took it."""
        with self._lock:
            self._retained[topic] = payload
            self._dirty[topic] = None

    def begin(self, channel: Channel) -> None:
        """Start on an accepted connection."""
        self._take_back()
        with self._lock:
            self._dirty = dict.fromkeys(self._retained)
        self._channel = channel
        self._availability = ONLINE
        self._leaving = False
        self.has_heard = False
        self._was_refused = False
        self._resume_at = None
        # A longer keep-alive of the broker's, or none (0), is no reason to notice later.
        self._beat_s = min(self._keep_alive_s, channel.keep_alive_s or self._keep_alive_s) / 2
        self._gaps_due = self._quiet_since = self._clock()  # gaps that are there already
        if self._suspects:
            self._suspects += len(self._dirty) + 1

    def pump(self) -> None:
        """Send what may be sent now."""
        channel = self._channel
        if channel is None:
            return
        window = self._window(channel)
        while len(self._in_flight) < window and channel.alive:
            message = self._next()
            if message is None:
                return
            try:
                self._send(channel, message)
            except BaseException:
                self._keep(message)
                raise

    def settle(self, mid: int, code: int) -> None:
        """Act on the broker's answer to a message."""
        sent = self._in_flight.get(mid)
        if sent is None:
            return
        now = self._clock()
        if sent.qos:  # one without is answered by our own socket
            self._quiet_since = now
            self.has_heard = True
        self._was_refused = code >= FAILURE
        if code < FAILURE:
            self._taken(sent, now)
        else:
            self._refused(sent, code)
        # Only now: an error above ends the connection, and then all in flight is sent again.
        if next(iter(self._in_flight)) == mid:
            self._oldest_since = now
        del self._in_flight[mid]
        self._suspects = max(0, self._suspects - 1)

    def wait_s(self, longest_s: float) -> float:
        """Return how long to wait at most before `pump` has something to do by itself."""
        now = self._clock()
        waits = [self._beats_in_s()]
        if self._resume_at is not None:
            waits.append(self._resume_at - now)
        else:
            if self._gaps_due is not None:
                waits.append(self._gaps_due - now)
            pace_s = self._outbox.wait_s
            if pace_s is not None:
                waits.append(max(PACE_S, pace_s))
        # What is due already was held up by a full window, so an answer comes first.
        return min([longest_s, *(wait for wait in waits if wait > 0)])

    def unanswered_s(self) -> float:
        """Return for how long the message on the wire that is to be answered next waits.

        A broker answers in order (MQTT 5, 4.6), so each waits from when those before it were
        answered: a full window on a slow network is no silence.
        """
        return self._clock() - self._oldest_since if self._in_flight else 0.0

    def leave(self) -> None:
        """Say `offline` as the last thing on this connection, and nothing after it."""
        self._availability = OFFLINE
        self._leaving = True

    def end(self, lost: ConnectionLostError | None) -> None:
        """Take back what the ended connection leaves unanswered."""
        self._channel = None
        by_peer = lost is not None and lost.by_peer
        self._suspects = len(self._in_flight) if by_peer else 0
        # mosquitto 2.0 may hang up right after a refusal (handle__publish.c): then the message that
        # happens to be on the wire has nothing to do with it.
        if lost is not None and self._suspects == 1 and not self._was_refused:
            ((mid, sent),) = self._in_flight.items()
            reason = self._refusals.hung_up(sent, lost.code)
            if reason is not None:
                self._give_up(sent, reason, lost.code)
                del self._in_flight[mid]
        self._take_back()
        self._availability = None

    def _take_back(self) -> None:
        for sent in reversed(self._in_flight.values()):
            self._keep(sent)
        self._in_flight.clear()
        self._outbox.requeue_in_flight()

    def _taken(self, sent: Sent, now: float) -> None:
        self._refusals.taken(sent)
        if sent.kind != "availability":
            self._pause_s = max(PAUSE_FIRST_S, self._pause_s / 2)
        if sent.kind == "result":
            self._outbox.acknowledged(sent.id)
            if self._on_delivered is not None:
                self._on_delivered(sent.record, int(sent.at * 1e9), int(now * 1e9) * sent.qos)
        if sent.note is not None:
            # One that was refused is kept, and told again by the next run.
            self._outbox.gap_told(sent.note)
        if sent.kind == "state" and not sent.record.payload:
            with self._lock:  # the broker keeps nothing there any more: nothing to say again
                if sent.record.topic not in self._dirty:
                    self._retained.pop(sent.record.topic, None)

    def _refused(self, sent: Sent, code: int) -> None:
        if self._leaving and sent.kind == "availability":
            # Without DISCONNECT the last will says it, and no quota holds that up.
            raise ConnectionLostError(f"`offline` was refused (reason code 0x{code:02X})")
        reason = self._refusals.judge(sent, code)
        if reason is not None:
            self._give_up(sent, reason, code)
            return
        self._keep(sent)
        self._one_at_a_time_until = self._clock() + ONE_AT_A_TIME_S
        if self._resume_at is None:
            self._resume_at = self._clock() + self._pause_s
            self._pause_s = min(PAUSE_MAX_S, self._pause_s * 2)

    def _window(self, channel: Channel) -> int:
        if self._suspects or self._clock() < self._one_at_a_time_until:
            return 1
        # An MQTT 5 broker may allow fewer; 3.1.1 has no way to say so.
        return min(MAX_IN_FLIGHT, channel.receive_maximum or MAX_IN_FLIGHT)

    def _is_paused(self) -> bool:
        """Return whether a refusal makes us wait; ends the pause when it is over."""
        if self._resume_at is None:
            return False
        if self._in_flight or self._clock() < self._resume_at:
            return True
        # Everything else was answered, so what is left in flight there was held back.
        self._outbox.requeue_in_flight()
        self._resume_at = None
        return False

    def _beats_in_s(self) -> float:
        """Return in how many seconds a heartbeat is due."""
        left_s = self._quiet_since + self._beat_s - self._clock()
        if left_s <= 0 and any(sent.qos for sent in self._in_flight.values()):
            return float("inf")  # an answer is awaited already
        return left_s

    def _next(self) -> Sent | None:
        is_paused = self._is_paused()
        if not self._leaving and not is_paused:
            with self._lock:
                topic = next(iter(self._dirty), None)
                if topic is not None:
                    del self._dirty[topic]
                    return Sent(kind="state", record=self._state(topic))
        is_due = not self._leaving and self._beats_in_s() <= 0
        payload = ONLINE if is_due else self._availability
        if payload is not None and (is_due or self._leaving or not is_paused):
            self._availability = None
            self._quiet_since = self._clock()
            record = Record(topic=self._availability_topic, payload=payload)
            return Sent(kind="availability", record=record)
        if self._leaving or is_paused:
            return None
        self._note_gaps()
        if self._gap_backlog:
            return self._gap_backlog.popleft()
        for record_id, record in self._outbox.take(1):
            return Sent(kind="result", record=record, id=record_id)
        return None

    def _state(self, topic: str) -> Record:
        return Record(topic=topic, payload=self._retained[topic])

    def _send(self, channel: Channel, message: Sent) -> None:
        record = message.record
        if self._refusals.is_unsendable(message):
            return
        if packet_bytes(record) > self._refusals.packet_limit(channel.max_packet):
            self._give_up(message, "too_large", PACKET_TOO_LARGE)
            return
        is_retained = message.kind in ("state", "availability")
        qos = self._qos if message.kind == "result" else 1
        now = self._clock()
        try:
            mid = channel.publish(record.topic, record.payload, qos=qos, retain=is_retained)
        except ValueError:
            logger.exception("message cannot be published topic=%s", record.topic)
            self._give_up(message, "refused", TOPIC_INVALID)
            return
        if not self._in_flight:
            self._oldest_since = now
        self._in_flight[mid] = replace(message, qos=qos, at=now)

    def _keep(self, sent: Sent) -> None:
        """Arrange for an unanswered message to be sent again; results stay with the outbox."""
        if sent.kind == "state":
            with self._lock:
                self._dirty[sent.record.topic] = None
        elif sent.kind == "gap":
            self._gap_backlog.appendleft(sent)
        elif sent.kind == "availability":
            self._availability = sent.record.payload

    def _give_up(self, sent: Sent, reason: GapReason, code: int) -> None:
        if sent.kind == "result":
            self._outbox.refused(sent.id, reason)
        self._refusals.give_up(sent, code)

    def _note_gaps(self) -> None:
        now = self._clock()
        if not (self._notes or self._outbox.has_gaps):
            self._gaps_due = None
            return
        if self._gaps_due is None:
            self._gaps_due = now + GAPS_EVERY_S
        if now < self._gaps_due and not self.hurry:
            return
        self._gaps_due = None
        self._notes.extend(self._outbox.take_gaps())
        while self._notes:
            self._add_gap(self._notes[0])
            self._notes.popleft()
        if now - self._said_at >= SAY_DROPS_EVERY_S:
            dropped = self._outbox.dropped
            logger.warning("records given up count=%d", dropped - self._said_dropped)
            self._said_at, self._said_dropped = now, dropped

    def _add_gap(self, note: GapNote) -> None:
        try:
            record = self._gap_record(note)
            self._gap_backlog.append(Sent(kind="gap", record=record, note=note))
        except Exception:  # one note that cannot be built must not stop all that follows
            logger.exception("gap cannot be published %s", note)
