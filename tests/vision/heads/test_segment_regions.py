"""Regions of a class map: shares and outlines in the frame, whatever way the frame went in."""

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from looks import spec

from agent.contract.payloads import Region
from agent.vision.heads import ClassMap
from agent.vision.preprocess import plan_input, preprocess
from agent.vision.regions import MAX_REGIONS, regions_of

LABELS = ("background", "cat", "dog")


def where(frame, size, resize="stretch", region=None):
    """Return the transform of frames (width, height) into an input (width, height)."""
    plan = plan_input(
        spec((1, size[1], size[0], 3), np.uint8), resize=resize, color="rgb", mean=None, std=None
    )
    pixels = np.zeros((frame[1], frame[0], 3), np.uint8)
    return preprocess(pixels, plan, plan.new_tensor(), region)


def class_map(ids, classes=30):
    return ClassMap(class_ids=np.asarray(ids, np.int16), counted=np.ones(classes, bool))


def painted(regions, size):
    """Fill the polygons, for each class a mask bool[height, width]."""
    masks = {}
    for region in regions:
        mask = np.zeros(size[::-1], np.uint8)
        for polygon in region.polygons:
            cv2.fillPoly(mask, [np.rint(np.array(polygon) - 0.5).astype(np.int32)], 1)
        masks[region.class_id] = mask.astype(bool)
    return masks


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


def scene(size):
    """A cat on the left, a dog in two pieces on the right, of a frame int[height, width]."""
    width, height = size
    ids = np.zeros((height, width), np.int16)
    cv2.circle(ids, (width // 4, height // 2), height // 4, 1, -1)
    cv2.rectangle(ids, (width // 2, height // 8), (width * 7 // 8, height // 3), 2, -1)
    cv2.rectangle(ids, (width * 3 // 4, height // 2), (width * 7 // 8, height * 3 // 4), 2, -1)
    return ids


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("frame", [(640, 360), (360, 640), (513, 513), (100, 80), (1920, 1080)])
@pytest.mark.parametrize(("size", "cells"), [((513, 513), 513), ((256, 256), 64), ((257, 257), 33)])
def test_shares_and_outlines_are_those_of_the_frame(resize, frame, size, cells):
    transform = where(frame, size, resize)
    # The map as a perfect network would give it: padding is the cat, which must not count.
    ids = np.ones(size[::-1], np.int16)
    left, top = transform.pad_x_px, transform.pad_y_px
    inner = (transform.inside_width, transform.inside_height)
    ids[top : top + inner[1], left : left + inner[0]] = scene(inner)
    ids = cv2.resize(ids, (cells, cells), interpolation=cv2.INTER_NEAREST)
    # Which cell each pixel of the frame lies in.
    columns = (np.arange(frame[0]) + 0.5) * transform.scale_x + left
    rows = (np.arange(frame[1]) + 0.5) * transform.scale_y + top
    truth = ids[(rows / size[1] * cells).astype(int)][:, (columns / size[0] * cells).astype(int)]
    regions = regions_of(class_map(ids), transform, LABELS)
    assert {region.label for region in regions} == {"cat", "dog"}
    masks = painted(regions, frame)
    for region in regions:
        # Cells that padding cuts through count whole or not at all, as do pixels here.
        tolerance = 1 / min(cells, *frame)
        assert region.area == pytest.approx((truth == region.class_id).mean(), abs=tolerance)
        assert overlap(masks[region.class_id], truth == region.class_id) > 0.88
    (dog,) = [region for region in regions if region.label == "dog"]
    assert len(dog.polygons) == 2
    sizes = [cv2.contourArea(np.array(one, np.float32)) for one in dog.polygons]
    assert sizes == sorted(sizes, reverse=True)


def test_a_region_of_the_frame_was_looked_at():
    transform = where((200, 100), (64, 64), region=(0.5, 0.0, 1.0, 1.0))
    ids = np.zeros((64, 64))
    ids[:32] = 1
    (region,) = regions_of(class_map(ids), transform, ())
    assert region.area == pytest.approx(0.25)
    np.testing.assert_allclose(np.min(region.polygons[0], axis=0), [100, 0], atol=1)
    np.testing.assert_allclose(np.max(region.polygons[0], axis=0), [200, 50], atol=1)


def test_what_the_background_is():
    ids, transform = np.array([[0, 0, 1, 2]] * 4), where((40, 40), (40, 40))
    named = [(region.class_id, region.label, region.area)
             for region in regions_of(class_map(ids), transform, ("dog", "cat"))]  # fmt: skip
    assert named == [(0, "dog", 0.5), (1, "cat", 0.25), (2, None, 0.25)]
    without = regions_of(class_map(ids), transform, ())
    assert [region.class_id for region in without] == [1, 2]
    last = regions_of(class_map(ids), transform, ("dog", "cat", "Background"))
    assert [region.class_id for region in last] == [0, 1]


def test_left_out_classes_specks_and_islands():
    ids = np.zeros((500, 500), np.int16)
    ids[100:400, 100:400] = 1
    ids[150:350, 150:350] = 0
    ids[200:300, 200:300] = 1  # an island in a hole of its own class
    ids[0, 0] = 3
    ids[:, 450:] = 2
    found = ClassMap(class_ids=ids, counted=np.array([True, True, False, True]))
    (region,) = regions_of(found, where((500, 500), (500, 500)), ())
    assert region.area == pytest.approx((300**2 - 200**2 + 100**2) / 500**2)
    assert [len(polygon) for polygon in region.polygons] == [4, 4]
    np.testing.assert_allclose(np.min(region.polygons[1], axis=0), [200, 200], atol=1)


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(2, 70), st.integers(2, 70)),
    st.integers(1, 12),
    st.tuples(st.integers(1, 400), st.integers(1, 400)),
    st.sampled_from(["stretch", "letterbox"]),
)
def test_any_map_gives_a_payload_that_its_own_type_accepts(seed, shape, block, frame, resize):
    rng = np.random.default_rng(seed)
    ids = rng.integers(-1, 60, (-(-shape[0] // block), -(-shape[1] // block)))
    ids = ids.repeat(block, axis=0).repeat(block, axis=1)[: shape[0], : shape[1]]
    transform = where(frame, (96, 64), resize)
    regions = regions_of(class_map(ids, classes=50), transform, LABELS)
    assert len(regions) <= MAX_REGIONS
    assert sum(region.area for region in regions) <= 1.01
    sent = msgspec.json.decode(msgspec.json.encode(regions), type=list[Region])
    for region in sent:
        assert 0 < region.class_id < 50
        for polygon in region.polygons:
            corners = np.array(polygon)
            assert (corners >= 0).all()
            assert (corners <= np.array(frame)).all()
