"""Name servers and servers that keep us waiting: opening ends in time and says why."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import cv2
import pytest

from agent.config import CameraConfig
from agent.daemon.workers.stage_limits import CAPTURE_STUCK_S
from agent.errors import CameraError
from agent.vision.cameras import network, open_camera, opencv, waiting

URL = "rtsp://joe:geheim@camera.example/1"
Lookup = Callable[..., list[object]]


def forbidden(*_: object) -> None:
    raise AssertionError("asked in vain")


@pytest.fixture
def answer() -> Iterator[threading.Event]:
    """Set when whoever keeps us waiting does answer at last."""
    event = threading.Event()
    yield event
    event.set()


def open_url(url: str = URL) -> str:
    with pytest.raises(CameraError) as caught:
        open_camera(CameraConfig(source=url))
    assert "geheim" not in str(caught.value)
    return str(caught.value)


def test_all_waits_together_stay_below_the_supervisors() -> None:
    opening_s = network.RESOLVE_LIMIT_S + opencv.OPENING_LIMIT_S + opencv.SEEK_LIMIT_S
    restart_s = waiting.CLOSE_LIMIT_S + network.RESOLVE_LIMIT_S + opencv.OPENING_LIMIT_S
    restart_s += opencv.READ_TIMEOUT_MS / 1000
    failing_s = network.RESOLVE_LIMIT_S + opencv.OPENING_LIMIT_S + network.TIMEOUT_S
    assert max(opening_s, restart_s, failing_s) + waiting.CLOSE_LIMIT_S < CAPTURE_STUCK_S - 3


def test_a_dead_name_server(monkeypatch: pytest.MonkeyPatch, answer: threading.Event) -> None:
    assert network.RESOLVE_LIMIT_S == 5
    monkeypatch.setattr(network, "RESOLVE_LIMIT_S", 0.1)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer.wait())
    monkeypatch.setattr(cv2, "VideoCapture", forbidden)
    monkeypatch.setattr(network, "why_not", forbidden)
    started = time.monotonic()
    said = open_url()
    assert time.monotonic() - started < 10
    assert said.startswith("rtsp://joe:***@camera.example/1: the name camera.example could not be")
    assert "resolved within 0.1 s; look at this board's network and name server" in said


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (socket.gaierror(socket.EAI_AGAIN, "geheim"), "no name server answers"),
        (socket.gaierror(socket.EAI_NONAME, "geheim"), "is not known; check it"),
        (UnicodeError("geheim"), "is not one that a host can have"),
    ],
)
def test_names_without_an_address(
    monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(cv2, "VideoCapture", forbidden)
    assert sentence in open_url()


def test_a_proxy_looks_names_up_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://192.0.2.1:3128")
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    assert network.resolve(network.parse("http://camera.example/x")) == []
    assert "through the proxy" in network.why_not(network.parse("http://camera.example/x"), [])


class FakeCapture:
    """What cv2.VideoCapture is when FFmpeg hangs in it."""

    answer: threading.Event
    released: threading.Event

    def __init__(self, *_: object) -> None:
        self.answer.wait()

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def release(self) -> None:
        self.released.set()


def test_ffmpeg_hanging_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, answer: threading.Event
) -> None:
    FakeCapture.answer, FakeCapture.released = answer, threading.Event()
    monkeypatch.setattr(opencv, "OPENING_LIMIT_S", 0.1)
    monkeypatch.setattr(opencv, "OPEN_TIMEOUT_MS", 100)
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    assert "no video within" in open_url("rtsp://joe:geheim@127.0.0.1/1")
    assert not FakeCapture.released.is_set()
    answer.set()
    assert FakeCapture.released.wait(30), "what comes late is given back"


def test_several_addresses_share_the_time(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setattr(network, "TIMEOUT_S", 0.4)
    address = network.parse(f"rtsp://joe:geheim@localhost:{free_port}/1")
    assert "nothing listens on localhost" in network.why_not(address, ["127.0.0.1"])
    with socket.create_server(("127.0.0.1", free_port)):  # takes the call, and says nothing
        started = time.monotonic()
        said = network.why_not(address, ["127.0.0.2", "127.0.0.1"])
        assert time.monotonic() - started < 10
    assert "does not answer within 0.4 s" in said


def test_a_result_an_error_and_neither(answer: threading.Event) -> None:
    assert waiting.finish_in_time(lambda: 3, 60, name="t") == 3
    with pytest.raises(ValueError, match="invalid literal"):
        waiting.finish_in_time(lambda: int("x"), 60, name="t")
    late: list[bool] = []
    with pytest.raises(TimeoutError):
        waiting.finish_in_time(answer.wait, 0.01, name="t", discard=late.append)
    assert late == []
    answer.set()
    deadline = time.monotonic() + 60
    while not late and time.monotonic() < deadline:
        time.sleep(0.001)
    assert late == [True]
