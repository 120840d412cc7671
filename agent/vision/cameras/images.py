"""A folder of pictures, in the order of their names; each may have its own size.

A picture that cannot be read is left out with one warning that names it. The size is read
from the file's header before anything is decoded, as a small file can unpack to gigabytes.
"""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from agent.errors import CameraError
from agent.vision.cameras import EndOfStream, U8Image, fitting

if TYPE_CHECKING:
    from agent.vision.cameras import Camera

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MAX_PIXELS = 64_000_000  # 192 MB decoded: the largest camera stills, and it fits a 1 GB board
MAX_FILE_BYTES = 256 << 20

_log = logging.getLogger(__name__)


class ImagesCamera:
    """Each picture once, or round and round."""

    live = False
    rate_hz: float | None = None
    silence_hint = "look at the folder"

    def __init__(self, folder: Path, *, loop: bool = False, skip_frames: int = 0) -> None:
        self._folder = folder
        self._paths = _pictures(folder)
        self._loop = loop
        # Counted in files: one that cannot be read counts here though it gave no frame.
        self._next = skip_frames % len(self._paths) if loop else skip_frames
        self._failed_in_a_row = 0
        self._warned: set[Path] = set()

    def read(self, buffer: U8Image | None) -> U8Image | None:
        """Return the next readable picture; see `Camera.read`."""
        while True:
            if self._failed_in_a_row >= len(self._paths):
                raise CameraError(f"images:{self._folder}: none of its pictures can be read")
            if self._next >= len(self._paths):
                if not self._loop:
                    raise EndOfStream(f"images:{self._folder}: all {len(self._paths)} were read")
                self._next = 0
            path = self._paths[self._next]
            self._next += 1
            try:
                image = load_image(path)
            except (OSError, ValueError) as error:
                self._failed_in_a_row += 1
                self._warn(path, error)
                continue
            self._failed_in_a_row = 0
            frame = fitting(buffer, *image.shape[:2])
            if frame is not buffer:
                return image
            np.copyto(frame, image)
            return frame

    def close(self) -> None:
        """Nothing is held between two frames."""

    def _warn(self, path: Path, error: OSError | ValueError) -> None:
        if path not in self._warned:
            self._warned.add(path)
            reason = error.strerror if isinstance(error, OSError) else error
            _log.warning("picture left out file=%s reason=%s", path, reason)


def load_image(path: Path) -> U8Image:
    """Return a picture as uint8[H, W, 3] BGR, turned upright by its EXIF orientation.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a picture, or too large a one.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
    content = path.read_bytes()
    size = picture_size(content)
    if size is None:
        raise ValueError("not a JPEG, PNG, BMP or WebP picture")
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{size[0]}x{size[1]} is over the limit of {MAX_PIXELS // 10**6} MP")
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ValueError("damaged") from error
    if image is None:
        raise ValueError("damaged")
    return np.asarray(image, np.uint8)


def picture_size(content: bytes) -> tuple[int, int] | None:
    """Return (width, height) from a picture's header, None where it is none that we know."""
    try:
        if content.startswith(b"\x89PNG\r\n\x1a\n"):  # W3C PNG, 11.2.1: IHDR comes first
            width, height = struct.unpack_from(">II", content, 16)
            return width, height
        if content.startswith(b"BM"):  # BITMAPINFOHEADER; a negative height is top-down
            width, height = struct.unpack_from("<ii", content, 18)
            return abs(width), abs(height)
        if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
            return _webp_size(content)
        if content.startswith(b"\xff\xd8"):
            return _jpeg_size(content)
    except struct.error:
        pass
    return None


def _webp_size(content: bytes) -> tuple[int, int] | None:
    """RFC 9649, 2.5 to 2.7: the three kinds of first chunk."""
    kind = content[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", content, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", content, 21)
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        low_w, high_w, low_h, high_h = struct.unpack_from("<HBHB", content, 24)
        return (high_w << 16 | low_w) + 1, (high_h << 16 | low_h) + 1
    return None


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """ITU-T T.81, B.2.2: walk the segments to the first start-of-frame."""
    at = 2
    while True:
        marker, kind, length = struct.unpack_from(">BBH", content, at)
        if marker != 0xFF:
            return None
        if kind == 0xFF:  # a fill byte before a marker
            at += 1
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", content, at + 5)
            return width, height
        else:
            at += 2 + length


def _pictures(folder: Path) -> list[Path]:
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise CameraError(f"images:{folder}: cannot be listed: {error.strerror}") from error
    if not paths:
        raise CameraError(f"images:{folder}: no pictures in it ({' '.join(SUFFIXES)})")
    return paths


if TYPE_CHECKING:
    _: type[Camera] = ImagesCamera
