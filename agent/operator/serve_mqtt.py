"""`edge-agent repo serve-mqtt`: a repository's files for boards that reach nothing but the broker.

Answers what `agent.ota.chunks` describes, from the same folder that a web server would serve.
Needs no key: whoever serves a repository can withhold it, and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from agent.config import MqttConfig
from agent.errors import EXIT_OK, UnavailableError
from agent.operator.exchange import Exchange, Message
from agent.ota.chunks import (
    BUSY,
    HEAD_BYTES,
    NO_RANGE,
    NOT_FOUND,
    OK,
    Chunk,
    chunk_topic,
    pack,
    parse_request,
    request_topic,
)

# By default of all boards together, and of one: a broker has other things to carry.
MOST_BYTES_S = 2_000_000.0
MOST_OF_ONE_BOARD = 0.25
# Boards whose share is known; beyond it the one that asked longest ago starts anew.
MOST_BOARDS = 4096
REPORTS_EVERY_S = 10.0
WAITS_S = 0.5


class Broker(Protocol):
    """The part of `agent.operator.exchange.Exchange` that is needed here."""

    def drain(self, wait_s: float) -> list[Message]:
        """Return what came; wait for the first message for so long."""

    def publish(self, topic: str, payload: bytes, *, retain: bool, qos: int) -> None:
        """Send a message."""


class _Share:
    """Bytes that may be sent: so many a second, and no more than a second's saved up."""

    def __init__(self, bytes_s: float, now: float) -> None:
        self._bytes_s = bytes_s
        self._left = bytes_s
        self._at = now

    def has(self, now: float) -> bool:
        self._left = min(self._bytes_s, self._left + (now - self._at) * self._bytes_s)
        self._at = now
        return self._left > 0

    def spend(self, count: int) -> None:
        self._left -= count


class ChunkServer:
    """Answers requests from a folder; `answered`, `sent_bytes` and `boards` count."""

    def __init__(
        self,
        folder: Path,
        *,
        prefix: str,
        most_bytes_s: float = MOST_BYTES_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the repository's folder.

        Raises:
            UnavailableError: there is no repository in it.
        """
        if not (folder / "metadata" / "timestamp.json").is_file():
            raise UnavailableError(
                f"{folder}: has no metadata/timestamp.json; make a repository with "
                "`edge-agent repo init`"
            )
        self.answered = self.sent_bytes = 0
        self._folder = folder.resolve()
        self._prefix = prefix
        self._clock = clock
        self._most_bytes_s = most_bytes_s
        self._all = _Share(most_bytes_s, clock())
        self._boards: dict[str, _Share] = {}
        # The head of a topic, and what stands behind the device.
        self._before, self._behind = request_topic(prefix, "\0").split("\0")

    @property
    def topic_filter(self) -> str:
        """What to subscribe to, QoS 0."""
        return request_topic(self._prefix, "+")

    @property
    def boards(self) -> int:
        """Boards that have asked."""
        return len(self._boards)

    def answer(self, topic: str, payload: bytes) -> tuple[str, bytes] | None:
        """Return what to publish where, None for nothing: no request, or not for us."""
        device = topic[len(self._before) : len(topic) - len(self._behind)]
        if topic != f"{self._before}{device}{self._behind}" or not device or "/" in device:
            return None
        try:
            request = parse_request(payload)
        except ValueError:
            return None
        share, now = self._share(device), self._clock()
        # Both are looked at, as both fill up with time.
        if not (share.has(now) & self._all.has(now)):
            chunk = Chunk(status=BUSY)
        else:
            chunk = self._read(request.path, request.offset, request.length)
        answer = pack(chunk)
        for one in (share, self._all):
            one.spend(len(answer) if chunk.piece else HEAD_BYTES)
        self.answered += 1
        self.sent_bytes += len(answer)
        return chunk_topic(self._prefix, device, request.id), answer

    def _share(self, device: str) -> _Share:
        share = self._boards.pop(device, None)
        if share is None:
            share = _Share(self._most_bytes_s * MOST_OF_ONE_BOARD, self._clock())
            if len(self._boards) >= MOST_BOARDS:
                del self._boards[next(iter(self._boards))]
        self._boards[device] = share
        return share

    def _read(self, path: str, offset: int, length: int) -> Chunk:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
        try:
            # The pattern of paths has no way up; a link in the middle would be the operator's own.
            descriptor = os.open(self._folder / path, flags)
        except OSError:
            return Chunk(status=NOT_FOUND)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                return Chunk(status=NOT_FOUND)
            said = f"{found.st_size} {found.st_mtime_ns}".encode()
            tag, total = hashlib.sha256(said).digest()[:8], found.st_size
            if offset > total or (offset == total and total > 0):
                return Chunk(status=NO_RANGE, offset=offset, total=total, tag=tag)
            piece = os.pread(descriptor, length, offset)
            return Chunk(status=OK, offset=offset, total=total, tag=tag, piece=piece)
        except OSError:
            return Chunk(status=NOT_FOUND)
        finally:
            os.close(descriptor)


def serve(
    server: ChunkServer,
    broker: Broker,
    *,
    say: Callable[[str], None],
    is_over: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Answer until it is over; say now and then what was answered."""
    said_at, said = clock(), 0
    while not is_over():
        for message in broker.drain(WAITS_S):
            answer = None if message.retained else server.answer(message.topic, message.payload)
            if answer is not None:
                broker.publish(answer[0], answer[1], retain=False, qos=0)
        now = clock()
        if server.answered != said and now - said_at >= REPORTS_EVERY_S:
            said_at, said = now, server.answered
            mb = server.sent_bytes / 1e6
            say(f"answered {said} requests of {server.boards} boards, {mb:.1f} MB")


def run_serve_mqtt(folder: Path, settings: MqttConfig, *, most_kb_s: float) -> int:
    """Serve a repository until Ctrl-C.

    Raises:
        UnavailableError: there is none in the folder.
        BrokerError: the broker cannot be reached or refuses us.
    """
    server = ChunkServer(folder, prefix=settings.prefix, most_bytes_s=most_kb_s * 1000)
    # Over by Ctrl-C alone: paho connects again by itself, and subscribes anew.
    with Exchange(settings, [server.topic_filter]) as exchange:
        print(f"answering {server.topic_filter} from {folder}; Ctrl-C ends it", flush=True)
        was_there = True

        def look_at_broker() -> bool:
            """Say that the broker went or came back; it never is a reason to end."""
            nonlocal was_there
            if exchange.is_connected != was_there:
                was_there = not was_there
                print("the broker is back" if was_there else "the broker is away", flush=True)
            return False

        try:
            serve(server, exchange, say=partial(print, flush=True), is_over=look_at_broker)
        except KeyboardInterrupt:
            return EXIT_OK  # the way out
    return EXIT_OK
