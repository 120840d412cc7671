"""What others publish and we want to hear, on each connection anew.

One SUBSCRIBE at a time, once the broker has acknowledged something of ours: so it shows which
filter a broker does not let us have. Most say so in SUBACK; some hang up (AWS IoT Core's rules),
which must not cost the connection for ever: after `STRIKES` in a row the filter is left alone for
`HOLDS_S`. Nothing that is refused, or that a subscriber makes of a message, ends a connection.

Knows neither sockets nor paho. Belongs to the link's thread, but for `add`, before it starts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from agent.daemon.mqtt.session import Incoming
from agent.daemon.mqtt.words import ACCUSES_NOBODY, FAILURE, NOT_AUTHORIZED

logger = logging.getLogger(__name__)

# topic, payload, whether it is what the broker had kept
OnMessage: TypeAlias = Callable[[str, bytes, bool], None]

STRIKES = 2
HANGS_UP_WITHIN_S = 5.0
ANSWERS_WITHIN_S = 20.0
HOLDS_S = 3600.0
SAY_DROPPED_EVERY_S = 60.0
NO_ANSWER = -1
HUNG_UP = -2


class Line(Protocol):
    """The part of a session that is needed here."""

    def subscribe(self, topic_filter: str, qos: int) -> int | None:
        """Ask for a filter and return the message id; None: not connected any more."""
        ...


@dataclass(slots=True)
class _Wanted:
    """One filter; `said` is the refusal that was logged last."""

    topic_filter: str
    qos: int
    on_message: OnMessage
    is_asked: bool = False  # on this connection
    is_refused: bool = False
    strikes: int = 0
    held_until: float = float("-inf")
    said: int = 0
    failed_at: float = float("-inf")


class Subscriptions:
    """See the module's docstring."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wanted: list[_Wanted] = []
        # what is asked and not answered: message id, when, which
        self._asked: tuple[int, float, _Wanted] | None = None
        self._dropped_said_at = float("-inf")

    @property
    def refused(self) -> tuple[str, ...]:
        """Return the filters that the broker does not let us have."""
        return tuple(one.topic_filter for one in self._wanted if one.is_refused)

    def add(self, topic_filter: str, qos: int, on_message: OnMessage) -> None:
        """Want what is published to a filter."""
        self._wanted.append(_Wanted(topic_filter, qos, on_message))

    def begin(self) -> None:
        """Start on an accepted connection."""
        self._asked = None
        now = self._clock()
        for one in self._wanted:
            one.is_asked = now < one.held_until

    def pump(self, line: Line) -> None:
        """Ask for the next filter, if none is being asked for."""
        now = self._clock()
        if self._asked is not None:
            _, asked_at, wanted = self._asked
            if now - asked_at < ANSWERS_WITHIN_S:
                return
            self._asked = None
            self._refuse(wanted, NO_ANSWER, "does not answer to it")
        wanted_next = next((one for one in self._wanted if not one.is_asked), None)
        if wanted_next is None:
            return
        wanted_next.is_asked = True
        mid = line.subscribe(wanted_next.topic_filter, wanted_next.qos)
        if mid is not None:
            self._asked = mid, now, wanted_next

    def settle(self, mid: int, codes: list[int]) -> None:
        """Act on a SUBACK."""
        if self._asked is None or self._asked[0] != mid:
            return
        wanted, self._asked = self._asked[2], None
        wanted.strikes = 0
        code = codes[0] if codes else FAILURE
        if code >= FAILURE:
            self._refuse(wanted, code, _explain(code))
            return
        if wanted.said:
            logger.info("subscribed filter=%s", wanted.topic_filter)
        wanted.is_refused, wanted.said = False, 0

    def end(self, code: int | None) -> bool:
        """Note the end of a connection; return whether a SUBSCRIBE is to blame for it.

        `code` is that of the broker's DISCONNECT, 0 where it just hung up; None: it was not the
        broker that ended it.
        """
        asked, self._asked = self._asked, None
        if asked is None or code is None or code in ACCUSES_NOBODY:
            return False
        _, asked_at, wanted = asked
        if self._clock() - asked_at > HANGS_UP_WITHIN_S:
            return False
        wanted.strikes += 1
        if wanted.strikes >= STRIKES:
            wanted.strikes = 0
            wanted.held_until = self._clock() + HOLDS_S
            self._refuse(wanted, HUNG_UP, "hangs up whenever it is asked for")
        return True

    def hand_out(self, message: Incoming) -> None:
        """Give a message to those who want it; what cannot be one of theirs is dropped."""
        if message.topic is None or message.payload is None:
            self._drop(message)
            return
        for one in self._wanted:
            if not matches(one.topic_filter, message.topic):
                continue
            try:
                one.on_message(message.topic, message.payload, message.retained)
            except Exception:
                now = self._clock()
                if now - one.failed_at >= SAY_DROPPED_EVERY_S:
                    one.failed_at = now
                    logger.exception("message could not be used topic=%s", message.topic)

    def _drop(self, message: Incoming) -> None:
        now = self._clock()
        if now - self._dropped_said_at < SAY_DROPPED_EVERY_S:
            return
        self._dropped_said_at = now
        reason = "its topic is not UTF-8" if message.topic is None else "it is too large"
        logger.warning("message dropped topic=%s bytes=%d: %s", message.topic, message.size, reason)

    def _refuse(self, wanted: _Wanted, code: int, words: str) -> None:
        wanted.is_refused = True
        if code != wanted.said:
            wanted.said = code
            logger.warning(
                "not subscribed filter=%s: the broker %s; all else goes on",
                wanted.topic_filter,
                words,
            )


def _explain(code: int) -> str:
    # MQTT 3.1.1 has but one failure code (3.9.3), mostly for the same reason.
    if code in (NOT_AUTHORIZED, FAILURE):
        return (
            f"refuses it (reason code 0x{code:02X}); give this client the right to read there in "
            "the broker's access rules"
        )
    return f"refuses it (reason code 0x{code:02X})"


def matches(topic_filter: str, topic: str) -> bool:
    """Return whether a topic belongs to a filter (MQTT 5, 4.7); shared subscriptions apart."""
    if topic.startswith("$") and topic_filter[:1] in ("+", "#"):
        return False
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if wanted[-1] == "#":
        wanted.pop()
        levels = levels[: len(wanted)]
    return len(wanted) == len(levels) and all(
        one in ("+", level) for one, level in zip(wanted, levels, strict=True)
    )
