"""SSD without its post-processing: offsets from prior boxes, and class scores, one row per prior.

The priors are not in the outputs. They come from the manifest's `anchors`, from MediaPipe's
metadata, or are TensorFlow's own where only those have the number of rows. Boxes that the
network has decoded itself (UltraFace, DETR) need none: the manifest says how they are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.errors import ModelError
from agent.vision.engines import Tensor, TensorSpec
from agent.vision.heads import Boxes, Decode, Found, Limits, Look, select_boxes
from agent.vision.heads.anchors import read_anchors, strides_of, tf_ssd_anchors, to_centre_size
from agent.vision.heads.evidence import BoxForm, are_logits, box_unit, known_class_counts
from agent.vision.heads.quantized import (
    F32,
    best_classes,
    hold_numbers,
    sigmoid,
    to_real,
    to_stored,
)
from agent.vision.heads.yolo import to_corners

# TensorFlow's default maps of a 300x300 input hold this many priors; see `tf_ssd_anchors`.
TF_INPUT, TF_ANCHORS = 300, 1917
# FasterRcnnBoxCoder's scale factors (y, x, height, width) in all of TensorFlow's SSD
# configurations: object_detection/protos/faster_rcnn_box_coder.proto.
TF_SCALES = (10.0, 10.0, 5.0, 5.0)
# COCO's 90 ids and a background before them.
COCO_WITH_BACKGROUND = 91
# SSDs have a thousand priors and more; DETR and its kin have 100 to 300 rows.
FEWEST_ANCHORS = 500
# Fewer rows than these are nobody's queries either.
FEWEST_ROWS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class _Priors:
    anchors: F32  # float32[n, 4] centre y, centre x, height, width, 0 to 1
    scales: tuple[float, float, float, float]
    why: str
    has_exponential: bool = True  # of the height and width
    is_sigmoid_left: bool | None = None  # to be applied to the scores; None: not said


def find_ssd_raw(look: Look) -> Found | str | None:
    """Tell boxes from scores by their last dimension, and ask for anchors that are not known.

    Raises:
        ModelError: the anchors file is damaged or has another number of rows.
    """
    roles = _roles(look)
    if roles is None or not hold_numbers(look.outputs):
        return None
    at_boxes, at_scores = roles
    boxes, scores = look.outputs[at_boxes], look.outputs[at_scores]
    count, columns = scores.shape[1:]
    first = to_real(look.first_run[at_boxes].reshape(-1, 4), boxes.scale, boxes.zero_point)
    form: BoxForm | None = look.wanted.box_format
    are_corners = bool(first.any() and (first[:, 2:] >= first[:, :2]).all())
    if form is not None:
        return _find_decoded(look, roles, form, first)
    if are_corners:
        return _ask_for_form(count, columns, "corners already, not offsets")
    priors = _priors(look, count)
    if isinstance(priors, str):
        is_few = count < FEWEST_ANCHORS and look.wanted.type is None
        return _ask_for_form(count, columns, "too few for an SSD's offsets") if is_few else priors
    meaning = _score_meaning(look, at_scores, priors.is_sigmoid_left)
    if isinstance(meaning, str):
        return f"it has the shape of an SSD, but {meaning}"
    logits, background = meaning

    def bind(limits: Limits) -> Decode:
        return lambda tensors: decode_ssd_raw(
            tensors[at_boxes].reshape(-1, 4),
            tensors[at_scores][0],
            boxes=boxes,
            scores=scores,
            anchors=priors.anchors,
            scales=priors.scales,
            has_exponential=priors.has_exponential,
            has_background=background,
            are_logits=logits,
            limits=limits,
        )

    return Found(
        kind="ssd_raw",
        task="detection",
        class_count=columns - background,
        why=f"SSD without post-processing because {count} rows of 4 offsets and {columns} scores "
        f"fit {priors.why}" + ("; the first class is the background" if background else ""),
        bind=bind,
        iou_threshold=0.6,  # object_detection/samples/configs ssd_mobilenet_*: post_processing
    )


def _roles(look: Look) -> tuple[int, int] | None:
    """Return positions of (boxes, scores), where the shapes leave no doubt."""
    if len(look.outputs) != 2:
        return None
    found = []
    for at in (0, 1):
        boxes, scores = look.outputs[at].shape, look.outputs[1 - at].shape
        is_boxes = boxes[2:] in ((4,), (1, 4)) and boxes[0] == 1
        if is_boxes and len(scores) == 3 and scores[:2] == boxes[:2]:
            found.append((at, 1 - at))
    if len(found) == 2:  # four classes: only the names can tell
        found = [roles for roles in found if _is_named_boxes(look.outputs[roles[0]])]
    is_told = look.wanted.type == "ssd_raw" or look.wanted.anchors is not None
    if len(found) != 1 or look.wanted.type not in (None, "ssd_raw"):
        return None
    count = look.outputs[found[0][0]].shape[1]
    is_yolo = any(strides_of(count // priors, look.image) for priors in (1, 3))
    is_ssd = count >= FEWEST_ROWS and not is_yolo
    return found[0] if is_told or is_ssd else None


def _is_named_boxes(spec: TensorSpec) -> bool:
    name = spec.name.lower()
    return any(word in name for word in ("box", "loc", "regress")) and "class" not in name


def _priors(look: Look, count: int) -> _Priors | str:
    anchors = read_anchors(look)
    if anchors is not None:
        if anchors.shape != (count, 4):
            raise ModelError(
                f"{look.wanted.anchors}: has the shape {list(anchors.shape)}, but the model has "
                f"{count} boxes, so [{count}, 4] is needed"
            )
        if not (anchors[:, 2:] > anchors[:, :2]).all():
            raise ModelError(
                f"{look.wanted.anchors}: each row must be ymin, xmin, ymax, xmax, 0 to 1 of the "
                "input, with the higher numbers last"
            )
        why = f"the manifest's {look.wanted.anchors}"
        return _Priors(anchors=to_centre_size(anchors), scales=TF_SCALES, why=why)
    detector = look.file.detector
    if detector is not None and len(detector.anchors) == count:
        return _Priors(
            anchors=np.array(detector.anchors, np.float32),
            scales=detector.scales,
            why="the anchors in MediaPipe's metadata",
            has_exponential=detector.has_exponential,
            is_sigmoid_left=detector.is_sigmoid_left,
        )
    if count == TF_ANCHORS and look.image.shape[1:3] == (TF_INPUT, TF_INPUT):
        why = f"TensorFlow's default anchors for {TF_INPUT}x{TF_INPUT}"
        return _Priors(anchors=tf_ssd_anchors(), scales=TF_SCALES, why=why)
    return (
        f"it looks like an SSD of {count} anchors without post-processing, and where they lie "
        'is not known: give them as a .npy file in the manifest ("head": {"type": "ssd_raw", '
        f'"anchors": "anchors.npy"}}, float[{count}, 4] ymin, xmin, ymax, xmax)'
    )


def _ask_for_form(count: int, columns: int, what: str) -> str:
    return (
        f"its {count} rows of a box and {columns} scores could be read, but the boxes are {what}; "
        'say how they are written, as in "head": {"type": "ssd_raw", "box_format": "xyxy"}, or '
        '"yxyx", or "xywh" of the centre, and without "anchors"'
    )


def _find_decoded(look: Look, roles: tuple[int, int], form: BoxForm, first: F32) -> Found | str:
    """Read boxes that need no priors; first float32[n, 4] are those of the first run."""
    if look.wanted.type != "ssd_raw":
        return (
            'its boxes and scores could be an SSD\'s; where "box_format" is said, boxes are read '
            'as the network decoded them if "type" is "ssd_raw" as well'
        )
    if look.wanted.anchors is not None:
        raise ModelError('"anchors" are of offsets and "box_format" is of decoded boxes: give one')
    at_boxes, at_scores = roles
    boxes, scores = look.outputs[at_boxes], look.outputs[at_scores]
    meaning = _score_meaning(look, at_scores, None)
    if isinstance(meaning, str):
        return f"it has the shape of an SSD, but {meaning}"
    logits, background = meaning
    unit, unit_why = box_unit(look, boxes, first)

    def bind(limits: Limits) -> Decode:
        def decode(tensors: Sequence[Tensor]) -> Boxes:
            rows, class_ids, best = best_rows(
                tensors[at_scores][0],
                spec=scores,
                has_background=background,
                are_logits=logits,
                limits=limits,
            )
            stored = tensors[at_boxes].reshape(-1, 4)[rows]
            xyxy = to_corners(to_real(stored, boxes.scale, boxes.zero_point), form, unit)
            return select_boxes(xyxy, best, class_ids, limits)

        return decode

    return Found(
        kind="ssd_raw",
        task="detection",
        class_count=scores.shape[2] - background,
        why=f"boxes and scores apart because the manifest says so; {len(first)} rows, boxes {form} "
        f"{unit_why}" + ("; the first class is the background" if background else ""),
        bind=bind,
    )


def _score_meaning(look: Look, at: int, is_sigmoid_left: bool | None) -> tuple[bool, bool] | str:
    """Return (whether scores are logits, whether the first is the background), or what is open."""
    spec = look.outputs[at]
    values = to_real(look.first_run[at][0], spec.scale, spec.zero_point)
    logits = is_sigmoid_left
    if logits is None or look.wanted.logits is not None:
        logits = are_logits(look, values, spec)
    if logits is None:
        return "its scores are neither probabilities nor logits"
    background = _has_background(look, sigmoid(values) if logits else values)
    if background is None:
        return (
            f"whether the first of its {spec.shape[2]} classes is the background is not known: "
            "put the labels into the file"
        )
    return logits, background


def _has_background(look: Look, scores: F32) -> bool | None:
    """Return whether the first column is the background.

    scores: float32[n, columns] of the first run, as probabilities; a background is likely
    nearly everywhere in any picture, and a class nearly nowhere
    """
    columns = scores.shape[1]
    counts = known_class_counts(look)
    if columns in counts or columns - 1 in counts:
        return columns not in counts
    if columns == COCO_WITH_BACKGROUND:
        return True
    if columns == 1:
        return False
    medians = np.median(np.where(np.isfinite(scores), scores, 0), axis=0)
    if medians[0] > 0.5:
        return bool(medians[1:].max() < 0.5)
    return False if scores.any() else None


def decode_ssd_raw(
    stored_boxes: npt.NDArray[Any],
    stored_scores: npt.NDArray[Any],
    *,
    boxes: TensorSpec,
    scores: TensorSpec,
    anchors: F32,
    scales: tuple[float, float, float, float],
    has_background: bool,
    are_logits: bool,
    limits: Limits,
    has_exponential: bool = True,
) -> Boxes:
    """Decode offsets and scores.

    stored_boxes: [n, 4] offsets of centre y, centre x, height, width, times `scales`
    stored_scores: [n, classes], or [n, 1 + classes] with a background first
    anchors: float32[n, 4] centre y, centre x, height, width, 0 to 1 of the input

    Formula: object_detection/box_coders/faster_rcnn_box_coder.py `_decode`.
    """
    rows, class_ids, best = best_rows(
        stored_scores,
        spec=scores,
        has_background=has_background,
        are_logits=are_logits,
        limits=limits,
    )
    offsets = to_real(stored_boxes[rows], boxes.scale, boxes.zero_point)
    offsets /= np.array(scales, np.float32)
    own = anchors[rows]
    centres = offsets[:, :2] * own[:, 2:] + own[:, :2]
    sizes = np.exp(np.minimum(offsets[:, 2:], 20)) if has_exponential else offsets[:, 2:]
    half = sizes * own[:, 2:] * np.float32(0.5)
    xyxy = np.concatenate([centres - half, centres + half], axis=1)[:, [1, 0, 3, 2]]
    return select_boxes(xyxy, best, class_ids, limits)


def best_rows(
    stored_scores: npt.NDArray[Any],
    *,
    spec: TensorSpec,
    has_background: bool,
    are_logits: bool,
    limits: Limits,
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], F32]:
    """Return (rows, class_ids, scores float32[rows]) of [n, classes] whose best class may count."""
    classes = stored_scores[:, 1:] if has_background else stored_scores
    lowest = to_stored(
        float(limits.thresholds.min()), spec.scale, spec.zero_point, spec.dtype,
        are_logits=are_logits,
    )  # fmt: skip
    rows, class_ids = best_classes(classes, lowest, axis=1)
    best = to_real(classes[rows, class_ids], spec.scale, spec.zero_point)
    return rows, class_ids, sigmoid(best) if are_logits else best
