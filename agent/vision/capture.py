"""One camera's thread: open, read, pace, offer to the slot; reopen with back-off when it is lost.

Whatever the source does, this thread comes back within the source's own read deadline, and
nothing else ever waits for it.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from agent.config import CameraConfig
from agent.contract.payloads import CameraState
from agent.errors import CameraError
from agent.vision.cameras import Camera, EndOfStream, open_camera, redact
from agent.vision.handoff import Frame, FrameBuffers, LatestSlot, U8Image

log = logging.getLogger(__name__)

REOPEN_FIRST_S = 1.0
REOPEN_MOST_S = 30.0
# A source that opened but gives nothing for this long is closed and opened again.
SILENCE_S = 5.0
# A source that worked this long has earned a quick first retry again.
STABLE_S = 30.0
WAIT_S = 0.5

ReportChange = Callable[[CameraState, str | None, U8Image | None], None]


class Capture:
    """The capture thread's work; `run` returns when `stopping` is set or a file has ended."""

    def __init__(
        self,
        config: CameraConfig,
        *,
        next_frame_id: int,
        slot: LatestSlot,
        buffers: FrameBuffers,
        stopping: threading.Event,
        tick: Callable[[], None],
        report: ReportChange,
        open_source: Callable[..., Camera] = open_camera,
    ) -> None:
        self.config = config
        self.captured = 0  # written by this thread alone
        self.dropped = 0
        self._next_frame_id = next_frame_id
        self._slot = slot
        self._buffers = buffers
        self._stopping = stopping
        self._tick = tick
        self._report = report
        self._open_source = open_source

    def run(self) -> None:
        """Keep the camera open until told to stop."""
        failures = 0
        said = ""
        while not self._stopping.is_set():
            self._tick()
            opened_at = time.monotonic()
            try:
                self._session()
                return  # a file has ended, or we are stopping
            except CameraError as error:
                reason = redact(str(error))
            if time.monotonic() - opened_at > STABLE_S:
                failures, said = 0, ""
            delay = min(REOPEN_MOST_S, REOPEN_FIRST_S * 2**failures) * random.uniform(0.75, 1.25)
            failures = min(failures + 1, 10)
            self._report("offline", reason, None)
            if reason != said:  # once, not at each attempt
                log.warning("camera lost camera=%s reason=%s", self.config.name, reason)
                said = reason
            self._sleep(delay)

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self._stopping.is_set():
            self._tick()
            self._stopping.wait(min(left, WAIT_S))

    def _session(self) -> None:
        """Open the source once and read it to its end."""
        camera = self._open_source(self.config, skip_frames=self._next_frame_id - 1)
        is_paced = not camera.live and self.config.realtime
        rate_hz = self.config.fps or (camera.rate_hz if is_paced else 0.0) or 0.0
        next_due = last_frame_at = time.monotonic()
        is_online = False
        try:
            while not self._stopping.is_set():
                self._tick()
                buffer = self._buffers.take()
                pixels = None
                try:
                    pixels = camera.read(buffer)
                finally:
                    if pixels is None:
                        self._buffers.give_back(buffer)
                now = time.monotonic()
                if pixels is None:
                    if now - last_frame_at > SILENCE_S:
                        raise CameraError(f"no frame for {SILENCE_S:.0f} s")
                    continue
                last_frame_at = now
                if not is_online:
                    is_online = True
                    log.info("camera online camera=%s", self.config.name)
                    self._report("online", None, pixels)
                if rate_hz and not camera.live:
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
                self._offer(pixels, may_drop=camera.live or is_paced)
        except EndOfStream as end:
            self._report("offline", str(end) or "end of file", None)
            log.info("camera ended camera=%s", self.config.name)
        finally:
            camera.close()

    def _offer(self, pixels: U8Image, *, may_drop: bool) -> None:
        while not may_drop and not self._slot.wait_empty(WAIT_S):
            self._tick()
            if self._stopping.is_set():
                self._buffers.give_back(pixels)
                return
        replaced = self._slot.put(
            Frame(
                camera=self.config.name,
                frame_id=self._next_frame_id,
                pixels=pixels,
                captured_ns=time.monotonic_ns(),
                captured_at=time.time(),
            )
        )
        self._next_frame_id += 1
        self.captured += 1
        if replaced is not None:
            self.dropped += 1
            self._buffers.give_back(replaced.pixels)
