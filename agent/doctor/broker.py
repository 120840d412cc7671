"""Whether messages really pass the broker: published below our own topics, and received back.

A broker may accept a connection and still refuse topics, sizes or retained messages. MQTT 5 says
so in CONNACK, SUBACK and PUBACK; 3.1.1 has words for little of it, so there only a message that
comes back proves anything.

Whoever listens to the agent's own topics must not be disturbed, and nothing that is retained
there may be overwritten. So what is tried are levels beside them, called `check`, which the same
access rules cover: `<p>/<d>/check` for `availability`, `status`, `telemetry` and `gap`, and
`<p>/<d>/camera/<c>/check` for each camera's `detections` and `status`. What is retained on the
first of them is taken away again, and would expire by itself.

What models over the air need is tried behind all that: see `agent.doctor.broker_orders`. Some
brokers hang up on whoever subscribes to what it may not.
"""

from __future__ import annotations

import json
import secrets
import ssl
import time
from typing import NamedTuple

from msgspec import Struct
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.config import MqttConfig
from agent.daemon.mqtt.dial import parse_address, read_password
from agent.daemon.mqtt.tls import tls_context
from agent.ota.chunks import unpack

FAILURE = 0x80  # MQTT 5, 2.4: reason codes from here on are refusals
KEEPALIVE_S = 30
SLICE_S = 0.05
EXPIRES_S = 60
BACK_WITHIN_S = 1.0
ANSWERS_WITHIN_S = 3.0  # whoever serves a repository, on the other side of the broker
# MQTT 5, 3.2.2.3.3: absent means as many as there are packet identifiers.
RECEIVE_MAXIMUM = 65_535


class Limits(Struct, frozen=True, kw_only=True):
    """What the broker's CONNACK allows; for MQTT 3.1.1, which says nothing, everything."""

    receive_maximum: int = RECEIVE_MAXIMUM
    max_packet: int | None = None
    keep_alive_s: int | None = None
    is_retaining: bool = True
    max_qos: int = 2


class Attempt(NamedTuple):
    """A message to be published."""

    topic: str
    payload: bytes
    retain: bool = False


class Orders(Struct, frozen=True, kw_only=True):
    """What models over the air need of the broker.

    filters: to subscribe to, each with its QoS
    request: for a file of a repository behind the broker, answered on `answer_topic`
    """

    filters: dict[str, int]
    request: Attempt | None = None
    answer_topic: str = ""


class Trip(Struct, kw_only=True):
    """What a second connection showed."""

    limits: Limits = Limits()
    codes: dict[int, int] = {}  # of PUBACK (3.1.1 has 0 alone), by the attempt's place
    back_ms: dict[int, float] = {}  # until it came back
    puback_ms: dict[int, float] = {}
    heard: dict[str, int] = {}  # codes of SUBACK, by `Orders.filters`
    request_code: int | None = None  # of PUBACK
    answer_status: int | None = None  # of the answer to it, as of HTTP
    answer_ms: float | None = None
    peer: dict[str, object] | None = None  # the broker's certificate
    error: str | None = None


class _Traveller:
    """What paho's callbacks saw; they run inside `loop`, in this thread."""

    def __init__(self, attempts: list[Attempt], protocol: str, orders: Orders | None) -> None:
        self.attempts = attempts
        self.topics = list(dict.fromkeys(attempt.topic for attempt in attempts))
        self.is_5 = protocol == "5"
        self.orders = orders or Orders(filters={})
        self.trip = Trip()
        self.hearing: dict[int, str] = {}  # message id -> the topic filter
        self.asked_at: float | None = None
        self.places: dict[int, int] = {}  # message id -> the attempt's place
        self.started: dict[int, float] = {}
        self.answered_at = 0.0
        self.is_closed = False

    def on_connect(
        self, client: mqtt.Client, _data: object, _flags: object, _code: object, said: object
    ) -> None:
        self.trip.limits = Limits(
            receive_maximum=getattr(said, "ReceiveMaximum", RECEIVE_MAXIMUM),
            max_packet=getattr(said, "MaximumPacketSize", None),
            keep_alive_s=getattr(said, "ServerKeepAlive", None),
            is_retaining=bool(getattr(said, "RetainAvailable", 1)),
            max_qos=getattr(said, "MaximumQoS", 2),
        )
        client.subscribe([(topic, 1) for topic in self.topics])

    def on_subscribe(
        self, client: mqtt.Client, _data: object, mid: int, codes: list[ReasonCode], _said: object
    ) -> None:
        topic_filter = self.hearing.get(mid)
        if topic_filter is None:
            # Also where it was refused: what comes back is a proof, and not what is needed.
            self.publish(client, 0)
        else:
            self.trip.heard[topic_filter] = codes[0].value
            self.hear(client)

    def hear(self, client: mqtt.Client) -> None:
        """Subscribe to the next topic of orders; behind the last, ask for a file."""
        left = [one for one in self.orders.filters if one not in self.trip.heard]
        if left:
            _, mid = client.subscribe(left[0], self.orders.filters[left[0]])
            if mid is not None:
                self.hearing[mid] = left[0]
        elif self.orders.request is not None:
            self.asked_at = time.monotonic()
            topic, payload, _ = self.orders.request
            client.publish(topic, payload, min(1, self.trip.limits.max_qos))

    def publish(self, client: mqtt.Client, place: int) -> None:
        """Send one of the attempts; the next follows its acknowledgement."""
        if place >= len(self.attempts):
            self.hear(client)
            return
        topic, payload, retain = self.attempts[place]
        properties = None
        if self.is_5 and retain:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho's
            properties.MessageExpiryInterval = EXPIRES_S
        self.started[place] = time.monotonic()
        qos = min(1, self.trip.limits.max_qos)
        is_retained = retain and self.trip.limits.is_retaining
        sent = client.publish(topic, payload, qos, is_retained, properties)
        self.places[sent.mid] = place

    def on_publish(
        self, client: mqtt.Client, _data: object, mid: int, reason: ReasonCode, *_: object
    ) -> None:
        if self.asked_at is not None:
            self.trip.request_code = reason.value
            return
        place = self.places.get(mid, len(self.trip.codes))  # QoS 0: before `publish` returned
        self.trip.codes[place] = reason.value
        self.trip.puback_ms[place] = self._since(place)
        self.answered_at = time.monotonic()
        self.publish(client, place + 1)

    def on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        if self.asked_at is not None and message.topic == self.orders.answer_topic:
            chunk = unpack(bytes(message.payload))
            self.trip.answer_status = chunk.status if chunk is not None else None
            self.trip.answer_ms = (time.monotonic() - self.asked_at) * 1000
        for place, attempt in enumerate(self.attempts):
            is_this = (message.topic, message.payload) == (attempt.topic, attempt.payload)
            if is_this and attempt.payload:
                self.trip.back_ms.setdefault(place, self._since(place))

    def on_disconnect(self, *_: object) -> None:
        self.is_closed = True

    def _since(self, place: int) -> float:
        return (time.monotonic() - self.started.get(place, time.monotonic())) * 1000

    @property
    def is_decided(self) -> bool:
        """Return whether every attempt came back or was refused, or no more can come."""
        if self.is_closed:
            return True
        if len(self.trip.codes) < len(self.attempts) or not self._has_heard:
            return False
        wanted = {place for place, attempt in enumerate(self.attempts) if attempt.payload}
        refused = {place for place, code in self.trip.codes.items() if code >= FAILURE}
        if wanted <= set(self.trip.back_ms) | refused:
            return True
        # MQTT 5 has answered; that a user may not read its own messages is not always said.
        return self.is_5 and time.monotonic() - self.answered_at > BACK_WITHIN_S

    @property
    def _has_heard(self) -> bool:
        """Return whether nothing more will be learned of orders."""
        trip = self.trip
        if len(trip.heard) < len(self.orders.filters):
            return False
        if self.orders.request is None or trip.answer_ms is not None:
            return True
        code, asked_at = trip.request_code, self.asked_at or time.monotonic()
        if code is not None and code != 0:  # refused, or nobody is there
            return True
        return time.monotonic() - asked_at > ANSWERS_WITHIN_S


def attempts_on(device_topic: str, cameras: list[str], result_bytes: int) -> list[Attempt]:
    """Return what is published: small and retained, taken away again, as large as a result."""
    token = secrets.token_hex(8)

    def payload(padding: int = 0) -> bytes:
        return json.dumps({"check": token, "padding": " " * padding}).encode()

    return [
        Attempt(f"{device_topic}/check", payload(), retain=True),
        Attempt(f"{device_topic}/check", b"", retain=True),
        *(Attempt(f"{device_topic}/camera/{name}/check", payload()) for name in cameras),
        Attempt(f"{device_topic}/check", payload(max(0, result_bytes - len(payload())))),
    ]


def travel(
    settings: MqttConfig,
    protocol: str,
    attempts: list[Attempt],
    timeout_s: float,
    orders: Orders | None = None,
) -> Trip:
    """Send messages to ourselves on a broker that `probe` has found to be there."""
    traveller = _Traveller(attempts, protocol, orders)
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=f"edge-agent-check-{secrets.token_hex(4)}",
        protocol=mqtt.MQTTv5 if protocol == "5" else mqtt.MQTTv311,
    )
    for name in ("on_connect", "on_subscribe", "on_message", "on_publish", "on_disconnect"):
        setattr(client, name, getattr(traveller, name))
    address = parse_address(settings.url)
    try:
        if settings.username:
            client.username_pw_set(settings.username, read_password(settings.password_file))
        if address.tls:
            client.tls_set_context(tls_context(settings))
        client.connect_timeout = timeout_s
        client.connect(address.host, address.port, keepalive=KEEPALIVE_S)
        sock = client.socket()
        if isinstance(sock, ssl.SSLSocket):
            traveller.trip.peer = dict(sock.getpeercert() or {})
        ends = time.monotonic() + timeout_s
        while not traveller.is_decided and time.monotonic() < ends:
            client.loop(SLICE_S)
    except OSError as error:
        traveller.trip.error = f"the second connection failed: {error}"
    finally:
        client.disconnect()
        client.loop(SLICE_S)  # closes the socket
    return traveller.trip
