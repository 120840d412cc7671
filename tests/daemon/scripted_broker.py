"""A broker that does what a test tells it to: a real TCP server that speaks enough MQTT.

It reads CONNECT, PUBLISH, SUBSCRIBE, PUBACK, PINGREQ and DISCONNECT of MQTT 5 and 3.1.1 as the
standard has them, independent of the client's library, and answers by script. What no client may
do is noted in `faults`: more unacknowledged messages than allowed, a packet larger than allowed, a
packet id used twice, two CONNECTs, a malformed packet. A test ends with `assert not broker.faults`;
the fixture `scripted` does that by itself.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

CONNECT, PUBLISH, PUBACK, SUBSCRIBE, PINGREQ, DISCONNECT = 1, 3, 4, 8, 12, 14
# The goal of this client, whatever a broker would allow.
CLIENT_WINDOW = 20
# How long a connection waits before it looks for answers that are due.
TURN_S = 0.005


@dataclass(frozen=True, kw_only=True)
class Connect:
    """What a client said in CONNECT."""

    protocol: int
    client_id: str
    keep_alive_s: int
    has_will: bool
    receive_maximum: int | None = None
    max_packet: int | None = None


@dataclass(frozen=True, kw_only=True)
class Connack:
    """The answer to CONNECT; None leaves a property out. `raw` takes the place of it all."""

    code: int = 0
    receive_maximum: int | None = None
    max_packet: int | None = None
    server_keep_alive: int | None = None
    raw: bytes | None = None

    def encode(self, protocol: int) -> bytes:
        if self.raw is not None:
            return self.raw
        if protocol < 5:
            return bytes((0x20, 2, 0, self.code))
        properties = b""
        for number, layout, value in (
            (0x21, "!BH", self.receive_maximum),
            (0x27, "!BI", self.max_packet),
            (0x13, "!BH", self.server_keep_alive),
        ):
            if value is not None:
                properties += struct.pack(layout, number, value)
        body = bytes((0, self.code, len(properties))) + properties
        return bytes((0x20, len(body))) + body


@dataclass(frozen=True, kw_only=True)
class Published:
    """A PUBLISH as it was read; `connection` counts from 0."""

    connection: int
    topic: str
    payload: bytes
    qos: int
    retain: bool
    mid: int


@dataclass(frozen=True, kw_only=True)
class Subscribed:
    """A SUBSCRIBE of one filter as it was read."""

    connection: int
    topic_filter: str
    qos: int
    mid: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What follows a PUBLISH: a PUBACK, or `raw` in its place, and perhaps the end."""

    code: int = 0
    after_s: float = 0.0
    raw: bytes | None = None
    hang_up: bool = False


ACK = Answer()


def ended_with(code: int) -> Answer:
    """Return the answer of a broker that ends the connection with a DISCONNECT."""
    return Answer(raw=bytes((0xE0, 2, code, 0)), hang_up=True)


@dataclass
class _Line:
    """One connection; everything here belongs to its thread."""

    number: int
    sock: socket.socket
    protocol: int = 0
    limit: int = CLIENT_WINDOW
    max_packet: int | None = None
    unread: bytearray = field(default_factory=bytearray)
    unanswered: set[int] = field(default_factory=set)
    due: list[tuple[float, int, Answer]] = field(default_factory=list)


class ScriptedBroker:
    """Listens from `start` to `stop`; the script may be changed at any time.

    `answer` is asked for each PUBLISH: an `Answer`, or None for never. While `holds` is set
    no PUBACK leaves, whatever the script says; PINGREQ is still answered. `grant` is asked for
    each SUBSCRIBE: the reason code of its SUBACK, None for no answer, or an `Answer` of which
    `raw` and `hang_up` count. What `send` is given goes out on the newest connection.
    """

    def __init__(
        self,
        connack: Connack = Connack(),
        answer: Callable[[Published], Answer | None] = lambda _: ACK,
    ) -> None:
        self.connack = connack
        self.answer = answer
        self.holds = threading.Event()
        self.connects: list[Connect] = []
        self.published: list[Published] = []
        self.grant: Callable[[Subscribed], int | Answer | None] = lambda asked: asked.qos
        self.subscribed: list[Subscribed] = []
        self.acknowledged: list[int] = []
        self._outgoing: deque[bytes] = deque()
        self.pings = 0
        self.farewells: list[int] = []
        self.most_unanswered = 0
        self.longest_silence_s = 0.0
        self.faults: list[str] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> ScriptedBroker:
        self._spawn(self._accept)
        return self

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        self._server.close()

    def send(self, data: bytes) -> None:
        self._outgoing.append(data)

    def payloads(self, topic: str) -> list[bytes]:
        return [one.payload.strip() for one in list(self.published) if one.topic == topic]

    def _spawn(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, name="scripted-broker")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        number = 0
        while not self._stopping.is_set():
            if select.select([self._server], [], [], 0.02)[0]:
                self._spawn(self._serve, _Line(number, self._server.accept()[0]))
                number += 1

    def _serve(self, line: _Line) -> None:
        with line.sock, contextlib.suppress(ConnectionError):
            line.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            heard_at = time.monotonic()
            while not self._stopping.is_set():
                if select.select([line.sock], [], [], TURN_S)[0]:
                    data = line.sock.recv(1 << 16)
                    if not data:
                        return
                    now = time.monotonic()
                    if line.protocol:
                        self.longest_silence_s = max(self.longest_silence_s, now - heard_at)
                    heard_at = now
                    line.unread += data
                if self._outgoing and line.protocol and line.number == len(self.connects) - 1:
                    line.sock.sendall(self._outgoing.popleft())
                while (packet := _cut(line.unread)) is not None:
                    if not self._read(line, *packet):
                        return
                if not self._send_due(line):
                    return

    def _read(self, line: _Line, head: int, body: bytes, size: int) -> bool:
        kind = head >> 4
        if (kind == CONNECT) == bool(line.protocol):
            self.faults.append(f"packet {kind} at the wrong time")
            return False
        if line.max_packet is not None and size > line.max_packet:
            self.faults.append(f"a packet of {size} bytes, allowed {line.max_packet}")
        if kind == CONNECT:
            return self._on_connect(line, body)
        if kind == PUBLISH:
            self._on_publish(line, head, body)
            return True
        if kind == SUBSCRIBE:
            return self._on_subscribe(line, head, body)
        if kind == PUBACK:
            self.acknowledged.append(struct.unpack_from("!H", body)[0])
            return True
        if kind == PINGREQ:
            self.pings += 1
            line.sock.sendall(b"\xd0\x00")
            return True
        if kind == DISCONNECT:
            self.farewells.append(line.number)
        else:
            self.faults.append(f"packet {kind} from a client")
        return False

    def _on_connect(self, line: _Line, body: bytes) -> bool:
        name, at = _text(body, 0)
        protocol, flags, keep_alive_s = struct.unpack_from("!BBH", body, at)
        at += 4
        limits: dict[int, int] = {}
        if protocol >= 5:
            limits = _limits(body[at + 1 : at + 1 + body[at]])  # shorter than 128 bytes
            at += 1 + body[at]
        client_id, _ = _text(body, at)
        if name != "MQTT":
            self.faults.append(f"CONNECT of the protocol {name!r}")
        line.protocol = protocol
        self.connects.append(
            Connect(
                protocol=protocol, client_id=client_id, keep_alive_s=keep_alive_s,
                has_will=bool(flags & 4), receive_maximum=limits.get(0x21),
                max_packet=limits.get(0x27),
            )
        )  # fmt: skip
        line.limit = min(CLIENT_WINDOW, self.connack.receive_maximum or CLIENT_WINDOW)
        line.max_packet = self.connack.max_packet
        line.sock.sendall(self.connack.encode(protocol))
        return self.connack.code == 0

    def _on_publish(self, line: _Line, head: int, body: bytes) -> None:
        qos = head >> 1 & 3
        topic, at = _text(body, 0)
        mid = 0
        if qos:
            mid = struct.unpack_from("!H", body, at)[0]
            at += 2
        if line.protocol >= 5:
            at += 1 + body[at]
        published = Published(
            connection=line.number, topic=topic, payload=bytes(body[at:]), qos=qos,
            retain=bool(head & 1), mid=mid,
        )  # fmt: skip
        if qos:
            if mid in line.unanswered:
                self.faults.append(f"packet id {mid} used twice")
            line.unanswered.add(mid)
            self.most_unanswered = max(self.most_unanswered, len(line.unanswered))
            if len(line.unanswered) > line.limit:
                self.faults.append(f"{len(line.unanswered)} unanswered, allowed {line.limit}")
        self.published.append(published)
        try:
            answer = self.answer(published)
        except Exception as error:
            self.faults.append(f"the script failed: {error!r}")
            raise
        if answer is not None and (qos or answer.raw is not None or answer.hang_up):
            line.due.append((time.monotonic() + answer.after_s, mid, answer))

    def _on_subscribe(self, line: _Line, head: int, body: bytes) -> bool:
        if head & 0xF != 2:
            self.faults.append(f"SUBSCRIBE with the flags {head & 0xF}")
        mid = struct.unpack_from("!H", body)[0]
        at = 2
        if line.protocol >= 5:
            at += 1 + body[at]
        topic_filter, at = _text(body, at)
        if at + 1 != len(body):
            self.faults.append("SUBSCRIBE of several filters")
        asked = Subscribed(
            connection=line.number, topic_filter=topic_filter, qos=body[at] & 3, mid=mid
        )
        self.subscribed.append(asked)
        code = self.grant(asked)
        if isinstance(code, Answer):
            if code.raw is not None:
                line.sock.sendall(code.raw)
            return not code.hang_up
        if code is not None:
            line.sock.sendall(suback(mid, code, line.protocol))
        return True

    def _send_due(self, line: _Line) -> bool:
        """Send the answers whose time has come; return whether the connection goes on."""
        if self.holds.is_set():
            return True
        for entry in sorted(line.due):
            due_at, mid, answer = entry
            if due_at > time.monotonic():
                break
            line.due.remove(entry)
            line.unanswered.discard(mid)
            if answer.raw is not None:
                line.sock.sendall(answer.raw)
            elif not answer.hang_up:
                line.sock.sendall(puback(mid, answer.code, line.protocol))
            if answer.hang_up:
                return False
        return True


def puback(mid: int, code: int, protocol: int = 5) -> bytes:
    """Return a PUBACK; without a failure in its short form (MQTT 5, 3.4.2.1)."""
    if not code or protocol < 5:
        return struct.pack("!BBH", 0x40, 2, mid)
    return struct.pack("!BBHB", 0x40, 3, mid, code)


def suback(mid: int, code: int, protocol: int = 5) -> bytes:
    """Return a SUBACK for one filter."""
    if protocol < 5:
        return struct.pack("!BBHB", 0x90, 3, mid, code)
    return struct.pack("!BBHBB", 0x90, 4, mid, 0, code)


def publish(
    topic: bytes, payload: bytes, *, qos: int = 0, retain: bool = False, mid: int = 1,
    protocol: int = 5,
) -> bytes:  # fmt: skip
    """Return a PUBLISH of a broker."""
    body = struct.pack("!H", len(topic)) + topic
    body += struct.pack("!H", mid) if qos else b""
    body += (b"\0" if protocol >= 5 else b"") + payload
    length, size = len(body), b""
    while True:
        size += bytes((length & 0x7F | (0x80 if length > 0x7F else 0),))
        length >>= 7
        if not length:
            return bytes((0x30 | qos << 1 | retain,)) + size + body


def _limits(properties: bytes) -> dict[int, int]:
    """Return what a CONNECT says in two or four bytes: Receive Maximum, Maximum Packet Size."""
    found, at = {}, 0
    while at < len(properties):
        layout = {0x21: "!H", 0x27: "!I"}[properties[at]]
        found[properties[at]] = struct.unpack_from(layout, properties, at + 1)[0]
        at += 1 + struct.calcsize(layout)
    return found


def _cut(unread: bytearray) -> tuple[int, bytes, int] | None:
    """Take a whole packet off the front: its first byte, its body, its size."""
    length = shift = 0
    for at in range(1, 5):
        if at >= len(unread):
            return None
        length |= (unread[at] & 0x7F) << shift
        shift += 7
        if not unread[at] & 0x80:
            end = at + 1 + length
            if len(unread) < end:
                return None
            head, body = unread[0], bytes(unread[at + 1 : end])
            del unread[:end]
            return head, body, end
    raise AssertionError("a remaining length of more than four bytes")


def _text(body: bytes, at: int) -> tuple[str, int]:
    end = at + 2 + struct.unpack_from("!H", body, at)[0]
    return body[at + 2 : end].decode(), end
