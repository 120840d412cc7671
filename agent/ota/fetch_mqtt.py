"""A repository behind the broker: an update process asks through the control process.

The update process has no credentials of the broker's, and needs none: it writes `Need` on its
stdout, the control process (`ChunkRelay`) asks over the connection it has anyway, and hands the
answer down on stdin as a line `chunk ID LENGTH` with that many bytes behind it.
"""

from __future__ import annotations

import os
import re
import secrets
import select
import time
from collections.abc import Callable

import msgspec

from agent.ota.chunks import (
    HEAD_BYTES,
    MOST_PIECE_BYTES,
    NO_RANGE,
    NOT_FOUND,
    OK,
    Chunk,
    ChunkRequest,
    chunk_topic,
    is_path,
    request_topic,
    unpack,
)
from agent.ota.jobs import Limits, Need
from agent.ota.refusal import RefusalError
from agent.ota.transport import Pace, RangeError, StatusError

# Of the window of the minimum rate: what is not answered by then is asked again.
ASKS_A_WINDOW = 4
_HEADER = re.compile(rb"chunk ([0-9a-f-]{1,40}) ([0-9]{1,6})")
MOST_ANSWER_BYTES = HEAD_BYTES + MOST_PIECE_BYTES


class Lines:
    """Lines and counted bytes from a pipe, with a time limit; the update process's stdin."""

    def __init__(self, descriptor: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._descriptor = descriptor
        self._clock = clock
        self._buffer = b""

    def line(self, most: int, timeout_s: float) -> bytes | None:
        """Return the next line without its end, None if none came in time.

        Raises:
            EOFError: nothing will come any more, or what came is no line.
        """
        ends = self._clock() + timeout_s
        while b"\n" not in self._buffer:
            if len(self._buffer) > most:
                raise EOFError("no line")
            if not self._fill(ends):
                return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def take(self, count: int, timeout_s: float) -> bytes:
        """Return the next bytes; they are on their way, so EOFError if they do not come."""
        ends = self._clock() + timeout_s
        while len(self._buffer) < count:
            if not self._fill(ends):
                raise EOFError("no bytes")
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _fill(self, ends: float) -> bool:
        left = ends - self._clock()
        if left <= 0 or not select.select([self._descriptor], [], [], left)[0]:
            return False
        piece = os.read(self._descriptor, 1 << 16)
        if not piece:
            raise EOFError("closed")
        self._buffer += piece
        return True


class ChunkTransport:
    """See `transport.Transport`; the update process's side."""

    def __init__(
        self,
        lines: Lines,
        ask: Callable[[Need], None],
        *,
        limits: Limits,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Take the pipe that answers, and what asks."""
        self.name = "mqtt:"
        self._lines = lines
        self._ask = ask
        self._limits = limits
        self._pause = pause
        self._run = secrets.token_hex(4)
        self._number = 0

    def open(self, path: str, *, offset: int = 0, tag: str | None = None) -> ChunkReply:
        """See `transport.Transport`."""
        if not is_path(path):
            raise StatusError(NOT_FOUND, f"{self.name}{path}: cannot be asked for")
        pace = Pace(self._limits)
        first = self.piece(path, offset, pace)
        if offset and (first.status == NO_RANGE or (tag and first.tag.hex() != tag)):
            first = self.piece(path, 0, pace)
        if first.status == NO_RANGE:
            raise RangeError(f"{self.name}{path}: has nothing from byte {offset} on")
        if first.status != OK:
            raise StatusError(first.status, f"{self.name}{path}: answers {first.status}")
        return ChunkReply(self, path, first, pace)

    def piece(self, path: str, offset: int, pace: Pace) -> Chunk:
        """Ask for a piece until it comes, or comes too slowly."""
        wait_s = self._limits.window_s / ASKS_A_WINDOW
        while True:
            self._number += 1
            need = Need(
                id=f"{self._run}-{self._number:x}",
                path=path,
                offset=offset,
                length=MOST_PIECE_BYTES,
            )
            self._ask(need)
            answer = self._answer(need, wait_s)
            if answer is not None and answer.status in (OK, NOT_FOUND, NO_RANGE):
                return answer
            complaint = pace.complaint()
            if complaint is not None:
                raise RefusalError("E_SLOW", f"{self.name}{path}: {complaint}")
            if answer is not None:  # whoever serves it has too much to do
                self._pause(wait_s / ASKS_A_WINDOW)

    def _answer(self, need: Need, wait_s: float) -> Chunk | None:
        ends = time.monotonic() + wait_s
        try:
            while (left := ends - time.monotonic()) > 0:
                line = self._lines.line(100, left)
                if line is None:
                    return None
                found = _HEADER.fullmatch(line)
                if found is None or int(found[2]) > MOST_ANSWER_BYTES:
                    raise EOFError("no header")
                payload = self._lines.take(int(found[2]), wait_s)
                if found[1].decode() != need.id:
                    continue  # of a request that was given up
                chunk = unpack(payload)
                if chunk is not None and _fits(chunk, need):
                    return chunk
        except EOFError as error:
            raise RefusalError("E_NET", f"{self.name} the daemon went away ({error})") from error
        return None

    def close(self) -> None:
        """See `transport.Transport`."""


def _fits(chunk: Chunk, need: Need) -> bool:
    if chunk.status != OK:
        return not chunk.piece
    end = chunk.offset + len(chunk.piece)
    # No piece only of an empty file: else one could ask for ever.
    is_something = bool(chunk.piece) or chunk.total == 0
    return (
        is_something
        and chunk.offset == need.offset
        and len(chunk.piece) <= need.length
        and end <= chunk.total
    )


class ChunkReply:
    """A file, piece after piece; see `transport.Reply`."""

    def __init__(self, transport: ChunkTransport, path: str, first: Chunk, pace: Pace) -> None:
        self.start = first.offset
        self.total: int | None = first.total
        self.tag: str | None = first.tag.hex()
        self._transport = transport
        self._path = path
        self._pace = pace
        self._pace.note(len(first.piece))
        self._rest = first.piece
        self._next = first.offset + len(first.piece)

    def read(self, most: int) -> bytes:
        """See `transport.Reply`."""
        if not self._rest and self._next != self.total:
            chunk = self._transport.piece(self._path, self._next, self._pace)
            if chunk.status != OK or chunk.tag.hex() != self.tag or chunk.total != self.total:
                message = f"{self._transport.name}{self._path}: is another file by now"
                raise RefusalError("E_NET", message)
            self._pace.note(len(chunk.piece))
            self._rest = chunk.piece
            self._next += len(chunk.piece)
        taken, self._rest = self._rest[:most], self._rest[most:]
        return taken

    def close(self) -> None:
        """See `transport.Reply`."""


class ChunkRelay:
    """The control process's side, for its main loop's thread: neither waits nor keeps anything.

    What gets lost is asked for again by the update process.
    """

    def __init__(
        self, *, prefix: str, device: str, publish: Callable[[str, bytes], object]
    ) -> None:
        """Take what publishes a payload on a topic now, with QoS 0, or drops it."""
        self._device = device
        self._prefix = prefix
        self._publish = publish
        self._waiting: tuple[Need, Callable[[bytes], None]] | None = None

    @property
    def topic_filter(self) -> str:
        """What to subscribe to, QoS 0."""
        return chunk_topic(self._prefix, self._device, "+")

    def ask(self, need: Need, hand_down: Callable[[bytes], None]) -> None:
        """Ask for what an update process needs; what was needed before is given up.

        `hand_down` writes to the process's stdin.
        """
        self._waiting = need, hand_down
        request = ChunkRequest(id=need.id, path=need.path, offset=need.offset, length=need.length)
        self._publish(request_topic(self._prefix, self._device), msgspec.json.encode(request))

    def on_message(self, topic: str, payload: bytes) -> None:
        """Take what was published to the filter; only what is waited for goes further."""
        if self._waiting is None or len(payload) > MOST_ANSWER_BYTES:
            return
        need, hand_down = self._waiting
        if topic != chunk_topic(self._prefix, self._device, need.id):
            return
        self._waiting = None
        hand_down(b"chunk %s %d\n" % (need.id.encode(), len(payload)) + payload)
