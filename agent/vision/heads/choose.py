"""Which decoder fits a model: from its manifest, else from its tensors, else refused with reasons.

Nothing is guessed silently: `why` goes into the log and into `model inspect`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.errors import ModelError
from agent.vision.engines import Tensor, TensorSpec
from agent.vision.heads import Boxes, Head
from agent.vision.heads.classify import decode_scores
from agent.vision.heads.ssd import decode_ssd
from agent.vision.heads.yolo import decode_yolov5, decode_yolov8
from agent.vision.manifest import HeadManifest
from agent.vision.tflite_file import BUILTIN_LOGISTIC, BUILTIN_SOFTMAX, TfliteFile

# Exporter tasks that look like a detector's single tensor but are not one.
OTHER_TASKS = frozenset({"pose", "segment", "obb"})
# A box coordinate above this cannot be a fraction of the input, so it is in pixels.
LARGEST_FRACTION = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognition:
    """What a model's outputs are."""

    kind: str  # ssd | yolov8 | yolov5 | classify
    class_count: int | None
    why: str
    order: tuple[int, ...] = (0,)  # positions of the tensors among the outputs
    channels_first: bool = True
    box_unit: tuple[float, float] = (1.0, 1.0)
    are_logits: bool = False


def recognise(
    file: TfliteFile,
    image: TensorSpec,
    outputs: Sequence[TensorSpec],
    first_run: Sequence[Tensor],
    wanted: HeadManifest,
) -> Recognition:
    """Tell what the outputs mean; `first_run` holds what a first invoke gave.

    Raises:
        ModelError: no head fits, with the shapes and what would fit.
    """
    task = file.exporter.get("task")
    if wanted.type is None and task in OTHER_TASKS:
        raise ModelError(f"the exporter calls this a {task} model; no head for that is built in")
    if wanted.type == "ssd" or (wanted.type is None and file.ssd_outputs):
        return _recognise_ssd(file, outputs)
    shape = tuple(size for size in outputs[0].shape[1:]) if len(outputs) == 1 else ()
    if wanted.type in ("yolov5", "yolov8") or (wanted.type is None and len(shape) == 2):
        found = _recognise_yolo(image, outputs, first_run, wanted)
        if found is not None:
            return found
    if wanted.type == "classify" or (wanted.type is None and len(outputs) == 1):
        found = _recognise_classes(file, outputs, first_run, wanted)
        if found is not None:
            return found
    shapes = ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in outputs)
    raise ModelError(
        f"no head fits its outputs ({shapes}); known are SSD with TFLite_Detection_PostProcess, "
        "YOLOv5 [1, n, 5+classes], YOLOv8/v11 [1, 4+classes, n] and classification [1, classes]; "
        'if it is one of these, say so in a manifest.json ("head": {"type": …})'
    )


def _recognise_ssd(file: TfliteFile, outputs: Sequence[TensorSpec]) -> Recognition:
    """Match outputs to the operator's by tensor number: names and order are the exporter's whim."""
    positions = {spec.index: position for position, spec in enumerate(outputs)}
    try:
        order = tuple(positions[tensor] for tensor in file.ssd_outputs)
    except KeyError:
        order = ()
    if len(order) != 4:
        raise ModelError(
            "an SSD head needs the four outputs of TFLite_Detection_PostProcess as outputs of "
            f"the model; found {len(outputs)} outputs"
        )
    return Recognition(
        kind="ssd",
        class_count=file.ssd_classes,
        order=order,
        why="SSD because its outputs come from TFLite_Detection_PostProcess",
    )


def _recognise_yolo(
    image: TensorSpec,
    outputs: Sequence[TensorSpec],
    first_run: Sequence[Tensor],
    wanted: HeadManifest,
) -> Recognition | None:
    """Tell v5 from v8 and rows from columns by the number of anchors the input size implies."""
    if len(outputs) != 1 or len(outputs[0].shape) != 3 or outputs[0].shape[0] != 1:
        return None
    _, height, width, _ = image.shape
    cells = [sum((height // s) * (width // s) for s in strides) for strides in
             ((8, 16, 32), (8, 16, 32, 64))]  # fmt: skip
    rows, columns = outputs[0].shape[1:]
    found: tuple[str, int, int, bool] | None = None
    for anchors, channels, first in ((columns, rows, True), (rows, columns, False)):
        kind = "yolov8" if anchors in cells else None
        if anchors in [3 * cell for cell in cells]:
            kind = "yolov5"
        if kind is None and wanted.type in ("yolov5", "yolov8") and anchors > channels:
            kind = wanted.type
        if kind and wanted.type in (None, kind):
            found = (kind, anchors, channels, first)
            break
    if found is None:
        return None
    kind, anchors, channels, first = found
    class_count = channels - (4 if kind == "yolov8" else 5)
    if class_count < 1:
        return None
    unit, unit_why = _box_unit(image, outputs[0], first_run[0][0], first, wanted)
    return Recognition(
        kind=kind,
        class_count=class_count,
        channels_first=first,
        box_unit=unit,
        why=f"{kind} because one output holds {channels} channels for {anchors} anchors, the "
        f"number a {width}x{height} input gives; boxes {unit_why}",
    )


def _box_unit(
    image: TensorSpec,
    spec: TensorSpec,
    output: Tensor,
    channels_first: bool,
    wanted: HeadManifest,
) -> tuple[tuple[float, float], str]:
    """Tell pixels from fractions: over all anchors the centres span the input in any picture."""
    pixels = (float(image.shape[2]), float(image.shape[1]))
    if wanted.box_units is not None:
        return (pixels if wanted.box_units == "pixels" else (1.0, 1.0)), "as the manifest says"
    if spec.scale:
        largest = (np.iinfo(spec.dtype).max - spec.zero_point) * spec.scale
    else:
        centres = output[:2] if channels_first else output[:, :2]
        largest = float(np.nanmax(centres))
    if largest > LARGEST_FRACTION:
        return pixels, "in pixels of the input"
    return (1.0, 1.0), "as fractions of the input"


def _recognise_classes(
    file: TfliteFile,
    outputs: Sequence[TensorSpec],
    first_run: Sequence[Tensor],
    wanted: HeadManifest,
) -> Recognition | None:
    spec = outputs[0]
    sizes = [size for size in spec.shape if size != 1]
    if len(outputs) != 1 or len(sizes) != 1 or spec.dtype not in (np.uint8, np.int8, np.float32):
        return None
    if wanted.logits is not None:
        are_logits, how = wanted.logits, "as the manifest says"
    elif spec.scale:
        limits = np.iinfo(spec.dtype)
        low, high = ((limit - spec.zero_point) * spec.scale for limit in (limits.min, limits.max))
        are_logits = low < -0.01 or high > 1.01
        how = f"its numbers run from {low:.2f} to {high:.2f}"
    else:
        values = first_run[0].reshape(-1)
        producer = file.producers.get(spec.index)
        is_sum_one = bool(values.min() >= 0 and abs(float(values.sum()) - 1) < 0.02)
        are_logits = producer not in (BUILTIN_SOFTMAX, BUILTIN_LOGISTIC) and not is_sum_one
        how = "of the operator that makes it" if not is_sum_one else "its scores add up to 1"
    return Recognition(
        kind="classify",
        class_count=sizes[0],
        are_logits=are_logits,
        why=f"classification because its one output is a vector of {sizes[0]} scores; "
        f"{'logits' if are_logits else 'probabilities'} because {how}",
    )


def bind(
    found: Recognition,
    outputs: Sequence[TensorSpec],
    thresholds: npt.NDArray[np.float32],
    wanted: HeadManifest,
) -> Head:
    """Return the decoder with this model's numbers in it."""
    spec = outputs[found.order[0]]
    if found.kind == "ssd":
        order = found.order

        def decode_four(tensors: Sequence[npt.NDArray[Any]]) -> Boxes:
            boxes, classes, scores, count = (tensors[position] for position in order)
            return decode_ssd(
                boxes,
                classes,
                scores,
                count,
                thresholds=thresholds,
                max_detections=wanted.max_detections,
            )

        return _head(found, "detection", decode_four)
    if found.kind == "classify":
        decode = partial(
            decode_scores,
            scale=spec.scale,
            zero_point=spec.zero_point,
            are_logits=found.are_logits,
            thresholds=thresholds,
            top_k=wanted.top_k,
        )
        return _head(found, "classification", lambda tensors: decode(tensors[0]))
    yolo = partial(
        decode_yolov8 if found.kind == "yolov8" else decode_yolov5,
        scale=spec.scale,
        zero_point=spec.zero_point,
        box_unit=found.box_unit,
        thresholds=thresholds,
        iou_threshold=wanted.iou_threshold,
        max_detections=wanted.max_detections,
    )
    transposed = found.channels_first != (found.kind == "yolov8")
    return _head(
        found, "detection", lambda tensors: yolo(tensors[0][0].T if transposed else tensors[0][0])
    )


def _head(found: Recognition, task: Any, decode: Any) -> Head:
    return Head(
        kind=found.kind, task=task, class_count=found.class_count, why=found.why, decode=decode
    )
