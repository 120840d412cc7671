"""Pictures for people: boxes, labels and scores drawn so that they can be read at any size."""

from __future__ import annotations

import colorsys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from agent.contract.payloads import Classification, Detection
from agent.vision.cameras.images import SUFFIXES
from agent.vision.preprocess import U8Image

# A picture with a shorter side is enlarged: no text can be read on a thumbnail.
SMALLEST_SIDE_PX, LARGEST_ENLARGED_PX = 300, 4000
TEXT_SHARE, SMALLEST_TEXT_PX = 1 / 32, 11
FONT = cv2.FONT_HERSHEY_SIMPLEX
FONT_HEIGHT_PX = 22  # of FONT's capitals at scale 1, by cv2.getTextSize
GOLDEN_RATIO = 0.618  # neighbours in class number get colours far apart
Color = tuple[int, int, int]


def draw(pixels: U8Image, found: Sequence[Detection | Classification]) -> U8Image:
    """Return a copy of uint8[H, W, 3] BGR with every finding drawn; enlarged where it is tiny."""
    height, width = pixels.shape[:2]
    factor = -(-SMALLEST_SIDE_PX // min(height, width))
    factor = max(1, min(factor, LARGEST_ENLARGED_PX // max(height, width)))
    picture: U8Image = pixels.copy()
    if factor > 1:
        size = (width * factor, height * factor)
        picture = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    text_px = max(SMALLEST_TEXT_PX, round(min(picture.shape[:2]) * TEXT_SHARE))
    # Worst first, so that the best finding is never covered by another.
    for row, item in reversed(list(enumerate(found))):
        color = _color(item.class_id)
        if isinstance(item, Detection):
            x_min, y_min, x_max, y_max = (round(value * factor) for value in item.box)
            line_px = max(1, round(text_px / 8))
            cv2.rectangle(picture, (x_min, y_min), (x_max, y_max), color, line_px)
            _write(picture, caption(item), (x_min, y_min), text_px, color)
        else:
            below = row * _line_height(text_px)
            _write(picture, caption(item), (0, below + _line_height(text_px)), text_px, color)
    return picture


def caption(item: Detection | Classification) -> str:
    """Return what is said of one finding."""
    return f"{item.label or f'class {item.class_id}'} {item.score:.2f}"


def _color(class_id: int) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(class_id * GOLDEN_RATIO % 1.0, 0.75, 1.0)
    return round(blue * 255), round(green * 255), round(red * 255)


def _line_height(text_px: int) -> int:
    return round(text_px * 1.7)


def _write(picture: U8Image, text: str, at: tuple[int, int], text_px: int, color: Color) -> None:
    """Write on a coloured ground whose lower left corner is `at`, moved to lie in the picture."""
    height, width = picture.shape[:2]
    # These fonts have ASCII alone: accents go, other scripts become question marks.
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    plain = plain.encode("ascii", "replace").decode()
    scale = text_px / FONT_HEIGHT_PX
    (wide, _), _ = cv2.getTextSize(plain, FONT, scale, 1)
    scale *= min(1.0, width / (wide + text_px))
    thickness = max(1, round(scale * FONT_HEIGHT_PX / 10))
    (wide, _), _ = cv2.getTextSize(plain, FONT, scale, thickness)
    tall, margin = _line_height(text_px), text_px // 3
    left = max(0, min(at[0], width - wide - 2 * margin))
    bottom = min(max(at[1], tall), height)
    cv2.rectangle(picture, (left, bottom - tall), (left + wide + 2 * margin, bottom), color, -1)
    is_light = 0.114 * color[0] + 0.587 * color[1] + 0.299 * color[2] > 128
    ink = (0, 0, 0) if is_light else (255, 255, 255)
    base = bottom - (tall - text_px) // 2
    cv2.putText(picture, plain, (left + margin, base), FONT, scale, ink, thickness, cv2.LINE_AA)


def save_picture(picture: U8Image, folder: Path, name: str) -> Path:
    """Write a picture under `name`, or `name`-2 and so on: no file is ever written over.

    Raises:
        OSError, ValueError: it cannot be written, or not in this format.
    """
    wanted = Path(name)
    suffix = wanted.suffix if wanted.suffix.lower() in SUFFIXES else ".jpg"
    try:
        is_done, data = cv2.imencode(suffix, picture)
    except cv2.error:  # as OpenCV 4 says it; 5 returns False
        is_done = False
    if not is_done:
        raise ValueError(f"the picture with boxes cannot be written as {suffix[1:].upper()}")
    number = 1
    while True:
        path = folder / f"{wanted.stem}{f'-{number}' if number > 1 else ''}{suffix}"
        try:
            with path.open("xb") as file:
                file.write(data.tobytes())
            return path
        except FileExistsError:
            number += 1
        except OSError:
            path.unlink(missing_ok=True)  # half a picture, or nothing
            raise
