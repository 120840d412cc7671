"""From a captured frame to an input tensor, in place: resize, colour order, quantize.

`plan_input` decides once, at load, what the model's input wants; `preprocess` then does it
per frame into memory that already exists. It hands on the inverse of its geometry, with
which the decoded boxes go back to pixels of the frame. A camera's region is a view of its
frame, so looking at a part of it copies nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from agent.config import Region
from agent.errors import ModelError
from agent.vision.engines import Tensor, TensorSpec

U8Image = npt.NDArray[np.uint8]
F32Boxes = npt.NDArray[np.float32]
F32Vector = npt.NDArray[np.float32]
Resize = Literal["stretch", "letterbox"]
# The grey of Ultralytics' letterbox, ultralytics/data/augment.py LetterBox.
LETTERBOX_GREY = 114
# Sizes and regions remembered; cameras have one each, but crops may have any.
GEOMETRIES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """Where the frame lies in the input: input px = (frame px - crop's corner) * scale + pad."""

    frame_width: int
    frame_height: int
    # The part of the frame that the model sees, in pixels of the frame.
    crop_x_px: int
    crop_y_px: int
    crop_width: int
    crop_height: int
    scale_x: float
    scale_y: float
    # Where that part lies in the input, in pixels of the input; grey stands around it.
    pad_x_px: int
    pad_y_px: int
    inside_width: int
    inside_height: int
    # The way back for xyxy boxes, float32[4] each: frame px = norm * box_scale + box_shift.
    # The first two of each serve for points.
    box_scale: F32Vector
    box_shift: F32Vector
    box_limits: F32Vector


class InputPlan:
    """What one model wants its input to be; scratch memory is owned by the preprocess thread."""

    def __init__(
        self,
        spec: TensorSpec,
        *,
        resize: Resize,
        color: Literal["rgb", "bgr"],
        table: npt.NDArray[Any] | None,
        flip_sign: bool = False,
    ) -> None:
        _, self.height, self.width, self.channels = spec.shape
        self.shape = spec.shape
        self.dtype = spec.dtype
        self.resize = resize
        self.color = color
        self.table = table  # [1, 256, channels] of dtype: pixel value -> stored value; None: as is
        self.flip_sign = flip_sign  # int8 input that is the pixel byte minus 128
        self.geometries: dict[tuple[int, int, Region | None], Transform] = {}
        # left, top, width, height of the pixels below that hold an image; the rest is grey.
        self.inside = (0, 0, self.width, self.height)
        self.resized = np.empty((self.height, self.width, 3), np.uint8)
        self.pixels = np.empty((self.height, self.width, self.channels), np.uint8)

    def new_tensor(self) -> Tensor:
        """Return memory for one input tensor."""
        return np.empty(self.shape, self.dtype)

    def store(self, pixels: U8Image, tensor: Tensor) -> None:
        """Write uint8[h, w, c] pixels as the input's stored values."""
        if self.table is not None:
            cv2.LUT(pixels, self.table, dst=tensor[0])
        elif self.flip_sign:
            np.bitwise_xor(pixels, np.uint8(0x80), out=tensor[0].view(np.uint8))
        else:
            np.copyto(tensor[0], pixels)


def require_image(spec: TensorSpec, *, size: tuple[int | None, int | None] = (None, None)) -> None:
    """Refuse an input that is not one image, NHWC with fixed sizes.

    size: the height and width that the manifest says, which cannot change those of a model
    """
    shape = spec.shape
    if (
        spec.is_dynamic
        or len(shape) != 4
        or shape[0] != 1
        or shape[3] not in (1, 3)
        or min(shape) < 1
    ):
        shown = "a size left open" if spec.is_dynamic else f"shape {list(shape)}"
        raise ModelError(
            f'input "{spec.name}" has {shown}; only one image, [1, height, width, 3] or '
            "[1, height, width, 1] with fixed sizes, can be fed from a camera"
        )
    _, height, width, _ = shape
    if (size[0] or height, size[1] or width) != (height, width):
        raise ModelError(
            f'input "{spec.name}" is fixed at {width}x{height} pixels: leave "width" and "height" '
            'out of the manifest\'s "input", or export the model with another size'
        )


def plan_input(
    spec: TensorSpec,
    *,
    resize: Resize,
    color: Literal["rgb", "bgr"],
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> InputPlan:
    """Decide how pixels become this tensor.

    8-bit inputs without mean and std take the pixel byte itself (int8: minus 128): their
    scale and zero point are chosen by the exporter for just that
    (ai.google.dev/edge/litert/models/metadata: quantized models need no normalization).

    Raises:
        ModelError: shape, type or normalization cannot be known.
    """
    require_image(spec)
    channels = spec.shape[3]
    table: npt.NDArray[Any] | None = None
    flip_sign = False
    if spec.dtype in (np.uint8, np.int8):
        if mean is None or std is None:
            flip_sign = spec.dtype == np.int8
        else:
            table = _quantized_table(
                spec, _per_channel(mean, channels), _per_channel(std, channels)
            )
    elif spec.dtype == np.int32:  # pixel bytes in wider numbers, as MoveNet of TensorFlow Hub
        if mean is not None and std is not None:
            raise ModelError(
                f'int32 input "{spec.name}": takes pixels as they are; leave mean and std out'
            )
    elif spec.dtype == np.float32:
        if mean is None or std is None:
            raise ModelError(
                f'float input "{spec.name}": mean and std are not known; give them in a '
                'manifest.json beside the model ("input": {"mean": [127.5], "std": [127.5]})'
            )
        table = _normalized_table(_per_channel(mean, channels), _per_channel(std, channels))
    else:
        raise ModelError(
            f'input "{spec.name}" has type {spec.dtype}; uint8, int8, int32 and float32 can be fed'
        )
    return InputPlan(spec, resize=resize, color=color, table=table, flip_sign=flip_sign)


def _per_channel(values: tuple[float, ...], channels: int) -> npt.NDArray[np.float64]:
    if len(values) not in (1, channels):
        raise ModelError(f"mean and std need 1 or {channels} values, not {len(values)}")
    return np.broadcast_to(np.asarray(values, np.float64), (channels,))


def _normalized_table(
    mean: npt.NDArray[np.float64], std: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    pixels = np.arange(256, dtype=np.float64)[:, None]
    return ((pixels - mean) / std).astype(np.float32)[None]


def _quantized_table(
    spec: TensorSpec, mean: npt.NDArray[np.float64], std: npt.NDArray[np.float64]
) -> npt.NDArray[Any]:
    if not spec.scale:
        raise ModelError(f'input "{spec.name}" has no quantization, so mean and std cannot apply')
    limits = np.iinfo(spec.dtype)
    pixels = np.arange(256, dtype=np.float64)[:, None]
    stored = np.rint((pixels - mean) / std / spec.scale) + spec.zero_point
    clipped: npt.NDArray[Any] = np.clip(stored, limits.min, limits.max).astype(spec.dtype)
    return clipped[None]


def preprocess(
    pixels: U8Image, plan: InputPlan, tensor: Tensor, region: Region | None = None
) -> Transform:
    """Fill `tensor` from `pixels` uint8[H, W, 3] BGR; return where the frame lies in it.

    Only `region` of the frame is looked at, widened to whole pixels. Bilinear, as the models'
    own training pipelines resize.
    """
    height, width = pixels.shape[:2]
    where = plan.geometries.get((width, height, region))
    if where is None:
        where = _remember(plan, width, height, region)
    left, top = where.pad_x_px, where.pad_y_px
    new_width, new_height = where.inside_width, where.inside_height
    if plan.inside != (left, top, new_width, new_height):
        # Other cameras' images may have stood where this one's border is.
        plan.inside = (left, top, new_width, new_height)
        plan.pixels.fill(LETTERBOX_GREY)
    x, y = where.crop_x_px, where.crop_y_px
    crop = pixels[y : y + where.crop_height, x : x + where.crop_width]
    resized = plan.resized.reshape(-1)[: new_height * new_width * 3]
    resized = resized.reshape(new_height, new_width, 3)
    cv2.resize(crop, (new_width, new_height), dst=resized, interpolation=cv2.INTER_LINEAR)
    inner = plan.pixels[top : top + new_height, left : left + new_width]
    if plan.channels == 1:
        cv2.cvtColor(resized, cv2.COLOR_BGR2GRAY, dst=inner[..., 0])
    elif plan.color == "rgb":
        cv2.cvtColor(resized, cv2.COLOR_BGR2RGB, dst=inner)
    else:
        np.copyto(inner, resized)
    plan.store(plan.pixels, tensor)
    return where


def _remember(plan: InputPlan, width: int, height: int, region: Region | None) -> Transform:
    if len(plan.geometries) >= GEOMETRIES:
        plan.geometries.clear()
    where = _fit(plan, width, height, region)
    plan.geometries[width, height, region] = where
    return where


def pixels_of(region: Region | None, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the whole pixels x_min, y_min, x_max, y_max that a region touches, at least one."""
    if region is None:
        return 0, 0, width, height
    x_min = min(math.floor(region[0] * width), width - 1)
    y_min = min(math.floor(region[1] * height), height - 1)
    x_max = min(max(math.ceil(region[2] * width), x_min + 1), width)
    y_max = min(max(math.ceil(region[3] * height), y_min + 1), height)
    return x_min, y_min, x_max, y_max


def _fit(plan: InputPlan, width: int, height: int, region: Region | None) -> Transform:
    """Work out the geometry for one part of frames of one size."""
    x_min, y_min, x_max, y_max = pixels_of(region, width, height)
    crop_width, crop_height = x_max - x_min, y_max - y_min
    new_width, new_height = plan.width, plan.height
    if plan.resize == "letterbox":
        scale = min(plan.width / crop_width, plan.height / crop_height)
        new_width = max(1, min(plan.width, round(crop_width * scale)))
        new_height = max(1, min(plan.height, round(crop_height * scale)))
    left, top = (plan.width - new_width) // 2, (plan.height - new_height) // 2
    scale_x, scale_y = new_width / crop_width, new_height / crop_height
    return Transform(
        frame_width=width,
        frame_height=height,
        crop_x_px=x_min,
        crop_y_px=y_min,
        crop_width=crop_width,
        crop_height=crop_height,
        scale_x=scale_x,
        scale_y=scale_y,
        pad_x_px=left,
        pad_y_px=top,
        inside_width=new_width,
        inside_height=new_height,
        box_scale=np.array([plan.width / scale_x, plan.height / scale_y] * 2, np.float32),
        box_shift=np.array([x_min - left / scale_x, y_min - top / scale_y] * 2, np.float32),
        box_limits=np.array([width, height] * 2, np.float32),
    )


def boxes_to_frame(xyxy_norm: F32Boxes, where: Transform) -> F32Boxes:
    """Return float32[n, 4] boxes of the input (0 to 1) as pixels of the whole frame, clipped to it.

    A box may reach beyond the region that was looked at, as far as the model believes it does.
    """
    boxes: F32Boxes = xyxy_norm * where.box_scale
    boxes += where.box_shift
    np.maximum(boxes, 0, out=boxes)
    np.minimum(boxes, where.box_limits, out=boxes)
    return boxes
