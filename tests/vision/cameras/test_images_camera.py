from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.config import CameraConfig
from agent.errors import CameraError
from agent.vision.cameras import Camera, EndOfStream, open_camera
from agent.vision.cameras.images import picture_size


def write(path: Path, value: int, width: int = 40, height: int = 30) -> None:
    assert cv2.imwrite(str(path), np.full((height, width, 3), value, np.uint8))


def open_folder(folder: Path, *, loop: bool = False, skip: int = 0) -> Camera:
    return open_camera(CameraConfig(source=f"images:{folder}", loop=loop), skip_frames=skip)


def values(camera: Camera, count: int) -> list[int]:
    frames = [camera.read(None) for _ in range(count)]
    return [round(float(frame.mean()) / 10) for frame in frames if frame is not None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for position, suffix in enumerate(("jpg", "png", "bmp", "webp", "JPG")):
        write(tmp_path / f"{position}.{suffix.lower()}", 10 * position, 40 + position)
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


def test_every_picture_once_in_order(folder: Path) -> None:
    camera = open_folder(folder)
    assert not camera.live
    assert values(camera, 5) == [0, 1, 2, 3, 4]
    with pytest.raises(EndOfStream):
        camera.read(None)
    camera.close()


@pytest.mark.parametrize(
    ("loop", "skip", "expected"), [(True, 3, [3, 4, 0, 1]), (True, 13, [3]), (False, 2, [2, 3, 4])]
)
def test_loop_and_skip(folder: Path, loop: bool, skip: int, expected: list[int]) -> None:
    assert values(open_folder(folder, loop=loop, skip=skip), len(expected)) == expected


def test_skipping_past_the_end(folder: Path) -> None:
    with pytest.raises(EndOfStream):
        open_folder(folder, skip=5).read(None)


def test_in_place_where_the_size_fits(folder: Path) -> None:
    camera = open_folder(folder)
    buffer = np.empty((30, 40, 3), np.uint8)
    assert camera.read(buffer) is buffer
    second = camera.read(buffer)
    assert second is not buffer
    assert second is not None
    assert second.shape == (30, 41, 3)


def test_an_unreadable_picture_is_named_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    (folder / "2.bmp").write_text("hello")
    (folder / "3.webp").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert values(open_folder(folder, loop=True), 6) == [0, 4, 0, 4, 0, 4]
    named = [record.args[0].name for record in caplog.records]  # type: ignore[index, union-attr]
    assert named == ["1.png", "2.bmp", "3.webp"]


def test_a_decompression_bomb_is_not_decoded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    (tmp_path / "bomb.png").write_bytes(bomb + struct.pack(">I", zlib.crc32(chunk)))
    camera = open_folder(tmp_path)
    with pytest.raises(CameraError, match="none of its pictures"):
        camera.read(None)
    assert "30000x30000 is over the limit of 64 MP" in caplog.text


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp"])
def test_sizes_from_headers(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    write(path, 7, 321, 123)
    content = path.read_bytes()
    assert picture_size(content) == (321, 123)
    for length in range(min(64, len(content))):
        picture_size(content[:length])  # a cut header is no error of ours


def test_lossless_webp_size() -> None:
    image = np.zeros((123, 321, 3), np.uint8)
    _, content = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 101])
    assert content.tobytes()[12:16] == b"VP8L"
    assert picture_size(content.tobytes()) == (321, 123)


def test_sentences(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match=r"no pictures in it \(\.jpg"):
        open_folder(tmp_path)
    with pytest.raises(CameraError, match="cannot be listed: No such file"):
        open_folder(tmp_path / "missing")
    with pytest.raises(CameraError, match='a folder; write "images:'):
        open_camera(CameraConfig(source=str(tmp_path)))
