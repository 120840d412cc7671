"""Pictures for people: what was found, drawn so that it can be read at any size."""

from __future__ import annotations

import colorsys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from agent.contract.payloads import Classification, Detection, Keypoint, Pose, Region
from agent.vision.cameras.images import SUFFIXES
from agent.vision.encode import Findings, is_believed
from agent.vision.heads.pose import COCO_POINTS
from agent.vision.heads.posenet import LIMBS
from agent.vision.preprocess import U8Image

# A picture with a shorter side is enlarged: no text can be read on a thumbnail.
SMALLEST_SIDE_PX, LARGEST_ENLARGED_PX = 300, 4000
TEXT_SHARE, SMALLEST_TEXT_PX = 1 / 32, 11
FONT = cv2.FONT_HERSHEY_SIMPLEX
FONT_HEIGHT_PX = 22  # of FONT's capitals at scale 1, by cv2.getTextSize
GOLDEN_RATIO = 0.618  # neighbours in class number get colours far apart
Color = tuple[int, int, int]
# A figure of COCO's points: its limbs, with the shoulders and the hips joined.
SKELETON = (*LIMBS[:4], *LIMBS[5:10], *LIMBS[11:], (5, 6), (11, 12))
REGION_OPACITY = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """A picture being drawn on, `factor` times as large as the frame."""

    pixels: U8Image
    factor: int
    text_px: int

    @property
    def line_px(self) -> int:
        """Return how thick a line is."""
        return max(1, round(self.text_px / 8))

    def at(self, x: float, y: float) -> tuple[int, int]:
        """Return where a pixel of the frame lies."""
        return round(x * self.factor), round(y * self.factor)


def draw(pixels: U8Image, found: Findings) -> U8Image:
    """Return a copy of uint8[H, W, 3] BGR with every finding drawn; enlarged where it is tiny."""
    height, width = pixels.shape[:2]
    factor = -(-SMALLEST_SIDE_PX // min(height, width))
    factor = max(1, min(factor, LARGEST_ENLARGED_PX // max(height, width)))
    picture: U8Image = pixels.copy()
    if factor > 1:
        size = (width * factor, height * factor)
        picture = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    text_px = max(SMALLEST_TEXT_PX, round(min(picture.shape[:2]) * TEXT_SHARE))
    canvas = Canvas(pixels=picture, factor=factor, text_px=text_px)
    _draw_regions(canvas, found.regions or ())
    # Worst first, so that the best finding is never covered by another.
    for detection in reversed(found.detections or ()):
        _draw_box(canvas, detection.box, caption(detection), _color(detection.class_id))
        _draw_points(canvas, detection.keypoints or (), _color(detection.class_id + 1))
    # Each figure in a colour of its own: they are mostly of one class, and stand close.
    for row, pose in reversed(list(enumerate(found.keypoints or ()))):
        _draw_pose(canvas, pose, _color(row))
    for row, item in enumerate(found.classes or ()):
        below = (row + 1) * _line_height(text_px)
        _write(canvas, caption(item), (0, below), _color(item.class_id))
    return picture


def caption(item: Detection | Classification | Pose | Region) -> str:
    """Return what is said of one finding."""
    name = item.label or f"class {item.class_id}"
    if isinstance(item, Region):
        return f"{name} {item.area:.1%}"
    second = item.classes if isinstance(item, Detection) and item.classes else ()
    return " ".join([f"{name} {item.score:.2f}", *map(caption, second[:1])])


def _draw_box(
    canvas: Canvas, box: tuple[float, float, float, float], text: str, color: Color
) -> None:
    corner = canvas.at(*box[:2])
    cv2.rectangle(canvas.pixels, corner, canvas.at(*box[2:]), color, canvas.line_px)
    _write(canvas, text, corner, color)


def _draw_points(canvas: Canvas, points: Sequence[Keypoint], color: Color) -> None:
    for point in points:
        if is_believed(point):
            radius = 2 * canvas.line_px
            cv2.circle(canvas.pixels, canvas.at(point.x, point.y), radius, color, -1, cv2.LINE_AA)


def _draw_pose(canvas: Canvas, pose: Pose, color: Color) -> None:
    """Draw points, limbs where the points are COCO's, and a caption at the box or the top."""
    points = pose.points
    if len(points) == len(COCO_POINTS):
        for one, other in SKELETON:
            if is_believed(points[one]) and is_believed(points[other]):
                ends = (
                    canvas.at(points[one].x, points[one].y),
                    canvas.at(points[other].x, points[other].y),
                )
                cv2.line(canvas.pixels, *ends, color, 2 * canvas.line_px, cv2.LINE_AA)
    _draw_points(canvas, points, (255, 255, 255))
    if pose.box is not None:
        _draw_box(canvas, pose.box, caption(pose), color)
    elif points:
        top = min(points, key=lambda point: (not is_believed(point), point.y))
        _write(canvas, caption(pose), canvas.at(top.x, top.y - 5 * canvas.line_px), color)


def _draw_regions(canvas: Canvas, regions: Sequence[Region]) -> None:
    """Fill each region so that the picture shows through, and outline it."""
    if not regions:
        return
    filled = canvas.pixels.copy()
    outlines = [
        [np.array([canvas.at(*point) for point in polygon], np.int32) for polygon in item.polygons]
        for item in regions
    ]
    for item, polygons in zip(regions, outlines, strict=True):
        if polygons:
            cv2.fillPoly(filled, polygons, _color(item.class_id))
    share = REGION_OPACITY
    cv2.addWeighted(filled, share, canvas.pixels, 1 - share, 0, dst=canvas.pixels)
    for item, polygons in zip(regions, outlines, strict=True):
        color = _color(item.class_id)
        cv2.polylines(canvas.pixels, polygons, isClosed=True, color=color, thickness=canvas.line_px)
        if polygons:
            x, y, wide, tall = cv2.boundingRect(polygons[0])
            _write(canvas, caption(item), (x + wide // 3, y + tall // 2), color)


def _color(class_id: int) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(class_id * GOLDEN_RATIO % 1.0, 0.75, 1.0)
    return round(blue * 255), round(green * 255), round(red * 255)


def _line_height(text_px: int) -> int:
    return round(text_px * 1.7)


def _write(canvas: Canvas, text: str, at: tuple[int, int], color: Color) -> None:
    """Write on a coloured ground whose lower left corner is `at`, moved to lie in the picture."""
    picture, text_px = canvas.pixels, canvas.text_px
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
