"""What models' outputs look like, made without any model: a few objects on a plain background.

Every function returns an `Outputs` as a finder sees it: tensors with their specifications, and
how many candidates of them pass the usual threshold. Objects are found by several neighbouring
candidates each, as real detectors find them, so suppression has its real work. The same seed
gives the same numbers on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.contract.manifest import HeadManifest
from agent.vision.engines import Tensor, TensorSpec
from agent.vision.heads.anchors import grid_centres, tf_ssd_anchors
from agent.vision.heads.blazeface import prior_centres
from agent.vision.heads.posenet import LIMBS

F32 = npt.NDArray[np.float32]
Stored = tuple[float, int, type[Any]]  # scale, zero point, type

SEED = 20240229
STRIDES = (8, 16, 32)
COCO = 80
# Stored types as exporters choose them.
SCORES_U8: Stored = (1 / 256, 0, np.uint8)
FRACTIONS_I8: Stored = (1.1 / 255, -128, np.int8)
LOGITS_I8: Stored = (0.1, 64, np.int8)
FLOAT: Stored = (0.0, 0, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """One model's outputs for one picture."""

    image: tuple[int, int, int, int]
    tensors: tuple[Tensor, ...]
    specs: tuple[TensorSpec, ...]
    candidates: int
    wanted: HeadManifest
    ssd_outputs: tuple[int, ...] = ()
    ssd_classes: int | None = None


@dataclass(slots=True)
class _Builder:
    """Collects tensors in the order of a model's outputs."""

    side: tuple[int, int]  # height and width of the input
    tensors: list[Tensor] = field(default_factory=list)
    specs: list[TensorSpec] = field(default_factory=list)

    def add(self, real: npt.NDArray[Any], stored: Stored, name: str = "") -> None:
        """Store real numbers as an exporter would."""
        scale, zero_point, kind = stored
        if scale:
            limits = np.iinfo(kind)
            real = np.clip(np.rint(real / scale) + zero_point, limits.min, limits.max)
        tensor = np.ascontiguousarray(real.astype(kind))
        number = len(self.specs) + 1
        self.tensors.append(tensor)
        self.specs.append(
            TensorSpec(
                index=number,
                name=name or f"output{number}",
                shape=tensor.shape,
                dtype=tensor.dtype,
                scale=scale,
                zero_point=zero_point,
            )
        )

    def done(
        self,
        candidates: int,
        wanted: HeadManifest,
        *,
        ssd_outputs: tuple[int, ...] = (),
        ssd_classes: int | None = None,
    ) -> Outputs:
        """Return what was collected."""
        return Outputs(
            image=(1, *self.side, 3),
            tensors=tuple(self.tensors),
            specs=tuple(self.specs),
            candidates=candidates,
            wanted=wanted,
            ssd_outputs=ssd_outputs,
            ssd_classes=ssd_classes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One candidate per row: xyxy float32[n, 4] px, scores float32[n, classes], who passes."""

    xyxy: F32
    scores: F32
    passing: npt.NDArray[np.intp]


def scene(centres: F32, side: int, *, classes: int, objects: int, each: int) -> Scene:
    """Place objects on a square input; the `each` nearest candidates find each of them.

    centres: float32[n, 2] x, y in px of where candidates lie
    """
    random = np.random.default_rng(SEED)
    count = len(centres)
    scores = np.minimum(random.exponential(0.008, (count, classes)), 0.3).astype(np.float32)
    half = random.uniform(4, 24, (count, 2)).astype(np.float32)
    middles = centres + random.normal(0, 1, (count, 2)).astype(np.float32)
    taken = np.zeros(count, bool)
    for _ in range(objects):
        place = random.uniform(0.1 * side, 0.9 * side, 2).astype(np.float32)
        size = random.uniform(0.05 * side, 0.25 * side, 2).astype(np.float32)
        distance = np.hypot(*(centres - place).T) + np.where(taken, 1e6, 0)
        nearest = np.argsort(distance, kind="stable")[:each]
        taken[nearest] = True
        middles[nearest] = place + random.normal(0, 1.5, (each, 2))
        half[nearest] = size / 2 * random.uniform(0.9, 1.1, (each, 2))
        scores[nearest, random.integers(classes)] = random.uniform(0.55, 0.95, each)
    xyxy = np.concatenate([middles - half, middles + half], axis=1).astype(np.float32)
    return Scene(xyxy=xyxy, scores=scores, passing=np.flatnonzero(taken))


def _cells(side: int) -> tuple[F32, F32]:
    """Return x, y in px and stride of every cell of the usual three maps."""
    spec = TensorSpec(
        index=0,
        name="image",
        shape=(1, side, side, 3),
        dtype=np.dtype(np.uint8),
        scale=0.0,
        zero_point=0,
    )
    return grid_centres(spec, STRIDES)


def _xywh(xyxy: F32) -> F32:
    return np.concatenate([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], axis=1)


def ssd(*, objects: int = 3, rows: int = 10) -> Outputs:
    """TFLite_Detection_PostProcess: boxes, classes, scores, count."""
    random = np.random.default_rng(SEED)
    build = _Builder((300, 300))
    low = random.uniform(0, 0.5, (rows, 2))
    boxes = np.concatenate([low, low + random.uniform(0.1, 0.4, (rows, 2))], axis=1)
    scores = np.sort(random.uniform(0.2, 0.4, rows))[::-1]
    scores[:objects] += 0.5
    for real in (boxes[None], random.integers(0, 90, rows)[None], scores[None], np.array([rows])):
        build.add(real, FLOAT)
    return build.done(objects, HeadManifest(type="ssd"), ssd_outputs=(1, 2, 3, 4), ssd_classes=90)


def ssd_raw(*, objects: int = 8) -> Outputs:
    """SSD MobileNet at 300: 1917 offsets and scores of 90 classes behind a background."""
    side, each = 300, 6
    anchors = tf_ssd_anchors()  # centre y, centre x, height, width
    found = scene(anchors[:, [1, 0]] * side, side, classes=90, objects=objects, each=each)
    x, y, width, height = (_xywh(found.xyxy) / side).T
    centre_y, centre_x, tall, wide = anchors.T
    offsets = np.stack(
        [
            (y - centre_y) / tall * 10,
            (x - centre_x) / wide * 10,
            np.log(height / tall) * 5,
            np.log(width / wide) * 5,
        ],
        axis=1,
    )
    background = 1 - found.scores.max(axis=1, keepdims=True)
    build = _Builder((side, side))
    build.add(offsets[None], (0.1, 128, np.uint8), "raw_outputs/box_encodings")
    build.add(np.concatenate([background, found.scores], axis=1)[None], SCORES_U8, "class")
    return build.done(len(found.passing), HeadManifest(type="ssd_raw"))


def yolov8(*, objects: int, each: int, stored: Stored = FRACTIONS_I8) -> Outputs:
    """YOLOv8 and later at 640: [1, 84, 8400]."""
    side = 640
    found = scene(_cells(side)[0], side, classes=COCO, objects=objects, each=each)
    rows = np.concatenate([_xywh(found.xyxy) / side, found.scores], axis=1)
    build = _Builder((side, side))
    build.add(rows.T[None], stored)
    wanted = HeadManifest(type="yolov8", box_units="normalized", box_format="xywh", logits=False)
    return build.done(len(found.passing), wanted)


def yolo_segment(*, objects: int, each: int) -> Outputs:
    """YOLOv8 with masks at 640: [1, 116, 8400], and prototypes that are not read."""
    side, masks = 640, 32
    found = scene(_cells(side)[0], side, classes=COCO, objects=objects, each=each)
    weights = np.zeros((len(found.scores), masks))
    rows = np.concatenate([_xywh(found.xyxy) / side, found.scores, weights], axis=1)
    build = _Builder((side, side))
    build.add(rows.T[None], FRACTIONS_I8)
    build.add(np.zeros((1, side // 4, side // 4, masks)), FRACTIONS_I8)
    wanted = HeadManifest(
        type="yolo_segment", box_units="normalized", box_format="xywh", logits=False
    )
    return build.done(len(found.passing), wanted)


def yolov5(*, objects: int, each: int) -> Outputs:
    """YOLOv5 at 640: [1, 25200, 85], an objectness before the classes."""
    side = 640
    centres = np.repeat(_cells(side)[0], 3, axis=0)
    found = scene(centres, side, classes=COCO, objects=objects, each=each)
    objectness = found.scores.max(axis=1, keepdims=True)
    scores = found.scores.copy()
    scores[found.passing] = np.where(scores[found.passing] > 0.5, 0.97, scores[found.passing])
    build = _Builder((side, side))
    rows = np.concatenate([_xywh(found.xyxy) / side, objectness, scores], axis=1)
    build.add(rows[None], FRACTIONS_I8)
    wanted = HeadManifest(type="yolov5", box_units="normalized", box_format="xywh", logits=False)
    passing = int((objectness[:, 0] * scores.max(axis=1) >= 0.5).sum())
    return build.done(passing, wanted)


def yolo_split(*, objects: int, each: int) -> Outputs:
    """A full-integer YOLOv8 cut before its last concatenation: boxes and scores apart."""
    side = 640
    found = scene(_cells(side)[0], side, classes=COCO, objects=objects, each=each)
    build = _Builder((side, side))
    build.add((_xywh(found.xyxy) / side).T[None], FRACTIONS_I8)
    build.add(found.scores.T[None], (1 / 256, -128, np.int8))
    wanted = HeadManifest(type="yolo_split", box_units="normalized", box_format="xywh")
    return build.done(len(found.passing), wanted)


def yolo_maps(*, objects: int, each: int) -> Outputs:
    """The same cut before the decoding: sides of 16 bins and logits, two maps per stride."""
    side = 640
    centres, strides = _cells(side)
    found = scene(centres, side, classes=COCO, objects=objects, each=each)
    bins = _bins(found.xyxy, centres, strides, 16)
    logits = _logit(found.scores)
    build = _Builder((side, side))
    start = 0
    for stride in STRIDES:
        cells = (side // stride) ** 2
        for real in (bins, logits):
            part = real[start : start + cells]
            build.add(part.reshape(1, side // stride, side // stride, -1), LOGITS_I8)
        start += cells
    return build.done(len(found.passing), HeadManifest(type="yolo_split", logits=True))


def yolo_end_to_end(*, objects: int = 10) -> Outputs:
    """YOLOv10 and later: 300 rows of corners, score and class."""
    side = 640
    random = np.random.default_rng(SEED)
    rows = np.zeros((300, 6))
    low = random.uniform(0, 0.7 * side, (objects, 2))
    rows[:objects, :2] = low
    rows[:objects, 2:4] = low + random.uniform(20, 0.3 * side, (objects, 2))
    rows[:objects, 4] = np.sort(random.uniform(0.55, 0.95, objects))[::-1]
    rows[:objects, 5] = random.integers(0, COCO, objects)
    build = _Builder((side, side))
    build.add(rows[None], FLOAT)
    return build.done(objects, HeadManifest(type="yolo_end_to_end", box_units="pixels"))


def nanodet(*, objects: int, each: int) -> Outputs:
    """NanoDet-g at 320: 2100 cells, scores and sides of 11 bins."""
    side = 320
    centres, strides = _cells(side)
    found = scene(centres, side, classes=COCO, objects=objects, each=each)
    build = _Builder((side, side))
    build.add(found.scores[None], SCORES_U8, "scores")
    build.add(_bins(found.xyxy, centres, strides, 11)[None], (0.12, 170, np.uint8), "dist")
    return build.done(len(found.passing), HeadManifest(type="nanodet"))


def _bins(xyxy: F32, centres: F32, strides: F32, bins: int) -> F32:
    """Return float32[n, 4 * bins] logits, a peak of each side at its distance in cells."""
    sides = np.concatenate([centres - xyxy[:, :2], xyxy[:, 2:] - centres], axis=1)
    cells = np.clip(sides / strides[:, None], 0, bins - 1)
    logits = 8 - 3 * np.abs(np.arange(bins) - cells[:, :, None])
    clipped: F32 = np.maximum(logits, -12).reshape(len(xyxy), -1).astype(np.float32)
    return clipped


def _logit(scores: F32) -> F32:
    sound = np.clip(scores, 1e-4, 1 - 1e-4)
    logits: F32 = np.log(sound / (1 - sound)).astype(np.float32)
    return logits


def blazeface(*, objects: int = 3, each: int = 8) -> Outputs:
    """BlazeFace at 128: 896 priors, a box and six points each, and a logit."""
    side = 128
    priors = prior_centres(((16, 2), (8, 6))) * side
    found = scene(priors, side, classes=1, objects=objects, each=each)
    boxes = _xywh(found.xyxy)
    boxes[:, :2] -= priors
    points = np.tile(boxes[:, :2], 6) + np.linspace(-5, 5, 12)
    build = _Builder((side, side))
    build.add(np.concatenate([boxes, points], axis=1)[None], FLOAT, "regressors")
    build.add(_logit(found.scores)[None], FLOAT, "classificators")
    return build.done(len(found.passing), HeadManifest(type="blazeface", logits=True))


def classes() -> Outputs:
    """ImageNet with a background: 1001 scores, quantized."""
    random = np.random.default_rng(SEED)
    scores = np.minimum(random.exponential(0.001, 1001), 0.02)
    scores[[285, 282, 287]] = (0.71, 0.14, 0.06)
    build = _Builder((224, 224))
    build.add(scores[None], SCORES_U8)
    return build.done(1001, HeadManifest(type="classify", logits=False))


def movenet() -> Outputs:
    """MoveNet: one figure of 17 points."""
    random = np.random.default_rng(SEED)
    build = _Builder((192, 192))
    build.add(random.uniform(0.3, 0.9, (1, 1, 17, 3)), FLOAT)
    return build.done(1, HeadManifest(type="movenet"))


def yolo_pose(*, objects: int, each: int) -> Outputs:
    """YOLO pose at 640: a box, one class and 17 points in each of 8400 columns."""
    side = 640
    found = scene(_cells(side)[0], side, classes=1, objects=objects, each=each)
    boxes = _xywh(found.xyxy) / side
    steps = np.linspace(-0.4, 0.4, 17, dtype=np.float32)
    x, y = (boxes[:, [at]] + boxes[:, [at + 2]] * steps for at in (0, 1))
    points = np.stack([x, y, np.full_like(x, 0.8)], axis=2).reshape(len(boxes), -1)
    build = _Builder((side, side))
    build.add(np.concatenate([boxes, found.scores, points], axis=1).T[None], FRACTIONS_I8)
    return build.done(
        len(found.passing), HeadManifest(type="yolo_pose", box_units="normalized", logits=False)
    )


def posenet(*, figures: int = 3) -> Outputs:
    """PoseNet at 481x641, stride 16: heat maps, offsets, and displacements both ways."""
    rows, columns, stride = 31, 41, 16
    heat = np.full((rows, columns, 17), -6.0)
    forward, backward = (np.zeros((rows, columns, 2 * len(LIMBS))) for _ in range(2))
    for figure in range(figures):
        # Seventeen cells of their own around each figure's middle.
        names = np.arange(17)
        place = np.stack([6 + 2 * (names // 2), 6 + 13 * figure + 4 * (names % 2)], axis=1)
        heat[place[:, 0], place[:, 1], names] = 3.0
        for edge, (parent, child) in enumerate(LIMBS):
            way = (place[child] - place[parent]) * stride
            forward[place[parent, 0], place[parent, 1], edge :: len(LIMBS)] = way
            backward[place[child, 0], place[child, 1], edge :: len(LIMBS)] = -way
    build = _Builder(((rows - 1) * stride + 1, (columns - 1) * stride + 1))
    build.add(heat[None], FLOAT, "heatmap")
    build.add(np.zeros((1, rows, columns, 34)), FLOAT, "offsets")
    build.add(forward[None], FLOAT, "displacement_fwd")
    build.add(backward[None], FLOAT, "displacement_bwd")
    return build.done(17 * figures, HeadManifest(type="posenet", logits=True))


def segments(side: int, *, channels: int) -> Outputs:
    """A class per pixel, or with several channels the scores of each class: three blobs."""
    y, x = np.mgrid[:side, :side] / side
    numbers = np.zeros((side, side), np.int64)
    for number, (row, column, size) in (
        (15, (0.5, 0.3, 0.2)),
        (12, (0.6, 0.7, 0.15)),
        (3, (0.2, 0.8, 0.1)),
    ):
        ripple = 0.02 * np.sin(40 * x) * np.cos(33 * y)
        numbers[np.hypot(y - row, x - column) + ripple < size] = number
    build = _Builder((side, side))
    if channels == 1:
        build.add(numbers[None], (0.0, 0, np.int64), "ArgMax")
    else:
        noise = np.random.default_rng(SEED).uniform(-4, 0, (side, side, channels))
        noise[np.arange(side)[:, None], np.arange(side), numbers] = 5
        build.add(noise[None], FLOAT, "logits")
    return build.done(side * side, HeadManifest(type="segment"))


def raw(shape: Sequence[int] = (1, 56, 56, 24)) -> Outputs:
    """A tensor that no head reads."""
    build = _Builder((224, 224))
    build.add(
        np.random.default_rng(SEED).normal(0, 1, tuple(shape)), (0.05, 0, np.int8), "features"
    )
    return build.done(0, HeadManifest(type="raw"))
