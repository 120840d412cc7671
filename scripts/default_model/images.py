"""Decodes pictures and resizes them the way the model expects; makes calibration views."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import numpy.typing as npt

U8Image = npt.NDArray[np.uint8]

# Side of the model's square input.
INPUT_SIZE_PX = 300

_SEED = 20190314
_CROPS_PER_IMAGE = 4


def decode_rgb(data: bytes) -> U8Image:
    """Return uint8[H,W,3] RGB of a JPEG or PNG file."""
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ValueError("not a picture OpenCV can read")
    return np.ascontiguousarray(bgr[..., ::-1], np.uint8)


def stretch(image: U8Image, size_px: int = INPUT_SIZE_PX) -> U8Image:
    """Return uint8[size,size,3]: both sides scaled on their own, no padding."""
    shrinks = image.shape[0] * image.shape[1] > size_px * size_px
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(image, (size_px, size_px), interpolation=method)
    return np.asarray(resized, np.uint8)


def calibration_views(images: Iterable[U8Image]) -> Iterator[U8Image]:
    """Yield uint8[300,300,3] views: each picture whole, then random crops of it.

    Crops are mirrored half of the time and made darker or brighter (x 0.5-1.3), so that the
    ranges also hold for close, dim and glaring subjects.
    """
    rng = np.random.default_rng(_SEED)
    for image in images:
        yield stretch(image)
        for _ in range(_CROPS_PER_IMAGE):
            view = _random_crop(image, rng)
            if rng.random() < 0.5:
                view = view[:, ::-1]
            lit = np.clip(view.astype(np.float32) * rng.uniform(0.5, 1.3), 0, 255)
            yield stretch(lit.astype(np.uint8))


def _random_crop(image: U8Image, rng: np.random.Generator) -> U8Image:
    full_h_px, full_w_px = image.shape[:2]
    h_px, w_px = (int(side * rng.uniform(0.4, 1.0)) for side in (full_h_px, full_w_px))
    y_px = int(rng.integers(0, full_h_px - h_px + 1))
    x_px = int(rng.integers(0, full_w_px - w_px + 1))
    return image[y_px : y_px + h_px, x_px : x_px + w_px]
