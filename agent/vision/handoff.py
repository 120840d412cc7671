"""Where frames wait: one slot per camera, holding the newest.

This is the only place where a frame is ever dropped, and every drop is counted. Ids and
counts are written by one thread each; the shared condition guards only the slots.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import numpy as np
import numpy.typing as npt

U8Image = npt.NDArray[np.uint8]


class FrameBuffers:
    """Memory for the frames of one camera, passed round so that capturing allocates nothing.

    Three suffice: one being captured into, one waiting in the slot, one being preprocessed.
    Where frames are kept until their results are out, those in the other stages count as well:
    one before and one in inference, two with their outputs.

    While one model takes the place of another there are frames under way with either: these get
    memory of their own, which is not kept.
    """

    COUNT = 3
    COUNT_KEPT = 7

    def __init__(self, count: int = COUNT) -> None:
        self._count = count
        self._free: SimpleQueue[U8Image | None] = SimpleQueue()
        for _ in range(count):
            self._free.put(None)

    def take(self) -> U8Image | None:
        """Return memory of an earlier frame, or None where there is none yet; never waits."""
        try:
            return self._free.get_nowait()
        except Empty:
            return None

    def give_back(self, pixels: U8Image | None) -> None:
        """Return memory for the next frames."""
        if self._free.qsize() < self._count:
            self._free.put(pixels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One captured image; `pixels` uint8[H, W, 3] BGR belong to the holder until given back."""

    camera: str
    frame_id: int
    pixels: U8Image
    captured_ns: int  # monotonic
    captured_at: float  # wall clock, for the payload alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A frame, and how many of its camera's lie between it and the one taken before."""

    frame: Frame
    dropped: int
    still: int


@dataclass(slots=True)
class Skipped:
    """Frames that nobody took: replaced or stepped over, and those in which nothing had moved."""

    dropped: int = 0
    still: int = 0


class LatestSlot:
    """Holds the newest frame of one camera until it is taken.

    What is not taken is counted to the frame behind it: the id of a frame taken here is that of
    the one before, plus `dropped`, plus `still`, plus one.
    """

    def __init__(self, ready: threading.Condition) -> None:
        self._ready = ready  # shared by the slots of all cameras of one pipeline
        # All below is guarded by `ready`.
        self.frame: Frame | None = None
        self.turn = 0  # of the last frame taken here; the slots of a pipeline count together
        self.before = Skipped()  # ahead of the waiting frame
        self._behind = Skipped()  # after it, so ahead of the next

    def put(self, frame: Frame) -> Frame | None:
        """Offer a live frame; return the unread one it replaces, which is thereby dropped."""
        with self._ready:
            replaced, self.frame = self.frame, frame
            self.before.dropped += self._behind.dropped + (replaced is not None)
            self.before.still += self._behind.still
            self._behind.dropped = self._behind.still = 0
            self._ready.notify_all()
        return replaced

    def note_dropped(self, count: int) -> None:
        """Count frames that were stepped over without being captured."""
        with self._ready:
            self._behind.dropped += count

    def note_still(self, count: int) -> None:
        """Count frames in which nothing had moved."""
        with self._ready:
            self._behind.still += count

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until a frame would replace nothing; for files, where every frame counts."""
        with self._ready:
            return self._ready.wait_for(lambda: self.frame is None, timeout_s)


def take_next(
    slots: Sequence[LatestSlot], ready: threading.Condition, timeout_s: float
) -> Taken | None:
    """Take the waiting frame of the camera that was served longest ago; None: none came in time.

    Of cameras that were never served, the frame that has waited longest goes first. Taking turns
    among those that have a frame is max-min fair: a camera slower than its share loses nothing to
    faster ones, and these part evenly what it leaves them.
    """
    deadline = time.monotonic() + timeout_s
    with ready:
        while True:
            waiting = [slot for slot in slots if slot.frame is not None]
            if waiting:
                slot = min(waiting, key=_place_in_line)
                slot.turn = 1 + max(one.turn for one in slots)
                frame, slot.frame = slot.frame, None
                before, slot.before = slot.before, Skipped()
                ready.notify_all()
                assert frame is not None
                return Taken(frame=frame, dropped=before.dropped, still=before.still)
            left = deadline - time.monotonic()
            if left <= 0 or not ready.wait(left):
                return None


def _place_in_line(slot: LatestSlot) -> tuple[int, int]:
    return slot.turn, slot.frame.captured_ns if slot.frame is not None else 0
