"""Where frames come from: one file per kind of source, behind one small seam.

A camera is used by one thread at a time, `close` included. Reading returns within about five
seconds; opening, and starting a file behind HTTP again, take up to about twenty where a name
server is silent (`opencv` has the sum), so that the thread which asks can say that it is alive.
A camera never heals itself: when it is lost it says why, and its owner closes it and opens
another; its owner also judges when it has been silent for too long. Nothing here knows what
the frames are for, and no message from here contains a password.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt

from agent.config import CameraConfig
from agent.errors import CameraError
from agent.redaction import redact
from agent.vision.cameras.waiting import Closing

__all__ = ["Camera", "Closing", "EndOfStream", "U8Image", "fitting", "open_camera", "redact"]

U8Image = npt.NDArray[np.uint8]

SHOWN_CHARS = 300  # of a source in a message

ALLOWED = (
    "auto, /dev/videoN, /dev/v4l/by-id/…, rtsp://…, http://…, a video file, images:DIR,"
    " picamera, picamera:N, gst:<pipeline> or synthetic"
)


class Camera(Protocol):
    """One open source of frames."""

    live: bool
    """True: frames come at their own pace and may be dropped. False: every frame counts."""
    rate_hz: float | None
    """The source's own frame rate, None where it is not known."""
    silence_hint: str
    """What to look at when it is open but gives no frames."""

    def read(self, buffer: U8Image | None) -> U8Image | None:
        """Return the next frame, uint8[H, W, 3] BGR; None: none came within a short wait.

        The frame is written into `buffer` where that fits, else it is in a new array.

        Raises:
            CameraError: the source is lost or cannot be used.
            EndOfStream: the file or folder has no more frames.
        """

    def close(self) -> Closing | None:
        """Give the source back; may be called twice, never raises, never hangs.

        Returns a thread where a library does not let go: while it lives, to open the source again
        would fail or hang as well.
        """


class EndOfStream(Exception):  # noqa: N818 - an event, not an error
    """A file or folder has been read to its end."""


def fitting(buffer: U8Image | None, height: int, width: int) -> U8Image:
    """Return `buffer` where it can take such a frame in place, else a new array."""
    if (
        buffer is not None
        and buffer.shape == (height, width, 3)
        and buffer.dtype == np.uint8
        and buffer.flags.c_contiguous
        and buffer.flags.writeable
    ):
        return buffer
    return np.empty((height, width, 3), np.uint8)


def open_camera(config: CameraConfig, *, skip_frames: int = 0) -> Camera:
    """Open the source that `config` names.

    `skip_frames` is where file-like sources start (modulo their length when they loop), so
    that whoever takes over from another reader goes on where that one stopped.

    Raises:
        CameraError: it cannot be opened; the message says what to do.
    """
    try:
        return _open(config, config.source, skip_frames)
    except OSError as error:
        reason = error.strerror or "it cannot be opened"
        if isinstance(error, PermissionError):
            reason += "; let the user that runs this read it, and enter the folders above it"
        raise CameraError(f'source = "{_shown(config.source)}": {reason}') from None
    except ValueError:  # its text may quote a password
        raise CameraError(
            f'source = "{_shown(config.source)}": malformed; allowed are {ALLOWED}'
        ) from None


def _open(config: CameraConfig, source: str, skip_frames: int) -> Camera:
    # Each branch imports its own module: no board needs all of these libraries.
    if source == "auto":
        return _open_first(config)
    if source == "synthetic":
        from agent.vision.cameras.synthetic import SyntheticCamera

        return SyntheticCamera(config.width, config.height, config.fps)
    if source.startswith("gst:"):
        from agent.vision.cameras.gstreamer import GStreamerCamera

        return GStreamerCamera(source.removeprefix("gst:"), config.width, config.height)
    if found := re.fullmatch(r"picamera(?::(\d+))?", source):
        from agent.vision.cameras.picamera2 import PiCamera2Camera

        return PiCamera2Camera(int(found[1] or 0), config.width, config.height, config.fps)
    if source.startswith("images:"):
        from agent.vision.cameras.images import ImagesCamera

        folder = Path(source.removeprefix("images:"))
        return ImagesCamera(folder, loop=config.loop, skip_frames=skip_frames)
    return _open_path_or_address(config, source, skip_frames)


def _open_path_or_address(config: CameraConfig, source: str, skip_frames: int) -> Camera:
    from agent.vision.cameras import network, v4l2

    scheme = network.scheme_of(source)
    if scheme in network.PORTS:
        from agent.vision.cameras.opencv import open_stream

        return open_stream(source, loop=config.loop, skip_frames=skip_frames)
    if device := v4l2.node_of(source):
        return _open_device(config, device)
    if scheme in ("", "file"):
        return _open_file(config, source, skip_frames)
    raise CameraError(f'source = "{_shown(source)}": unknown; allowed are {ALLOWED}')


def _shown(source: str) -> str:
    shown = redact(source)
    return shown if len(shown) <= SHOWN_CHARS else f"{shown[:SHOWN_CHARS]}…"


def _open_file(config: CameraConfig, source: str, skip_frames: int) -> Camera:
    path = Path(unquote(urlsplit(source).path) if source.lower().startswith("file://") else source)
    shown = _shown(source)
    if path.is_dir():
        raise CameraError(
            f'source = "{shown}": a folder; write "images:{shown}" to play its images'
        )
    if not path.exists():
        # A bare word is more likely a misspelt kind of source than a file.
        hint = "no such file" if "/" in source or path.suffix else "no such file or kind of source"
        raise CameraError(f'source = "{shown}": {hint}; allowed are {ALLOWED}')
    if not path.is_file():  # opening a named pipe would wait for ever
        raise CameraError(f'source = "{shown}": not a regular file; allowed are {ALLOWED}')
    from agent.vision.cameras.opencv import FileCamera

    # Absolute, as FFmpeg takes what stands before a colon for a protocol.
    return FileCamera(str(path.absolute()), loop=config.loop, skip_frames=skip_frames)


def _open_device(config: CameraConfig, device: str) -> Camera:
    from agent.vision.cameras import v4l2

    if problem := v4l2.problem_with(device):
        raise CameraError(problem)
    from agent.vision.cameras.opencv import DeviceCamera

    return DeviceCamera(device, config.width, config.height, config.fps)


def _open_first(config: CameraConfig) -> Camera:
    """Open the first V4L2 device that captures, else the first camera of libcamera."""
    from agent.vision.cameras import picamera2, v4l2

    if device := v4l2.first_capture_device():
        return _open_device(config, device)
    if picamera2.is_installed():
        return picamera2.PiCamera2Camera(0, config.width, config.height, config.fps)
    raise CameraError(v4l2.nothing_found())
