"""NanoDet and NanoDet-Plus: class scores and distributions of the four sides, per cell.

One tensor [1, n, classes + 4 * bins] as nanodet's own ONNX export has it
(nanodet/model/head/nanodet_plus_head.py and gfl_head.py `_forward_onnx`), or the two parts.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from agent.vision.heads import Decode, Found, Limits, Look
from agent.vision.heads.anchors import grid_centres, strides_of
from agent.vision.heads.distribution import Level, Part, decode_levels
from agent.vision.heads.evidence import COCO_CLASSES, OUTSIDE, are_logits, known_class_counts
from agent.vision.heads.quantized import F32, hold_numbers

# Bins of one side: reg_max + 1 of config/nanodet-{m,plus-m,g}*.yml (7 and 10).
BIN_COUNTS = (8, 11)
# NanoDet has three feature maps and cells' middles as centres (gfl_head.py), NanoDet-Plus four
# and their corners (nanodet_plus_head.py get_single_level_center_priors).
PLUS_STRIDES = (8, 16, 32, 64)
STRIDES = (8, 16, 32)


def find_nanodet(look: Look) -> Found | str | None:
    """Tell the two parts by their channels, and where one tensor is cut by what each can hold."""
    shapes = [spec.shape for spec in look.outputs]
    is_told = look.wanted.type == "nanodet"
    if len(shapes) not in (1, 2) or any(len(shape) != 3 or shape[0] != 1 for shape in shapes):
        return None
    if not hold_numbers(look.outputs):
        return None
    strides = strides_of(shapes[0][1], look.image)
    if strides not in (STRIDES, PLUS_STRIDES) or len({shape[1] for shape in shapes}) > 1:
        return None
    parts = _one_tensor(look) if len(shapes) == 1 else _two_tensors(look)
    if not isinstance(parts, tuple):
        return parts
    scores, sides = parts
    is_plus = strides == PLUS_STRIDES
    if is_plus and len(shapes) == 2 and not is_told:
        return (
            "it could be NanoDet-Plus or PicoDet, whose boxes differ by half a cell; if it is "
            'NanoDet-Plus, say "nanodet"'
        )
    own_spec = scores.spec if len(shapes) > 1 else None
    logits = are_logits(look, scores.whole(look.first_run), own_spec)
    if logits is None:
        return "it has the shape of NanoDet, but its scores are neither probabilities nor logits"
    centres, sizes = grid_centres(look.image, strides, 0.0 if is_plus else 0.5)
    levels = [Level(scores=scores, sides=sides, centres=centres, strides=sizes)]
    decode = partial(
        decode_levels,
        levels=levels,
        size=(float(look.image.shape[2]), float(look.image.shape[1])),
        are_logits=logits,
    )

    def bind(limits: Limits) -> Decode:
        return lambda tensors: decode(tensors, limits=limits)

    class_count, bins = (part.whole(look.first_run).shape[1] for part in parts)
    return Found(
        kind="nanodet",
        task="detection",
        class_count=class_count,
        why=f"NanoDet{'-Plus' if is_plus else ''} because {shapes[0][1]} cells, the number a "
        f"{look.image.shape[2]}x{look.image.shape[1]} input gives at strides {strides}, have "
        f"{class_count} scores and 4 sides of {bins // 4} bins"
        + ("; scores are logits" if logits else ""),
        bind=bind,
        iou_threshold=0.6,  # nanodet_plus_head.py get_bboxes
    )


def _two_tensors(look: Look) -> tuple[Part, Part] | str | None:
    bins = [at for at, spec in enumerate(look.outputs) if spec.shape[2] in _side_channels()]
    if not bins:
        return None
    counts = known_class_counts(look)
    if len(bins) == 2:  # as many classes as bins: only their number, known otherwise, tells
        bins = [at for at in bins if look.outputs[1 - at].shape[2] in counts]
        if len(bins) != 1:
            return "it has the shape of NanoDet, but which output holds the boxes is not known"
    scores, sides = (
        Part(output=at, spec=look.outputs[at], axis=1) for at in (1 - bins[0], bins[0])
    )
    return scores, sides


def _one_tensor(look: Look) -> tuple[Part, Part] | None:
    spec = look.outputs[0]
    whole = Part(output=0, spec=spec, axis=1)
    counts = known_class_counts(look) or {COCO_CLASSES}
    first = whole.whole(look.first_run)
    cuts = [spec.shape[2] - sides for sides in _side_channels()]
    fitting = [cut for cut in cuts if cut > 0 and _is_cut(first, cut)]
    if not fitting and look.wanted.type == "nanodet":
        fitting = [cut for cut in cuts if cut in counts]
    if len(fitting) != 1:
        return None
    scores, sides = (
        Part(output=0, spec=spec, axis=1, channels=channels)
        for channels in (slice(0, fitting[0]), slice(fitting[0], None))
    )
    return scores, sides


def _is_cut(first: F32, cut: int) -> bool:
    """Return whether channels before the cut hold only probabilities, and those behind do not."""
    finite = np.where(np.isfinite(first), first, 0)
    outside = np.any((finite < -OUTSIDE) | (finite > 1 + OUTSIDE), axis=0)
    before, behind = outside[:cut], outside[cut:]
    return not before.any() and bool(behind[:1].all()) and float(np.mean(behind)) > 0.5


def _side_channels() -> tuple[int, ...]:
    return tuple(4 * bins for bins in BIN_COUNTS)
