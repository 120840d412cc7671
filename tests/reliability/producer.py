"""A process with the real outbox and the real link, fed at a rate: `python -m … '{settings}'`.

Commands come as JSON lines on stdin, answers go as JSON lines to stdout:
    {"produce": 300, "per_s": 30}   put so many records, its streams in turn, at this rate;
                                    "streams" and "payload_bytes" may differ from the settings
    {"say": true}                   answer with the counters of this moment
SIGTERM is a clean stop: flush, `offline`, DISCONNECT, close the outbox; stdin's end is that of
the parent, and ends the process at once. Started again on the same folder it goes on where the
last run ended, however that was.
"""

from __future__ import annotations

import json
import os
import random
import selectors
import signal
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from agent.config import MqttConfig
from agent.contract.payloads import Gap, encode
from agent.daemon.mqtt import MqttLink, Timing
from agent.daemon.outbox import GapNote, Outbox, Record
from agent.logs import configure_logging
from reliability import faults
from reliability.logbook import Logbook

DEVICE = "board-1"
# What the daemon gives both, so that a stop takes the same time here.
FLUSH_WITHIN_S = 4.0
CLOSE_WITHIN_S = 4.0
LONGEST_WAIT_S = 0.5


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the parent decides."""

    port: int
    log: str
    folder: str | None = None  # the outbox's; None: memory only
    streams: tuple[str, ...] = ("camera/door/detections", "camera/yard/detections", "telemetry")
    payload_bytes: int = 400
    max_mb: float = 256.0
    mqtt: dict[str, Any] = {}
    timing: dict[str, float] = {}  # of the link; {}: as in the field
    faults: str = ""  # folder of the switches
    targets: tuple[str, ...] = ()


@dataclass(slots=True)
class _Order:
    """Records still to be put."""

    left: int
    per_s: float
    streams: deque[str]
    payload_bytes: int
    began: float = field(default_factory=time.monotonic)
    put: int = 0

    def due_at(self) -> float:
        return self.began + self.put / self.per_s


class Producer:
    """Puts records as it is told, and answers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._logbook = Logbook(Path(settings.log))
        self._run = f"{os.getpid()}-{time.monotonic_ns()}"
        self._padding = random.Random(settings.payload_bytes)  # any bytes, but never the same
        folder = Path(settings.folder) if settings.folder else None
        self.outbox = Outbox(
            max_bytes=int(settings.max_mb * 1e6),
            folder=folder,
            on_refill=self._wake_link,
        )
        self._is_linked = False
        self.outbox.open()
        self._next_seq: dict[str, int] = {}
        self._orders: deque[_Order] = deque()
        self.link = MqttLink(
            MqttConfig(url=f"mqtt://127.0.0.1:{settings.port}", **settings.mqtt),
            client_id="edge-agent-producer",
            availability_topic=f"edge/{DEVICE}/availability",
            outbox=self.outbox,
            gap_record=gap_record,
            timing=Timing(**settings.timing),
        )
        self._is_linked = True
        self.link.start()

    def _wake_link(self) -> None:
        """Have the link look at the outbox; before there is one, its first look will do."""
        if self._is_linked:
            self.link.wake()

    def serve(self, stop: socket.socket) -> None:
        """Work until `stop` becomes readable."""
        os.set_blocking(0, False)
        buffer = b""
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            selector.register(stop, selectors.EVENT_READ)
            while True:
                self._put_what_is_due()
                self.link.ensure_running()  # as the daemon's main loop does
                ready = [key.fileobj for key, _ in selector.select(self._wait_s())]
                if stop in ready:
                    return
                if 0 in ready:
                    data = os.read(0, 65536)
                    if not data:
                        os._exit(3)
                    *lines, buffer = (buffer + data).split(b"\n")
                    for line in lines:
                        self._obey(json.loads(line))

    def _wait_s(self) -> float:
        if not self._orders:
            return LONGEST_WAIT_S
        return min(LONGEST_WAIT_S, max(0.0, self._orders[0].due_at() - time.monotonic()))

    def _obey(self, command: dict[str, Any]) -> None:
        if "produce" in command:
            streams = deque(command.get("streams") or self._settings.streams)
            size = command.get("payload_bytes") or self._settings.payload_bytes
            self._orders.append(_Order(command["produce"], command["per_s"], streams, size))
        else:
            print(json.dumps(self.counters()), flush=True)

    def _put_what_is_due(self) -> None:
        while self._orders and self._orders[0].due_at() <= time.monotonic():
            order = self._orders[0]
            if order.left == 0:
                self._orders.popleft()
                continue
            order.left -= 1
            order.put += 1
            self._put_one(order.streams[0], order.payload_bytes)
            order.streams.rotate(-1)

    def _put_one(self, stream: str, payload_bytes: int) -> None:
        if stream not in self._next_seq:
            self._next_seq[stream] = self.outbox.first_seq(stream)
        seq = self._next_seq[stream]
        self._next_seq[stream] += 1
        padding = self._padding.randbytes(payload_bytes // 2).hex()
        document = {"seq": seq, "stream": stream, "run": self._run, "padding": padding}
        payload = encode(document)
        self._logbook.note(stream, seq, payload)
        self.link.put(
            Record(
                topic=f"edge/{DEVICE}/{stream}",
                payload=payload,
                stream=stream,
                seq=seq,
                is_telemetry=stream == "telemetry",
            )
        )

    def counters(self) -> dict[str, Any]:
        """Return what the outbox and the link say of themselves."""
        outbox, connection = self.outbox, self.link.connection
        return {
            "to_put": sum(order.left for order in self._orders),
            "waiting": outbox.waiting,
            "on_disk": outbox.on_disk,
            "has_gaps": outbox.has_gaps,
            "published": outbox.published,
            "dropped": outbox.dropped,
            "alarm": outbox.alarm,
            "connected": connection.connected,
            "reason": connection.reason,
            "reconnects": connection.reconnects,
            "receive_maximum": connection.receive_maximum,
            "at": time.monotonic(),
        }


def gap_record(note: GapNote) -> Record:
    """Return a gap message as the daemon writes it."""
    gap = Gap(
        device=DEVICE,
        boot_id="producer",
        stream=note.stream,
        from_seq=note.from_seq,
        to_seq=note.to_seq,
        count=note.count,
        reason=note.reason,
    )
    return Record(topic=f"edge/{DEVICE}/gap", payload=encode(gap))


def main() -> int:
    """Run until SIGTERM."""
    configure_logging("INFO")
    settings = msgspec.json.decode(sys.argv[1], type=Settings)
    if settings.targets:
        faults.install(Path(settings.faults), settings.targets)
    stop, inner = socket.socketpair()
    inner.setblocking(False)
    signal.set_wakeup_fd(inner.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    producer = Producer(settings)
    producer.serve(stop)
    producer.link.stop(FLUSH_WITHIN_S)
    unsaved = producer.outbox.close(CLOSE_WITHIN_S)
    return 1 if unsaved else 0


if __name__ == "__main__":
    sys.exit(main())
