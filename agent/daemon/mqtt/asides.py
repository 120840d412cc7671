"""Messages that are of use now or never: sent with QoS 0 while there is a connection, else dropped.

Such as the question for a piece of a file, which whoever needs it asks again.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

# Of a flood the oldest go.
MOST_WAITING = 16


class Line(Protocol):
    """The part of a session that is needed here."""

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> int:
        """Write a message; return its message id."""
        ...


class Asides:
    """See the module's docstring; `put` on any thread, all else on the link's."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, bytes]] = deque(maxlen=MOST_WAITING)

    def put(self, topic: str, payload: bytes) -> None:
        """Have a message sent with the next turn."""
        self._waiting.append((topic, payload))

    def begin(self) -> None:
        """Start on a new connection: what waited for it is too old."""
        self._waiting.clear()

    def pump(self, line: Line) -> None:
        """Send what waits."""
        while self._waiting:
            topic, payload = self._waiting.popleft()
            line.publish(topic, payload, qos=0, retain=False)
