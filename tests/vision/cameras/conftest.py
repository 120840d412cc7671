"""Fixtures of the camera tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import brokers
import pytest
from camera_sources import SERVER, SYSTEM_PYTHON, RtspServer, make_clip


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """H.264 with B-frames and two groups of pictures, 30 frames at 15 Hz, 160x120."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    return make_clip(path, "-c:v", "libx264", "-g", "15", "-bf", "2")


@pytest.fixture(scope="session")
def transport_stream(clip: Path) -> Path:
    """The same in a container in which OpenCV's seeking goes wrong."""
    path = clip.with_suffix(".ts")
    command = ["ffmpeg", "-loglevel", "error", "-i", str(clip), "-c", "copy", str(path)]
    subprocess.run(command, check=True, timeout=60)
    return path


@pytest.fixture(scope="session")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute of what an IP camera sends: no B-frames, a key frame each second."""
    path = tmp_path_factory.mktemp("clips") / "long.mp4"
    options = ("-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-g", "15")
    return make_clip(path, *options, seconds=60)


@pytest.fixture(scope="session")
def _rtsp_available() -> None:
    code = "import gi; gi.require_version('GstRtspServer', '1.0')"
    try:
        done = subprocess.run(
            [SYSTEM_PYTHON, "-c", code], check=False, capture_output=True, timeout=120
        )
    except OSError:
        pytest.skip(f"{SYSTEM_PYTHON} is missing")
    if done.returncode:
        pytest.skip("gir1.2-gst-rtsp-server-1.0 is not installed")


@pytest.fixture
def rtsp_server(_rtsp_available: None, long_clip: Path) -> Iterator[Callable[..., RtspServer]]:
    """Return a function that starts servers; they end with the test."""
    servers = []

    def start(user: str = "", password: str = "") -> RtspServer:
        servers.append(RtspServer(long_clip, user, password))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def free_port() -> int:
    return brokers.free_port()


@pytest.fixture
def run_python() -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Return a function that runs code in a new process, for what a process sets up once."""

    def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=SERVER.parent.parent,
            env={**os.environ, **environment},
        )

    return run
