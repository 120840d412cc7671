"""One camera's thread: open, read, pace, offer to the slot; reopen with back-off when it is lost.

Whatever the source does, this thread comes back within the source's own read deadline, and
nothing else ever waits for it. A source that fails in a way nobody foresaw is a lost camera
like any other, and never a reason for the other cameras to stop. Where a driver keeps the thread
for longer, the camera is said to be lost all the same (`note_silence`); and this thread does not
tick then, so that in the end the whole worker is replaced.

A live camera whose picture stands still or is black is said to be at fault; its frames are
looked at all the same.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.config import CameraConfig
from agent.contract.payloads import CameraState
from agent.errors import CameraError
from agent.vision.cameras import Camera, Closing, EndOfStream, open_camera, redact
from agent.vision.frozen import PictureWatch
from agent.vision.handoff import Frame, FrameBuffers, LatestSlot, U8Image
from agent.vision.motion import MotionGate, gate_of

log = logging.getLogger(__name__)

REOPEN_FIRST_S = 1.0
REOPEN_MOST_S = 30.0
# A source that opened but gives nothing for this long, or for as long as so many of its frames
# take (at less than 0.75 Hz), is closed and opened again. Sources wait up to a second at a time
# before they can be asked, so that a camera is known for lost within five seconds.
SILENCE_S = 4.0
SILENCE_FRAMES = 3
# The first frame after opening may take longer: cameras set up their sensor, streams wait for a key
# frame. As `edge-agent check` waits for it.
FIRST_FRAME_S = 12.0
# More than a source's own waits come too late; then it hangs. Looked at twice a second.
HANG_GRACE_S = 0.4
# A source that worked this long has earned a quick first retry again.
STABLE_S = 30.0
WAIT_S = 0.5


class ReportChange(Protocol):
    """Told when the camera comes, goes or ends; `pixels` is the first frame of one that came."""

    def __call__(
        self,
        state: CameraState,
        reason: str | None = None,
        pixels: U8Image | None = None,
        *,
        is_fault: bool = False,
    ) -> None:
        """Note it; called by the capture thread."""


@dataclass(frozen=True, slots=True)
class _Lost:
    """Why a session ended before its time."""

    reason: str
    log_level: int = logging.WARNING
    detail: str = ""


class _FrozenPicture(Exception):  # noqa: N818 - an event, not an error
    """The camera is to be opened again, as its picture stands still."""


class Capture:
    """The capture thread's work; `run` returns when `stopping` is set or a file has ended."""

    def __init__(
        self,
        config: CameraConfig,
        *,
        next_frame_id: int,
        skip: int = 0,
        slot: LatestSlot,
        buffers: FrameBuffers,
        stopping: threading.Event,
        tick: Callable[[], None],
        report: ReportChange,
        open_source: Callable[..., Camera] = open_camera,
        watch: PictureWatch | None = None,
    ) -> None:
        self.config = config
        self.captured = 0  # written by this thread alone
        self.dropped = 0
        self.still = 0  # captured, but nothing had moved
        self._next_frame_id = next_frame_id
        self._skip = skip  # frames of a file to step over, counted as dropped
        self._slot = slot
        self._buffers = buffers
        self._stopping = stopping
        self._tick = tick
        self._report = report
        self._open_source = open_source
        self._watch = watch or PictureWatch()
        self._camera: Camera | None = None
        self._closing: Closing | None = None
        # For `note_silence`: since when a live source is asked, for how long it may be silent.
        self._asked: tuple[float, float] | None = None
        self._is_said_silent = False

    def run(self) -> None:
        """Keep the camera open until told to stop."""
        failures = 0
        said = ""
        while self._may_open():
            self._tick()
            opened_at = time.monotonic()
            try:
                lost = self._session()
                if lost is None:
                    return  # a file has ended, or we are stopping
                if time.monotonic() - opened_at > STABLE_S:
                    failures, said = 0, ""
                self._report("offline", lost.reason, is_fault=True)
                if lost.reason != said:  # once, not at each attempt
                    log.log(
                        lost.log_level,
                        "camera lost camera=%s reason=%s%s",
                        *(self.config.name, lost.reason, lost.detail),
                    )
                    said = lost.reason
            except _FrozenPicture:
                failures = 0
            finally:
                self._close()
            delay = min(REOPEN_MOST_S, REOPEN_FIRST_S * 2**failures) * random.uniform(0.75, 1.25)
            failures = min(failures + 1, 10)
            self._sleep(delay)

    def note_silence(self, now: float) -> None:
        """Say that the camera is lost where its driver does not come back; for another thread.

        `now` is of the monotonic clock.
        """
        asked = self._asked
        if asked is None or self._is_said_silent or now - asked[0] <= asked[1] + HANG_GRACE_S:
            return
        self._is_said_silent = True
        reason = f"no frame for {now - asked[0]:.0f} s, as its driver hangs"
        log.warning("camera lost camera=%s reason=%s", self.config.name, reason)
        self._report("offline", reason, is_fault=True)

    def _may_open(self) -> bool:
        """Return whether to open the source; wait where a library has not let go of it.

        Without a tick: only another process can open what this one holds.
        """
        while self._closing is not None and self._closing.is_alive():
            if self._stopping.wait(WAIT_S):
                return False
        return not self._stopping.is_set()

    def _close(self) -> None:
        if self._camera is not None:
            self._closing = self._camera.close()
            self._camera = None

    def _describe(self, error: Exception) -> str:
        """Return where an error came from, and its text where that cannot hold a password."""
        at = traceback.extract_tb(error.__traceback__)[-1]
        place = f" at={Path(at.filename).name}:{at.lineno}"
        # A piece of a password can be anywhere in it, and then looks like any other word.
        has_secret = redact(self.config.source) != self.config.source
        return place if has_secret else f"{place} text={redact(str(error))}"

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self._stopping.is_set():
            self._tick()
            self._stopping.wait(min(left, WAIT_S))

    def _session(self) -> _Lost | None:
        """Open the source once and read it to its end; return why it was lost, if it was."""
        start = self._next_frame_id - 1 + self._skip
        try:
            camera = self._camera = self._open_source(self.config, skip_frames=start)
            if not camera.live:
                self._next_frame_id += self._skip
                self.dropped += self._skip
                self._slot.note_dropped(self._skip)
                self._skip = 0
            self._read_all(camera)
        except EndOfStream as end:
            self._report("offline", str(end) or "end of file")
            log.info("camera ended camera=%s", self.config.name)
        except CameraError as error:
            return _Lost(redact(str(error)))
        except _FrozenPicture:
            raise
        except Exception as error:  # foreign; whatever it is, other cameras go on
            reason = f"unexpected: {type(error).__name__}"
            return _Lost(reason, logging.ERROR, self._describe(error))
        return None

    def _read_all(self, camera: Camera) -> None:
        is_paced = not camera.live and self.config.realtime
        gate = gate_of(self.config)  # made here, so that what comes back is looked at
        rate_hz = self.config.fps or (camera.rate_hz if is_paced else 0.0) or 0.0
        is_held_back = rate_hz > 0 and not camera.live
        next_due = time.monotonic()
        lead_s = 0.0
        is_shown = has_come = False
        self._watch.begin(next_due)
        while True:
            if is_held_back:
                # Decoded when it is nearly due, as a camera's frame would be, and not while the
                # frame before needs the processor for its inference.
                self._sleep(next_due - lead_s - time.monotonic())
            started = time.monotonic()
            pixels = self._next_frame(camera, is_first=not has_come)
            if pixels is None:
                return
            now = time.monotonic()
            lead_s = 2 * (now - started)
            is_shown &= not self._is_said_silent
            self._show(camera, pixels, now, is_shown=is_shown)
            is_shown = has_come = True
            if is_held_back:
                # Files are held back to the rate; a clip that fell behind is not hurried.
                self._sleep(next_due - now)
                next_due = max(next_due + 1 / rate_hz, time.monotonic() - 1 / rate_hz)
            elif rate_hz:
                # Live frames above the rate are not wanted; half a period of grace keeps a
                # 30 Hz camera asked for 30 Hz whole in spite of jitter.
                if now < next_due - 0.5 / rate_hz:
                    self._buffers.give_back(pixels)
                    continue
                next_due = max(next_due + 1 / rate_hz, now)
            self._hand_on(pixels, camera, gate)

    def _show(self, camera: Camera, pixels: U8Image, now: float, *, is_shown: bool) -> None:
        """Report a camera that has come, or whose picture is at fault or no longer so."""
        watch = self._watch
        is_news = camera.live and watch.see(pixels, now)
        if is_news or not is_shown:
            self._is_said_silent = False
            level = logging.WARNING if watch.reason else logging.INFO
            reason = f" reason={watch.reason}" if watch.reason else ""
            log.log(level, "camera %s camera=%s%s", watch.state, self.config.name, reason)
            self._report(watch.state, watch.reason, pixels, is_fault=watch.reason is not None)
        if camera.live and watch.wants_reopen(now):
            self._buffers.give_back(pixels)
            raise _FrozenPicture

    def _next_frame(self, camera: Camera, *, is_first: bool) -> U8Image | None:
        """Return the camera's next frame, None when it is time to stop."""
        # What a camera says of itself comes first: a slower rate that is only wanted of it must
        # not hide its loss.
        rate_hz = camera.rate_hz or self.config.fps
        limit_s = max(SILENCE_S, SILENCE_FRAMES / rate_hz) if rate_hz else SILENCE_S
        if is_first:
            limit_s = max(limit_s, FIRST_FRAME_S)
        asked_at = time.monotonic()
        self._asked = (asked_at, limit_s) if camera.live else None
        try:
            while not self._stopping.is_set():
                self._tick()
                if (pixels := self._read(camera)) is not None:
                    return pixels
                if time.monotonic() - asked_at > limit_s:
                    raise CameraError(f"no frame for {limit_s:.0f} s; {camera.silence_hint}")
            return None
        finally:
            self._asked = None

    def _read(self, camera: Camera) -> U8Image | None:
        buffer = self._buffers.take()
        pixels = None
        try:
            pixels = camera.read(buffer)
        finally:
            if pixels is None:
                self._buffers.give_back(buffer)
        return pixels

    def _hand_on(self, pixels: U8Image, camera: Camera, gate: MotionGate | None) -> None:
        """Offer a frame, or only count it where nothing in it has moved."""
        may_drop = camera.live or self.config.realtime
        if not may_drop and not self._wait_for_room():
            self._buffers.give_back(pixels)
            return
        captured_ns, captured_at = time.monotonic_ns(), time.time()
        if gate is not None and gate.is_still(pixels, self._clock_s(camera)):
            self._pass_over(pixels)
        else:
            self._offer(pixels, captured_ns, captured_at)

    def _wait_for_room(self) -> bool:
        """Wait until a frame would replace nothing; False: it is time to stop."""
        while not self._slot.wait_empty(WAIT_S):
            self._tick()
            if self._stopping.is_set():
                return False
        return True

    def _clock_s(self, camera: Camera) -> float:
        """Return the time by which looks fall due: a file's own where it is known.

        What a file gives must not depend on how fast it is worked through.
        """
        if camera.live or not camera.rate_hz:
            return time.monotonic()
        return self._next_frame_id / camera.rate_hz

    def _pass_over(self, pixels: U8Image) -> None:
        """Count a frame in which nothing has moved."""
        self._slot.note_still(1)
        self._next_frame_id += 1
        self.captured += 1
        self.still += 1
        self._buffers.give_back(pixels)

    def _offer(self, pixels: U8Image, captured_ns: int, captured_at: float) -> None:
        replaced = self._slot.put(
            Frame(
                camera=self.config.name,
                frame_id=self._next_frame_id,
                pixels=pixels,
                captured_ns=captured_ns,
                captured_at=captured_at,
            )
        )
        self._next_frame_id += 1
        self.captured += 1
        if replaced is not None:
            self.dropped += 1
            self._buffers.give_back(replaced.pixels)
