"""YOLO exports with one output tensor: every candidate's box and scores in one row or column.

`yolov8` (v8, v9, v11, v12, and v5u): box, then one score per class, one candidate per cell.
`yolov5` (v5, v7; v6 and YOLOX as one candidate per cell): an objectness between the two.
Stored numbers are compared first and only candidates that can pass are dequantized, so
thousands of candidates cost a pass or two over small integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from agent.errors import ModelError
from agent.vision.heads import Boxes, Decode, Found, Limits, Look, select_boxes
from agent.vision.heads.anchors import strides_of
from agent.vision.heads.evidence import (
    COCO_CLASSES,
    BoxForm,
    are_logits,
    box_form,
    box_unit,
    known_class_counts,
)
from agent.vision.heads.quantized import (
    F32,
    as_fractions,
    best_classes,
    hold_numbers,
    sigmoid,
    to_real,
    to_stored,
)

# Priors per cell of YOLOv5 and YOLOv7: models/yolov5s.yaml.
PRIORS = 3
# A probability stored in coarser steps cannot be compared with a threshold.
COARSEST_STEP = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """One way to read the tensor."""

    kind: Literal["yolov5", "yolov8"]
    candidates: int
    channels: int
    axis: int  # of the channels: 0 or 1
    strides: tuple[int, ...] | None  # where each cell has one candidate

    @property
    def first_class(self) -> int:
        return 4 if self.kind == "yolov8" else 5

    @property
    def class_count(self) -> int:
        return self.channels - self.first_class


def find_yolo(look: Look, *, is_v8_usual: bool = False) -> Found | str | None:
    """Tell v5 from v8 and rows from columns by the number of cells the input size implies.

    is_v8_usual: where both fit and no names tell, it is v8
    """
    if [spec.shape[:-2] for spec in look.outputs] != [(1,)]:
        return None
    spec, wanted = look.outputs[0], look.wanted.type
    is_told = wanted in ("yolov5", "yolov8")
    readings = [one for one in _readings(look) if wanted in (None, one.kind)]
    if not readings or not hold_numbers(look.outputs):
        return None
    if not is_told and look.file.exporter.get("task") not in (None, "detect"):
        return None
    first = to_real(look.first_run[0][0], spec.scale, spec.zero_point)
    logits_of = [are_logits(look, rows[:, 4:]) for rows in (first.T, first)]
    sound = [one for one in readings if is_told or logits_of[one.axis] is not None]
    if not sound:
        return (
            f"it has the shape of {readings[0].kind}, but some of its {readings[0].class_count} "
            "class channels hold no scores, as with rotated boxes or key points"
        )
    reading = _settled(look, sound, is_v8_usual=is_v8_usual)
    if isinstance(reading, str):
        return reading
    rows, logits = (first.T, first)[reading.axis], logits_of[reading.axis]
    if spec.scale > COARSEST_STEP and not logits:
        raise ModelError(
            f"its scores are stored in steps of {spec.scale:.2g}, too coarse to tell 0 from 1: "
            "export it with boxes as fractions of the input, or with float output"
        )
    form: BoxForm | None = look.wanted.box_format
    if form is None and reading.strides is not None:
        form = box_form(rows[:, :4], look.image, reading.strides)
        if form is None and reading.kind == "yolov5":
            return (
                "it has the shape of YOLOX or YOLOv6, but its boxes do not lie about its cells; "
                "export YOLOX with --decode_in_inference"
            )
    unit = box_unit(look, spec, rows[:, :4])
    return _found(look, reading, form or "xywh", unit, are_scores_logits=bool(logits))


def _readings(look: Look) -> list[_Reading]:
    """Return each way the shape could be read; the usual order of axes first."""
    shape = look.outputs[0].shape[1:]
    readings = []
    for axis in (0, 1):
        channels, count = shape[axis], shape[1 - axis]
        strides = strides_of(count, look.image)
        kinds: list[Literal["yolov5", "yolov8"]] = []
        if strides is not None:
            kinds = ["yolov8", "yolov5"]
        elif not count % PRIORS and strides_of(count // PRIORS, look.image) is not None:
            kinds = ["yolov5"]
        elif look.wanted.type is not None and count > channels:  # told, so any size will do
            kinds = ["yolov8", "yolov5"]
        readings += [
            _Reading(kind=kind, candidates=count, channels=channels, axis=axis, strides=strides)
            for kind in kinds
        ]
    return [one for one in readings if one.class_count > 0]


def _settled(look: Look, readings: list[_Reading], *, is_v8_usual: bool) -> _Reading | str:
    """Choose by the number of classes the file names, else by what is usual and unambiguous.

    Raises:
        ModelError: two readings are left.
    """
    counts = known_class_counts(look)
    if counts and look.wanted.type is None:
        fitting = [one for one in readings if one.class_count in counts]
        if not fitting:
            room = " or ".join(str(one.class_count) for one in readings)
            return f"the file names {min(counts)} classes, but as YOLO it has room for {room}"
        readings = fitting
    # Channels first is Ultralytics' own order, where one candidate per cell has no objectness.
    usual = [one for one in readings if not one.axis and (one.kind == "yolov8" or not one.strides)]
    of_coco = [one for one in readings if one.class_count == COCO_CLASSES]
    of_v8 = [one for one in readings if one.kind == "yolov8" and is_v8_usual]
    for clear in (usual, readings, of_v8, of_coco):
        if len(clear) == 1:
            return clear[0]
    ways = " or ".join(
        f"{one.kind} with {one.class_count} classes"
        + (" behind an objectness" if one.kind == "yolov5" else "")
        for one in readings
    )
    raise ModelError(
        f"its output {list(look.outputs[0].shape)} could be {ways}; say which in a manifest.json "
        'beside the model ("head": {"type": "yolov8" or "yolov5"})'
    )


def _found(
    look: Look,
    reading: _Reading,
    form: BoxForm,
    unit: tuple[tuple[float, float], str],
    *,
    are_scores_logits: bool,
) -> Found:
    spec = look.outputs[0]
    decode = decode_yolov8 if reading.kind == "yolov8" else decode_yolov5
    bound = partial(
        decode,
        axis=reading.axis,
        scale=spec.scale,
        zero_point=spec.zero_point,
        box_unit=unit[0],
        form=form,
        are_logits=are_scores_logits,
    )

    def bind(limits: Limits) -> Decode:
        return lambda tensors: bound(tensors[0][0], limits=limits)

    is_ultralytics = reading.kind == "yolov8" or reading.strides is None
    return Found(
        kind=reading.kind,
        task="detection",
        class_count=reading.class_count,
        why=f"{reading.kind} because one output holds {reading.channels} channels for "
        f"{reading.candidates} candidates, the number a {look.image.shape[2]}x"
        f"{look.image.shape[1]} input gives; boxes {form} {unit[1]}"
        + ("; scores are logits" if are_scores_logits else ""),
        bind=bind,
        read_as={
            "box_units": "normalized" if unit[0] == (1.0, 1.0) else "pixels",
            "box_format": form,
            "logits": are_scores_logits,
        },
        resize="letterbox",  # ultralytics/data/augment.py LetterBox
        # ultralytics/engine/predictor.py preprocess: 0 to 1. YOLOX and YOLOv6 differ.
        normalization=(0.0, 255.0) if is_ultralytics else None,
    )


def decode_yolov8(
    output: npt.NDArray[Any],
    *,
    axis: int,
    scale: float,
    zero_point: int,
    box_unit: tuple[float, float],
    limits: Limits,
    form: BoxForm = "xywh",
    are_logits: bool = False,
) -> Boxes:
    """Decode boxes and class scores.

    output: int8, uint8 or float [4 + classes, n] with axis 0, [n, 4 + classes] with axis 1:
        the box in `form`, then one score per class
    box_unit: (width, height) that a box coordinate is divided by to be 0 to 1 of the input

    Layout: ultralytics/nn/modules/head.py Detect (boxes and sigmoid scores concatenated).
    """
    scores = output[4:] if axis == 0 else output[:, 4:]
    lowest = to_stored(
        float(limits.thresholds.min()), scale, zero_point, output.dtype, are_logits=are_logits
    )
    candidates, class_ids = best_classes(scores, lowest, axis=axis)
    rows = output[:, candidates].T if axis == 0 else output[candidates]
    best = to_real(rows[np.arange(len(rows)), 4 + class_ids], scale, zero_point)
    xyxy = to_corners(to_real(rows[:, :4], scale, zero_point), form, box_unit)
    return select_boxes(xyxy, sigmoid(best) if are_logits else best, class_ids, limits)


def decode_yolov5(
    output: npt.NDArray[Any],
    *,
    axis: int,
    scale: float,
    zero_point: int,
    box_unit: tuple[float, float],
    limits: Limits,
    form: BoxForm = "xywh",
    are_logits: bool = False,
) -> Boxes:
    """Decode boxes, objectness and class scores; score = objectness * class.

    output: int8, uint8 or float [5 + classes, n] with axis 0, [n, 5 + classes] with axis 1:
        the box in `form`, objectness, then the classes. The rest as `decode_yolov8`.

    Layout: ultralytics/yolov5 models/yolo.py Detect; YOLOX yolox/models/yolo_head.py.
    """
    objectness = output[4] if axis == 0 else output[:, 4]
    lowest = to_stored(
        float(limits.thresholds.min()), scale, zero_point, output.dtype, are_logits=are_logits
    )
    candidates = np.flatnonzero(objectness >= lowest)
    stored = output[:, candidates].T if axis == 0 else output[candidates]
    rows = to_real(stored, scale, zero_point)
    class_ids = rows[:, 5:].argmax(axis=1)
    both = np.stack([rows[:, 4], rows[np.arange(len(rows)), 5 + class_ids]])
    scores = (sigmoid(both) if are_logits else both).prod(axis=0)
    return select_boxes(to_corners(rows[:, :4], form, box_unit), scores, class_ids, limits)


def to_corners(boxes: F32, form: BoxForm, unit: tuple[float, float]) -> F32:
    """Return float32[n, 4] xmin, ymin, xmax, ymax, 0 to 1 of the input, of boxes in any form."""
    if form == "yxyx":
        boxes = boxes[:, [1, 0, 3, 2]]
    boxes = as_fractions(boxes, unit)
    if form != "xywh":
        return boxes
    half = boxes[:, 2:] * np.float32(0.5)
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
