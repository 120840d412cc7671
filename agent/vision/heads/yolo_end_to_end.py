"""YOLO with its suppression inside: rows of a box's corners, score and class, best first.

YOLOv10, YOLO26, and Ultralytics exports with `nms=True`: [1, 300, 6], unused rows all zero
(ultralytics/nn/modules/head.py Detect.postprocess; engine/exporter.py NMSModel).
"""

from __future__ import annotations

import numpy as np

from agent.errors import ModelError
from agent.vision.heads import (
    SCORE_TOLERANCE,
    SUPPRESSION,
    Boxes,
    Decode,
    Found,
    Limits,
    Look,
    sound_rows,
)
from agent.vision.heads.evidence import LARGEST_FRACTION, OUTSIDE, known_class_counts
from agent.vision.heads.quantized import F32, as_fractions, hold_numbers, to_real

# Ultralytics' max_det is 300; more rows than this are candidates, not results.
MOST_ROWS = 1000
COLUMNS = 6
# A tensor stored in coarser steps cannot hold scores beside class numbers.
COARSEST_STEP = 0.1


def find_end_to_end(look: Look) -> Found | str | None:
    """Tell it by what its rows hold: ordered corners, falling scores, whole class numbers."""
    if [spec.shape[:-2] for spec in look.outputs] != [(1,)]:
        return None
    spec, is_told = look.outputs[0], look.wanted.type == "yolo_end_to_end"
    if spec.shape[2] != COLUMNS or spec.shape[1] > MOST_ROWS or not hold_numbers(look.outputs):
        return None
    if spec.scale > COARSEST_STEP:
        raise ModelError(
            f"its scores are stored in steps of {spec.scale:.2g} beside the class numbers: "
            "export it without built-in suppression, or with float output"
        )
    rows = to_real(look.first_run[0][0], spec.scale, spec.zero_point)
    notes = look.file.exporter
    args = notes.get("args")
    is_noted = notes.get("end2end") is True or (isinstance(args, dict) and args.get("nms") is True)
    if not is_told and not is_noted:
        if not rows.any():
            return (
                f"it could be a YOLO's {spec.shape[1]} results with suppression inside, but its "
                'rows are empty without a picture; if it is, say "yolo_end_to_end"'
            )
        if not _are_results(rows):
            return None
    if notes.get("task") not in (None, "detect"):
        return None
    size = (float(look.image.shape[2]), float(look.image.shape[1]))
    unit = {"pixels": size, "normalized": (1.0, 1.0), None: None}[look.wanted.box_units]

    def bind(limits: Limits) -> Decode:
        return lambda tensors: decode_end_to_end(
            to_real(tensors[0][0], spec.scale, spec.zero_point),
            size=size,
            unit=unit,
            limits=limits,
        )

    counts = known_class_counts(look)
    proof = "the exporter's notes say so" if is_noted else "they hold corners, score and class"
    return Found(
        kind="yolo_end_to_end",
        task="detection",
        class_count=counts.pop() if len(counts) == 1 else None,
        why=f"YOLO with suppression inside because of {spec.shape[1]} rows of {COLUMNS}; "
        + ("the manifest says so" if is_told else proof),
        bind=bind,
        resize="letterbox",  # ultralytics/data/augment.py LetterBox
        normalization=(0.0, 255.0),  # ultralytics/engine/predictor.py preprocess
        ignores=SUPPRESSION | {"top_k"},
    )


def _are_results(rows: F32) -> bool:
    boxes, scores, classes = rows[:, :4], rows[:, 4], rows[:, 5]
    return bool(
        np.isfinite(rows).all()
        and (boxes[:, 2:] >= boxes[:, :2]).all()
        and (scores >= 0).all()
        and (scores <= 1 + OUTSIDE).all()
        and (np.diff(scores) <= SCORE_TOLERANCE).all()
        and (classes == np.rint(classes)).all()
        and (classes >= 0).all()
    )


def decode_end_to_end(
    rows: F32,
    *,
    size: tuple[float, float],
    unit: tuple[float, float] | None,
    limits: Limits,
) -> Boxes:
    """Decode float32[n, 6]: xmin, ymin, xmax, ymax, score, class.

    size: (width, height) of the input in pixels; unit: what a coordinate is divided by to be 0
    to 1, or None to tell it from the rows, of which pixels reach far beyond 1
    """
    is_number = (rows[:, 5] >= 0) & (rows[:, 5] < len(limits.thresholds))
    class_ids = np.rint(np.where(is_number, rows[:, 5], -1)).astype(np.intp)
    if unit is None:
        is_found = rows[:, 4] >= float(limits.thresholds.min())
        reach = float(rows[is_found, :4].max(initial=0))
        unit = size if reach > LARGEST_FRACTION else (1.0, 1.0)
    xyxy = as_fractions(rows[:, :4], unit)
    kept = sound_rows(xyxy, rows[:, 4], class_ids, limits)[: limits.max_detections]
    return Boxes(
        xyxy_norm=xyxy[kept], scores=np.minimum(rows[kept, 4], 1), class_ids=class_ids[kept]
    )
