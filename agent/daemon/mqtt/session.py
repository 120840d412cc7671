"""One connection to the broker, from CONNECT to its loss: with `client` all that knows paho.

paho is used without its thread, its reconnecting and its queue: this room reads and writes
when the link's loop tells it to, and whoever delivers owns what must be sent again. Callbacks
do nothing but note what happened; the loop acts on the notes afterwards, so no exception of
ours can end inside paho. Everything here belongs to the link's thread.
"""

from __future__ import annotations

import contextlib
import functools
import math
import selectors
import ssl
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Concatenate, ParamSpec

from paho.mqtt import client as mqtt
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.config import MqttConfig
from agent.daemon.mqtt.client import MAX_PAYLOAD_BYTES, Client, Protocol, limits
from agent.daemon.mqtt.dial import Address, Patience, Wire
from agent.daemon.mqtt.doorbell import Doorbell
from agent.daemon.mqtt.tls import explain_tls
from agent.daemon.mqtt.words import (
    PROTOCOL_ERROR,
    UNSUPPORTED_PROTOCOL,
    explain_connack,
    explain_disconnect,
)
from agent.errors import BrokerError

P = ParamSpec("P")

# MQTT 5, 3.1.2.10: a broker ends a connection after 1.5 times this without a packet.
KEEP_ALIVE_S = 30.0
# paho's keepalive counts in whole seconds, so asking it more often finds nothing new.
MISC_EVERY_S = 1.0
# mosquitto.conf(5) max_inflight_messages and paho's own window: 20 by default.
MAX_IN_FLIGHT = 20
# Messages taken in a turn: whoever floods us does not keep us from publishing.
MAX_INCOMING_A_TURN = 64
OFFLINE, ONLINE = b"offline", b"online"


class ConnectionLostError(BrokerError):
    """The connection is gone; `by_peer` when the other side ended it."""

    def __init__(self, message: str, *, by_peer: bool = False, code: int = 0) -> None:
        super().__init__(message)
        self.by_peer = by_peer
        self.code = code


class ProtocolRefusedError(BrokerError):
    """The broker does not speak this version: it said so, hung up, or never said a word."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message of the broker's; `payload` None: too large, `topic` None: not UTF-8."""

    topic: str | None
    payload: bytes | None
    retained: bool
    size: int


def _guarded(
    callback: Callable[Concatenate[Session, P], None],
) -> Callable[Concatenate[Session, P], None]:
    """Keep an exception out of paho: note it, for the loop to build a new connection."""

    @functools.wraps(callback)
    def guarded(session: Session, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            callback(session, *args, **kwargs)
        except Exception as error:  # paho would end in an undefined state
            session.failed = error

    return guarded


class Session:
    """A connection in use. Call order: `open`; `publish` and `turn`; `goodbye`; `close`.

    `answers` fills with (message id, reason code) as the broker acknowledges, or, for QoS 0,
    as messages are written; the loop empties it after each `publish` and `turn`. So it does with
    `subscribed`, (message id, reason codes), and `incoming`, acknowledged already.
    """

    def __init__(
        self,
        wire: Wire,
        address: Address,
        settings: MqttConfig,
        doorbell: Doorbell,
        *,
        client_id: str,
        protocol: Protocol,
        availability_topic: str | None,
        keep_alive_s: float = KEEP_ALIVE_S,
        password: str | None = None,
    ) -> None:
        self.protocol: Protocol = protocol
        self.where = str(address)
        # On the wire it is whole seconds in two bytes, where 0 would turn it off.
        self.keep_alive_s: float = min(65_535, max(1, math.ceil(keep_alive_s)))
        self.max_packet: int | None = None
        self.receive_maximum: int | None = None
        self.answers: deque[tuple[int, int]] = deque()
        self.subscribed: deque[tuple[int, list[int]]] = deque()
        self.incoming: deque[Incoming] = deque()
        self.failed: Exception | None = None
        self._wire = wire
        self._address = address
        self._settings = settings
        self._doorbell = doorbell
        self._connack: int | None = None
        # reason codes of a DISCONNECT: the broker's, or the one paho gives for its own
        self._disconnect: int | None = None
        self._gave_up: int | None = None
        self._misc_at = 0.0
        self._writing = False
        self._is_behind = False  # more has arrived than was read
        self._client = client = Client(wire, client_id=client_id, protocol=protocol)
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect
        if settings.username:
            client.username_pw_set(settings.username, password)
        if availability_topic is not None:
            client.will_set(availability_topic, OFFLINE, qos=1, retain=True)
        # The question whether a broker speaks MQTT 5, the one without a will, is a plain one.
        self._limits = limits() if protocol == "5" and availability_topic is not None else None
        self._selector = selectors.DefaultSelector()
        self._selector.register(wire, selectors.EVENT_READ)
        self._selector.register(doorbell, selectors.EVENT_READ)

    @property
    def alive(self) -> bool:
        """Return whether paho still holds the socket."""
        return self._client.socket() is not None

    def open(self, patience: Patience) -> None:
        """Send CONNECT and wait for an accepted CONNACK.

        Raises:
            ProtocolRefusedError: another protocol version may work.
            BrokerError: anything else, as a sentence.
        """
        self._client.connect(
            self._address.host,
            self._address.port,
            keepalive=int(self.keep_alive_s),
            properties=self._limits,
        )
        try:
            while self._connack is None:
                self.turn(patience.slice_s())
        except TimeoutError as error:
            raise ProtocolRefusedError(
                f"{self._address} took the connection but did not answer CONNECT within "
                f"{patience.timeout_s:g} s; is it an MQTT broker?"
            ) from error
        except ConnectionLostError as lost:
            if self._connack is None and lost.by_peer and not lost.code:
                raise ProtocolRefusedError(self._explain_silence(lost)) from lost
            if self._connack is None:
                raise
        if self._connack == UNSUPPORTED_PROTOCOL:
            raise ProtocolRefusedError(f"{self._address} does not speak MQTT {self.protocol}")
        if self._connack:
            raise BrokerError(explain_connack(self._connack, str(self._address), self._settings))

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> int:
        """Write a message, or queue it where the socket is full; return its message id.

        Raises:
            ValueError: MQTT does not allow this topic or payload.
        """
        return self._client.publish(topic, payload, qos=qos, retain=retain).mid

    def subscribe(self, topic_filter: str, qos: int) -> int | None:
        """Ask for what is published to a filter; return the message id, None: not connected.

        Raises:
            ValueError: MQTT does not allow this filter.
        """
        return self._client.subscribe(topic_filter, qos)[1]

    def turn(self, timeout_s: float) -> None:
        """Wait for the socket or the doorbell, then read and write what can be.

        Raises:
            ConnectionLostError: the connection is gone.
        """
        if self.alive:
            self._watch_writes()
            is_urgent = self.answers or self._is_behind
            is_readable = self._is_behind
            for key, mask in self._selector.select(0 if is_urgent else timeout_s):
                if key.fileobj is self._doorbell:
                    self._doorbell.answer()
                    continue
                if mask & selectors.EVENT_WRITE:
                    self._client.loop_write()
                is_readable = is_readable or bool(mask & selectors.EVENT_READ)
            if is_readable:
                self._read()
            now = time.monotonic()
            if now - self._misc_at >= MISC_EVERY_S:
                self._misc_at = now
                self._client.loop_misc()
        if self.failed is not None:
            raise self.failed
        if not self.alive:
            raise self._lost()

    def goodbye(self, patience: Patience) -> None:
        """Send DISCONNECT, so that the broker throws the last will away."""
        self._client.disconnect()
        try:
            while self.alive:
                self.turn(patience.slice_s())
        except (ConnectionLostError, TimeoutError):
            return

    def close(self) -> None:
        """Let go of the socket; without `goodbye` the broker then speaks the last will."""
        try:
            self._selector.close()
        finally:
            self._wire.close()

    def _read(self) -> None:
        more = True
        while self.alive and len(self.incoming) < MAX_INCOMING_A_TURN:
            # paho looks at the end of the connection only by reading once more.
            if self._wire.buffered or self._wire.ended:
                self._decode()
            elif more:
                more = self._wire.fill()
            else:
                break
        self._is_behind = len(self.incoming) >= MAX_INCOMING_A_TURN

    def _decode(self) -> None:
        try:
            self._client.loop_read()
            self._client.let_go_of_the_rest()
        except Exception as error:
            # Our callbacks raise nothing, so it is what the broker sent.
            raise ConnectionLostError(
                f"{self.where} sent something that is not MQTT ({error!r})", by_peer=True
            ) from error

    def _watch_writes(self) -> None:
        wanted = self._client.want_write()
        if wanted != self._writing:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
            self._selector.modify(self._wire, events)
            self._writing = wanted

    def _lost(self) -> ConnectionLostError:
        where, error = self.where, self._wire.error
        if isinstance(error, ssl.SSLEOFError):
            error = None  # the end of the connection without TLS's own goodbye: its usual end
        if self._disconnect is not None:
            words = explain_disconnect(self._disconnect, where)
            return ConnectionLostError(words, by_peer=True, code=self._disconnect)
        if isinstance(error, ssl.SSLError):
            return ConnectionLostError(explain_tls(error, where, self._settings), code=-1)
        if isinstance(error, TimeoutError):
            return ConnectionLostError(f"{where} no longer answers")
        if error is not None:
            return ConnectionLostError(
                f"connection to {where} lost: {error.strerror}", by_peer=True
            )
        if self._wire.ended:
            return ConnectionLostError(f"{where} closed the connection", by_peer=True)
        if self._gave_up == PROTOCOL_ERROR:
            return ConnectionLostError(f"{where} sent something that is not MQTT", by_peer=True)
        return ConnectionLostError(f"{where} no longer answers")

    def _explain_silence(self, lost: ConnectionLostError) -> str:
        if self._address.tls and not self._settings.cert_file:
            return (
                f"{self._address} closed the connection after TLS without an answer; it may "
                "demand a client certificate (mqtt.cert_file, mqtt.key_file)"
            )
        hint = "" if self._address.tls else "; if this port wants TLS, write mqtts:// in mqtt.url"
        return f"{lost} without answering CONNECT{hint}"

    @_guarded
    def _on_connect(
        self,
        _client: mqtt.Client,
        _userdata: object,
        _flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self._connack = reason.value
        if self.protocol == "5":
            self.max_packet = getattr(properties, "MaximumPacketSize", None)
            # MQTT 5, 3.2.2.3.3: absent means 65,535.
            self.receive_maximum = getattr(properties, "ReceiveMaximum", 65_535)
            # paho keeps to it as well: it is when it sends PINGREQ (_handle_connack, 2.2).
            self.keep_alive_s = getattr(properties, "ServerKeepAlive", self.keep_alive_s)

    @_guarded
    def _on_publish(
        self,
        _client: mqtt.Client,
        _userdata: object,
        mid: int,
        reason: ReasonCode,
        _properties: Properties,
    ) -> None:
        self.answers.append((mid, reason.value))

    @_guarded
    def _on_subscribe(
        self,
        _client: mqtt.Client,
        _userdata: object,
        mid: int,
        reasons: list[ReasonCode],
        _properties: Properties,
    ) -> None:
        self.subscribed.append((mid, [reason.value for reason in reasons]))

    @_guarded
    def _on_message(
        self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage
    ) -> None:
        topic = None
        with contextlib.suppress(UnicodeDecodeError):
            topic = message.topic
        size = len(message.payload)
        payload = bytes(message.payload) if size <= MAX_PAYLOAD_BYTES else None
        self.incoming.append(Incoming(topic, payload, message.retain, size))

    @_guarded
    def _on_disconnect(
        self,
        _client: mqtt.Client,
        _userdata: object,
        flags: mqtt.DisconnectFlags,
        reason: ReasonCode | None,
        _properties: Properties | None,
    ) -> None:
        if flags.is_disconnect_packet_from_server and reason is not None:
            self._disconnect = reason.value
        elif reason is not None:
            self._gave_up = reason.value
