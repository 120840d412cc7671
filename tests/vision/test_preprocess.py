"""Geometry and numbers of the input, against plain arithmetic."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ModelError
from agent.vision.engines import TensorSpec
from agent.vision.preprocess import LETTERBOX_GREY, boxes_to_frame, plan_input, preprocess


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


@given(
    st.integers(1, 500),
    st.integers(1, 500),
    st.sampled_from(["stretch", "letterbox"]),
    st.tuples(*[st.floats(0, 1)] * 4),
)
@settings(max_examples=60, deadline=None)
def test_boxes_go_there_and_back(height, width, resize, fractions):
    ready = plan(resize)
    where = preprocess(np.zeros((height, width, 3), np.uint8), ready, ready.new_tensor())
    x0, x1 = sorted((fractions[0] * width, fractions[1] * width))
    y0, y1 = sorted((fractions[2] * height, fractions[3] * height))
    box = np.array([[x0, y0, x1, y1]])
    scale = np.array([where.scale_x, where.scale_y] * 2)
    pad = np.array([where.pad_x_px, where.pad_y_px] * 2)
    norm = ((box * scale + pad) / [48, 32, 48, 32]).astype(np.float32)
    back = boxes_to_frame(norm, where)
    np.testing.assert_allclose(back, box, atol=max(height, width) * 1e-4)


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
        ({"dtype": np.int32}, "uint8, int8 and float32"),
        ({"mean": (1.0, 2.0), "std": (1.0, 1.0)}, "need 1 or 3 values"),
        ({"mean": (1.0,), "std": (1.0,)}, "has no quantization"),
    ],
)
def test_what_cannot_be_known_is_refused(kind, sentence):
    with pytest.raises(ModelError, match=sentence):
        plan(**kind)


def test_nothing_frame_sized_is_allocated():
    """The tensor and the scratch memory are the same from frame to frame."""
    import tracemalloc

    ready, frame = plan("letterbox", shape=(1, 320, 320, 3)), picture(720, 1280)
    tensor = ready.new_tensor()
    preprocess(frame, ready, tensor)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    for _ in range(5):
        preprocess(frame, ready, tensor)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert peak < 320 * 320
