"""A model as a finder sees it, without a file: shapes, types and what a first run gave."""

from pathlib import Path

import numpy as np

from agent.contract.manifest import HeadManifest
from agent.vision.engines import TensorSpec
from agent.vision.heads import Limits, Look
from agent.vision.labels import counts_inside
from agent.vision.tflite_file import TfliteFile


def spec(shape, dtype=np.float32, scale=0.0, zero_point=0, *, name="out", index=1):
    """One tensor."""
    return TensorSpec(
        index=index,
        name=name,
        shape=shape,
        dtype=np.dtype(dtype),
        scale=scale,
        zero_point=zero_point,
    )


def tflite_file(**changes):
    """What a file says of itself: nothing, but for the changes."""
    values = {
        "custom_ops": frozenset(),
        "outputs": (1,),
        "producers": {},
        "ssd_outputs": (),
        "ssd_classes": None,
        "mean": None,
        "std": None,
        "name": None,
        "description": None,
        "version": None,
    }
    return TfliteFile(**{**values, **changes})


def look(
    outputs,
    first_run=None,
    *,
    image=(1, 320, 320, 3),
    file=None,
    folder=None,
    labels=None,
    **wanted,
):
    """A look at outputs, each a TensorSpec or a shape; `wanted` are keys of the head's manifest.

    labels: how many were given for the model; without, what the file says
    """
    specs = tuple(
        one if isinstance(one, TensorSpec) else spec(one, name=f"out{at}", index=at + 1)
        for at, one in enumerate(outputs)
    )
    file = file or tflite_file(outputs=tuple(one.index for one in specs))
    return Look(
        file=file,
        image=spec(image, np.uint8, name="image", index=0),
        outputs=specs,
        first_run=first_run or [np.zeros(one.shape, one.dtype) for one in specs],
        wanted=HeadManifest(**wanted),
        folder=folder or Path("/nowhere"),
        label_counts=counts_inside(file) if labels is None else frozenset({labels} - {0}),
    )


def limits(found, score=0.5, **changes):
    """The limits that the family's own defaults give."""
    values = {
        "thresholds": np.full(found.class_count or 1024, score, np.float32),
        "iou_threshold": found.iou_threshold,
        "max_detections": 100,
        "is_agnostic": found.is_agnostic,
        "top_k": 3,
    }
    return Limits(**{**values, **changes})
