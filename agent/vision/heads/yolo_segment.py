"""Ultralytics' segmentation exports, read for their boxes: the masks are not put together.

Two outputs: the detector's tensor with mask coefficients as its last channels, and the
prototypes they weigh, [1, h/4, w/4, masks] or, from exporters that keep PyTorch's order,
[1, masks, h/4, w/4] (ultralytics/nn/modules/head.py Segment, Proto).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from agent.vision.engines import Tensor
from agent.vision.heads import Decode, Decoded, Found, Limits, Look
from agent.vision.heads.yolo import find_yolo

PROTOTYPE_STRIDE = 4


def find_yolo_segment(look: Look) -> Found | str | None:
    """Tell it by its prototypes, and let the detector's finder read the rest."""
    at_boxes = next((at for at, spec in enumerate(look.outputs) if len(spec.shape) == 3), None)
    if len(look.outputs) != 2 or at_boxes is None:
        return None
    boxes, prototypes = look.outputs[at_boxes], look.outputs[1 - at_boxes]
    _, height, width, _ = look.image.shape
    grid = (height // PROTOTYPE_STRIDE, width // PROTOTYPE_STRIDE)
    if len(prototypes.shape) != 4 or prototypes.shape[0] != 1:
        return None
    if prototypes.shape[1:3] == grid:
        masks = prototypes.shape[3]
    elif prototypes.shape[2:] == grid:
        masks = prototypes.shape[1]
    else:
        return None
    axis = 1 if boxes.shape[1] < boxes.shape[2] else 2
    channels = boxes.shape[axis] - masks
    if channels < 1:
        return None

    def without_masks(tensor: Tensor) -> Tensor:
        return tensor[:, :channels] if axis == 1 else tensor[:, :, :channels]

    shape = tuple(channels if at == axis else size for at, size in enumerate(boxes.shape))
    detector = replace(
        look,
        file=replace(look.file, exporter={**look.file.exporter, "task": "detect"}),
        outputs=(replace(boxes, shape=shape),),
        wanted=msgspec.structs.replace(look.wanted, type=None),
        first_run=[without_masks(look.first_run[at_boxes])],
    )
    # With one candidate per cell there are v8 and later alone, which have no objectness;
    # YOLOv5's and v7's segmentation have three.
    found = find_yolo(detector, is_v8_usual=True)
    if not isinstance(found, Found):
        return found
    inner = found.bind

    def bind(limits: Limits) -> Decode:
        decode = inner(limits)

        def decode_boxes(tensors: Sequence[Tensor]) -> Decoded:
            return decode([without_masks(tensors[at_boxes])])

        return decode_boxes

    why = f"{found.why}; of its segmentation only the boxes are read, not the {masks} masks"
    return replace(found, kind="yolo_segment", why=why, bind=bind)
