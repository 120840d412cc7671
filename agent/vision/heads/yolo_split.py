"""YOLO exports with several outputs: boxes apart from scores, or raw feature maps.

Full-integer exports are cut so that boxes and scores have scales of their own: decoded boxes
and scores, or, before the decoding, distributions of the sides (16 bins each) and logits, for
all cells at once or per feature map. See `yolo_maps` for YOLOv5's maps with priors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from agent.vision.engines import Tensor, TensorSpec
from agent.vision.heads import Boxes, Decode, Found, Limits, Look, select_boxes
from agent.vision.heads.anchors import grid_centres, grid_sizes, strides_of
from agent.vision.heads.distribution import Level, Part, decode_levels
from agent.vision.heads.evidence import (
    COCO_CLASSES,
    BoxForm,
    are_logits,
    box_form,
    box_unit,
    known_class_counts,
)
from agent.vision.heads.quantized import best_classes, hold_numbers, sigmoid, to_real, to_stored
from agent.vision.heads.yolo import to_corners
from agent.vision.heads.yolo_maps import PRIORS, find_prior_maps, is_prior_map

# Channels of four sides of 16 bins: ultralytics/nn/modules/head.py Detect, reg_max.
SIDES = 64
MAP_STRIDES = (4, 8, 16, 32, 64)


def find_yolo_split(look: Look) -> Found | str | None:
    """Tell the parts by how many cells the input size implies and by their channels."""
    if look.wanted.type is None and look.file.exporter.get("task") not in (None, "detect"):
        return None
    ranks = {len(spec.shape) for spec in look.outputs}
    if any(spec.shape[:1] != (1,) for spec in look.outputs) or len(look.outputs) < 2:
        return None
    if not hold_numbers(look.outputs):
        return None
    if ranks == {3}:
        return _find_flat(look)
    if ranks <= {4, 5}:
        return _find_maps(look)
    return None


def _find_flat(look: Look) -> Found | str | None:
    """Two tensors over all cells: [1, n, 4 or 64] or [1, 4 or 64, n], and the scores alike."""
    found = [_flat_part(look, at) for at in range(len(look.outputs))]
    strides = {strides for _, strides in found}
    if len(strides) != 1 or None in strides or len(found) > 3:
        return None
    parts = [part for part, _ in found]
    if len(parts) == 3:  # some exports add the best score of each cell
        parts = [part for part in parts if _channels(part) > 1]
    if len(parts) != 2:
        return None
    roles = _told_apart(look, parts)
    if not isinstance(roles, tuple):
        return roles
    sides, scores = roles
    (cells_of,) = strides
    assert cells_of is not None
    if _channels(sides) == SIDES:
        centres, sizes = grid_centres(look.image, cells_of)
        level = Level(scores=scores, sides=sides, centres=centres, strides=sizes)
        return _found_levels(look, [level], "two outputs")
    return _find_decoded(look, sides, scores, cells_of)


def _flat_part(look: Look, at: int) -> tuple[Part, tuple[int, ...] | None]:
    spec = look.outputs[at]
    for axis in (1, 0):
        strides = strides_of(spec.shape[2 - axis], look.image)
        if strides is not None:
            return Part(output=at, spec=spec, axis=axis), strides
    return Part(output=at, spec=spec, axis=1), None


def _channels(part: Part) -> int:
    shape = part.spec.shape
    whole = shape[1] if part.axis == 0 else shape[-1]
    return len(range(whole)[part.channels])


def _told_apart(look: Look, parts: Sequence[Part]) -> tuple[Part, Part] | str | None:
    """Return (sides, scores) by their channels; 4 or 64 classes need their number to be known."""
    orders = [(parts[0], parts[1]), (parts[1], parts[0])]
    fitting = [(sides, scores) for sides, scores in orders if _channels(sides) in (4, SIDES)]
    if len(fitting) == 2:
        counts = known_class_counts(look)
        fitting = [roles for roles in fitting if _channels(roles[1]) in counts]
        if len(fitting) != 1:
            return "it has the shape of a split YOLO, but which output holds the boxes is not known"
    return fitting[0] if fitting else None


def _find_decoded(
    look: Look, sides: Part, scores: Part, strides: tuple[int, ...]
) -> Found | str | None:
    """Boxes that are decoded already, whose form the first run proves or the manifest says."""
    first = sides.whole(look.first_run)
    form: BoxForm | None = look.wanted.box_format or box_form(first, look.image, strides)
    if form is None:
        return (
            "it has the shape of a YOLO with boxes and scores apart, but how its boxes are "
            'written is not known: say "box_format" as well'
        )
    logits = are_logits(look, scores.whole(look.first_run), scores.spec)
    if logits is None:
        return "it has the shape of a split YOLO, but its scores are not scores"
    unit, unit_why = box_unit(look, sides.spec, first)
    bound = partial(
        decode_split, sides=sides, scores=scores, form=form, box_unit=unit, are_scores_logits=logits
    )

    def bind(limits: Limits) -> Decode:
        return lambda tensors: bound(tensors, limits=limits)

    return _found(
        look,
        _channels(scores),
        f"two outputs hold boxes and scores of {len(first)} cells; boxes {form} {unit_why}"
        + ("; scores are logits" if logits else ""),
        bind,
    )


def decode_split(
    tensors: Sequence[Tensor],
    *,
    sides: Part,
    scores: Part,
    form: BoxForm,
    box_unit: tuple[float, float],
    are_scores_logits: bool,
    limits: Limits,
) -> Boxes:
    """Decode boxes [1, n, 4] and scores [1, n, classes], or either with its axes swapped.

    box_unit: (width, height) that a box coordinate is divided by to be 0 to 1 of the input
    """
    spec = scores.spec
    lowest = to_stored(
        float(limits.thresholds.min()),
        spec.scale,
        spec.zero_point,
        spec.dtype,
        are_logits=are_scores_logits,
    )
    view = scores.view(tensors)
    cells, class_ids = best_classes(view, lowest, axis=scores.axis)
    stored = view[class_ids, cells] if scores.axis == 0 else view[cells, class_ids]
    best = to_real(stored, spec.scale, spec.zero_point)
    xyxy = to_corners(sides.real(tensors, cells), form, box_unit)
    return select_boxes(xyxy, sigmoid(best) if are_scores_logits else best, class_ids, limits)


def _find_maps(look: Look) -> Found | str | None:
    """Feature maps [1, h, w, channels] or [1, channels, h, w], one or two per stride."""
    if any(len(spec.shape) == 5 for spec in look.outputs):
        return find_prior_maps(look)
    by_stride: dict[int, list[Part]] = {}
    for at, spec in enumerate(look.outputs):
        placed = _placed(look, at, spec)
        if placed is None:
            return None
        by_stride.setdefault(placed[0], []).append(placed[1])
    strides = sorted(by_stride)
    groups = [by_stride[stride] for stride in strides]
    sizes = {len(group) for group in groups}
    channels = {tuple(sorted(_channels(part) for part in group)) for group in groups}
    if len(strides) < 2 or len(sizes) != 1 or len(channels) != 1:
        return None
    if sizes == {1}:
        return _find_whole_maps(look, strides, [group[0] for group in groups])
    if sizes != {2}:
        return None
    levels = []
    for stride, group in zip(strides, groups, strict=True):
        roles = _told_apart(look, group)
        if not isinstance(roles, tuple):
            return roles
        if _channels(roles[0]) != SIDES:
            return None
        levels.append(_level(look, stride, *roles))
    return _found_levels(look, levels, f"two feature maps at each of the strides {strides}")


def _find_whole_maps(look: Look, strides: list[int], maps: list[Part]) -> Found | str | None:
    """One map per stride: sides, then classes; or YOLOv5's, of perhaps as many channels."""
    channels = _channels(maps[0])
    counts = known_class_counts(look) or {COCO_CLASSES}
    is_told = look.wanted.type is not None
    may_have_priors = channels > PRIORS * 5 and not channels % PRIORS
    if channels - SIDES not in counts:
        has_priors = is_prior_map(channels, counts) or channels <= SIDES
        if may_have_priors and (has_priors or look.wanted.anchors is not None):
            return find_prior_maps(look)
        if channels <= SIDES:
            return None
        if not is_told:
            return (
                f"its feature maps of {channels} channels could be a YOLO's sides and "
                f'{channels - SIDES} classes; put the labels into the file, or say "yolo_split"'
            )
    levels = []
    for stride, part in zip(strides, maps, strict=True):
        sides, scores = (
            Part(output=part.output, spec=part.spec, axis=part.axis, channels=some)
            for some in (slice(0, SIDES), slice(SIDES, None))
        )
        levels.append(_level(look, stride, sides, scores))
    return _found_levels(look, levels, f"a feature map at each of the strides {strides}")


def _placed(look: Look, at: int, spec: TensorSpec) -> tuple[int, Part] | None:
    """Return the stride of a map and how it is read; None where its size is no map's."""
    for stride in MAP_STRIDES:
        (size,) = grid_sizes(look.image, (stride,))
        for axis, found in ((1, spec.shape[1:3]), (0, spec.shape[2:4])):
            if found == size:
                return stride, Part(output=at, spec=spec, axis=axis)
    return None


def _level(look: Look, stride: int, sides: Part, scores: Part) -> Level:
    centres, sizes = grid_centres(look.image, (stride,))
    return Level(scores=scores, sides=sides, centres=centres, strides=sizes)


def _found_levels(look: Look, levels: list[Level], what: str) -> Found | str:
    first = np.concatenate([level.scores.whole(look.first_run) for level in levels])
    logits = are_logits(look, first, levels[0].scores.spec if _is_alone(levels[0]) else None)
    if logits is None:
        return "it has the shape of a split YOLO, but its scores are not scores"
    size = (float(look.image.shape[2]), float(look.image.shape[1]))
    bound = partial(decode_levels, levels=levels, size=size, are_logits=logits)

    def bind(limits: Limits) -> Decode:
        return lambda tensors: bound(tensors, limits=limits)

    return _found(
        look,
        first.shape[1],
        f"{what} hold 4 sides of {SIDES // 4} bins and {first.shape[1]} "
        + ("logits" if logits else "scores"),
        bind,
    )


def _is_alone(level: Level) -> bool:
    return level.scores.output != level.sides.output


def _found(look: Look, class_count: int, what: str, bind: Callable[[Limits], Decode]) -> Found:
    return Found(
        kind="yolo_split",
        task="detection",
        class_count=class_count,
        why=f"YOLO in parts because {what}, as a {look.image.shape[2]}x{look.image.shape[1]} "
        "input gives",
        bind=bind,
        resize="letterbox",  # ultralytics/data/augment.py LetterBox
        normalization=(0.0, 255.0),  # ultralytics/engine/predictor.py preprocess: 0 to 1
    )
