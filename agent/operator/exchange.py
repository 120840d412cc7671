"""The operator's connection to the broker: what boards say, and orders to them.

Subscribed with QoS 0: nothing is asked for that is not retained or soon said again, a broker's
queues have ends (mosquitto: 1000 messages), and on each new connection everything retained comes
anew. Orders go with QoS 1 and are acknowledged. paho's thread only queues; it connects again by
itself, as after a night in which the laptop slept.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from secrets import token_hex
from typing import NamedTuple, final

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.config import MqttConfig
from agent.daemon.mqtt import probe
from agent.daemon.mqtt.dial import parse_address, read_password
from agent.daemon.mqtt.tls import tls_context
from agent.daemon.mqtt.words import explain_puback
from agent.errors import BrokerError

FAILURE = 0x80  # MQTT 5, 2.4: reason codes from here on are refusals
PROBE_WITHIN_S = 10.0
KEEPALIVE_S = 30
ANSWERS_WITHIN_S = 15.0
RECONNECTS_S = (1, 20)
# Of MQTT 5 brokers nothing larger comes. A status has some kilobytes.
MAX_PACKET_BYTES = 256 << 10
# Retained messages have all come once the broker answered what was asked behind the subscription,
# and then none came for so long: clustered brokers look for them besides.
QUIET_S = 0.5
BEHIND = "edge-agent-operator/behind"  # nobody subscribes to it; to end that takes no rights


class Message(NamedTuple):
    """One message."""

    topic: str
    payload: bytes
    retained: bool


@final
class Exchange:
    """Connected while entered; every method belongs to one thread.

    `sessions` counts the connections on which the filters were granted. `sent` and `received`
    count messages.
    """

    def __init__(self, settings: MqttConfig, filters: Sequence[str]) -> None:
        self.sent = self.received = 0
        self.sessions = 0
        self._settings = settings
        self._filters = [(name, 0) for name in filters]
        self._queue: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._changed = threading.Event()
        self._waits: dict[int, str] = {}  # message id of an order: its topic
        self._answers: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        self._heard_at = time.monotonic()
        self._is_new = self._is_refused = False
        self._is_owed = True  # what is retained, in part at least

    def __enter__(self) -> Exchange:
        """Connect and subscribe.

        Raises:
            BrokerError: with what to do about it.
        """
        protocol = probe(self._settings, PROBE_WITHIN_S)
        self._is_5 = protocol == "5"
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"edge-agent-operator-{os.getpid()}-{token_hex(3)}",
            protocol=mqtt.MQTTv5 if self._is_5 else mqtt.MQTTv311,
        )
        client, address = self._client, parse_address(self._settings.url)
        if self._settings.username:
            client.username_pw_set(
                self._settings.username, read_password(self._settings.password_file)
            )
        if address.tls:
            client.tls_set_context(tls_context(self._settings))
        client.reconnect_delay_set(*RECONNECTS_S)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_unsubscribe = self._on_unsubscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        try:
            client.connect(address.host, address.port, KEEPALIVE_S, properties=self._limits())
            client.loop_start()
            if not self._changed.wait(ANSWERS_WITHIN_S):
                raise BrokerError(f"{address} does not grant subscriptions within 15 s")
            if self._is_refused:
                raise BrokerError(
                    f"{address} does not let this client subscribe to"
                    f" {', '.join(name for name, _ in self._filters)}; look at its rights"
                )
        except OSError as error:
            self.__exit__()
            raise BrokerError(f"{address} hung up: {error}") from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        # Some of its sockets it closes as it goes, and it knows us as we know it.
        del self._client

    @property
    def is_connected(self) -> bool:
        """Return whether there is a connection, as far as anybody knows."""
        return self._client.is_connected()

    @property
    def quiet_s(self) -> float:
        """Return for how long nothing retained came; 0 while some is sure to come."""
        return 0.0 if self._is_owed else time.monotonic() - self._heard_at

    def drain(self, wait_s: float) -> list[Message]:
        """Return what came; wait for the first message for so long."""
        found: list[Message] = []
        try:
            found.append(self._queue.get(timeout=wait_s))
            while True:
                found.append(self._queue.get_nowait())
        except queue.Empty:
            pass
        self.received += len(found)
        return found

    def publish(self, topic: str, payload: bytes, *, retain: bool = True, qos: int = 1) -> None:
        """Send a message; with the broker away, once it is back."""
        sent = self._client.publish(topic, payload, qos, retain)
        if qos:
            self._waits[sent.mid] = topic
        self.sent += 1
        self.settle()

    def flush(self, timeout_s: float = ANSWERS_WITHIN_S) -> None:
        """Wait until every order is acknowledged.

        Raises:
            BrokerError: one is not, or the broker does not let us publish it.
        """
        deadline = time.monotonic() + timeout_s
        while self.settle():
            if time.monotonic() > deadline:
                raise BrokerError(f"the broker did not acknowledge {len(self._waits)} orders")
            time.sleep(0.01)

    def settle(self) -> bool:
        """Match acknowledgements with orders; return whether some are owed.

        Raises:
            BrokerError: the broker does not let us publish one.
        """
        while not self._answers.empty():
            mid, code = self._answers.get()
            topic = self._waits.pop(mid, None)
            if topic is not None and code >= FAILURE:
                raise BrokerError(f"{topic}: the broker {explain_puback(code)}")
        return bool(self._waits)

    def subscribe_again(self) -> None:
        """Have everything retained sent once more."""
        self._client.subscribe(self._filters)

    def _limits(self) -> Properties | None:
        if not self._is_5:
            return None
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's
        properties.MaximumPacketSize = MAX_PACKET_BYTES
        return properties

    def _on_connect(
        self, client: mqtt.Client, _data: object, _flags: object, reason: ReasonCode, _: object
    ) -> None:
        if not reason.is_failure:
            self._is_new = self._is_owed = True
            client.subscribe(self._filters)
            client.unsubscribe(BEHIND)  # answered in turn, however slow the line is

    def _on_subscribe(
        self, _client: mqtt.Client, _data: object, _mid: int, codes: list[ReasonCode], _: object
    ) -> None:
        self._is_refused = any(code.value >= FAILURE for code in codes)
        self._heard_at = time.monotonic()
        if self._is_new:
            self._is_new = False
            self.sessions += 1
        self._changed.set()

    def _on_unsubscribe(
        self, _client: mqtt.Client, _data: object, _mid: int, _codes: list[ReasonCode], _: object
    ) -> None:
        self._heard_at = time.monotonic()
        self._is_owed = False

    def _on_publish(
        self, _client: mqtt.Client, _data: object, mid: int, reason: ReasonCode, _: object
    ) -> None:
        self._answers.put((mid, reason.value))

    def _on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        if message.retain:
            self._heard_at = time.monotonic()
        self._queue.put(Message(message.topic, bytes(message.payload), message.retain))


def gather(
    exchange: Exchange, note: Callable[[Message], object], *, within_s: float = ANSWERS_WITHIN_S
) -> None:
    """Take what is retained, until no more comes.

    Raises:
        BrokerError: it stopped in the middle; a part of the boards is not to pass for all.
    """
    deadline = time.monotonic() + within_s
    while exchange.quiet_s <= QUIET_S:
        messages = exchange.drain(0.1)
        for message in messages:
            note(message)
        if any(message.retained for message in messages):
            deadline = time.monotonic() + within_s
        elif time.monotonic() > deadline:
            raise BrokerError(f"the broker did not hand out what is retained within {within_s:g} s")
    for message in exchange.drain(0.0):
        note(message)
