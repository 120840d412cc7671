"""A subscriber that itself loses nothing: QoS 1 and a session that outlives its connections.

Between it and the broker there is no proxy. The broker must keep sessions and queue without a
bound (`persistence true`, `max_queued_messages 0`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from reliability.checker import Heard, Named
from reliability.logbook import digest_of

SESSION_S = 24 * 3600
SUBSCRIBED_WITHIN_S = 60.0
SENTINEL = "sentinel"
LOOK_EVERY_S = 0.5  # at what else may have made an end of the waiting


class _Numbered(msgspec.Struct):
    seq: int


@dataclass(frozen=True, slots=True)
class Said:
    """A message that is no numbered record; `at` is monotonic."""

    topic: str
    payload: bytes
    retained: bool
    at: float

    @property
    def json(self) -> dict[str, Any]:
        """Return the payload as a document."""
        document: dict[str, Any] = msgspec.json.decode(self.payload)
        return document


class Collector:
    """Keeps what it hears: of numbered records stream, number, digest and time."""

    def __init__(
        self,
        port: int,
        *,
        device: str = "board-1",
        mqtt5: bool = True,
        user: tuple[str, str] | None = None,
    ) -> None:
        self.heard: list[Heard] = []
        self.said: list[Said] = []
        self._prefix = f"edge/{device}/"
        self._changed = threading.Condition()
        self._subscribed = threading.Event()
        self._gone = threading.Event()
        self._sentinels = 0
        self._last_sentinel = 0
        self._client = client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id="collector",
            protocol=mqtt.MQTTv5 if mqtt5 else mqtt.MQTTv311,
            **({} if mqtt5 else {"clean_session": False}),
        )
        client.reconnect_delay_set(0.1, 0.25)
        if user is not None:
            client.username_pw_set(*user)
        client.on_connect = lambda *_: (self._gone.clear(), client.subscribe("edge/#", qos=1))
        client.on_subscribe = lambda *_: self._subscribed.set()
        client.on_disconnect = lambda *_: self._gone.set()
        client.on_message = self._keep
        session: dict[str, Any] = {}
        if mqtt5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = SESSION_S
            session = {"clean_start": False, "properties": properties}
        client.connect("127.0.0.1", port, **session)
        client.loop_start()
        if not self._subscribed.wait(SUBSCRIBED_WITHIN_S):
            raise RuntimeError(f"the broker took no subscription within {SUBSCRIBED_WITHIN_S:g} s")

    def _keep(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        at = time.monotonic()
        stream = message.topic.removeprefix(self._prefix)
        with self._changed:
            if stream.endswith("/detections") or stream == "telemetry":
                try:
                    seq = msgspec.json.decode(message.payload, type=_Numbered).seq
                except msgspec.DecodeError:
                    seq = -1  # the checker calls it wrong
                self.heard.append(Heard(stream, seq, digest_of(message.payload), at))
            elif message.topic == f"edge/{SENTINEL}":
                self._last_sentinel = max(self._last_sentinel, int(message.payload))
            else:
                self.said.append(Said(message.topic, message.payload, message.retain, at))
            self._changed.notify_all()

    def wait(self, until: Callable[[], Any], timeout_s: float, what: str) -> Any:
        """Wait until a message makes `until` true; return what it returned.

        Raises:
            TimeoutError: with `what` was waited for.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not (value := until()):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError(f"{what} did not come within {timeout_s:g} s")
                self._changed.wait(min(left_s, LOOK_EVERY_S))
        return value

    def wait_heard(self, more: int, timeout_s: float = 120.0) -> None:
        """Wait for that many further records."""
        goal = len(self.heard) + more
        self.wait(lambda: len(self.heard) >= goal, timeout_s, f"{more} further records")

    def catch_up(self, timeout_s: float = 120.0) -> None:
        """Wait until all is heard that the broker had taken over when this was called.

        The broker's queue for a subscriber is first in, first out: a message of our own comes
        after everything before it.
        """
        self._sentinels += 1
        number = self._sentinels
        self._client.publish(f"edge/{SENTINEL}", str(number), qos=1)
        self.wait(lambda: self._last_sentinel >= number, timeout_s, "what the broker had queued")

    @property
    def gaps(self) -> list[Named]:
        """Return the gap messages so far."""
        return [
            Named(g["stream"], g["from_seq"], g["to_seq"], g["reason"], g["count"])
            for g in (one.json for one in list(self.said) if one.topic.endswith("/gap"))
        ]

    def of(self, ending: str) -> list[Said]:
        """Return what was said on topics that end so."""
        return [one for one in list(self.said) if one.topic.endswith(ending)]

    def close(self) -> None:
        """Disconnect; paho closes its socket only if its loop may run until that is done."""
        if self._client.disconnect() == mqtt.MQTT_ERR_SUCCESS:
            self._gone.wait(2)
        self._client.loop_stop()
        self._client._reset_sockets()  # paho would, whenever it is collected
