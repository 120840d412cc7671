"""Which findings of one camera count: by size, by where they stand, by how often they were seen.

Everything the configuration says of it is worked out once; a frame then costs a few operations
on small arrays, for 20 boxes some 0.2 ms on an x86 core with all of it in use. Size and place
come first, and what they leave is remembered for `confirm`, so a thing that flickers in and out
of a zone is not confirmed by what was seen outside of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from agent.config import CameraConfig, Polygon
from agent.vision.heads import Boxes, Poses, Scores
from agent.vision.preprocess import Transform

F32Boxes = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.intp]

# Overlap (intersection over union) from which a box is taken for the one of an earlier frame.
# SORT (arxiv.org/abs/1602.00763) commonly asks for 0.3, of a box that it has first moved on by its
# speed; nothing is foretold here. At 0.1 a box may have moved by four fifths of its width since:
# (1 - d) / (1 + d) = 0.1 at d = 0.82.
CONFIRM_IOU = 0.1
# Pairs of boxes compared at a time: the working memory stays at some megabytes however many
# boxes a model finds.
PAIRS_AT_ONCE = 1 << 17


class Polygons:
    """Areas of the frame; all their edges in one table, so that a test is a few operations."""

    def __init__(self, polygons: Sequence[Polygon]) -> None:
        corners = [np.array(polygon, np.float64) for polygon in polygons]
        start = np.concatenate(corners)
        end = np.concatenate([np.roll(one, -1, axis=0) for one in corners])
        self._x, self._y, self._end_y = start[:, 0], start[:, 1], end[:, 1]
        height = self._end_y - self._y
        # A level edge is crossed by no level line, so its slope is never used.
        self._slope = (end[:, 0] - self._x) / np.where(height, height, 1.0)
        self._first_edges = np.cumsum([0, *(len(one) for one in corners[:-1])])

    def contain(self, points: Points) -> Flags:
        """Return for float64[n, 2] points, shares of the frame, whether one of the areas holds it.

        A level line to the right leaves an area through an odd number of edges exactly if it
        began inside (wrf.ecse.rpi.edu/Research/Short_Notes/pnpoly.html); so a line that crosses
        itself encloses what it goes round an odd number of times.
        """
        x, y = points[:, :1], points[:, 1:]
        is_passed = (self._y > y) != (self._end_y > y)
        is_crossed = is_passed & (x < self._x + (y - self._y) * self._slope)
        crossings: npt.NDArray[np.intp] = np.add.reduceat(
            is_crossed, self._first_edges, axis=1, dtype=np.intp
        )
        held: Flags = np.logical_or.reduce(crossings % 2 == 1, axis=1)
        return held


class Filter:
    """One camera's filter; called for every processed frame, in order, by one thread.

    Remembers at most `m - 1` frames of `confirm = [n, m]`, and of these only boxes and classes.
    """

    def __init__(self, config: CameraConfig) -> None:
        self._min_area, self._max_area = config.min_area, config.max_area
        self._zones = Polygons(config.zones) if config.zones else None
        self._masks = Polygons(config.masks) if config.masks else None
        self._wanted, frames = config.confirm
        remembered = frames - 1 if self._wanted > 1 else 0
        self._seen: deque[tuple[Rows, F32Boxes | None]] = deque(maxlen=remembered)

    def __call__(
        self, found: Boxes | Poses | Scores, xyxy: F32Boxes | None, where: Transform
    ) -> Rows:
        """Return the rows that count, in order.

        xyxy float32[n, 4] pixels of the frame. Without boxes, as for the classes of a whole image,
        only `confirm` applies, class by class; so it does to a figure whose row is NaN, of which
        no point is believed.
        """
        count = len(found.scores)
        class_ids = np.zeros(count, np.intp) if found.class_ids is None else found.class_ids
        rows: Rows = np.arange(count)
        if xyxy is not None and count:
            rows = np.flatnonzero(self._is_in_place(xyxy, where) | np.isnan(xyxy[:, 0]))
            class_ids, xyxy = class_ids[rows], xyxy[rows]
        if self._wanted > 1 and len(rows):
            rows = rows[self._times_seen(class_ids, xyxy) >= self._wanted]
        if self._seen.maxlen:
            self._seen.append((class_ids, xyxy))
        return rows

    def _is_in_place(self, xyxy: F32Boxes, where: Transform) -> Flags:
        """Return bool[n]: size within the limits, in a zone where there are any, in no mask."""
        size = np.array([where.frame_width, where.frame_height], np.float64)
        low, high = xyxy[:, :2] / size, xyxy[:, 2:] / size
        areas = (high - low).prod(axis=1)
        is_in: Flags = (areas >= self._min_area) & (areas <= self._max_area)
        if self._zones is None and self._masks is None:
            return is_in
        # Where a thing touches the ground decides, as in Frigate (docs.frigate.video/configuration/
        # zones: the middle of the lower edge), but half a pixel inside: the feet of what is cut off
        # at the frame's edge belong to an area that reaches to it.
        half = 0.5 / size
        anchors = np.stack([(low[:, 0] + high[:, 0]) / 2, high[:, 1]], axis=1)
        anchors = np.clip(anchors, half, 1 - half)
        if self._zones is not None:
            is_in &= self._zones.contain(anchors)
        if self._masks is not None:
            is_in &= ~self._masks.contain(anchors)
        return is_in

    def _times_seen(self, class_ids: Rows, xyxy: F32Boxes | None) -> Rows:
        """Return int[n]: in how many of the last frames, with this one, each was there."""
        times: Rows = np.ones(len(class_ids), np.intp)
        earlier = [frame for frame in self._seen if len(frame[0])]
        if not earlier:
            return times
        known_ids = np.concatenate([ids for ids, _ in earlier])
        first_rows = np.cumsum([0, *(len(ids) for ids, _ in earlier[:-1])])
        boxes = [box for _, box in earlier if box is not None]
        known = np.concatenate(boxes) if len(boxes) == len(earlier) else None
        step = max(1, PAIRS_AT_ONCE // len(known_ids))
        for start in range(0, len(class_ids), step):
            some = slice(start, start + step)
            is_same = class_ids[some, None] == known_ids
            if xyxy is not None and known is not None:
                is_same &= overlap(xyxy[some], known)
            times[some] += np.logical_or.reduceat(is_same, first_rows, axis=1).sum(axis=1)
        return times


def overlap(first: F32Boxes, second: F32Boxes) -> Flags:
    """Return bool[n, k]: whether boxes float32[n, 4] and [k, 4] overlap by CONFIRM_IOU or more.

    A box of NaN may be anywhere, so it overlaps with all.
    """
    width = _shared_length(first[:, 0::2], second[:, 0::2])
    height = _shared_length(first[:, 1::2], second[:, 1::2])
    shared = np.multiply(width, height, out=width)
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (first, second)]
    # shared >= iou * (area + area - shared), with the shared part on one side.
    least = np.add.outer(areas[0], areas[1])
    least *= CONFIRM_IOU / (1 + CONFIRM_IOU)
    result: Flags = (shared >= least) & (shared > 0)
    result |= np.isnan(shared)
    return result


def _shared_length(first: F32Boxes, second: F32Boxes) -> F32Boxes:
    """Return float32[n, k]: how far spans float32[n, 2] and [k, 2], low and high, overlap; or 0."""
    length: F32Boxes = np.minimum.outer(first[:, 1], second[:, 1])
    length -= np.maximum.outer(first[:, 0], second[:, 0])
    return np.maximum(length, 0, out=length)


def filter_of(config: CameraConfig) -> Filter | None:
    """Return a camera's filter, or None where the configuration lets everything through."""
    is_any_size = config.min_area <= 0 and config.max_area >= 1
    is_anywhere = not config.zones and not config.masks
    return None if is_any_size and is_anywhere and config.confirm[0] == 1 else Filter(config)
