"""picamera2 itself runs on a Raspberry Pi alone; here is a module that behaves like it."""

from __future__ import annotations

import concurrent.futures
import sys
import threading
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest

from agent.config import CameraConfig
from agent.errors import CameraError
from agent.vision.cameras import open_camera, picamera2

Config = dict[str, object]


class Job:
    """As picamera2's: a timeout leaves it queued, and it still takes the frame that comes."""

    def __init__(self) -> None:
        self.future: concurrent.futures.Future[Request] = concurrent.futures.Future()

    def get_result(self, timeout: float | None = None) -> Request:
        return self.future.result(timeout=timeout)


class Request:
    def __init__(self, camera: Picamera2, value: int) -> None:
        self.camera = camera
        self.value = value

    def release(self) -> None:
        assert self in self.camera.leased
        self.camera.leased.remove(self)


class MappedArray:
    """A view of rows that are padded, as real strides are; not valid after it is left."""

    def __init__(self, request: Request, stream: str, *, write: bool = True) -> None:
        assert stream == "main"
        width, height = request.camera.size
        memory = np.full((height, width * 3 + 32), request.value, np.uint8)
        self._view = memory[:, : width * 3].reshape(height, width, 3)
        self.array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None = None

    def __enter__(self) -> MappedArray:  # noqa: PYI034
        self.array = self._view
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: object,
        traceback: object,
    ) -> None:
        assert self.array is not None
        self.array[:] = 255
        self.array = None


class Picamera2:
    cameras: list[Config] = [{"Model": "imx708", "Num": 0}]
    opened: list[Picamera2] = []
    is_busy = False
    stops_never: threading.Event | None = None

    def __init__(self, camera_num: int = 0) -> None:
        if self.is_busy:
            raise RuntimeError("Failed to acquire camera")
        self.jobs: list[Job] = []
        self.leased: list[Request] = []
        self.calls: list[str] = []
        self.config: Config = {}
        self.size = (0, 0)
        self.opened.append(self)

    @classmethod
    def global_camera_info(cls) -> list[Config]:
        return cls.cameras

    def create_video_configuration(
        self, main: Config, buffer_count: int = 6, controls: Config | None = None
    ) -> Config:
        defaults = {"FrameDurationLimits": (33333, 33333)}
        return {
            "main": {"format": "XBGR8888", "size": (1280, 720)} | main,
            "buffer_count": buffer_count,
            "controls": defaults | (controls or {}),
        }

    def configure(self, camera_config: Config) -> None:
        self.config = camera_config
        main = camera_config["main"]
        assert isinstance(main, dict)
        self.size = main["size"]

    def camera_configuration(self) -> Config:
        return self.config

    def start(self) -> None:
        self.calls.append("start")

    def capture_request(self, wait: bool | None = None) -> Job:
        assert wait is False
        self.jobs.append(Job())
        return self.jobs[-1]

    def deliver(self, value: int) -> None:
        """A frame has come: the first job in the queue takes it."""
        request = Request(self, value)
        self.leased.append(request)
        self.jobs.pop(0).future.set_result(request)

    def cancel_all_and_flush(self) -> None:
        self.calls.append("cancel")
        self.jobs.clear()

    def stop(self) -> None:
        self.calls.append("stop")
        if self.stops_never is not None:
            self.stops_never.wait()

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Picamera2]]:
    class Fresh(Picamera2):
        opened: list[Picamera2] = []

    module = ModuleType("picamera2")
    module.__spec__ = ModuleSpec("picamera2", None)
    module.Picamera2 = Fresh  # type: ignore[attr-defined]
    module.MappedArray = MappedArray  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "picamera2", module)
    monkeypatch.setattr(picamera2, "SHORT_WAIT_S", 0.01)
    yield Fresh
    if Fresh.stops_never is not None:
        Fresh.stops_never.set()


def deliver_when_asked(camera: Picamera2, value: int) -> threading.Thread:
    def run() -> None:
        while not camera.jobs:
            time.sleep(0.001)
        camera.deliver(value)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_configuration(library: type[Picamera2]) -> None:
    source = CameraConfig(source="picamera", width=640, height=480, fps=20)
    camera = open_camera(source)
    assert camera.live
    assert camera.rate_hz == 20
    config = library.opened[0].config
    assert config["main"] == {"format": "RGB888", "size": (640, 480)}
    assert config["buffer_count"] == 4
    camera.close()
    assert library.opened[0].calls == ["start", "stop", "close"]


def test_frames_are_copied_and_given_back(
    library: type[Picamera2], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picamera2, "SHORT_WAIT_S", 60.0)
    camera = open_camera(CameraConfig(source="auto"))
    device = library.opened[0]
    assert camera.rate_hz == pytest.approx(30, abs=0.01)
    buffer = np.empty((720, 1280, 3), np.uint8)
    for value, given in ((7, buffer), (8, None)):
        thread = deliver_when_asked(device, value)
        frame = camera.read(given)
        thread.join()
        assert frame is not None
        assert (frame is buffer) == (given is buffer)
        assert frame.shape == (720, 1280, 3)
        assert (frame == value).all()
        assert device.leased == []
    camera.close()


def test_a_late_frame_is_not_lost_and_no_lease_either(library: type[Picamera2]) -> None:
    camera = open_camera(CameraConfig(source="picamera:0", width=64, height=48))
    device = library.opened[0]
    assert camera.read(None) is None
    assert camera.read(None) is None
    assert len(device.jobs) == 1
    device.deliver(9)
    frame = camera.read(None)
    assert frame is not None
    assert (frame == 9).all()
    assert device.leased == []


def test_silence_is_for_the_owner_to_judge(library: type[Picamera2]) -> None:
    camera = open_camera(CameraConfig(source="picamera"))
    assert [camera.read(None) for _ in range(3)] == [None] * 3
    assert camera.silence_hint == "check the ribbon cable"
    camera.close()
    assert library.opened[0].calls == ["start", "cancel", "stop", "close"]


def test_a_stop_that_blocks_is_left_behind(
    library: type[Picamera2], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.vision.cameras.waiting.CLOSE_LIMIT_S", 0.05)
    library.stops_never = threading.Event()
    camera = open_camera(CameraConfig(source="picamera"))
    started = time.monotonic()
    camera.close()
    assert time.monotonic() - started < 10


def test_a_failing_camera(library: type[Picamera2]) -> None:
    camera = open_camera(CameraConfig(source="picamera"))
    assert camera.read(None) is None
    library.opened[0].jobs[0].future.set_exception(RuntimeError("no dma"))
    with pytest.raises(CameraError, match="the camera failed: no dma"):
        camera.read(None)


def test_sentences(library: type[Picamera2], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CameraError, match="no such camera, only: 0 imx708"):
        open_camera(CameraConfig(source="picamera:1"))
    library.is_busy = True
    with pytest.raises(CameraError, match="is another program using it"):
        open_camera(CameraConfig(source="picamera"))
    library.cameras = []
    with pytest.raises(CameraError, match="libcamera finds no camera"):
        open_camera(CameraConfig(source="picamera"))
    monkeypatch.setitem(sys.modules, "picamera2", None)
    with pytest.raises(CameraError, match=r"apt install python3-picamera2.*system-site-packages"):
        open_camera(CameraConfig(source="picamera"))
