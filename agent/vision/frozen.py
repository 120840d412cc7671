"""Whether a live camera's picture still changes, and whether there is light in it.

    online ──unchanged for FROZEN_S──▶ frozen ──any change──▶ online
                                         └─ reopened after REOPEN_AFTER_S, then 1, 2, 4 … 30 min

A driver or an encoder that hangs goes on giving frames, with new time stamps: the pixels alone
tell. A sensor's noise changes some pixel in every frame, so the comparison is exact: first of a
sample of rows, and when those have stood still for a while of a checksum of the whole picture.

What was measured of static scenes, encoded as H.264 at 15 Hz (x264, 640x360), where what hardly
changes is not sent at all: frames were identical for up to 0.2 s with a key frame each second,
and with the longest distance that is usual, 250 frames or 16.7 s, for 0.3 s (noise of two grey
levels), 4.7 s (the same, compressed much more) and 10.4 s (noise of one level). So a picture that
changes once a key frame comes is never taken for frozen with the 1 to 4 s between them that
cameras are sold with; and one which stands still for longer and then goes on by itself is
given more time from then on, and was not reopened meanwhile. A picture without any noise, as of
a test pattern, is frozen as far as anyone can tell.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from agent.vision.handoff import U8Image

LOOK_EVERY_S = 0.5
FROZEN_S = 8.0
# However slow the camera is, so many pictures have been the same.
LEAST_LOOKS = 5
# Longer than the 250 frames that x264 puts between key frames by default, at 15 Hz.
REOPEN_AFTER_S = 20.0
REOPEN_AGAIN_S = 60.0
REOPEN_MOST_S = 1800.0
# A picture that has changed for this long since it was frozen has earned a quick reopening.
PROVEN_S = 300.0
# A picture that stood still for some seconds and went on by itself may do so again, for longer. If
# it was taken for frozen by then, it may have been: it is believed the second time.
PATIENCE = 1.5
PATIENCE_MOST_S = 60.0
THAWS_BELIEVED = 2
# Checksums cost a millisecond for each megabyte or so: only where the sample stands still.
SUSPECT_S = 3.0
CHECK_EVERY_S = 1.0
# Of the rows, evenly spread: 61 kB of a picture 1280 wide.
ROWS = 16
# Mean of 0 to 255; a covered lens gives noise of less than this. As `edge-agent check` has it.
BLACK_BELOW = 8.0
BLACK_S = 10.0

BLACK = "the picture is black; is there light, or is the lens covered?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """The times that tests shorten."""

    look_every_s: float = LOOK_EVERY_S
    suspect_s: float = SUSPECT_S
    frozen_s: float = FROZEN_S
    black_s: float = BLACK_S
    reopen_after_s: float = REOPEN_AFTER_S
    reopen_again_s: float = REOPEN_AGAIN_S


class PictureWatch:
    """One camera's watch, for the thread that captures; it lives on when the camera is reopened.

    All times given are of one monotonic clock.
    """

    def __init__(self, patience: Patience | None = None) -> None:
        self.state: Literal["online", "frozen"] = "online"
        self.reason: str | None = None  # what is wrong with the picture
        self._patience = patience or Patience()
        self._frozen_s = self._patience.frozen_s
        self._sample: U8Image | None = None
        self._now: U8Image | None = None
        self._looks = 0  # with the same picture
        self._looked_at = -1e9
        self._changed_at = 0.0
        self._checksum: int | None = None
        self._checked_at = 0.0
        self._dark_since: float | None = None
        self._is_black = False
        self._reopen_at: float | None = None
        self._reopen_wait_s = 0.0
        self._is_reopened = False  # since it froze
        self._thawed_at: float | None = None
        self._thaws = 0  # by itself

    def begin(self, now: float) -> None:
        """The camera was opened: what it did not show meanwhile is not held against it."""
        self._looked_at = -1e9
        if self.state == "online":
            self._changed_at, self._looks, self._checksum = now, 0, None
            self._dark_since = now if self._dark_since is not None else None

    def see(self, pixels: U8Image, now: float) -> bool:
        """Look at a frame uint8[H, W, 3], if it is time; return whether there is news."""
        if now - self._looked_at < self._patience.look_every_s:
            return False
        self._looked_at = now
        before = (self.state, self.reason)
        if self._is_same(pixels, now):
            self._looks += 1
            self._note_still(now)
        else:
            self._note_change(now)
        self.reason = self._why_wrong(now)
        # The seconds in a reason go on; only what it is about is news.
        return (self.state, self.reason is None) != (before[0], before[1] is None)

    def wants_reopen(self, now: float) -> bool:
        """Return whether the camera should be closed and opened again; that counts as an attempt.

        A picture that may rightly stand still must not cost more than a gap every half hour.
        """
        if self._reopen_at is None or now < self._reopen_at:
            return False
        self._is_reopened = True
        self._reopen_wait_s = min(
            REOPEN_MOST_S, 2 * self._reopen_wait_s or self._patience.reopen_again_s
        )
        self._reopen_at = now + self._reopen_wait_s
        return True

    def _is_same(self, pixels: U8Image, now: float) -> bool:
        step = max(1, pixels.shape[0] // ROWS)
        rows = pixels[step // 2 :: step]
        if self._sample is None or self._now is None or self._sample.shape != rows.shape:
            self._sample, self._now = rows.copy(), np.empty_like(rows)
            self._darken(now)
            return False
        np.copyto(self._now, rows)
        if not np.array_equal(self._now, self._sample):
            self._sample, self._now = self._now, self._sample
            self._darken(now)
            return False
        is_due = now - self._checked_at >= CHECK_EVERY_S
        if now - self._changed_at < self._patience.suspect_s or not is_due:
            return True
        self._checked_at = now
        if not pixels.flags.c_contiguous:  # no camera here gives such; the sample has to do
            return True
        before, self._checksum = self._checksum, zlib.crc32(pixels.data)
        return before is None or before == self._checksum

    def _darken(self, now: float) -> None:
        """Note whether there is light in the sample."""
        assert self._sample is not None
        if cv2.mean(self._sample.reshape(-1, 1))[0] >= BLACK_BELOW:
            self._dark_since = None
        elif self._dark_since is None:
            self._dark_since = now

    def _note_still(self, now: float) -> None:
        if self.state == "frozen" or self._looks < LEAST_LOOKS:
            return
        if now - self._changed_at >= self._frozen_s:
            self.state = "frozen"
            self._is_reopened = False
            if self._thawed_at is not None and now - self._thawed_at > PROVEN_S:
                self._reopen_wait_s = 0.0
            first = max(self._patience.reopen_after_s, self._frozen_s) - self._frozen_s
            self._reopen_at = now + (self._reopen_wait_s or first)

    def _note_change(self, now: float) -> None:
        is_frozen = self.state == "frozen"
        if self._looks >= LEAST_LOOKS and not (is_frozen and self._is_reopened):
            self._thaws += is_frozen
            if not is_frozen or self._thaws >= THAWS_BELIEVED:
                still_s = PATIENCE * (now - self._changed_at)
                self._frozen_s = max(self._frozen_s, min(PATIENCE_MOST_S, still_s))
        if is_frozen:
            self.state, self._reopen_at, self._thawed_at = "online", None, now
        self._changed_at, self._looks, self._checksum = now, 0, None

    def _why_wrong(self, now: float) -> str | None:
        since = self._dark_since
        is_black = since is not None and now - since >= self._patience.black_s
        if self.state == "frozen":
            what = "black picture" if since is not None else "picture"
            return (
                f"every frame is the same {what}, to the last pixel; the camera or its encoder"
                " hangs, and is opened again from time to time"
            )
        return BLACK if is_black else None
