"""Files of a repository in pieces over MQTT: what a board asks and what it is answered.

For boards whose firewall lets nothing but the broker through. A board publishes a `ChunkRequest`
as JSON on `<p>/<d>/repo/get`; whoever serves the repository answers on `<p>/<d>/repo/chunk/<id>`
with 32 bytes of head and the piece:

    offset  size  big endian
    0       4     "EAC1"
    4       2     status as of HTTP: 200; 404 no such file; 416 nothing at that offset; 429 and
                  503 ask later
    6       2     zero
    8       8     offset of the piece
    16      8     length of the whole file
    24      8     tag: another one if the file has become another one

Both are QoS 0 and not retained: a request that got lost is asked again, and a broker does not
keep megabytes for a board that went away. Nothing of it needs to be believed: TUF decides that.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

# With its head and topic below what a board takes in one message (64 KiB).
MOST_PIECE_BYTES = 60 << 10
MOST_REQUEST_BYTES = 1024
OK, NOT_FOUND, NO_RANGE, BUSY = 200, 404, 416, 429
MAGIC = b"EAC1"
_HEAD = struct.Struct("!4sHHQQ8s")
HEAD_BYTES = _HEAD.size
# `metadata/timestamp.json`, `targets/name/hash.version.tar`: no dots alone, no empty parts.
_PART = r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,199}"
_PATH = re.compile(rf"(?:metadata/{_PART}\.json|targets(?:/{_PART}){{1,3}})")
Id = Annotated[str, Meta(pattern=r"^[0-9a-f-]{1,40}\Z")]


class ChunkRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a board asks for."""

    id: Id
    path: Annotated[str, Meta(max_length=400)]
    offset: Annotated[int, Meta(ge=0, le=2**40)]
    length: Annotated[int, Meta(ge=1, le=MOST_PIECE_BYTES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What it is answered."""

    status: int
    offset: int = 0
    total: int = 0
    tag: bytes = bytes(8)
    piece: bytes = b""


def request_topic(prefix: str, device: str) -> str:
    """Return where a board asks; `+` for the device: where they all ask."""
    return f"{prefix}/{device}/repo/get"


def chunk_topic(prefix: str, device: str, request_id: str) -> str:
    """Return where one request is answered; `+` for the id: where they all are."""
    return f"{prefix}/{device}/repo/chunk/{request_id}"


def is_path(path: str) -> bool:
    """Return whether a path can be one of a repository's files."""
    return _PATH.fullmatch(path) is not None


def parse_request(payload: bytes) -> ChunkRequest:
    """Return a request.

    Raises:
        ValueError: it is none; the message does not quote it.
    """
    if len(payload) > MOST_REQUEST_BYTES:
        raise ValueError("is too long")
    try:
        request = msgspec.json.decode(payload, type=ChunkRequest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError("is no request for a piece of a file") from error
    if not is_path(request.path):
        raise ValueError("asks for what is no file of a repository")
    return request


def pack(chunk: Chunk) -> bytes:
    """Return the payload of an answer."""
    head = _HEAD.pack(MAGIC, chunk.status, 0, chunk.offset, chunk.total, chunk.tag)
    return head + chunk.piece


def unpack(payload: bytes) -> Chunk | None:
    """Return the answer of a payload, None if it is none."""
    if not HEAD_BYTES <= len(payload) <= HEAD_BYTES + MOST_PIECE_BYTES:
        return None
    magic, status, zero, offset, total, tag = _HEAD.unpack_from(payload)
    if magic != MAGIC or zero:
        return None
    return Chunk(
        status=status, offset=offset, total=total, tag=tag, piece=bytes(payload[HEAD_BYTES:])
    )
