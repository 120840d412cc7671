"""Whether a message really passes the broker: published below our own topic, and received back.

A broker may accept a connection and still refuse the topic. MQTT 5 says so; 3.1.1 has no word
for it, so there only a message that comes back proves anything.
"""

from __future__ import annotations

import secrets
import time
from typing import Literal, NamedTuple

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from agent.config import MqttConfig
from agent.daemon.mqtt_dial import parse_address, read_password
from agent.daemon.mqtt_tls import tls_context

FAILURE = 0x80  # MQTT 5, 2.4: reason codes from here on are refusals
KEEPALIVE_S = 30
SLICE_S = 0.1


class Trip(NamedTuple):
    """How it went, and what to do."""

    state: Literal["ok", "warn", "fail"]
    message: str
    remedy: str | None = None


class _Traveller:
    """What paho's callbacks saw; they run inside `loop`, in this thread."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.token = secrets.token_hex(8).encode()
        self.started = 0.0
        self.took_ms: float | None = None
        self.publish_code: int | None = None
        self.is_closed = False

    def on_connect(self, client: mqtt.Client, *_: object) -> None:
        client.subscribe(self.topic, qos=1)

    def on_subscribe(self, client: mqtt.Client, *_: object) -> None:
        # Also where it was refused: the daemon needs to publish, not to subscribe.
        self.started = time.monotonic()
        client.publish(self.topic, self.token, qos=1)

    def on_message(self, client: mqtt.Client, userdata: object, message: mqtt.MQTTMessage) -> None:
        del client, userdata
        if message.payload == self.token:
            self.took_ms = (time.monotonic() - self.started) * 1000

    def on_publish(
        self, client: mqtt.Client, data: object, mid: int, reason: ReasonCode, *_: object
    ) -> None:
        del client, data, mid
        self.publish_code = reason.value

    def on_disconnect(self, *_: object) -> None:
        self.is_closed = True

    @property
    def is_decided(self) -> bool:
        refused = self.publish_code is not None and self.publish_code >= FAILURE
        return self.took_ms is not None or refused or self.is_closed


def round_trip(settings: MqttConfig, protocol: str, topic: str, timeout_s: float) -> Trip:
    """Send one message to ourselves on a broker that `probe` has found to be there."""
    traveller = _Traveller(topic)
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
        ends = time.monotonic() + timeout_s
        while not traveller.is_decided and time.monotonic() < ends:
            client.loop(SLICE_S)
    except OSError as error:
        return Trip("fail", f"the second connection failed: {error}", "run the check again")
    finally:
        client.disconnect()
        client.loop(SLICE_S)  # closes the socket
    return _judge(traveller)


def _judge(traveller: _Traveller) -> Trip:
    topic, code = traveller.topic, traveller.publish_code
    remedy = f"let this user write to {topic.rpartition('/')[0]}/# in the broker's access rules"
    if traveller.took_ms is not None:
        return Trip("ok", f"a message to {topic} came back after {traveller.took_ms:.1f} ms")
    if code is not None and code >= FAILURE:
        return Trip("fail", f"it refuses messages to {topic} (reason code {code})", remedy)
    if code is not None:
        return Trip("warn", f"a message to {topic} was taken but did not come back", remedy)
    return Trip("fail", f"it did not acknowledge a message to {topic}", remedy)
