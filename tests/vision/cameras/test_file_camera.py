from __future__ import annotations

import functools
import http.server
import itertools
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from camera_sources import CLIP_FRAMES, CLIP_HZ, CLIP_SIZE, drain, make_clip

from agent.config import CameraConfig
from agent.errors import CameraError
from agent.vision.cameras import Camera, EndOfStream, U8Image, open_camera

SHAPE = (CLIP_SIZE[1], CLIP_SIZE[0], 3)


def open_file(path: Path | str, *, loop: bool = False, skip: int = 0) -> Camera:
    return open_camera(CameraConfig(source=str(path), loop=loop), skip_frames=skip)


def next_frame(camera: Camera) -> U8Image:
    frame = camera.read(None)
    assert frame is not None
    return frame


def read_all(camera: Camera) -> list[U8Image]:
    frames: list[U8Image] = []
    try:
        while True:
            frames.append(next_frame(camera))
    except EndOfStream:
        return frames
    finally:
        camera.close()


@pytest.fixture(scope="module")
def frames(clip: Path) -> list[U8Image]:
    return read_all(open_file(clip))


def test_every_frame_once(clip: Path, frames: list[U8Image]) -> None:
    camera = open_file(f"file://{clip}")
    assert (camera.live, camera.rate_hz) == (False, CLIP_HZ)
    assert len(frames) == CLIP_FRAMES
    assert {frame.shape for frame in frames} == {SHAPE}
    assert all(not np.array_equal(*pair) for pair in itertools.pairwise(frames))
    camera.close()
    camera.close()


def test_colours_are_bgr(tmp_path: Path) -> None:
    camera = open_file(make_clip(tmp_path / "red.mp4", source="color=c=red", seconds=0.2))
    blue, green, red = next_frame(camera).mean(axis=(0, 1))
    assert red > 200
    assert max(blue, green) < 50
    camera.close()


def test_read_in_place(clip: Path) -> None:
    camera = open_file(clip)
    buffer = np.empty(SHAPE, np.uint8)
    for _ in range(3):
        frame = camera.read(buffer)
        assert frame is not None
        assert frame.ctypes.data == buffer.ctypes.data
    wrong = np.zeros((10, 10, 3), np.uint8)
    frame = camera.read(wrong)
    assert frame is not None
    assert frame.shape == SHAPE
    assert not wrong.any()
    camera.close()


def test_loop(clip: Path, frames: list[U8Image]) -> None:
    camera = open_file(clip, loop=True)
    for index in range(2 * CLIP_FRAMES + 3):
        assert np.array_equal(next_frame(camera), frames[index % CLIP_FRAMES])
    camera.close()


@pytest.mark.parametrize("skip", [1, 2, 7, 14, 15, 16, 28, 29])
@pytest.mark.parametrize("kind", ["clip", "transport_stream"])
def test_skip_is_exact(
    skip: int, kind: str, frames: list[U8Image], request: pytest.FixtureRequest
) -> None:
    rest = read_all(open_file(request.getfixturevalue(kind), skip=skip))
    assert len(rest) == CLIP_FRAMES - skip
    assert np.array_equal(rest[0], frames[skip])


def test_skip_in_a_loop_is_modulo(clip: Path, frames: list[U8Image]) -> None:
    camera = open_file(clip, loop=True, skip=CLIP_FRAMES + 4)
    assert np.array_equal(next_frame(camera), frames[4])
    camera.close()


@pytest.mark.parametrize("skip", [CLIP_FRAMES, 10 * CLIP_FRAMES])
def test_skip_to_the_end(clip: Path, skip: int) -> None:
    assert read_all(open_file(clip, skip=skip)) == []


def test_a_truncated_clip_ends_and_says_so(
    clip: Path, tmp_path: Path, frames: list[U8Image]
) -> None:
    cut = tmp_path / "cut.mkv"  # an MP4 that was cut has lost its index, and is no video at all
    command = ["ffmpeg", "-loglevel", "error", "-i", str(clip), "-c", "copy", str(cut)]
    subprocess.run(command, check=True, timeout=60)
    cut.write_bytes(cut.read_bytes()[: clip.stat().st_size // 2])
    camera = open_file(cut)
    with pytest.raises(
        EndOfStream, match=rf"after \d+ of {CLIP_FRAMES} frames: it is cut short"
    ) as ended:
        drain(camera)
    count = int(str(ended.value).split("after ")[1].split()[0])
    assert 0 < count < len(frames)
    camera.close()
    looped = open_file(cut, loop=True)
    for _ in range(count + 2):
        next_frame(looped)
    looped.close()


def test_sentences(tmp_path: Path, clip: Path) -> None:
    with pytest.raises(CameraError, match="no such file; allowed are auto, /dev/videoN"):
        open_file(tmp_path / "missing.mp4")
    with pytest.raises(CameraError, match="no such file or kind of source"):
        open_file("synthetc")
    with pytest.raises(CameraError, match='"ftp://joe:\\*\\*\\*@x/a": unknown; allowed'):
        open_file("ftp://joe:pw@x/a")
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(CameraError, match="not a regular file"):
        open_file(tmp_path / "pipe.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(CameraError, match="it is empty"):
        open_file(tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("hello " * 1000)
    with pytest.raises(CameraError, match="not a video"):
        open_file(tmp_path / "text.mp4")
    (tmp_path / "head.mp4").write_bytes(clip.read_bytes()[:1000])
    with pytest.raises(CameraError, match="not a video that can be decoded, or cut short"):
        open_file(tmp_path / "head.mp4")


def test_a_name_with_a_colon_is_a_file(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "2026-01-01T12:00.mp4"
    path.symlink_to(clip)
    camera = open_file(path)
    next_frame(camera)
    camera.close()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        if self.path == "/private":
            self.send_error(401)
        elif self.path == "/mjpeg":
            self._send_mjpeg(40)
        else:
            super().do_GET()

    def _send_mjpeg(self, count: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=part")
        self.end_headers()
        for value in range(count):
            _, jpeg = cv2.imencode(".jpg", np.full(SHAPE, value, np.uint8))
            head = f"--part\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            try:
                self.wfile.write(head.encode() + jpeg.tobytes() + b"\r\n")
            except OSError:
                return


@pytest.fixture
def web(clip: Path) -> Iterator[str]:
    handler = functools.partial(_Handler, directory=str(clip.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_file_behind_http_is_a_file(web: str, frames: list[U8Image]) -> None:
    camera = open_file(f"{web}/clip.mp4")
    assert not camera.live
    assert len(read_all(camera)) == CLIP_FRAMES
    looped = open_file(f"{web}/clip.mp4", loop=True, skip=CLIP_FRAMES - 1)
    assert np.array_equal(next_frame(looped), frames[-1])
    assert looped.read(None) is None  # so that whoever reads can say that it is alive
    assert np.array_equal(next_frame(looped), frames[0])
    looped.close()


def test_mjpeg_over_http_is_live(web: str) -> None:
    camera = open_file(f"{web}/mjpeg")
    assert camera.live
    assert next_frame(camera).shape == SHAPE
    with pytest.raises(CameraError, match="the stream ended, or the connection was lost"):
        drain(camera, at_most=60)
    camera.close()


def test_http_sentences(web: str, free_port: int) -> None:
    with pytest.raises(CameraError, match="has nothing at this path"):
        open_file(f"{web}/missing.mp4")
    with pytest.raises(CameraError, match="wants a user name and password"):
        open_file(f"{web}/private")
    with pytest.raises(CameraError, match=r"nothing listens on 127\.0\.0\.1"):
        open_file(f"http://127.0.0.1:{free_port}/x")
    with pytest.raises(CameraError, match="percent-encode") as caught:
        open_file("http://joe:ab/cd@127.0.0.1/x")
    assert "cd" not in str(caught.value).split(": ")[0]
