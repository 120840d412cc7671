"""Where a detector's candidates lie on the input: grids of cells, and the priors of SSDs."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np

from agent.errors import ModelError
from agent.vision.engines import TensorSpec
from agent.vision.heads import Look
from agent.vision.heads.quantized import F32
from agent.vision.model_files import read_listed

# Pixels per cell of the feature maps, as the published YOLO and NanoDet heads have them: the
# usual three, with P6, with P2, and the tiny models' two.
STRIDE_SETS = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))
MAX_ANCHORS = 1 << 18
MAX_ANCHORS_BYTES = MAX_ANCHORS * 4 * 8 + 4096  # float64, and the header


def grid_sizes(image: TensorSpec, strides: Sequence[int]) -> list[tuple[int, int]]:
    """Return (rows, columns) of each feature map; a convolution of stride 2 rounds up."""
    _, height, width, _ = image.shape
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def strides_of(count: int, image: TensorSpec) -> tuple[int, ...] | None:
    """Return the strides whose feature maps together have `count` cells, or None."""
    for strides in STRIDE_SETS:
        if sum(rows * columns for rows, columns in grid_sizes(image, strides)) == count:
            return strides
    return None


def grid_centres(image: TensorSpec, strides: Sequence[int], offset: float = 0.5) -> tuple[F32, F32]:
    """Return (float32[n, 2] x, y of every cell in pixels, float32[n] its stride), row by row."""
    centres, sizes = [], []
    for (rows, columns), stride in zip(grid_sizes(image, strides), strides, strict=True):
        y, x = np.mgrid[:rows, :columns].astype(np.float32)
        centres.append((np.stack([x.ravel(), y.ravel()], axis=1) + np.float32(offset)) * stride)
        sizes.append(np.full(rows * columns, stride, np.float32))
    return np.concatenate(centres).astype(np.float32), np.concatenate(sizes)


def read_anchors(look: Look) -> F32 | None:
    """Return the manifest's `anchors` file as float32, whatever its shape, or None without one.

    Raises:
        ModelError: it cannot be read, is no plain array of finite numbers, or is too large.
    """
    if look.wanted.anchors is None:
        return None
    path = look.folder / look.wanted.anchors
    data = read_listed(path, MAX_ANCHORS_BYTES, look.files)
    try:
        stored = np.load(io.BytesIO(data), allow_pickle=False, max_header_size=4096)
    except (ValueError, OSError, EOFError, SyntaxError, TypeError, MemoryError) as error:
        raise ModelError(f"{path}: is not a .npy file of numbers ({error})") from error
    if not isinstance(stored, np.ndarray) or stored.dtype.kind not in "fiu":
        raise ModelError(f"{path}: is not a .npy file of numbers; write it with numpy.save")
    anchors = stored.astype(np.float32)
    if not anchors.size or not np.isfinite(anchors).all() or np.abs(anchors).max() > 1e5:
        raise ModelError(f"{path}: holds no usable numbers; write finite anchors with numpy.save")
    return anchors


def to_centre_size(yxyx: F32) -> F32:
    """Return float32[n, 4] centre y, centre x, height, width of boxes ymin, xmin, ymax, xmax."""
    low, high = yxyx[:, :2], yxyx[:, 2:]
    return np.concatenate([(low + high) / 2, high - low], axis=1)


def tf_ssd_anchors(
    grids: Sequence[int] = (19, 10, 5, 3, 2, 1),
    lowest_scale: float = 0.2,
    highest_scale: float = 0.95,
) -> F32:
    """Return float32[n, 4] centre y, centre x, height, width: TensorFlow's default SSD anchors.

    Three anchors per cell on the first map, six on the others: 1,917 on the maps of 300x300.
    object_detection/anchor_generators/multiple_grid_anchor_generator.py create_ssd_anchors,
    with the defaults of protos/ssd_anchor_generator.proto.
    """
    steps = len(grids) - 1
    scales = [lowest_scale + (highest_scale - lowest_scale) * i / steps for i in range(steps + 1)]
    anchors = []
    for index, grid in enumerate(grids):
        scale, following = scales[index], ([*scales, 1.0])[index + 1]
        shapes = [(scale, ratio) for ratio in (1.0, 2.0, 0.5, 3.0, 0.3333)]
        shapes.append((math.sqrt(scale * following), 1.0))
        if index == 0:
            shapes = [(0.1, 1.0), (scale, 2.0), (scale, 0.5)]
        sizes = [(size / math.sqrt(ratio), size * math.sqrt(ratio)) for size, ratio in shapes]
        for row in range(grid):
            for column in range(grid):
                centre = ((row + 0.5) / grid, (column + 0.5) / grid)
                anchors += [(*centre, *size) for size in sizes]
    return np.array(anchors, np.float32)
