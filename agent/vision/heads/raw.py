"""Outputs that no decoder reads: their numbers as they are, so that nothing is guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from agent.vision.engines import Tensor, TensorSpec
from agent.vision.heads import Decode, Found, Limits, Look, Tensors
from agent.vision.heads.quantized import to_real


def find_raw(look: Look, why: str) -> Found:
    """Take any outputs."""
    specs = look.outputs

    def decode(tensors: Sequence[Tensor]) -> Tensors:
        return Tensors(
            values=tuple(
                (spec.name, _real(tensor, spec))
                for spec, tensor in zip(specs, tensors, strict=True)
            )
        )

    def bind(limits: Limits) -> Decode:
        del limits
        return decode

    ignores = frozenset(field.name for field in fields(Limits))
    return Found(kind="raw", task="raw", class_count=None, why=why, bind=bind, ignores=ignores)


def _real(tensor: Tensor, spec: TensorSpec) -> Tensor:
    """Return what quantized numbers stand for; others as they are, damaged ones too."""
    if np.issubdtype(tensor.dtype, np.integer) and spec.scale:
        return to_real(tensor, spec.scale, spec.zero_point)
    return tensor


def hint_for(image: tuple[int, ...], specs: Sequence[TensorSpec]) -> str:
    """Say what one output resembles and how a manifest has it read so; "" where it is nothing.

    The families themselves say what they miss; this is for what none of them takes for its own.
    """
    shapes = [spec.shape for spec in specs]
    if len(shapes) != 1:
        return ""
    shape = shapes[0]
    if len(shape) == 4 and min(shape[1:3]) > 1:
        if shape[3] in (17, 18, 19):
            return f"{shape[3]} channels look like heat maps of points, whose offsets are not there"
        return 'a grid over the input: if its channels are classes, say "type": "segment"'
    if len(shape) == 3 and shape[0] == 1 and min(shape[1:]) >= 5 and max(shape[1:]) > 16:
        few, many = sorted(shape[1:])
        return (
            f"{many} candidates of {few} numbers look like a YOLO export whose count does not fit "
            f'a {image[2]}x{image[1]} input: "type": "yolov8" (box and {few - 4} classes), '
            '"yolov5" (one score more) or "yolo_pose" (points behind them)'
        )
    if shape and int(np.prod(shape)) == max(shape) and max(shape) > 1:
        return f'if its {max(shape)} numbers are scores of classes, say "type": "classify"'
    return ""
