"""Recent frames of this board for a model that is to be compared with the one that runs.

The worker copies some of the next frames, and what its model finds in them, into one memory file,
seals it so that nobody can change it any more, and gives its descriptor away (SCM_RIGHTS). The
process that tries the other model maps it; nobody in between looks at it.

    frame │ frame │ … │ index, JSON │ its length, 8 bytes │ MAGIC        frame: uint8[H, W, 3] BGR

Nothing is kept while nobody asks: a few frames cost a copy each, some 0.3 ms of a 720p frame, and
their memory until whoever asked has closed the file.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator

import cv2
import msgspec
import numpy as np
from msgspec import Struct

from agent.config import Region
from agent.contract.payloads import Box, ModelIdentity, Pose
from agent.errors import ModelError
from agent.link import LendFrames, Lent
from agent.vision.confine import available_bytes
from agent.vision.encode import Findings, is_believed
from agent.vision.handoff import Frame, U8Image

log = logging.getLogger(__name__)

MOST_FRAMES = 24
# Larger frames are made smaller: no model here looks at more.
MOST_WIDTH_PX, MOST_HEIGHT_PX = 1280, 720
MOST_BYTES = MOST_FRAMES * MOST_WIDTH_PX * MOST_HEIGHT_PX * 3
# Of the memory that is available; a board that has little of it lends fewer frames.
MEMORY_SHARE = 0.125
MAX_INDEX_BYTES = 8 << 20
MAGIC = b"EAframes"
_FOOTER = struct.Struct("<Q8s")
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class Thing(Struct, frozen=True, kw_only=True):
    """One finding, comparable between models: `box` and `area` are shares of the frame."""

    label: str | None
    class_id: int
    score: float | None = None
    box: Box | None = None
    area: float | None = None


class LentFrame(Struct, frozen=True, kw_only=True):
    """One frame in the file, and what the active model found in it, without a camera's filter."""

    camera: str
    frame_id: int
    region: Region | None
    offset: int
    height: int
    width: int
    things: list[Thing]


class LentIndex(Struct, frozen=True, kw_only=True):
    """What lies in the file."""

    model: ModelIdentity
    task: str
    frames: list[LentFrame]


def things_of(findings: Findings, width: int, height: int) -> list[Thing]:
    """Return what was found in a frame of this size, best first."""
    if findings.detections:
        return [
            Thing(
                label=one.label,
                class_id=one.class_id,
                score=one.score,
                box=_share(one.box, width, height),
            )
            for one in findings.detections
        ]
    if findings.classes:
        return [
            Thing(label=one.label, class_id=one.class_id, score=one.score)
            for one in findings.classes
        ]
    if findings.keypoints:
        return [
            Thing(
                label=one.label,
                class_id=one.class_id,
                score=one.score,
                box=_share(_bounds(one), width, height),
            )
            for one in findings.keypoints
        ]
    return [
        Thing(label=one.label, class_id=one.class_id, area=one.area)
        for one in findings.regions or ()
    ]


def _share(box: Box | None, width: int, height: int) -> Box | None:
    if box is None:
        return None
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def _bounds(figure: Pose) -> Box | None:
    points = [(point.x, point.y) for point in figure.points if is_believed(point)]
    if figure.box is not None or not points:
        return figure.box
    across, down = zip(*points, strict=True)
    return min(across), min(down), max(across), max(down)


HandOver = Callable[[Lent, int | None], None]


class Lender:
    """One loan. `take` is for the preprocess thread, `note` and `drop` for postprocess."""

    def __init__(
        self,
        order: LendFrames,
        hand_over: HandOver,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._order = order
        self._hand_over = hand_over
        self._clock = clock
        self._left = min(order.count, MOST_FRAMES)
        self._room_bytes = min(MOST_BYTES, int(MEMORY_SHARE * available_bytes()))
        self._ends_at = clock() + order.within_s
        self._due_at = clock()
        self._lock = threading.Lock()
        # Guarded by the lock.
        self._file = os.memfd_create("frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._size = 0
        self._count = 0
        self._open: dict[int, LentFrame] = {}  # copied, not looked at yet
        self._frames: list[LentFrame] = []
        self._model: tuple[ModelIdentity, str] | None = None
        self.is_over = False

    def take(self, frame: Frame, region: Region | None) -> int | None:
        """Copy a frame if one is due; return the number by which its findings are noted."""
        if self.is_over or self._left <= 0 or self._clock() < self._due_at:
            return None
        pixels = _bounded(frame.pixels)
        with self._lock:
            if self.is_over:
                return None
            if self._size + pixels.nbytes > self._room_bytes:
                self._left = 0
                return None
            self._left -= 1
            self._count += 1
            self._due_at = self._clock() + self._order.every_s
            height, width = pixels.shape[:2]
            lent = LentFrame(
                camera=frame.camera,
                frame_id=frame.frame_id,
                region=region,
                offset=self._size,
                height=height,
                width=width,
                things=[],
            )
            try:
                self._write(pixels.data.cast("B"))
            except OSError as error:  # no memory; those that are there will do
                log.warning("frame not lent reason=%s", error.strerror)
                self._left = 0
                return None
            self._open[self._count] = lent
            return self._count

    def note(self, number: int, things: list[Thing], model: ModelIdentity, task: str) -> None:
        """Note what was found in a frame that was taken."""
        with self._lock:
            lent = self._open.pop(number, None)
            if lent is None or self.is_over:
                return
            if self._model is None:
                self._model = model, task
            if self._model == (model, task):  # not across a swap
                self._frames.append(msgspec.structs.replace(lent, things=things))
        self.check()

    def drop(self, number: int) -> None:
        """Forget a frame that came to nothing."""
        with self._lock:
            self._open.pop(number, None)
        self.check()

    def check(self) -> None:
        """Hand over what there is if it is all, or if time is up."""
        with self._lock:
            is_all = self._left <= 0 and not self._open
            if self.is_over or not (is_all or self._clock() > self._ends_at):
                return
            self.is_over = True
            try:
                self._finish()
            finally:
                os.close(self._file)

    def _finish(self) -> None:
        token, model = self._order.token, self._model
        if model is None or not self._frames:
            self._hand_over(Lent(token=token, frames=0, size=0), None)
            return
        index = msgspec.json.encode(LentIndex(model=model[0], task=model[1], frames=self._frames))
        self._write(index + _FOOTER.pack(len(index), MAGIC))
        fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, SEALS)
        self._hand_over(Lent(token=token, frames=len(self._frames), size=self._size), self._file)

    def _write(self, data: bytes | memoryview) -> None:
        left = memoryview(data)
        while left:
            written = os.pwrite(self._file, left, self._size)
            self._size, left = self._size + written, left[written:]


def _bounded(pixels: U8Image) -> U8Image:
    """Return a frame as it is, or smaller; C order either way."""
    height, width = pixels.shape[:2]
    scale = min(1.0, MOST_WIDTH_PX / width, MOST_HEIGHT_PX / height)
    if scale == 1.0:
        return np.ascontiguousarray(pixels)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    smaller = np.empty((size[1], size[0], 3), np.uint8)
    cv2.resize(pixels, size, dst=smaller, interpolation=cv2.INTER_AREA)
    return smaller


class LentFrames:
    """A file of lent frames, mapped; for the process that tries the other model."""

    def __init__(self, descriptor: int) -> None:
        """Map it.

        Raises:
            ModelError: it is not sealed, so that its content could change, or not such a file.
        """
        try:
            seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
            size = os.fstat(descriptor).st_size
            if seals & SEALS != SEALS or size < _FOOTER.size:
                raise ModelError("the frames to be looked at are not sealed")
            self._memory = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
        except OSError as error:
            raise ModelError(
                f"the frames to be looked at cannot be read: {error.strerror}"
            ) from error
        self.index = self._read_index(size)

    def _read_index(self, size: int) -> LentIndex:
        length, magic = _FOOTER.unpack(self._memory[size - _FOOTER.size :])
        start = size - _FOOTER.size - length
        if magic != MAGIC or length > MAX_INDEX_BYTES or start < 0:
            raise ModelError("the frames to be looked at are none")
        try:
            index = msgspec.json.decode(self._memory[start : start + length], type=LentIndex)
        except msgspec.MsgspecError as error:
            raise ModelError(f"the frames to be looked at are none: {error}") from error
        for one in index.frames:
            is_inside = min(one.offset, one.height - 1, one.width - 1) >= 0
            if not is_inside or one.offset + one.height * one.width * 3 > start:
                raise ModelError("the frames to be looked at lie outside their file")
        return index

    def pictures(self) -> Iterator[tuple[LentFrame, U8Image]]:
        """Yield each frame with its pixels, uint8[H, W, 3] BGR, which cannot be written to."""
        for one in self.index.frames:
            shape = (one.height, one.width, 3)
            flat = np.frombuffer(self._memory, np.uint8, one.height * one.width * 3, one.offset)
            yield one, flat.reshape(shape)
