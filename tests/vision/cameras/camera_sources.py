"""What the camera tests read: clips made by ffmpeg, and an RTSP server in its own process."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from agent.vision.cameras import Camera

SERVER = Path(__file__).parents[2] / "rtsp_server.py"
SYSTEM_PYTHON = "/usr/bin/python3"
CLIP_FRAMES = 30
CLIP_HZ = 15.0
CLIP_SIZE = (160, 120)


def make_clip(
    path: Path, *options: str, source: str = "testsrc", seconds: float = CLIP_FRAMES / CLIP_HZ
) -> Path:
    """Write a clip of one of ffmpeg's sources; `testsrc` carries a running number."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        pytest.skip("ffmpeg is not installed")
    first = ":" if "=" in source else "="
    video = f"{source}{first}size={CLIP_SIZE[0]}x{CLIP_SIZE[1]}:rate={CLIP_HZ}"
    # fmt: off
    subprocess.run(
        [ffmpeg, "-loglevel", "error", "-f", "lavfi", "-i", video, "-t", str(seconds),
         "-pix_fmt", "yuv420p", *options, str(path)],
        check=True,
        timeout=60,
    )
    # fmt: on
    return path


class RtspServer:
    """One server process on 127.0.0.1; `stop` and `start` keep its port."""

    def __init__(self, clip: Path, user: str = "", password: str = "") -> None:
        self._clip = clip
        self._login = ["--user", user, "--password", password] if user else []
        self._process: subprocess.Popen[str] | None = None
        self.port = 0
        self.start()

    def url(self, login: str = "") -> str:
        return f"rtsp://{login}{'@' if login else ''}127.0.0.1:{self.port}/clip"

    def start(self) -> None:
        # fmt: off
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, str(SERVER), str(self._clip), "--port", str(self.port), *self._login],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        # fmt: on
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("ready "), line
        self.port = int(line.split()[1])

    def stop(self) -> None:
        """End it the hard way, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process = None


def drain(camera: Camera, *, at_most: int = 10_000, seconds: float = 60.0) -> None:
    """Read until the camera raises, or there was enough of it."""
    deadline = time.monotonic() + seconds
    for _ in range(at_most):
        if time.monotonic() > deadline:
            return
        camera.read(None)
