"""What the control process and the vision worker say to each other.

One `AF_UNIX` `SOCK_SEQPACKET` socket pair: every send is one whole message or none, so a
worker killed in the middle of anything never leaves half a message behind. Messages are
msgpack of the tagged structs below. Pixels never pass here.
"""

from __future__ import annotations

import errno
import os
import socket
from types import UnionType
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct

from agent.choices import Choice
from agent.config import CameraConfig, ModelConfig
from agent.contract.payloads import CameraState, MeasuredRun, ModelIdentity

# Larger than any message. The kernel refuses what does not fit the socket's buffer, but not what
# the other side has no room for: that would come in cut off.
MAX_MESSAGE_BYTES = 1 << 20
SOCKET_BUFFER_BYTES = 4 << 20


# The stage that ticks while an accelerator is opened in the worker itself.
OPENING = "opening"


class Resume(Struct, frozen=True, kw_only=True):
    """Where a camera's counters go on, so that ids never repeat after a worker is replaced."""

    next_seq: int = 1
    next_frame_id: int = 1
    skip: int = 0  # frames of a file to step over: one of them may be what kills workers


class Start(Struct, frozen=True, kw_only=True, tag="start"):
    """To the worker: all it needs to know; always the first message."""

    device: str
    boot_id: str
    model: ModelConfig
    second: dict[str, ModelConfig] = {}  # models that look at what the first one finds
    cameras: tuple[CameraConfig, ...]
    resume: dict[str, Resume]
    avoid: str = ""  # why no accelerator is to be tried now
    most_threads: int = 4  # what is this worker's to use of the board's cores
    choices: dict[str, Choice] = {}  # how models ran best here, by what that depends on


class Stop(Struct, frozen=True, tag="stop"):
    """To the worker: finish the frames under way and end."""


class Ready(Struct, frozen=True, kw_only=True, tag="ready"):
    """From the worker: the model is loaded and warm."""

    model: ModelIdentity
    task: str
    head: str
    accelerator: str
    reason: str | None  # why that is not what was wanted
    is_accelerated: bool  # this model or one of its second stages uses an accelerator
    # Models whose accelerator may come back, by name in [models] ("": this one).
    fallbacks: tuple[str, ...]
    run: MeasuredRun
    first_invoke_s: float
    notes: tuple[str, ...]


class Learned(Struct, frozen=True, kw_only=True, tag="learned"):
    """From the worker: how a model runs best here, to be remembered."""

    key: str
    choice: Choice


class ResultOut(Struct, frozen=True, kw_only=True, tag="result"):
    """From the worker: one encoded result, ready to publish."""

    camera: str
    seq: int
    frame_id: int
    payload: bytes
    # Wall minus monotonic clock at the capture, seconds; None: the clock was synchronized then.
    clock_offset_s: float | None = None
    # Stamps of the monotonic clock, which all processes of a board share; 0: unknown.
    captured_ns: int = 0
    encoded_ns: int = 0


class CameraCounts(Struct, frozen=True, kw_only=True):
    """Counted since this worker started."""

    captured: int
    dropped: int
    still: int
    processed: int
    last_frame_id: int
    second: int = 0  # runs of second stages, on boxes
    # Label (class_<id> without one) -> most of them in one frame since the last heartbeat; None:
    # there was no frame.
    found: dict[str, int] | None = None


class CameraChange(Struct, frozen=True, kw_only=True, tag="camera"):
    """From the worker: a camera came, went or ended."""

    camera: str
    state: CameraState
    reason: str | None
    is_fault: bool  # False for the end of a file
    at: float
    width: int | None = None
    height: int | None = None


class FrameTimes(Struct, frozen=True, array_like=True):
    """Where the time of one processed frame went, nanoseconds; published or not."""

    camera: str
    age: int
    queue: int
    preprocess: int
    inference: int
    postprocess: int
    cascade: int  # 0: there was none
    total: int


class Beat(Struct, frozen=True, kw_only=True, tag="beat"):
    """From the worker, twice a second: how long ago each stage last ticked, and the counters."""

    stage_age_s: dict[str, float]
    cameras: dict[str, CameraCounts]
    invoke_p99_s: float | None = None  # of the last few hundred; None before there are enough
    times: list[FrameTimes] = []  # of all frames processed since the last heartbeat
    times_lost: int = 0  # frames whose times did not fit


class Failed(Struct, frozen=True, kw_only=True, tag="failed"):
    """From the worker, just before it ends: why it cannot go on."""

    code: str
    reason: str


ToWorker = Start | Stop
FromWorker = Ready | Learned | ResultOut | CameraChange | Beat | Failed

T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()


def open_link() -> tuple[socket.socket, socket.socket]:
    """Return the (control, worker) ends of a new link."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    return ends


def send(end: socket.socket, message: ToWorker | FromWorker) -> None:
    """Send one message whole.

    Raises:
        OSError: the other side is gone; EMSGSIZE: the message is too large.
    """
    content = _encoder.encode(message)
    if len(content) > MAX_MESSAGE_BYTES:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    end.send(content)


class Inbox(Generic[T]):
    """Receives at one end of a link, into memory that is made once."""

    def __init__(self, end: socket.socket, kinds: UnionType) -> None:
        self._end = end
        self._memory = memoryview(bytearray(MAX_MESSAGE_BYTES))
        self._decode = msgspec.msgpack.Decoder(kinds).decode

    def receive(self) -> T | None:
        """Return the next message, or None at the end of the link.

        Raises:
            OSError: nothing there on a non-blocking end, or the other side broke off.
            msgspec.DecodeError: not a message.
        """
        size = self._end.recv_into(self._memory)
        message: T | None = self._decode(self._memory[:size]) if size else None
        return message
