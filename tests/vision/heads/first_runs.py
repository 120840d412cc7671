"""What a network gives in its first run, whatever lies in the input: boxes about their cells."""

import numpy as np
from looks import spec, tflite_file

from agent.vision.heads.anchors import grid_centres

IMAGE = (1, 320, 320, 3)
CELLS = 40 * 40 + 20 * 20 + 10 * 10
CELLS_P6 = CELLS + 5 * 5
STRIDES = (8, 16, 32)


def named(count, **notes):
    return tflite_file(exporter={"names": {i: f"thing {i}" for i in range(count)}, **notes})


def listed(*labels):
    return tflite_file(label_files={"labels.txt": labels})


def boxes_on_grid(form, unit=320.0, image=IMAGE, strides=STRIDES, seed=0):
    """float32[n, 4] as a network gives them in any picture: about its cells, of some size."""
    centres, sizes = grid_centres(spec(image, np.uint8), strides)
    rng = np.random.default_rng(seed)
    middle = centres + rng.normal(0, 1, centres.shape) * sizes[:, None]
    extent = rng.uniform(0.5, 3, centres.shape) * sizes[:, None]
    low, high = middle - extent / 2, middle + extent / 2
    made = {
        "xywh": [middle, extent],
        "xyxy": [low, high],
        "yxyx": [low[:, ::-1], high[:, ::-1]],
    }[form]
    return (np.concatenate(made, axis=1) / 320 * unit).astype(np.float32)


def background(count, classes, seed=0):
    return np.random.default_rng(seed).uniform(0, 0.05, (count, classes)).astype(np.float32)
