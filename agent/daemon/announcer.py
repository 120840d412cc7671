"""Tells Home Assistant of this board and its cameras, and takes back what is gone.

The announcement is a retained message, sent anew when a camera, a label, a model or a sensor
appears, and when Home Assistant says on its birth topic that it has started: whoever keeps retained
messages, it then knows the board. A component that is gone is sent once as its platform alone,
which is how Home Assistant is told to forget it, and left out after that.

One owner: the control process's main thread; only a birth is heard on the link's.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Protocol

from agent.contract.home_assistant import (
    Announcement,
    CameraEntities,
    components,
    discovery,
    discovery_topic,
)
from agent.contract.home_assistant_board import BoardFacts, learn
from agent.contract.reading import BoardIdentity
from agent.contract.telemetry import Telemetry
from agent.contract.topics import Topics
from agent.daemon.announced import Announced, AnnouncedMemory
from agent.daemon.label_book import LabelBook
from agent.daemon.mqtt import Connection
from agent.daemon.mqtt.subscriptions import OnMessage

OFF = "off"
# Home Assistant's birth message (mqtt/const.py, DEFAULT_BIRTH): its topic stays this one when the
# prefix of discovery is changed, unless somebody changes it as well.
BIRTH_TOPIC = "homeassistant/status"
BIRTH = b"online"
# All boards hear a birth at once; this keeps them from answering at once.
AFTER_BIRTH_S = (1.0, 5.0)
# New labels and sensors come in crowds.
EVERY_S = 5.0
# Connected for so long, the broker has it, and whoever listens has heard it.
SETTLED_S = 60.0
LOOK_EVERY_S = 1.0


class Broker(Protocol):
    """The part of the link that is needed here."""

    @property
    def connection(self) -> Connection:
        """Return how the link stands."""
        ...

    def retain(self, topic: str, payload: bytes) -> None:
        """Set the newest state of a topic."""

    def subscribe(self, topic_filter: str, qos: int, on_message: OnMessage) -> None:
        """Have messages handed over."""


class Announcer:
    """See the module's docstring. Call order: built before the link starts; then `check`."""

    def __init__(
        self,
        *,
        prefix: str,
        names: Topics,
        version: str,
        interval_s: float,
        engines: tuple[str, ...],
        cameras: tuple[str, ...],
        labels: LabelBook,
        memory: AnnouncedMemory,
        broker: Broker,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`prefix` is `mqtt.discovery`: the first levels of the topic, or `off`."""
        self._names = names
        self._version = version
        self._interval_s = interval_s
        self._engines = engines
        self._cameras = cameras
        self._labels = labels
        self._memory = memory
        self._broker = broker
        self._jitter = jitter
        self._topic = "" if prefix == OFF else discovery_topic(prefix, names.device)
        self._board: BoardFacts = memory.stored.board
        self._is_begun = False
        # What was announced last, at which time: all of it, and the components by platform.
        self._said: Announcement | None = None
        self._said_at = self._looked_at = float("-inf")
        self._payload = b""
        self._platforms: dict[str, str] = {}
        self._removed: dict[str, str] = {}
        self._connected_since: float | None = None
        self._again_at: float | None = None
        self._is_born = False  # set by the link's thread, cleared by the main one
        if prefix != OFF:
            for topic in sorted({BIRTH_TOPIC, f"{prefix}/status"}):
                broker.subscribe(topic, 1, self._on_birth)

    def follow(self, telemetry: Telemetry, identity: BoardIdentity | None) -> None:
        """Learn from a telemetry message which sensors there are."""
        self._board = learn(self._board, telemetry, identity)

    def check(self, now: float) -> float:
        """Announce what has changed; return in how many seconds to look again."""
        if not self._is_begun:
            self._begin()
        if now - self._said_at >= EVERY_S and now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            self._announce(now)
        if self._removed and self._is_settled(now):
            self._removed = {}
            self._send(now)
        self._follow_births(now)
        return LOOK_EVERY_S if self._again_at is None else max(0.0, self._again_at - now)

    def _follow_births(self, now: float) -> None:
        if self._is_born:
            self._is_born = False
            if self._again_at is None:
                self._again_at = now + self._jitter(*AFTER_BIRTH_S)
        if self._again_at is not None and now >= self._again_at:
            self._again_at = None
            self._broker.retain(self._topic, self._payload)

    def _on_birth(self, topic: str, payload: bytes, retained: bool) -> None:
        del topic
        # One that the broker had kept is old, and on a new connection all is said anyway.
        if payload.strip() == BIRTH and not retained:
            self._is_born = True

    def _begin(self) -> None:
        """Take over what an earlier run announced, or take it back where that is elsewhere.

        What is said to be another device's stays: the state may be a copy of that board's.
        """
        self._is_begun = True
        before = self._memory.stored
        if before.topic and before.topic == self._topic:
            self._platforms = dict(before.components)
        elif before.topic and self._is_ours(before.topic):
            self._broker.retain(before.topic, b"")

    def _is_ours(self, topic: str) -> bool:
        device = re.escape(self._names.device)
        return re.fullmatch(rf"[^+#$][^+#]*/device/{device}/config", topic) is not None

    def _announce(self, now: float) -> None:
        """Say what there is now, if that is not what was said last."""
        said = Announcement(
            names=self._names,
            version=self._version,
            interval_s=self._interval_s,
            board=self._board,
            cameras=tuple(
                CameraEntities(name=name, labels=self._labels.of(name)) for name in self._cameras
            ),
            engines=self._engines,
        )
        if said == self._said:
            return
        self._said = said
        before = {**self._platforms, **self._removed}
        self._platforms = {name: one["p"] for name, one in components(said).items()}
        self._removed = {
            name: platform for name, platform in before.items() if name not in self._platforms
        }
        self._send(now)

    def _send(self, now: float) -> None:
        assert self._said is not None
        self._said_at = now
        if self._topic:
            self._payload = discovery(self._said, self._removed)
            self._broker.retain(self._topic, self._payload)
        self._memory.keep(
            Announced(
                topic=self._topic,
                components={**self._platforms, **self._removed} if self._topic else {},
                labels=self._labels.all(),
                board=self._board,
            )
        )

    def _is_settled(self, now: float) -> bool:
        """Return whether what was sent last has been heard by whoever listens."""
        if not self._broker.connection.connected:
            self._connected_since = None
            return False
        if self._connected_since is None:
            self._connected_since = now
        return now - max(self._connected_since, self._said_at) >= SETTLED_S
