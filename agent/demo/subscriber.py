"""A plain MQTT client of the daemon's topics: what it receives, any subscriber receives.

paho's thread only notes the time and queues the bytes; decoding is done by whoever drains,
so that drawing on the terminal does not add to the latency that is measured.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, final

import msgspec
from msgspec import Struct
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from agent.contract import topics
from agent.contract.topics import TopicRow, Topics
from agent.demo.broker import HOST, LocalBroker
from agent.demo.children import POLL_S, Signals
from agent.errors import AgentError, BrokerError

ANSWERS_WITHIN_S = 10.0
PROTOCOLS = {"5": MQTTProtocolVersion.MQTTv5, "3.1.1": MQTTProtocolVersion.MQTTv311}
ROWS = (topics.STATUS, topics.DETECTIONS, topics.CAMERA_STATUS, topics.TELEMETRY, topics.GAP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One message; `payload` is text for `availability`, else the contract's record."""

    at: float  # monotonic
    unix_at: float
    payload: Struct | str


@final
class Subscriber:
    """Connected and subscribed while entered."""

    def __init__(self, broker: LocalBroker, names: Topics, camera: str, signals: Signals) -> None:
        self._broker = broker
        self._signals = signals
        self._queue: SimpleQueue[tuple[float, float, str, bytes]] = SimpleQueue()
        self._subscribed = threading.Event()
        self._availability = names.name(topics.AVAILABILITY)
        self._decoders = {names.name(row, camera): _decoder(row) for row in ROWS}
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"edge-agent-demo-{os.getpid()}",
            protocol=PROTOCOLS[broker.newest_protocol],
        )
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message

    def __enter__(self) -> Subscriber:
        """Connect.

        Raises:
            BrokerError: the broker does not take us.
            Interrupted: a signal came.
        """
        try:
            self._client.connect(HOST, self._broker.port)
            self._client.loop_start()
            deadline = time.monotonic() + ANSWERS_WITHIN_S
            while not self._subscribed.is_set():
                if time.monotonic() > deadline:
                    raise BrokerError(f"{self._broker.title} does not answer on this board")
                self._signals.sleep(POLL_S)
        except OSError as error:
            raise BrokerError(f"{self._broker.title} hung up: {error}") from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        # Some of its sockets it closes as it goes, and it knows us as we know it.
        del self._client

    def drain(self) -> Iterator[Received]:
        """Return what came since the last call.

        Raises:
            AgentError: a payload breaks the contract.
        """
        while True:
            try:
                at, unix_at, topic, raw = self._queue.get_nowait()
            except Empty:
                return
            if topic == self._availability:
                yield Received(at=at, unix_at=unix_at, payload=raw.decode("ascii", "replace"))
            elif decoder := self._decoders.get(topic):
                try:
                    yield Received(at=at, unix_at=unix_at, payload=decoder.decode(raw))
                except msgspec.DecodeError as error:
                    raise AgentError(f"{topic}: payload breaks the contract: {error}") from error

    def _on_connect(
        self,
        client: mqtt.Client,
        userdata: object,
        flags: object,
        reason: ReasonCode,
        properties: object,
    ) -> None:
        del userdata, flags, properties
        if not reason.is_failure:
            client.subscribe([(topic, 1) for topic in (self._availability, *self._decoders)])

    def _on_subscribe(self, *arguments: object) -> None:
        del arguments
        self._subscribed.set()

    def _on_message(self, client: mqtt.Client, userdata: object, message: mqtt.MQTTMessage) -> None:
        at, unix_at = time.monotonic(), time.time()
        del client, userdata
        self._queue.put((at, unix_at, message.topic, bytes(message.payload)))


def _decoder(row: TopicRow) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(row.payload)
