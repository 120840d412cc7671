"""What the control process and the vision worker say to each other.

One `AF_UNIX` `SOCK_SEQPACKET` socket pair: every send is one whole message or none, so a
worker killed in the middle of anything never leaves half a message behind. Messages are
msgpack of the tagged structs below. Pixels never pass here; frames that a worker lends lie in
sealed memory, and only its descriptor passes (SCM_RIGHTS, unix(7)).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from types import UnionType
from typing import Generic, Literal, TypeVar

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
    manifest_sha256: str = ""  # of an installed bundle: what is loaded is what was checked
    second: dict[str, ModelConfig] = {}  # models that look at what the first one finds
    cameras: tuple[CameraConfig, ...]
    resume: dict[str, Resume]
    avoid: str = ""  # why no accelerator is to be tried now
    most_threads: int = 4  # what is this worker's to use of the board's cores
    choices: dict[str, Choice] = {}  # how models ran best here, by what that depends on


class Stop(Struct, frozen=True, tag="stop"):
    """To the worker: finish the frames under way and end."""


class Swap(Struct, frozen=True, kw_only=True, tag="swap"):
    """To the worker: load another model beside the one that runs, and go on with it.

    It is answered by `Swapped` or `SwapFailed`, once.
    """

    token: str  # echoed in the answer
    model: ModelConfig
    manifest_sha256: str = ""  # as in Start
    avoid: str = ""  # as in Start
    choices: dict[str, Choice] = {}
    # After the first good frame the model before stays loaded for so long, or until Keep: it takes
    # over again when the new one fails on a frame, or by Revert.
    hold_s: float = 60.0


class Revert(Struct, frozen=True, kw_only=True, tag="revert"):
    """To the worker: go on with the model before; answered as `Swap` is."""

    token: str


class Keep(Struct, frozen=True, tag="keep"):
    """To the worker: the new model stays; let go of the one before."""


class LendFrames(Struct, frozen=True, kw_only=True, tag="lend_frames"):
    """To the worker: put some of the next frames, and what is found in them, into sealed memory.

    It is answered by one `Lent`.
    """

    token: str
    count: int
    every_s: float = 0.5  # at least so far apart
    within_s: float = 60.0  # with what there is by then


class Ready(Struct, frozen=True, kw_only=True, tag="ready"):
    """From the worker: the model is loaded and warm.

    After a swap it is said anew, ahead of the first result of the model that runs from now on.
    """

    model: ModelIdentity
    path: str = ""  # where it was loaded from, as Start or Swap said
    manifest_sha256: str = ""
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


class Swapped(Struct, frozen=True, kw_only=True, tag="swapped"):
    """From the worker, behind the first result of the new model: it works."""

    token: str
    model: ModelIdentity
    # From the last result of the model before to the first of this one; None: no frame came, or
    # there was none before.
    gap_ms: float | None
    load_ms: float  # while the model before went on


# refused: it cannot be loaded. frame_failed: an exception of its run or its decoder on a frame;
# the model before goes on. busy: another swap is under way. nothing_held: there is no model before.
SwapFault = Literal["refused", "frame_failed", "busy", "nothing_held"]


class SwapFailed(Struct, frozen=True, kw_only=True, tag="swap_failed"):
    """From the worker: the model that ran before runs.

    With `frame_failed` it may also come long after `Swapped`, as long as that one is held.
    """

    token: str
    code: SwapFault
    reason: str


class Lent(Struct, frozen=True, kw_only=True, tag="lent"):
    """From the worker: its answer to `LendFrames`, with a descriptor unless there are no frames."""

    token: str
    frames: int
    size: int  # bytes


# model: it cannot be used. frame: a stage failed on a frame. worker: anything else.
Fault = Literal["model", "frame", "worker"]


class Failed(Struct, frozen=True, kw_only=True, tag="failed"):
    """From the worker, just before it ends: why it cannot go on."""

    code: Fault
    reason: str


ToWorker = Start | Swap | Revert | Keep | LendFrames | Stop
FromWorker = (
    Ready | Learned | ResultOut | CameraChange | Beat | Swapped | SwapFailed | Lent | Failed
)

T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()
_DESCRIPTOR = struct.Struct("=i")
_RIGHTS_SPACE = socket.CMSG_SPACE(_DESCRIPTOR.size)


def open_link() -> tuple[socket.socket, socket.socket]:
    """Return the (control, worker) ends of a new link."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    return ends


def send(
    end: socket.socket, message: ToWorker | FromWorker, *, descriptor: int | None = None
) -> None:
    """Send one message whole, and with it a descriptor, which the sender may close afterwards.

    Raises:
        OSError: the other side is gone; EMSGSIZE: the message is too large.
    """
    content = _encoder.encode(message)
    if len(content) > MAX_MESSAGE_BYTES:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    if descriptor is None:
        end.send(content)
    else:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.pack(descriptor))
        end.sendmsg([content], [rights])


class Inbox(Generic[T]):
    """Receives at one end of a link, into memory that is made once."""

    def __init__(self, end: socket.socket, kinds: UnionType) -> None:
        self._end = end
        self._memory = memoryview(bytearray(MAX_MESSAGE_BYTES))
        self._decode = msgspec.msgpack.Decoder(kinds).decode
        self._descriptor: int | None = None  # that came with the last message

    def receive(self) -> T | None:
        """Return the next message, or None at the end of the link.

        Raises:
            OSError: nothing there on a non-blocking end, or the other side broke off.
            msgspec.DecodeError: not a message.
        """
        self.close()
        size, ancillary, _, _ = self._end.recvmsg_into(
            [self._memory], _RIGHTS_SPACE, socket.MSG_CMSG_CLOEXEC
        )
        if ancillary:
            self._note_descriptors(ancillary)
        message: T | None = self._decode(self._memory[:size]) if size else None
        return message

    def take_descriptor(self) -> int | None:
        """Return what came with the last message; it is the caller's to close."""
        descriptor, self._descriptor = self._descriptor, None
        return descriptor

    def close(self) -> None:
        """Close a descriptor that nobody has taken."""
        descriptor = self.take_descriptor()
        if descriptor is not None:
            os.close(descriptor)

    def _note_descriptors(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        """Keep the first descriptor, close what came beside it."""
        for level, kind, data in ancillary:
            if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                continue
            whole = len(data) - len(data) % _DESCRIPTOR.size
            for (descriptor,) in _DESCRIPTOR.iter_unpack(data[:whole]):
                if self._descriptor is None:
                    self._descriptor = descriptor
                else:
                    os.close(descriptor)
