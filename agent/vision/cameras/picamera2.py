"""Raspberry Pi ribbon cable cameras, through picamera2 and libcamera.

picamera2 comes from apt (python3-picamera2) with the libcamera it was built for, not from
PyPI, so it is loaded only when a camera asks for it. Needs a version from 2024 or later
(waiting with a time limit). What libcamera calls RGB888 is B, G, R in memory.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from agent.errors import CameraError
from agent.vision.cameras import Closing, U8Image, fitting
from agent.vision.cameras.waiting import close_in_time

if TYPE_CHECKING:
    from agent.vision.cameras import Camera

# Picamera2 Manual, appendix A: "RGB888: each pixel is laid out as [B, G, R]".
BGR_IN_MEMORY = "RGB888"
# One being filled, one queued, one ready, one being copied; the default of 6 for video costs
# contiguous memory, which a small board has little of.
BUFFER_COUNT = 4
SHORT_WAIT_S = 1.0


class _Request(Protocol):
    """A lease on one of the camera's buffers."""

    def release(self) -> None: ...


class _Job(Protocol):
    def get_result(self, timeout: float | None = None) -> _Request: ...


class _Picamera2(Protocol):
    """The part of picamera2.Picamera2 that is used here."""

    def create_video_configuration(
        self, *, main: dict[str, object], buffer_count: int, controls: dict[str, object]
    ) -> dict[str, object]: ...

    def configure(self, camera_config: dict[str, object]) -> None: ...

    def camera_configuration(self) -> dict[str, dict[str, tuple[int, int]]]: ...

    def start(self) -> None: ...

    def capture_request(self, wait: bool) -> _Job: ...

    def cancel_all_and_flush(self) -> None: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...


class _Mapped(Protocol):
    array: U8Image


class _Library(NamedTuple):
    """The module's three names that are used here."""

    open: Callable[[int], _Picamera2]
    list_cameras: Callable[[], list[dict[str, object]]]
    map_array: Callable[..., AbstractContextManager[_Mapped]]


def is_installed() -> bool:
    """Tell whether picamera2 could be loaded, without loading it."""
    return importlib.util.find_spec("picamera2") is not None


class PiCamera2Camera:
    """One camera of libcamera, in its order."""

    live = True
    rate_hz: float | None
    silence_hint = "check the ribbon cable"

    def __init__(self, index: int = 0, width: int = 0, height: int = 0, fps: float = 0.0) -> None:
        self._shown = f"picamera:{index}"
        self._library = _load()
        self._camera = self._open(index)
        self._job: _Job | None = None
        try:
            self._start(width, height, fps)
        except Exception as error:
            self.close()
            raise CameraError(f"{self._shown}: cannot be started: {error}") from error

    def read(self, buffer: U8Image | None) -> U8Image | None:
        """Return the next frame; see `Camera.read`."""
        # A job that timed out stays in picamera2's queue and would take a frame that nobody
        # gives back; so it is kept and waited for again.
        if self._job is None:
            self._job = self._camera.capture_request(wait=False)
        try:
            request = self._job.get_result(timeout=SHORT_WAIT_S)
        except (TimeoutError, concurrent.futures.TimeoutError):  # two classes before Python 3.11
            return None
        except Exception as error:
            self._job = None
            raise CameraError(f"{self._shown}: the camera failed: {error}") from error
        self._job = None
        try:
            return self._copy(request, buffer)
        finally:
            request.release()

    def close(self) -> Closing | None:
        """Stop and release the camera; stop() may block for ever (picamera2 issue 1264)."""
        return close_in_time(self._shown, self._stop)

    def _open(self, index: int) -> _Picamera2:
        found = self._library.list_cameras()
        if not found:
            raise CameraError(
                f"{self._shown}: libcamera finds no camera; check the ribbon cable with the board"
                " switched off, then see what `rpicam-hello --list-cameras` says"
            )
        if index >= len(found):
            known = ", ".join(f"{n} {info.get('Model', '')}" for n, info in enumerate(found))
            raise CameraError(f"{self._shown}: there is no such camera, only: {known}")
        try:
            return self._library.open(index)
        except Exception as error:
            raise CameraError(
                f"{self._shown}: cannot be opened, is another program using it? ({error})"
            ) from error

    def _start(self, width: int, height: int, fps: float) -> None:
        main: dict[str, object] = {"format": BGR_IN_MEMORY}
        if width and height:
            main["size"] = (width, height)
        controls: dict[str, object] = {}
        if fps:
            period_us = round(1e6 / fps)
            controls["FrameDurationLimits"] = (period_us, period_us)
        self._camera.configure(
            self._camera.create_video_configuration(
                main=main, buffer_count=BUFFER_COUNT, controls=controls
            )
        )
        self._camera.start()
        used = self._camera.camera_configuration()["controls"].get("FrameDurationLimits")
        self.rate_hz = 1e6 / used[0] if used else None

    def _copy(self, request: _Request, buffer: U8Image | None) -> U8Image:
        # A view into the camera's own memory, rows without their padding; gone at release.
        with self._library.map_array(request, "main", write=False) as mapped:
            frame = fitting(buffer, *mapped.array.shape[:2])
            np.copyto(frame, mapped.array)
        return frame

    def _stop(self) -> None:
        # Made for a camera that no longer answers; else stop() queues up behind our job.
        if self._job is not None and hasattr(self._camera, "cancel_all_and_flush"):
            self._camera.cancel_all_and_flush()
        self._job = None
        self._camera.stop()
        self._camera.close()


def _load() -> _Library:
    try:
        module = importlib.import_module("picamera2")
    except ImportError as error:
        raise CameraError(
            "picamera2 cannot be loaded: run `sudo apt install python3-picamera2`, and make the"
            " virtual environment with `python3 -m venv --system-site-packages`, as picamera2 is"
            f" the system's ({error})"
        ) from error
    camera = module.Picamera2
    return _Library(camera, camera.global_camera_info, module.MappedArray)


if TYPE_CHECKING:
    _: type[Camera] = PiCamera2Camera
