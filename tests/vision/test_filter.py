"""The camera's filter against a slow and plain reading of the same rules."""

import tracemalloc
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agent.config import CameraConfig
from agent.vision import filter as filter_module
from agent.vision.engines import TensorSpec
from agent.vision.filter import CONFIRM_IOU, Filter, Polygons, filter_of
from agent.vision.heads import Boxes, Poses, Scores
from agent.vision.preprocess import plan_input, preprocess

WIDTH, HEIGHT = 64, 32
LOWER_HALF = ((0.0, 0.5), (1.0, 0.5), (1.0, 1.0), (0.0, 1.0))
LEFT_HALF = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))


def place(width=WIDTH, height=HEIGHT, region=None):
    """Return the transform of a frame."""
    spec = TensorSpec(
        index=0, name="i", shape=(1, 8, 8, 3), dtype=np.dtype(np.uint8), scale=0.0, zero_point=0
    )
    plan = plan_input(spec, resize="stretch", color="rgb", mean=None, std=None)
    return preprocess(np.zeros((height, width, 3), np.uint8), plan, plan.new_tensor(), region)


WHERE = place()


def boxes(*rows, class_ids=None):
    """Return what a head found, and its boxes in pixels of the frame."""
    xyxy = np.array(rows, np.float32).reshape(-1, 4)
    ids = np.zeros(len(xyxy), np.intp) if class_ids is None else np.array(class_ids, np.intp)
    return Boxes(xyxy_norm=xyxy, scores=np.ones(len(xyxy), np.float32), class_ids=ids), xyxy


def kept(keep, *rows, class_ids=None, where=WHERE):
    return keep(*boxes(*rows, class_ids=class_ids), where).tolist()


# A plain reading, in whole numbers and fractions.


def is_inside(polygon, x, y):
    """Even-odd rule, in exact arithmetic."""
    inside = False
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * Fraction(x1 - x0) / (y1 - y0):
            inside = not inside
    return inside


def is_same(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return False
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height) >= CONFIRM_IOU


class Plain:
    """What `Filter` does, one box and one earlier frame at a time."""

    def __init__(self, config):
        self.config = config
        self.frames = []

    def __call__(self, class_ids, rows):
        config, standing = self.config, []
        for at, (x0, y0, x1, y1) in enumerate(rows):
            area = (x1 - x0) * (y1 - y0) / (WIDTH * HEIGHT)
            x = min(max((x0 + x1) / 2, 0.5), WIDTH - 0.5) / WIDTH
            y = min(max(y1, 0.5), HEIGHT - 0.5) / HEIGHT
            if not config.min_area <= area <= config.max_area:
                continue
            if config.zones and not any(is_inside(zone, x, y) for zone in config.zones):
                continue
            if any(is_inside(mask, x, y) for mask in config.masks):
                continue
            standing.append(at)
        self.frames.append([(class_ids[at], rows[at]) for at in standing])
        wanted, last = config.confirm
        return [
            at
            for at in standing
            if sum(
                any(ids == class_ids[at] and is_same(box, rows[at]) for ids, box in frame)
                for frame in self.frames[-last:-1]
            )
            + 1
            >= wanted
        ]


# Corners on a grid whose products are exact in floating point, so that no test hangs on rounding.
eighths = st.integers(0, 8).map(lambda number: number / 8)
polygons = st.lists(st.tuples(eighths, eighths), min_size=3, max_size=7).map(tuple)
areas = st.lists(polygons, max_size=3).map(tuple)


@st.composite
def frames(draw):
    """Some frames of some boxes: (class ids, boxes) each."""
    found = []
    for _ in range(draw(st.integers(1, 6))):
        rows = []
        for _ in range(draw(st.integers(0, 5))):
            x = sorted(draw(st.tuples(st.integers(0, WIDTH), st.integers(0, WIDTH))))
            y = sorted(draw(st.tuples(st.integers(0, HEIGHT), st.integers(0, HEIGHT))))
            rows.append((x[0], y[0], x[1], y[1]))
        found.append(([draw(st.integers(0, 1)) for _ in rows], rows))
    return found


@given(polygons, st.integers(0, 64), st.integers(0, 64))
def test_a_point_is_in_an_area_as_the_plain_rule_says(polygon, x, y):
    # Sixty-fourths of which edges may go through; beside an edge rounding decides nothing.
    x, y = x / 64 + 1 / 999, y / 64 + 1 / 997
    assert Polygons([polygon]).contain(np.array([[x, y]])).tolist() == [is_inside(polygon, x, y)]


@given(st.lists(polygons, min_size=1, max_size=4), st.lists(st.tuples(eighths, eighths)))
def test_many_areas_and_points_are_as_each_alone(several, points):
    points = np.array(points, np.float64).reshape(-1, 2) + 1 / 1023
    each = [Polygons([one]).contain(points) for one in several]
    np.testing.assert_array_equal(Polygons(several).contain(points), np.any(each, axis=0))


@given(
    frames(), areas, areas, st.tuples(eighths, eighths).map(sorted), st.integers(1, 4), st.data()
)
def test_filter_is_as_the_plain_one(found, zones, masks, limits, last, data):
    config = CameraConfig(
        zones=zones,
        masks=masks,
        min_area=limits[0],
        max_area=limits[1],
        confirm=(data.draw(st.integers(1, last)), last),
    )
    for _, rows in found:
        for x0, _, x1, y1 in rows:
            anchor = min(max((x0 + x1) / 2, 0.5), 63.5) / WIDTH, min(max(y1, 0.5), 31.5) / HEIGHT
            assume(not any(is_near_edge(area, *anchor) for area in (*zones, *masks)))
    keep, plain = Filter(config), Plain(config)
    for class_ids, rows in found:
        assert kept(keep, *rows, class_ids=class_ids) == plain(class_ids, rows)


def is_near_edge(polygon, x, y):
    """Return whether rounding could decide on which side of an edge a point lies."""
    return any(
        y0 != y1 and abs(x - (x0 + (y - y0) * (x1 - x0) / (y1 - y0))) < 1e-9
        for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True)
    )


def test_the_middle_of_the_lower_edge_decides():
    keep = Filter(CameraConfig(zones=(LOWER_HALF,), masks=(LEFT_HALF,)))
    hanging, standing = (40, 2, 60, 15), (40, 2, 60, 20)
    left, astride = (2, 20, 30, 30), (10, 20, 60, 30)
    assert kept(keep, hanging, standing, left, astride) == [1, 3]


@pytest.mark.parametrize("width", [64, 1920])
def test_what_the_frame_cuts_off_stands_in_an_area_that_reaches_its_edge(width):
    where = place(width, width // 2)
    keep = Filter(CameraConfig(zones=(LOWER_HALF,)))
    to_the_edge = (0, 0, 0, width / 2), (width, 1, width, width / 2), (3, 1, 9, width / 2)
    assert kept(keep, *to_the_edge, where=where) == [0, 1, 2]
    everywhere = Filter(CameraConfig(masks=(((0, 0), (1, 0), (1, 1), (0, 1)),)))
    assert kept(everywhere, *to_the_edge, (0, 0, 5, 0), where=where) == []


def test_area_is_a_share_of_the_whole_frame_also_where_a_region_is_seen():
    keep = Filter(CameraConfig(min_area=0.25, max_area=0.5))
    rows = (0, 0, 32, 15), (0, 0, 32, 16), (0, 0, 64, 16), (0, 0, 64, 17)
    assert kept(keep, *rows) == [1, 2]
    assert kept(keep, *rows, where=place(region=(0.5, 0.5, 1.0, 1.0))) == [1, 2]


def test_confirm_counts_frames_and_not_boxes():
    keep = Filter(CameraConfig(confirm=(3, 4)))
    cat = (10, 10, 30, 30)
    assert kept(keep, cat, cat, cat) == []
    assert kept(keep) == []
    assert kept(keep, cat) == []
    assert kept(keep, cat) == [0], "three of four, with this one"
    assert kept(keep, cat) == [0], "the first has been forgotten, the empty frame has not"
    assert kept(keep, cat, class_ids=[1]) == [], "of another class"
    assert kept(keep, (40, 10, 60, 30)) == [], "elsewhere"
    assert kept(keep, cat) == [], "one more of the last four"


def test_a_box_may_move_by_four_fifths_of_its_width():
    for moved, is_known in ((0, True), (8.1, True), (8.3, False)):
        keep = Filter(CameraConfig(confirm=(2, 2)))
        assert kept(keep, (10, 10, 20, 20)) == []
        assert kept(keep, (10 + moved, 10, 20 + moved, 20)) == ([0] if is_known else [])


def test_what_was_outside_a_zone_confirms_nothing():
    keep = Filter(CameraConfig(confirm=(2, 2), zones=(LOWER_HALF,)))
    assert kept(keep, (10, 5, 20, 15.9)) == []
    assert kept(keep, (10, 5, 20, 16.5)) == []
    assert kept(keep, (10, 5, 20, 16.5)) == [0]


def test_classes_of_an_image_are_confirmed_by_class():
    keep = Filter(CameraConfig(confirm=(2, 3), min_area=0.5, zones=(LOWER_HALF,)))

    def seen(*class_ids):
        scores = Scores(
            scores=np.ones(len(class_ids), np.float32), class_ids=np.array(class_ids, np.intp)
        )
        return keep(scores, None, WHERE).tolist()

    assert [seen(1, 2), seen(3), seen(2, 4, 1), seen(), seen(2, 1, 3)] == [
        [],
        [],
        [0, 2],
        [],
        [0, 1],
    ]


def test_figures_are_of_one_class():
    points = np.zeros((2, 17, 3), np.float32)
    poses = Poses(keypoints=points, scores=np.ones(2, np.float32))
    keep = Filter(CameraConfig(confirm=(2, 2), min_area=0.5))
    assert keep(poses, None, WHERE).tolist() == []
    assert keep(poses, None, WHERE).tolist() == [0, 1]
    xyxy = np.array([[0, 0, 8, 8], [0, 0, 64, 32]], np.float32)
    assert Filter(CameraConfig(min_area=0.5))(poses, xyxy, WHERE).tolist() == [1]


def test_cameras_do_not_share_what_they_have_seen():
    config = CameraConfig(confirm=(2, 2))
    one, other = Filter(config), Filter(config)
    assert kept(one, (1, 1, 9, 9)) == []
    assert kept(other, (1, 1, 9, 9)) == []
    assert kept(one, (1, 1, 9, 9)) == [0]


def many_frames():
    """Return 300 frames of 40 boxes each."""
    random = np.random.default_rng(0)
    low = random.integers(0, 32, (300, 40, 2))
    rows = np.concatenate([low, low + random.integers(1, 32, low.shape)], axis=2)
    return [
        boxes(*some, class_ids=ids)
        for some, ids in zip(rows, random.integers(0, 3, (300, 40)), strict=True)
    ]


def test_comparing_in_pieces_changes_nothing(monkeypatch):
    config = CameraConfig(confirm=(5, 20))
    keep = Filter(config)
    at_once = [keep(*frame, WHERE).tolist() for frame in many_frames()]
    assert len(Counter(map(len, at_once))) > 3, "some are confirmed, some are not"
    monkeypatch.setattr(filter_module, "PAIRS_AT_ONCE", 100)
    keep = Filter(config)
    assert [keep(*frame, WHERE).tolist() for frame in many_frames()] == at_once


def test_memory_is_bounded():
    keep, found = Filter(CameraConfig(confirm=(2, 20))), many_frames()
    tracemalloc.start()
    sizes = []
    for number, frame in enumerate(found):
        keep(*frame, WHERE)
        if number in (99, 299):
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[1] - sizes[0] < 5_000, "less than ten frames"


def test_there_is_no_filter_where_nothing_is_to_be_filtered():
    assert filter_of(CameraConfig(name="door", motion=0.5, region=(0, 0, 1, 0.5))) is None
    assert filter_of(CameraConfig(confirm=(1, 5))) is None
    for setting in (
        {"confirm": (2, 5)},
        {"min_area": 0.1},
        {"max_area": 0.9},
        {"zones": (LOWER_HALF,)},
    ):
        assert isinstance(filter_of(CameraConfig(**setting)), Filter)
