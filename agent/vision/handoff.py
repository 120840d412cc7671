"""Where frames wait: one slot per camera, holding the newest.

This is the only place where a frame is ever dropped, and every drop is counted. Ids and
counts are written by one thread each; the shared condition guards only the slots.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt

U8Image = npt.NDArray[np.uint8]


class FrameBuffers:
    """Memory for the frames of one camera, passed round so that capturing allocates nothing.

    Three suffice: one being captured into, one waiting in the slot, one being preprocessed.
    """

    COUNT = 3

    def __init__(self) -> None:
        self._free: SimpleQueue[U8Image | None] = SimpleQueue()
        for _ in range(self.COUNT):
            self._free.put(None)

    def take(self) -> U8Image | None:
        """Return memory of an earlier frame, or None where there is none yet; never waits."""
        return self._free.get_nowait()

    def give_back(self, pixels: U8Image | None) -> None:
        """Return memory for the next frames."""
        self._free.put(pixels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One captured image; `pixels` uint8[H, W, 3] BGR belong to the holder until given back."""

    camera: str
    frame_id: int
    pixels: U8Image
    captured_ns: int  # monotonic
    captured_at: float  # wall clock, for the payload alone


class LatestSlot:
    """Holds the newest frame of one camera until it is taken."""

    def __init__(self, ready: threading.Condition) -> None:
        self._ready = ready  # shared by the slots of all cameras of one pipeline
        self.frame: Frame | None = None  # this and the next are guarded by `ready`
        self.dropped_since_take = 0

    def put(self, frame: Frame) -> Frame | None:
        """Offer a live frame; return the unread one it replaces, which is thereby dropped."""
        with self._ready:
            replaced, self.frame = self.frame, frame
            if replaced is not None:
                self.dropped_since_take += 1
            self._ready.notify_all()
        return replaced

    def note_dropped(self, count: int) -> None:
        """Count frames that were stepped over without being captured."""
        with self._ready:
            self.dropped_since_take += count

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until a frame would replace nothing; for files, where every frame counts."""
        with self._ready:
            return self._ready.wait_for(lambda: self.frame is None, timeout_s)


def take_oldest(
    slots: Sequence[LatestSlot], ready: threading.Condition, timeout_s: float
) -> tuple[Frame, int] | None:
    """Take the frame that has waited longest over all cameras, and the drops before it.

    None when nothing came in time.
    """
    deadline = time.monotonic() + timeout_s
    with ready:
        while True:
            waiting = [slot for slot in slots if slot.frame is not None]
            if waiting:
                slot = min(waiting, key=_waiting_since)
                frame, slot.frame = slot.frame, None
                dropped, slot.dropped_since_take = slot.dropped_since_take, 0
                ready.notify_all()
                assert frame is not None
                return frame, dropped
            left = deadline - time.monotonic()
            if left <= 0 or not ready.wait(left):
                return None


def _waiting_since(slot: LatestSlot) -> int:
    return slot.frame.captured_ns if slot.frame is not None else 0
