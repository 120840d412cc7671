"""USB cameras, network streams and video files, through OpenCV.

Decoding uses one thread. More of them would each add about one frame of delay to a live stream
(measured at 30 Hz: 53 ms behind with one, 75 with two, 139 with four) and cost more CPU per
frame (two cores, 720p H.264: 6 % more on a live stream, 25 % on a file), which the model can
use better. A stream that one core cannot decode falls behind: use the camera's smaller one.

RTSP runs over TCP where the server can: that is OpenCV's own default for FFmpeg. FFmpeg's
`nobuffer` is left alone on purpose: it throws away what was read while probing, so that a
file loses its first frames and a stream its first key frame, and it does not lower the delay
of a stream that is read as fast as it comes. Who needs other options can set
OPENCV_FFMPEG_CAPTURE_OPTIONS for the service.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from agent.errors import CameraError
from agent.redaction import redact
from agent.vision.cameras import Closing, EndOfStream, U8Image, network, v4l2
from agent.vision.cameras.waiting import close_in_time, finish_in_time

if TYPE_CHECKING:
    from agent.vision.cameras import Camera

# OpenCV's own waits end here; it checks both while FFmpeg blocks in the network.
OPEN_TIMEOUT_MS = 5000
# Shorter, as a camera is to be known for lost within five seconds, closing it included.
READ_TIMEOUT_MS = 4000
# FFmpeg looks names up itself, and follows redirections to others: OpenCV cannot interrupt that.
OPENING_LIMIT_S = 7.0
# Going to a frame of a file behind HTTP, which may take a second opening.
SEEK_LIMIT_S = 6.0
# So in the worst case opening takes the name's 5 s (network.RESOLVE_LIMIT_S), OPENING_LIMIT_S
# and SEEK_LIMIT_S: 5 + 7 + 6 = 18 s; where it fails, less than 5 + 5 + 3 s for the reason
# (network.TIMEOUT_S). Reading takes longest where a file behind HTTP starts again: 2 s to close
# it (waiting.CLOSE_LIMIT_S), the same 5 + 7 s, and READ_TIMEOUT_MS: 18 s.
V4L_SELECT_TIMEOUT_S = 1  # whole seconds; OpenCV's default of 10 is longer than we may block
FFMPEG_PARAMS = (
    *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS),
    *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS),
    *(cv2.CAP_PROP_N_THREADS, 1),
)
AV_LOG_QUIET = "-8"  # libavutil/log.h
LOG_LEVEL_SILENT = 0  # opencv2/core/utils/logger.defines.hpp
SKIP_LIMIT_S = 4.0  # of decoding without showing, in files that cannot be sought
MAX_BELIEVABLE_HZ = 1000.0  # streams without a rate report their time base instead, e.g. 90000
# Above this USB 2 cannot carry raw frames at 30 Hz: 640 * 480 * 2 bytes * 30 = 18 MB/s, and a
# camera gets at most 24 MB/s of it (USB 2.0 specification, 5.6.3); so it would send fewer frames.
MAX_RAW_PIXELS = 640 * 480

_log = logging.getLogger(__name__)


class DeviceCamera:
    """A V4L2 device that `v4l2.problem_with` found nothing wrong with."""

    live = True
    rate_hz: float | None
    silence_hint = "check its cable"

    def __init__(self, device: str, width: int, height: int, fps: float) -> None:
        self._device = device
        _prepare_opencv(is_secret=False)
        self._capture = cv2.VideoCapture(device, cv2.CAP_V4L2)
        if not self._capture.isOpened():
            raise CameraError(v4l2.busy_with(device))
        self._ask_for(width, height, fps)
        self.rate_hz = _rate(self._capture)
        self._had_frames = False

    def read(self, buffer: U8Image | None) -> U8Image | None:
        """Return the next frame; see `Camera.read`. OpenCV's select() bounds the wait."""
        started = time.monotonic()
        frame = _read(self._capture, buffer)
        if frame is not None:
            self._had_frames = True
            return frame
        if not Path(self._device).exists():
            raise CameraError(f"{self._device} was unplugged")
        if time.monotonic() - started < V4L_SELECT_TIMEOUT_S / 2:  # an error rather than a wait
            raise CameraError(self._why_broken())
        return None

    def close(self) -> Closing | None:
        """Release the device."""
        return close_in_time(self._device, self._capture.release)

    def _ask_for(self, width: int, height: int, fps: float) -> None:
        if width * height > MAX_RAW_PIXELS:
            # First of all, as the sizes on offer depend on it; it is ignored where not known.
            self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        if width and height:
            self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
            self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
        if fps:
            self._capture.set(cv2.CAP_PROP_FPS, fps)
        got = (
            int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
            int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
        )
        if width and height and got != (width, height):
            _log.warning(
                "camera gives another size device=%s asked=%dx%d got=%dx%d",
                *(self._device, width, height, *got),
            )

    def _why_broken(self) -> str:
        if self._had_frames:
            return f"{self._device} stopped giving frames; check its cable and power"
        # Two programs can open a device; only when it is to stream does the second one fail.
        return (
            f"{v4l2.busy_with(self._device, held=1)}; else try a smaller width and height, as"
            " cameras on one USB bus share its bandwidth"
        )


class StreamCamera:
    """A live network stream."""

    live = True
    rate_hz: float | None
    silence_hint = "look at the camera, and at the network between"

    def __init__(self, url: str, capture: cv2.VideoCapture) -> None:
        self._shown = redact(url)
        self._capture = capture
        self._had_frames = False
        self.rate_hz = _rate(capture)

    def read(self, buffer: U8Image | None) -> U8Image | None:
        """Return the next frame; see `Camera.read`. OpenCV's read timeout bounds the wait."""
        started = time.monotonic()
        frame = _read(self._capture, buffer)
        if frame is not None:
            self._had_frames = True
            return frame
        if not self._had_frames:
            raise CameraError(
                f"{self._shown}: no picture came within {time.monotonic() - started:.0f} s of"
                " opening; give the stream more frequent key frames, if it is a live one"
            )
        if time.monotonic() - started >= READ_TIMEOUT_MS / 1000:
            raise CameraError(f"{self._shown}: sent nothing for {READ_TIMEOUT_MS // 1000} s")
        raise CameraError(f"{self._shown}: the stream ended, or the connection was lost")

    def close(self) -> Closing | None:
        """Hang up."""
        return close_in_time(self._shown, self._capture.release)


class FileCamera:
    """A video file on disk or behind HTTP: every frame, once or round and round."""

    live = False
    rate_hz: float | None
    silence_hint = "look at the file"

    def __init__(
        self,
        url: str,
        *,
        loop: bool = False,
        skip_frames: int = 0,
        capture: cv2.VideoCapture | None = None,
    ) -> None:
        self._url = url
        self._shown = redact(url)
        self._loop = loop
        self._capture = _open_ffmpeg(url) if capture is None else capture
        self.rate_hz = _rate(self._capture)
        # By the header; some containers only estimate it and raw streams do not have it.
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._count = int(count) if 0 < count < math.inf else 0
        self._at = 0
        self._starts_again = False
        if loop and self._count:
            skip_frames %= self._count
        self._is_spent = 0 < self._count <= skip_frames
        if skip_frames and not self._is_spent:
            self._skip_in_time(skip_frames)

    def read(self, buffer: U8Image | None) -> U8Image | None:
        """Return the next frame; see `Camera.read`."""
        if self._is_spent:
            raise EndOfStream(f"{self._shown}: all of its {self._count} frames were read before")
        if self._starts_again:
            self._reopen()
        frame = _read(self._capture, buffer)
        if frame is None and self._ends():
            if _is_network(self._url):
                self._starts_again = True  # at the next call, as both may take long
                return None
            self._reopen()
            frame = _read(self._capture, buffer)
        if frame is None:
            raise CameraError(f"{self._shown}: it has no frames that can be decoded")
        self._at += 1
        return frame

    def close(self) -> Closing | None:
        """Close the file."""
        return close_in_time(self._shown, self._capture.release)

    def _ends(self) -> bool:
        """At the end: return whether to start again; raises where not."""
        if not self._at:
            return False
        # Estimated counts are off by one or two.
        is_short = self._at < self._count - 2
        short = f"after {self._at} of {self._count} frames: it is cut short or damaged there"
        if is_short and _is_network(self._url):
            raise CameraError(f"{self._shown}: the connection was lost {short}")
        if self._loop:
            return True
        raise EndOfStream(f"{self._shown}: ended {short if is_short else 'with its last frame'}")

    def _reopen(self) -> None:
        # Not a seek to 0: raw streams and some servers cannot, and it takes only milliseconds.
        self.close()
        self._capture = _open_ffmpeg(self._url)
        self._at = 0
        self._starts_again = False

    def _skip_in_time(self, frames: int) -> None:
        if not _is_network(self._url):
            self._skip(frames)
            return
        try:
            finish_in_time(
                lambda: self._skip(frames),
                SEEK_LIMIT_S,
                name="agent.camera-seek",
                discard=lambda _: self._capture.release(),
            )
        except TimeoutError:
            raise CameraError(
                f"{self._shown}: frame {frames} was not reached within {SEEK_LIMIT_S:g} s; look"
                " at the network between"
            ) from None

    def _skip(self, frames: int) -> None:
        """Go to frame `frames`, by a seek where that lands where it should."""
        self._capture.set(cv2.CAP_PROP_POS_FRAMES, frames - 1)
        # OpenCV only computes the position it reports: in transport streams the frame that
        # comes can be two seconds off, which its own time stamp shows.
        period_ms = 1000 / self.rate_hz if self.rate_hz else 0.0
        if self._capture.grab():
            off_ms = self._capture.get(cv2.CAP_PROP_POS_MSEC) - (frames - 1) * period_ms
            if abs(off_ms) < period_ms / 2:
                self._at = frames
                return
        self._reopen()
        deadline = time.monotonic() + SKIP_LIMIT_S
        while self._at < frames and self._capture.grab():
            self._at += 1
            if time.monotonic() > deadline:
                _log.warning(
                    "file cannot be sought file=%s wanted_frame=%d starts_at=%d",
                    *(self._shown, frames, self._at),
                )
                return


def open_stream(url: str, *, loop: bool, skip_frames: int) -> StreamCamera | FileCamera:
    """Open an RTSP or HTTP address; a file behind HTTP is read as a file."""
    capture = _open_ffmpeg(url)
    is_rtsp = network.scheme_of(url).startswith("rtsp")
    if is_rtsp or capture.get(cv2.CAP_PROP_FRAME_COUNT) <= 0:
        return StreamCamera(url, capture)
    return FileCamera(url, loop=loop, skip_frames=skip_frames, capture=capture)


def _open_ffmpeg(url: str) -> cv2.VideoCapture:
    """Open a file or an address; the file's path must be absolute."""
    shown = redact(url)
    _prepare_opencv(is_secret=shown != url)
    if _is_network(url):
        return _open_address(url, shown)
    capture = _new_capture(url, shown)
    if capture.isOpened():
        return capture
    try:
        with Path(url).open("rb") as file:
            is_empty = not file.read(1)
    except OSError as error:
        raise CameraError(f"{shown}: cannot be read: {error.strerror}") from error
    reason = "it is empty" if is_empty else "not a video that can be decoded, or cut short"
    raise CameraError(f"{shown}: {reason}")


def _open_address(url: str, shown: str) -> cv2.VideoCapture:
    address = network.parse(url)
    try:
        ips = network.resolve(address)
    except CameraError as error:
        raise CameraError(f"{shown}: {error}") from None
    started = time.monotonic()
    with contextlib.suppress(TimeoutError):
        capture = finish_in_time(
            lambda: _new_capture(url, shown),
            OPENING_LIMIT_S,
            name="agent.camera-open",
            discard=lambda late: late.release(),
        )
        if capture.isOpened():
            return capture
    if time.monotonic() - started >= OPEN_TIMEOUT_MS / 1000:
        raise CameraError(f"{shown}: no video within {OPEN_TIMEOUT_MS // 1000} s")
    raise CameraError(f"{shown}: {network.why_not(address, ips)}")


def _new_capture(url: str, shown: str) -> cv2.VideoCapture:
    try:
        return cv2.VideoCapture(url, cv2.CAP_FFMPEG, FFMPEG_PARAMS)
    except cv2.error:  # its text may quote the address, so it must not be chained
        raise CameraError(f"{shown}: OpenCV cannot open it") from None


def _read(capture: cv2.VideoCapture, buffer: U8Image | None) -> U8Image | None:
    """Return the next frame, in `buffer` where OpenCV finds that it fits, None at a failure."""
    try:
        ok, frame = capture.read(buffer) if buffer is not None else capture.read()
    except cv2.error:
        return None
    return np.asarray(frame, np.uint8) if ok else None


def _rate(capture: cv2.VideoCapture) -> float | None:
    rate_hz = capture.get(cv2.CAP_PROP_FPS)
    return rate_hz if 0 < rate_hz <= MAX_BELIEVABLE_HZ else None


def _is_network(url: str) -> bool:
    return network.scheme_of(url) in network.PORTS


def _prepare_opencv(*, is_secret: bool) -> None:
    """Say to OpenCV what it only takes from the environment, before it opens anything.

    Both OpenCV and FFmpeg print to stderr, and at their talkative levels print addresses with
    the password in them. For a source with credentials they are silenced whatever the
    environment says; else what the user has set stands, e.g. OPENCV_FFMPEG_LOGLEVEL=16 for
    FFmpeg's errors. FFmpeg's level holds from the first video that a process opens.
    """
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(V4L_SELECT_TIMEOUT_S))
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", AV_LOG_QUIET)
    if is_secret:
        os.environ["OPENCV_FFMPEG_LOGLEVEL"] = AV_LOG_QUIET
        os.environ.pop("OPENCV_FFMPEG_DEBUG", None)
    if is_secret or "OPENCV_LOG_LEVEL" not in os.environ:
        # OpenCV 5 moved the function; 4.8 has only the old place.
        set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
        set_level(LOG_LEVEL_SILENT)


if TYPE_CHECKING:
    _1: type[Camera] = DeviceCamera
    _2: type[Camera] = StreamCamera
    _3: type[Camera] = FileCamera
