"""What a broker will not take, and how that is found out; remembered across connections.

A message no broker will take must not stop those behind it, and one that it will take later
must not be lost. So an answer means one of three things:
- not now (`mqtt_words.NOT_NOW`: quota, busy): the message is kept, for as long as it takes;
- never (not authorized, topic or payload invalid, too large): it is given up at once;
- unclear (`mqtt_words.UNCLEAR`): it is kept, but once `TRIES` such answers were given to it
  while the broker took other messages, it is the message. From then on one such answer is
  enough on its topic, until something is taken there.

A broker that can only hang up (MQTT 3.1.1, or a limit it does not tell) leaves a suspect: a
message that was alone on the wire when the broker hung up within `HANGS_UP_WITHIN_S` has a
strike; `STRIKES` in a row, while the broker took other messages, and it is given up. If it was
larger than anything this broker ever took, its size counts as the limit for `LIMIT_HOLDS_S`.
State and `online` are passed over after as many strikes whatever else is taken: they come first
on each connection, nothing is lost with them, and what follows may be welcome.

Knows reason codes, but neither sockets nor paho. Belongs to the link's thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from agent.contract.payloads import GapReason
from agent.daemon.mqtt.words import (
    ACCUSES_NOBODY,
    NOT_NOW,
    PACKET_TOO_LARGE,
    UNCLEAR,
    explain_puback,
)
from agent.daemon.outbox import GapNote, Record

logger = logging.getLogger(__name__)

Kind = Literal["state", "availability", "gap", "result"]

TRIES = 5
STRIKES = 3
HANGS_UP_WITHIN_S = 5.0
LIMIT_HOLDS_S = 600.0
SAY_AGAIN_S = 3600.0
MOST_UNCLEAR = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A message on its way, or about to be; `note` is what a gap's was made of."""

    kind: Kind
    record: Record
    note: GapNote | None = None
    id: int = 0
    qos: int = 1
    at: float = 0.0

    @property
    def key(self) -> tuple[object, ...]:
        """Return what stays the same when it is sent again."""
        if self.kind == "state":
            return (self.kind, self.record.topic)
        return (self.kind, self.id) if self.id else (self.kind, self.record)


class Refusals:
    """Judges each answer, and remembers what the next ones are judged by."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._takes = self._heartbeats = 0
        # key of a message, how often in a row the broker hung up on it, and what it had taken
        # before the first time
        self._suspect: tuple[tuple[object, ...], int, int] = ((), 0, 0)
        # key: how many unclear answers, and `_takes` at the first
        self._unclear: dict[tuple[object, ...], tuple[int, int]] = {}
        self._hopeless_topics: set[str] = set()
        # topic of a state or of `online`: the payload that is passed over, and until when
        self._unsendable: dict[str, tuple[bytes, float]] = {}
        self._said_at: dict[tuple[str, int], float] = {}
        self._largest_taken = 0
        self._limit = (0, 0.0)  # packets from this size on are given up, until then

    def packet_limit(self, max_packet: int | None) -> float:
        """Return the largest packet in bytes that is worth sending."""
        size, until = self._limit
        learned = size - 1 if self._clock() < until else float("inf")
        return min(learned, max_packet or float("inf"))

    def is_unsendable(self, message: Sent) -> bool:
        """Return whether this very state was refused a short time ago."""
        payload, until = self._unsendable.get(message.record.topic, (b"", 0.0))
        return payload == message.record.payload and self._clock() < until

    def taken(self, sent: Sent) -> None:
        """Note what the broker took."""
        self._largest_taken = max(self._largest_taken, packet_bytes(sent.record))
        self._unclear.pop(sent.key, None)
        self._hopeless_topics.discard(sent.record.topic)
        if sent.kind == "availability":  # no proof that there is room for more
            self._heartbeats += 1
        else:
            self._takes += 1

    def judge(self, sent: Sent, code: int) -> GapReason | None:
        """Return why a message answered with `code` is given up, or None to send it again."""
        if code in NOT_NOW:
            return None
        if code in UNCLEAR and self._may_be_the_broker(sent):
            return None
        return "too_large" if code == PACKET_TOO_LARGE else "refused"

    def hung_up(self, sent: Sent, code: int) -> GapReason | None:
        """Judge the only message on the wire when the broker hung up, as `judge` does.

        `code` is that of its DISCONNECT, 0 where it said none.
        """
        if code in ACCUSES_NOBODY or self._clock() - sent.at > HANGS_UP_WITHIN_S:
            return None
        taken = self._takes + self._heartbeats
        key, strikes, before = self._suspect
        if key != sent.key:
            strikes, before = 0, taken
        self._suspect = (sent.key, strikes + 1, before)
        is_others_taken = taken > before
        if code != PACKET_TOO_LARGE:
            if strikes + 1 < STRIKES:
                return None
            if not is_others_taken and sent.kind in ("result", "gap"):
                return None
        self._suspect = ((), 0, 0)
        if sent.kind in ("state", "availability"):
            self._pass_over(sent)
        size = packet_bytes(sent.record)
        if size > self._largest_taken and (is_others_taken or code == PACKET_TOO_LARGE):
            self._limit = (size, self._clock() + LIMIT_HOLDS_S)
            return "too_large"
        return "too_large" if code == PACKET_TOO_LARGE else "refused"

    def give_up(self, sent: Sent, code: int) -> None:
        """Note that a message was given up; said once in `SAY_AGAIN_S` for a topic and code."""
        topic, now = sent.record.topic, self._clock()
        if sent.kind == "state":
            self._pass_over(sent)
        if now - self._said_at.get((topic, code), -SAY_AGAIN_S) < SAY_AGAIN_S:
            return
        self._said_at[topic, code] = now
        logger.error(
            "message given up topic=%s bytes=%d reason_code=0x%02X: the broker %s",
            topic,
            len(sent.record.payload),
            code,
            explain_puback(code),
        )

    def _pass_over(self, sent: Sent) -> None:
        self._unsendable[sent.record.topic] = (
            sent.record.payload,
            self._clock() + LIMIT_HOLDS_S,
        )

    def _may_be_the_broker(self, sent: Sent) -> bool:
        """Count an unclear answer; return whether it may be about more than this message."""
        if sent.record.topic in self._hopeless_topics:
            return False
        tries, takes = self._unclear.get(sent.key, (0, self._takes))
        if tries + 1 < TRIES or takes == self._takes:
            while len(self._unclear) >= MOST_UNCLEAR:  # left by what the outbox gave up itself
                del self._unclear[next(iter(self._unclear))]
            self._unclear[sent.key] = (tries + 1, takes)
            return True
        del self._unclear[sent.key]
        self._hopeless_topics.add(sent.record.topic)
        return False


def packet_bytes(record: Record) -> int:
    """Return the size of a QoS 1 PUBLISH without properties (MQTT 5, 3.3)."""
    remaining = 2 + len(record.topic.encode()) + 2 + 1 + len(record.payload)
    length_bytes = 1 + (remaining > 0x7F) + (remaining > 0x3FFF) + (remaining > 0x1FFFFF)
    return 1 + length_bytes + remaining
