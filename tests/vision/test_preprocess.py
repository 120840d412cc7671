"""Geometry and numbers of the input, against plain arithmetic."""

import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ModelError
from agent.vision.engines import TensorSpec
from agent.vision.preprocess import (
    GEOMETRIES,
    LETTERBOX_GREY,
    boxes_to_frame,
    pixels_of,
    plan_input,
    preprocess,
)


def spec(shape=(1, 32, 48, 3), dtype=np.uint8, scale=0.0, zero_point=0):
    return TensorSpec(
        index=0,
        name="image",
        shape=shape,
        dtype=np.dtype(dtype),
        scale=scale,
        zero_point=zero_point,
    )


def plan(resize="stretch", color="rgb", mean=None, std=None, **kind):
    return plan_input(spec(**kind), resize=resize, color=color, mean=mean, std=std)


def picture(height=60, width=90, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_stretch_rgb_uint8_takes_bytes_as_they_are():
    ready, frame = plan(), picture()
    tensor = ready.new_tensor()
    preprocess(frame, ready, tensor)
    expected = cv2.resize(frame, (48, 32), interpolation=cv2.INTER_LINEAR)[..., ::-1]
    np.testing.assert_array_equal(tensor[0], expected)


def test_int8_is_the_byte_minus_128():
    one, other, frame = plan(), plan(dtype=np.int8), picture()
    plain, signed = one.new_tensor(), other.new_tensor()
    preprocess(frame, one, plain)
    preprocess(frame, other, signed)
    np.testing.assert_array_equal(signed.astype(np.int16) + 128, plain)


def test_bgr_and_gray():
    frame = picture()
    small = cv2.resize(frame, (48, 32), interpolation=cv2.INTER_LINEAR)
    bgr = plan(color="bgr")
    tensor = bgr.new_tensor()
    preprocess(frame, bgr, tensor)
    np.testing.assert_array_equal(tensor[0], small)
    gray = plan(shape=(1, 32, 48, 1))
    tensor = gray.new_tensor()
    preprocess(frame, gray, tensor)
    np.testing.assert_array_equal(tensor[0, ..., 0], cv2.cvtColor(small, cv2.COLOR_BGR2GRAY))


def test_float_is_normalized_per_channel():
    ready = plan(dtype=np.float32, mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 8.0))
    tensor, frame = ready.new_tensor(), picture()
    preprocess(frame, ready, tensor)
    rgb = cv2.resize(frame, (48, 32), interpolation=cv2.INTER_LINEAR)[..., ::-1]
    np.testing.assert_allclose(tensor[0], (rgb - [10.0, 20, 30]) / [2.0, 4, 8], rtol=1e-5)


def test_quantized_with_mean_and_std_is_rounded_and_clipped():
    ready = plan(dtype=np.int8, scale=0.02, zero_point=3, mean=(127.5,), std=(127.5,))
    tensor, frame = ready.new_tensor(), picture()
    preprocess(frame, ready, tensor)
    rgb = cv2.resize(frame, (48, 32), interpolation=cv2.INTER_LINEAR)[..., ::-1].astype(float)
    expected = np.clip(np.rint((rgb - 127.5) / 127.5 / 0.02) + 3, -128, 127)
    np.testing.assert_array_equal(tensor[0], expected)


def test_letterbox_border_is_grey_for_every_frame_size():
    ready = plan("letterbox")
    tensor = ready.new_tensor()
    for height, width in (
        (60, 90),
        (200, 20),
        (20, 200),
        (60, 90),
        (58, 90),
        (60, 90),
        (31, 48),
        (32, 47),
    ):
        frame = picture(height, width)
        where = preprocess(frame, ready, tensor)
        left, top = int(where.pad_x_px), int(where.pad_y_px)
        right, bottom = left + round(width * where.scale_x), top + round(height * where.scale_y)
        inside = np.zeros((32, 48), bool)
        inside[top:bottom, left:right] = True
        assert (tensor[0][~inside] == LETTERBOX_GREY).all()
        expected = cv2.resize(frame, (right - left, bottom - top))[..., ::-1]
        np.testing.assert_array_equal(tensor[0, top:bottom, left:right], expected)


def crop_of(region, height, width):
    """Return rows and columns of the whole pixels that a region touches."""
    x_min, y_min, x_max, y_max = region
    rows = slice(int(y_min * height), -int(-y_max * height // 1))
    return rows, slice(int(x_min * width), -int(-x_max * width // 1))


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_a_region_is_what_its_crop_would_be(resize, color):
    region, frame = (0.25, 0.125, 0.8, 0.9), picture(120, 200)
    rows, columns = crop_of(region, 120, 200)
    assert (rows, columns) == (slice(15, 108), slice(50, 160))
    ready, other = plan(resize, color), plan(resize, color)
    tensor, expected = ready.new_tensor(), other.new_tensor()
    where = preprocess(frame, ready, tensor, region)
    alone = preprocess(frame[rows, columns].copy(), other, expected)
    np.testing.assert_array_equal(tensor, expected)
    assert (where.frame_width, where.frame_height) == (200, 120)
    assert (where.crop_x_px, where.crop_y_px, where.crop_width, where.crop_height) == (
        50,
        15,
        110,
        93,
    )
    for name in ("scale_x", "scale_y", "pad_x_px", "pad_y_px", "inside_width", "inside_height"):
        assert getattr(where, name) == getattr(alone, name)


def test_cameras_of_different_sizes_and_regions_take_turns_on_one_plan():
    """As each alone: nothing of one camera's frame is left in another one's border."""
    views = [
        (picture(60, 90, 1), None),
        (picture(200, 20, 2), None),
        (picture(60, 90, 3), (0.0, 0.0, 0.2, 1.0)),
        (picture(60, 90, 4), (0.0, 0.4, 1.0, 0.6)),
        (picture(48, 72, 5), None),
    ]
    ready = plan("letterbox")
    tensor = ready.new_tensor()
    order = [0, 1, 0, 2, 3, 2, 4, 0, 4, 1, 3, 3, 0]
    for at in order:
        frame, region = views[at]
        own = plan("letterbox")
        expected = own.new_tensor()
        alone = preprocess(frame, own, expected, region)
        where = preprocess(frame, ready, tensor, region)
        np.testing.assert_array_equal(tensor, expected)
        np.testing.assert_array_equal(where.box_shift, alone.box_shift)
        inside = np.zeros((32, 48), bool)
        top, left = where.pad_y_px, where.pad_x_px
        inside[top : top + where.inside_height, left : left + where.inside_width] = True
        assert (tensor[0][~inside] == LETTERBOX_GREY).all()
    assert preprocess(*views[0][:1], ready, tensor) is preprocess(*views[0][:1], ready, tensor)


def test_geometries_are_bounded():
    ready = plan("letterbox")
    tensor = ready.new_tensor()
    for width in range(1, 4 * GEOMETRIES):
        preprocess(np.zeros((40, width, 3), np.uint8), ready, tensor)
        assert len(ready.geometries) <= GEOMETRIES
    where = preprocess(picture(), ready, tensor)
    assert (where.frame_width, where.frame_height) == (90, 60)


regions = st.tuples(*[st.floats(0, 1)] * 4).map(
    lambda four: (*map(min, zip(four[:2], four[2:], strict=True)), *map(max, four[:2], four[2:]))
)


@given(regions, st.integers(1, 3000), st.integers(1, 3000))
def test_a_region_is_at_least_one_pixel_and_never_beside_the_frame(region, width, height):
    x_min, y_min, x_max, y_max = pixels_of(region, width, height)
    assert 0 <= x_min < x_max <= width
    assert 0 <= y_min < y_max <= height
    assert x_min <= region[0] * width
    assert x_max >= min(region[2] * width, width)
    assert x_max - x_min < region[2] * width - region[0] * width + 2


@given(
    st.integers(1, 500),
    st.integers(1, 500),
    st.sampled_from(["stretch", "letterbox"]),
    st.none() | regions,
    st.tuples(*[st.floats(0, 1)] * 4),
)
@settings(max_examples=60, deadline=None)
def test_boxes_go_there_and_back(height, width, resize, region, fractions):
    ready = plan(resize)
    frame = np.zeros((height, width, 3), np.uint8)
    where = preprocess(frame, ready, ready.new_tensor(), region)
    x0, x1 = sorted((fractions[0] * width, fractions[1] * width))
    y0, y1 = sorted((fractions[2] * height, fractions[3] * height))
    box = np.array([[x0, y0, x1, y1]])
    scale = np.array([where.scale_x, where.scale_y] * 2)
    corner = np.array([where.crop_x_px, where.crop_y_px] * 2)
    pad = np.array([where.pad_x_px, where.pad_y_px] * 2)
    norm = (((box - corner) * scale + pad) / [48, 32, 48, 32]).astype(np.float32)
    back = boxes_to_frame(norm, where)
    np.testing.assert_allclose(back, box, atol=max(height, width) * 1e-4)
    points = norm.reshape(2, 2) * where.box_scale[:2] + where.box_shift[:2]
    np.testing.assert_allclose(points, box.reshape(2, 2), atol=max(height, width) * 1e-4)


def test_boxes_may_reach_beyond_the_region_but_not_beyond_the_frame():
    ready = plan("letterbox")
    where = preprocess(picture(), ready, ready.new_tensor(), (0.25, 0.25, 0.5, 0.5))
    boxes = np.array([[-0.5, -0.5, 1.5, 1.5], [-5, -5, 5, 5]], np.float32)
    beyond, all_of_it = boxes_to_frame(boxes, where).tolist()
    assert beyond[0] < where.crop_x_px
    assert beyond[3] > where.crop_y_px + where.crop_height
    assert all_of_it == [0, 0, 90, 60]


def test_boxes_are_clipped_to_the_frame():
    ready = plan("letterbox")
    where = preprocess(picture(), ready, ready.new_tensor())
    boxes = np.array([[-5, -5, 5, 5]], np.float32)
    np.testing.assert_allclose(boxes_to_frame(boxes, where), [[0, 0, 90, 60]])


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ({"shape": (1, 3, 32, 32)}, "only one image"),
        ({"shape": (1, 10)}, "only one image"),
        ({"shape": (4, 32, 32, 3)}, "only one image"),
        ({"dtype": np.float32}, "mean and std are not known"),
        ({"dtype": np.int64}, "uint8, int8, int32 and float32"),
        ({"mean": (1.0, 2.0), "std": (1.0, 1.0)}, "need 1 or 3 values"),
        ({"mean": (1.0,), "std": (1.0,)}, "has no quantization"),
    ],
)
def test_what_cannot_be_known_is_refused(kind, sentence):
    with pytest.raises(ModelError, match=sentence):
        plan(**kind)


@pytest.mark.parametrize("kind", [{}, {"shape": (1, 320, 320, 1)}, {"color": "bgr"}])
def test_nothing_frame_sized_is_allocated(kind):
    """The tensor and the scratch memory are the same from frame to frame and camera to camera."""
    ready = plan("letterbox", **{"shape": (1, 320, 320, 3), **kind})
    views = [
        (picture(720, 1280), None),
        (picture(480, 640), (0.1, 0.0, 0.5, 0.7)),
        (picture(720, 1280), (0.5, 0.25, 1.0, 1.0)),
    ]
    tensor = ready.new_tensor()
    for frame, region in views:
        preprocess(frame, ready, tensor, region)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    for frame, region in views * 3:
        preprocess(frame, ready, tensor, region)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert peak < 4000
