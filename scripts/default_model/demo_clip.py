"""Entry point of `scripts/build-demo-clip`: three framed pictures, seen by a drifting camera.

    pictures -> gallery wall (one still) -> camera path (a window per frame) -> H.264

The camera path is a closed curve, so the clip loops without a jump. Afterwards the file is
decoded again and the default model must find a person, a cat and a cup in it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import math
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from default_model.coco import LABELS
from default_model.fetch import FetchError
from default_model.golden import detect, load
from default_model.images import U8Image, stretch
from default_model.pictures import read_astronaut, read_cat, read_coffee

F32Image = npt.NDArray[np.float32]

_ROOT = Path(__file__).resolve().parents[2]
_CLIP = _ROOT / "agent" / "demo" / "clip.mp4"
_MODEL = _ROOT / "models" / "default" / "model.tflite"

_WIDTH_PX, _HEIGHT_PX, _FPS, _FRAMES = 1280, 720, 30, 270
_WALL_WIDTH_PX, _WALL_HEIGHT_PX = 1760, 990
_WALL_RGB = (206, 202, 192)
_FRAME_RGB, _MAT_RGB = (54, 42, 34), (243, 240, 233)
_FRAME_PX, _MAT_PX = 12, 22
_SEED = 1

_WANTED = ("person", "cat", "cup")
_WANTED_SCORE = 0.5
_WANTED_SHARE = 0.8
_CHECK_EVERY = 5


def main(arguments: list[str] | None = None) -> int:
    """Build and check the clip; return the exit status."""
    parser = argparse.ArgumentParser(prog="build-demo-clip", description=__doc__)
    parser.add_argument("--output", type=Path, default=_CLIP, metavar="FILE")
    parser.add_argument("--model", type=Path, default=_MODEL, metavar="FILE")
    options = parser.parse_args(arguments)
    clip: Path = options.output
    partial = clip.with_name(f".partial-{clip.name}")
    clip.parent.mkdir(parents=True, exist_ok=True)
    try:
        frames = camera_frames(gallery_wall())
        encode(tqdm(frames, total=_FRAMES, unit="frame"), partial)
        if not check(partial, options.model):
            print("build-demo-clip: too few detections; clip not replaced", file=sys.stderr)
            return 1
        partial.replace(clip)
    except (FetchError, OSError, subprocess.CalledProcessError) as error:
        print(f"build-demo-clip: {error}", file=sys.stderr)
        return 1
    finally:
        partial.unlink(missing_ok=True)
    data = clip.read_bytes()
    print(f"{hashlib.sha256(data).hexdigest()}  {len(data)}  {clip.name}")
    return 0


def gallery_wall() -> U8Image:
    """Return the still: uint8[990,1760,3] RGB, a plaster wall with three framed pictures."""
    wall = _plaster()
    _hang(wall, read_astronaut(), x_px=200, y_px=175, size_px=(640, 640))
    _hang(wall, read_cat(), x_px=980, y_px=80, size_px=(560, 373))
    _hang(wall, read_coffee(), x_px=980, y_px=540, size_px=(560, 373))
    return np.clip(wall, 0, 255).astype(np.uint8)


def camera_frames(wall: U8Image) -> Iterator[U8Image]:
    """Yield uint8[720,1280,3] frames of a slow drift over the wall that ends where it began."""
    for index in range(_FRAMES):
        turn = 2 * math.pi * index / _FRAMES
        view_w_px = 1640 + 110 * math.cos(turn)
        slack_x_px = (_WALL_WIDTH_PX - view_w_px) / 2
        slack_y_px = slack_x_px * _HEIGHT_PX / _WIDTH_PX
        left_px = slack_x_px * (1 - 0.9 * math.sin(turn))
        top_px = slack_y_px * (1 - 0.9 * math.sin(2 * turn))
        scale = view_w_px / _WIDTH_PX
        # Maps a frame's pixel centers to the wall's.
        offset = (scale - 1) / 2
        window = np.array([[scale, 0, left_px + offset], [0, scale, top_px + offset]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        frame = cv2.warpAffine(wall, window, (_WIDTH_PX, _HEIGHT_PX), flags=flags)
        yield np.asarray(frame, np.uint8)


def encode(frames: Iterator[U8Image], path: Path) -> None:
    """Encode RGB frames to H.264; the same frames and ffmpeg give the same bytes."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise FileNotFoundError("ffmpeg is missing (Debian: apt-get install ffmpeg)")
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{_WIDTH_PX}x{_HEIGHT_PX}",
              "-r", str(_FPS), "-i", "-"]  # fmt: skip
    color = ["-vf", "scale=out_color_matrix=bt709:out_range=tv", "-colorspace", "bt709",
             "-color_primaries", "bt709", "-color_trc", "bt709",
             "-sws_flags", "bicubic+accurate_rnd+bitexact"]  # fmt: skip
    codec = ["-c:v", "libx264", "-preset", "slow", "-crf", "21", "-g", "60",
             "-pix_fmt", "yuv420p", "-threads", "1"]  # fmt: skip
    # No encoder version, no creation time; the index goes first, for players that stream.
    container = ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags:v", "+bitexact",
                 "-movflags", "+faststart"]  # fmt: skip
    command = [ffmpeg, "-nostdin", "-loglevel", "error", "-y", *source, *color, *codec,
               *container, str(path)]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        pipe = cast("IO[bytes]", process.stdin)
        # If ffmpeg stops early, its exit status says more than the broken pipe.
        with contextlib.suppress(BrokenPipeError), pipe:
            for frame in frames:
                pipe.write(frame.tobytes())
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)


def check(clip: Path, model: Path) -> bool:
    """Print how often the model finds each wanted label; return whether often enough."""
    interpreter = load(model.read_bytes())
    best: dict[str, list[float]] = {label: [] for label in _WANTED}
    others: Counter[str] = Counter()
    for frame in _decode(clip):
        result = detect(interpreter, stretch(frame))
        found = dict.fromkeys(_WANTED, 0.0)
        for class_id, score in zip(result["classes"], result["scores"], strict=True):
            label = LABELS[int(class_id)]
            if label in found:
                found[label] = max(found[label], float(score))
            elif score >= _WANTED_SCORE:
                others[label] += 1
        for label, score in found.items():
            best[label].append(score)
    print(f"{'label':8} frames  score>={_WANTED_SCORE}  lowest  median")
    shares = []
    for label, scores in best.items():
        shares.append(float(np.mean(np.array(scores) >= _WANTED_SCORE)))
        print(f"{label:8} {len(scores):6}  {shares[-1]:10.0%}  {min(scores):6.2f}  "
              f"{np.median(scores):6.2f}")  # fmt: skip
    print("others:", dict(others) or "none")
    return min(shares) >= _WANTED_SHARE


def _decode(clip: Path) -> Iterator[U8Image]:
    """Yield every fifth frame of the clip: uint8[720,1280,3] RGB."""
    capture = cv2.VideoCapture(str(clip))
    for index in range(_FRAMES):
        decoded, bgr = capture.read()
        if not decoded:
            raise OSError(f"{clip.name}: frame {index} of {_FRAMES} cannot be decoded")
        if index % _CHECK_EVERY == 0:
            yield np.ascontiguousarray(bgr[..., ::-1], np.uint8)


def _plaster() -> F32Image:
    """Return the bare wall: float32[990,1760,3] RGB, faintly mottled and lit from above left."""
    rng = np.random.default_rng(_SEED)
    mottle = np.zeros((_WALL_HEIGHT_PX, _WALL_WIDTH_PX), np.float32)
    for sigma_px, strength in ((1.5, 1.2), (9.0, 1.6), (60.0, 2.5)):
        noise = rng.standard_normal(mottle.shape, np.float32)
        blurred = cv2.GaussianBlur(noise, (0, 0), sigma_px)
        mottle += blurred * np.float32(strength / blurred.std())
    y, x = np.mgrid[0:_WALL_HEIGHT_PX, 0:_WALL_WIDTH_PX].astype(np.float32)
    away = (x / _WALL_WIDTH_PX - 0.35) ** 2 + (y / _WALL_HEIGHT_PX - 0.1) ** 2
    light = 1.06 - 0.28 * away
    plaster = (np.array(_WALL_RGB, np.float32) + mottle[..., None]) * light[..., None]
    return plaster.astype(np.float32)


def _hang(
    wall: F32Image, picture: U8Image, *, x_px: int, y_px: int, size_px: tuple[int, int]
) -> None:
    """Draw a framed picture with its shadow onto the wall; x, y is the picture's corner."""
    w_px, h_px = size_px
    shadow = np.zeros(wall.shape[:2], np.float32)
    border_px = _MAT_PX + _FRAME_PX
    _fill(shadow, (x_px + 10, y_px + 16, w_px, h_px), border_px, 1.0)
    wall *= 1 - 0.45 * cv2.GaussianBlur(shadow, (0, 0), 14)[..., None]
    _fill(wall, (x_px, y_px, w_px, h_px), border_px, _FRAME_RGB)
    _fill(wall, (x_px, y_px, w_px, h_px), _MAT_PX, _MAT_RGB)
    method = cv2.INTER_CUBIC if w_px > picture.shape[1] else cv2.INTER_AREA
    wall[y_px : y_px + h_px, x_px : x_px + w_px] = cv2.resize(
        picture, size_px, interpolation=method
    )


def _fill(
    image: F32Image,
    xywh_px: tuple[int, int, int, int],
    margin_px: int,
    color: float | tuple[int, int, int],
) -> None:
    """Fill a rectangle, grown by a margin on each side, with one colour."""
    x_px, y_px, w_px, h_px = xywh_px
    rows = slice(y_px - margin_px, y_px + h_px + margin_px)
    image[rows, x_px - margin_px : x_px + w_px + margin_px] = color


if __name__ == "__main__":
    sys.exit(main())
