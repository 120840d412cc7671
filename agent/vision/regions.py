"""From a class map to regions of the frame: each class's share, and outlines of its pieces.

Letterbox padding counts for nothing. Outlines are outer ones (a hole is not cut out), and
simplified: what subscribers need is where things are, in a payload of bounded size. Who needs
each pixel's class needs the frame too, and that never leaves the board.

Cost for 513x513 cells: 2 to 3 ms of one x86 core with one or two classes, 14 ms where the whole
map is pieces of twenty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from agent.contract.payloads import MAX_POLYGON_POINTS, MAX_POLYGONS, Region
from agent.vision.heads import ClassMap
from agent.vision.labels import BACKGROUND
from agent.vision.preprocess import Transform

SMALLEST_AREA = 0.001  # share of the frame; smaller regions and pieces are specks at the borders
MAX_REGIONS = 32
# How far an outline may stray from the cells' border, as a share of the map's longer side.
TOLERANCE = 0.004
# A coarser map is enlarged first: an outline runs through the middles of its cells, which of
# few large cells would lose half a cell on every side.
FINE_CELLS = 256
# Borders crossed per cell of a row; above it a map is noise, whose thousands of specks are wiped
# away before each is followed around.
ROUGH = 1 / 16
CELL_TOLERANCE = 1e-3  # of a cell: float32's error in the way to the frame and back


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The cells that show the frame and not padding, and the way to pixels of the frame."""

    rows: slice
    columns: slice
    share: float  # of the frame that it is
    scale: npt.NDArray[np.float32]  # frame px = cells * scale + shift, each x, y
    shift: npt.NDArray[np.float32]
    low: npt.NDArray[np.float32]  # its corners in the frame
    high: npt.NDArray[np.float32]


def regions_of(found: ClassMap, where: Transform, labels: Sequence[str]) -> list[Region]:
    """Return the classes that are there, largest first; the background is none of them.

    The background is what its label says (see BACKGROUND), and class 0 in a model without
    labels, as in Pascal VOC and in masks. With labels that name no background there is none.
    """
    window = _window(found.class_ids.shape, where)
    cells = found.class_ids[window.rows, window.columns]
    counts = np.bincount(cells.reshape(-1).astype(np.intp) + 1)[1:]  # NO_CLASS is -1
    names = [label.lower() for label in labels] or ["background"]
    regions: list[Region] = []
    for class_id in np.argsort(-counts, kind="stable").tolist():
        area = float(counts[class_id] / cells.size) * window.share
        if area < SMALLEST_AREA or len(regions) == MAX_REGIONS:
            break
        if class_id >= len(found.counted) or not found.counted[class_id]:
            continue
        if class_id < len(names) and names[class_id] in BACKGROUND:
            continue
        regions.append(
            Region(
                label=labels[class_id] if class_id < len(labels) else None,
                class_id=class_id,
                area=round(min(area, 1.0), 4),
                polygons=_polygons((cells == class_id).view(np.uint8), window),
            )
        )
    return regions


def _window(shape: tuple[int, ...], where: Transform) -> Window:
    """Work out which cells show the frame, or the region of it that was looked at."""
    height, width = shape
    cells = np.array([width, height])
    corner = np.array([where.crop_x_px, where.crop_y_px])
    size = np.array([where.crop_width, where.crop_height])
    scale, shift = where.box_scale[:2] / cells, where.box_shift[:2]
    # Cells count by their middles; of a map so coarse that none lies inside, one counts.
    first = np.ceil((corner - shift) / scale - 0.5 - CELL_TOLERANCE).astype(int)
    last = np.ceil((corner + size - shift) / scale - 0.5 - CELL_TOLERANCE).astype(int)
    first = np.clip(first, 0, cells - 1)
    last = np.clip(last, first + 1, cells)
    return Window(
        rows=slice(first[1], last[1]),
        columns=slice(first[0], last[0]),
        share=float(np.prod(size)) / (where.frame_width * where.frame_height),
        scale=scale.astype(np.float32),
        shift=(shift + first * scale).astype(np.float32),
        low=corner.astype(np.float32),
        high=(corner + size).astype(np.float32),
    )


def _polygons(mask: npt.NDArray[np.uint8], window: Window) -> list[list[tuple[float, float]]]:
    """Return outlines of the largest pieces of uint8[h, w], in pixels of the frame."""
    factor = max(1, -(-FINE_CELLS // max(mask.shape)))
    left, top, width, height = cv2.boundingRect(mask)
    part = mask[top : top + height, left : left + width]
    if factor > 1:
        part = part.repeat(factor, axis=0).repeat(factor, axis=1)
    smallest = SMALLEST_AREA * mask.size * factor**2 / window.share
    polygons = []
    for border in _pieces(part, smallest)[:MAX_POLYGONS]:
        outline = _simplified(border, TOLERANCE * max(mask.shape) * factor)
        cells = outline / factor + np.array([left, top], np.float32)
        points = np.clip(cells * window.scale + window.shift, window.low, window.high)
        polygons.append([(round(x, 1), round(y, 1)) for x, y in points.tolist()])
    return polygons


def _pieces(mask: npt.NDArray[np.uint8], smallest: float) -> list[npt.NDArray[np.int32]]:
    """Return the outer borders int32[n, 1, 2] of pieces with `smallest` cells, largest first."""
    if np.count_nonzero(mask[:, 1:] != mask[:, :-1]) > ROUGH * mask.size:
        mask = np.asarray(
            cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)), np.uint8
        )
    borders, family = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if family is None:  # nothing was left
        return []
    # No shape has a shorter border than the diamond: 4 r cells around 2 r**2 of them. So of
    # specks only the lengths are looked at.
    shortest = 2.5 * smallest**0.5
    is_outer = family[0][:, 3] < 0  # holes have a parent
    sized = [
        # Pick's theorem: the area inside the middles of the border's cells, and the border.
        (cv2.contourArea(border) + len(border) / 2 + 1, border)
        for border, outer in zip(borders, is_outer.tolist(), strict=True)
        if outer and len(border) >= shortest
    ]
    sized = [item for item in sized if item[0] >= smallest]
    sized.sort(key=lambda item: -item[0])
    return [np.asarray(border, np.int32) for _, border in sized]


def _simplified(border: npt.NDArray[np.int32], tolerance: float) -> npt.NDArray[np.float32]:
    """Return float32[n, 2], the border's x, y with few points; cells' middles are at .5."""
    tolerance = max(1.0, tolerance)
    outline = cv2.approxPolyDP(border, tolerance, closed=True)
    while len(outline) > MAX_POLYGON_POINTS:
        tolerance *= 1.5
        outline = cv2.approxPolyDP(border, tolerance, closed=True)
    if len(outline) < 3:  # too thin to have an inside: its bounds
        x, y, width, height = cv2.boundingRect(border)
        corners = [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]
        return np.array(corners, np.float32)
    return np.asarray(outline.reshape(-1, 2) + 0.5, np.float32)
