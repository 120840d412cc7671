"""What the tests of the link share: waiting, numbered records, and a client that listens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from agent.daemon.mqtt import Timing
from agent.daemon.outbox import GapNote, Record

T = TypeVar("T")
WITHIN_S = 60.0
STREAM = "camera/door/detections"
# A loopback's patience, so that no test waits out a real network's.
FAST = Timing(
    connect_timeout_s=3.0, retry_first_s=0.05, retry_max_s=0.2, stable_after_s=5.0,
    answer_within_s=10.0,
)  # fmt: skip
# The same, and quick to notice: the shares of a keep-alive are those of the defaults.
LIVELY = Timing(
    connect_timeout_s=3.0, retry_first_s=0.05, retry_max_s=0.2, stable_after_s=5.0,
    keep_alive_s=2.0, answer_within_s=1.33,
)  # fmt: skip


def eventually(claim: Callable[[], T], within_s: float = WITHIN_S) -> T:
    """Wait until a claim holds; return what it returned then, which may not last."""
    deadline = time.monotonic() + within_s
    while not (said := claim()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)
    return said


def record(seq: int, *, size: int = 20, stream: str = STREAM) -> Record:
    payload = f"{seq}".encode().ljust(size, b" ")
    return Record(topic=f"edge/d/{stream}", payload=payload, stream=stream, seq=seq)


def gap_record(note: GapNote) -> Record:
    payload = f"{note.from_seq}-{note.to_seq} {note.reason}".encode()
    return Record(topic="edge/d/gap", payload=payload)


@dataclass
class Watcher:
    """A second client, subscribed to everything; keeps what it heard in order.

    With QoS 0: it answers nothing, so a broker that ends has nothing unread, and what it sent
    before is not lost to a TCP reset.
    """

    port: int
    heard: list[tuple[str, bytes, bool]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def open(self) -> Watcher:
        ready = threading.Event()
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2, "watcher", protocol=MQTTProtocolVersion.MQTTv311
        )
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = lambda client, *_: client.subscribe("#", qos=0)
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.on_disconnect = lambda *_: self.ended.set()
        self.client.on_message = lambda _c, _u, message: self.heard.append(
            (message.topic, message.payload, message.retain)
        )
        self.client.connect("127.0.0.1", self.port)
        self.client.loop_start()
        assert ready.wait(WITHIN_S)
        return self

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        self.client._reset_sockets()  # paho would, whenever it is collected

    def read_to_the_end(self) -> None:
        """Wait until the broker's end was noticed, so that all it had sent is heard; close.

        To close earlier writes to a peer that is gone, and its RST throws away what is unread.
        """
        assert self.ended.wait(WITHIN_S)
        self.close()

    def payloads(self, topic: str) -> list[bytes]:
        return [payload for heard, payload, _ in list(self.heard) if heard == topic]

    def seqs(self, stream: str = STREAM) -> list[int]:
        return [int(payload) for payload in self.payloads(f"edge/d/{stream}")]
