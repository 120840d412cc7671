"""From decoded outputs to the JSON that subscribers get, in pixels of the captured frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import UNSET, Struct, UnsetType

from agent.config import Publish
from agent.contract.payloads import (
    MAX_TENSOR_NAME,
    MAX_TENSOR_VALUES,
    CascadeRun,
    Classification,
    Detection,
    FrameSize,
    Keypoint,
    ModelIdentity,
    Pose,
    Region,
    Result,
    StageTimes,
    TensorStatistics,
    encode,
)
from agent.link import FrameTimes
from agent.vision.handoff import Frame
from agent.vision.heads import Boxes, ClassMap, Decoded, Poses, Scores, Tensors
from agent.vision.model import Model
from agent.vision.preprocess import Transform, boxes_to_frame
from agent.vision.regions import regions_of

MAX_TENSORS = 64  # outputs described where nobody reads them
# A side that is shorter is published as none: boxes have tenths of a pixel.
SHORTEST_SIDE_PX = 0.1
# Points that the model itself hardly believes in lie anywhere; MoveNet's model card names 0.3.
LOWEST_POINT_SCORE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Monotonic stamps of one frame, nanoseconds."""

    taken_ns: int
    prepared_ns: int
    invoke_started_ns: int
    invoked_ns: int
    cascade_ns: int = 0  # spent in second stages


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who speaks: the same for every result of a worker."""

    device: str
    boot_id: str
    model: ModelIdentity
    accelerator: str


class Findings(Struct, frozen=True, kw_only=True):
    """What one frame's result says; one field is set, by the task."""

    detections: list[Detection] | UnsetType = UNSET
    classes: list[Classification] | UnsetType = UNSET
    keypoints: list[Pose] | UnsetType = UNSET
    regions: list[Region] | UnsetType = UNSET
    tensors: list[TensorStatistics] | UnsetType = UNSET
    cascade: list[CascadeRun] | UnsetType = UNSET

    def class_ids(self) -> tuple[int, ...]:
        """Return the classes found, sorted."""
        found = self.detections or self.classes or self.keypoints or self.regions or ()
        return tuple(sorted(item.class_id for item in found))


# What was found, its float32[n, 4] boxes in pixels of the frame if it has any -> the rows to keep.
Keep = Callable[
    [Boxes | Poses | Scores, npt.NDArray[np.float32] | None, Transform], npt.NDArray[np.intp]
]


def findings_of(
    decoded: Decoded, where: Transform, model: Model, keep: Keep | None = None
) -> Findings:
    """Return what was decoded, in pixels of the frame; `keep` is the camera's filter."""
    if isinstance(decoded, Boxes):
        xyxy = boxes_to_frame(decoded.xyxy_norm, where)
        # What lies in the letterbox's border alone is nowhere in the frame.
        is_seen = (xyxy[:, 2:] - xyxy[:, :2] >= SHORTEST_SIDE_PX).all(axis=1)
        if not is_seen.all():
            rows = np.flatnonzero(is_seen)
            decoded, xyxy = chosen(decoded, rows), xyxy[rows]
        if keep is not None:
            rows = keep(decoded, xyxy, where)
            decoded, xyxy = chosen(decoded, rows), xyxy[rows]
        return Findings(detections=detections_of(decoded, xyxy, where, model))
    if isinstance(decoded, Scores):
        if keep is not None:
            rows = keep(decoded, None, where)
            decoded = Scores(scores=decoded.scores[rows], class_ids=decoded.class_ids[rows])
        return Findings(classes=classes_of(decoded, model))
    if isinstance(decoded, Poses):
        boxes = None
        if decoded.xyxy_norm is not None:
            boxes = boxes_to_frame(decoded.xyxy_norm, where)
        figures = poses_of(decoded, boxes, where, model)
        if keep is not None:
            places = _bounds(figures) if boxes is None else boxes
            figures = [figures[row] for row in keep(decoded, places, where).tolist()]
        return Findings(keypoints=figures)
    if isinstance(decoded, ClassMap):
        return Findings(regions=regions_of(decoded, where, model.labels))
    return Findings(tensors=statistics_of(decoded, model))


def _bounds(figures: list[Pose]) -> npt.NDArray[np.float32]:
    """Return float32[n, 4] boxes around the believed points of figures; NaN where none is."""
    rows = np.full((len(figures), 4), np.nan, np.float32)
    for row, figure in zip(rows, figures, strict=True):
        points = [(point.x, point.y) for point in figure.points if is_believed(point)]
        if points:
            row[:2], row[2:] = np.min(points, axis=0), np.max(points, axis=0)
    return rows


def is_believed(point: Keypoint) -> bool:
    """Return whether a point counts for where a figure is."""
    return point.score is None or point.score >= LOWEST_POINT_SCORE


def chosen(boxes: Boxes, rows: npt.NDArray[np.intp]) -> Boxes:
    """Return some of the boxes."""
    points = boxes.keypoints
    return Boxes(
        xyxy_norm=boxes.xyxy_norm[rows],
        scores=boxes.scores[rows],
        class_ids=boxes.class_ids[rows],
        keypoints=None if points is None else points[rows],
    )


def detections_of(
    boxes: Boxes, xyxy: npt.NDArray[np.float32], where: Transform, model: Model
) -> list[Detection]:
    """Return the payload's list; xyxy float32[n, 4] pixels of the frame, as `boxes`' rows."""
    points: Sequence[list[Keypoint] | UnsetType] = [UNSET] * len(xyxy)
    if boxes.keypoints is not None:
        points = points_of(boxes.keypoints, where, model.head.keypoint_names)
    return [
        Detection(
            label=model.label(class_id),
            class_id=class_id,
            score=round(score, 4),
            box=_box(box),
            keypoints=keypoints,
        )
        for class_id, score, box, keypoints in zip(
            boxes.class_ids.tolist(), boxes.scores.tolist(), xyxy.tolist(), points, strict=True
        )
    ]


def _box(box: list[float]) -> tuple[float, float, float, float]:
    return round(box[0], 1), round(box[1], 1), round(box[2], 1), round(box[3], 1)


def poses_of(
    poses: Poses, xyxy: npt.NDArray[np.float32] | None, where: Transform, model: Model
) -> list[Pose]:
    """Return the payload's list; xyxy float32[n, 4] pixels of the frame, where figures have one."""
    boxes = [None] * len(poses.scores) if xyxy is None else [_box(box) for box in xyxy.tolist()]
    points = points_of(poses.keypoints, where, model.head.keypoint_names)
    class_ids = [0] * len(boxes) if poses.class_ids is None else poses.class_ids.tolist()
    return [
        Pose(
            label=model.label(class_id),
            class_id=class_id,
            score=round(score, 4),
            box=box,
            points=row,
        )
        for class_id, score, box, row in zip(
            class_ids, poses.scores.tolist(), boxes, points, strict=True
        )
    ]


def points_of(
    points: npt.NDArray[np.float32], where: Transform, names: Sequence[str]
) -> list[list[Keypoint]]:
    """Return float32[n, k, 3] points of the input as points of the frame, clipped to it."""
    xy = points[:, :, :2] * where.box_scale[:2] + where.box_shift[:2]
    xy = np.clip(xy, 0, where.box_limits[:2])
    labels = names if len(names) == points.shape[1] else [None] * points.shape[1]
    return [
        [
            Keypoint(
                label=label,
                score=None if math.isnan(score) else round(min(max(score, 0.0), 1.0), 4),
                x=round(x, 1),
                y=round(y, 1),
            )
            for label, (x, y), score in zip(labels, row, scores, strict=True)
        ]
        for row, scores in zip(xy.tolist(), points[:, :, 2].tolist(), strict=True)
    ]


def classes_of(scores: Scores, model: Model) -> list[Classification]:
    """Return the payload's list."""
    return [
        Classification(label=model.label(class_id), class_id=class_id, score=round(score, 4))
        for class_id, score in zip(scores.class_ids.tolist(), scores.scores.tolist(), strict=True)
    ]


def statistics_of(tensors: Tensors, model: Model) -> list[TensorStatistics]:
    """Return the payload's list; costs a few passes over each tensor."""
    stored = [model.engine.outputs[at].dtype for at in model.head_outputs] or [
        spec.dtype for spec in model.engine.outputs
    ]
    return [
        _statistics(name, values, str(dtype))
        for (name, values), dtype in list(zip(tensors.values, stored, strict=True))[:MAX_TENSORS]
    ]


def _statistics(name: str, values: npt.NDArray[Any], dtype: str) -> TensorStatistics:
    numbers = values.reshape(-1) if values.dtype.kind in "biuf" else np.empty(0)
    is_finite = np.isfinite(numbers)
    finite = numbers if is_finite.all() else numbers[is_finite]
    has_any, has_few = finite.size > 0, 0 < numbers.size <= MAX_TENSOR_VALUES
    return TensorStatistics(
        name=name[:MAX_TENSOR_NAME],
        shape=list(values.shape),
        dtype=dtype,
        min=_number(finite.min()) if has_any else None,
        max=_number(finite.max()) if has_any else None,
        mean=_number(finite.mean(dtype=np.float64)) if has_any else None,
        not_finite=numbers.size - finite.size,
        values=[_number(value) for value in numbers] if has_few else UNSET,
    )


def _number(value: np.generic) -> float | None:
    """Return a number with the digits that a float32 has; None where it is none."""
    number = float(value)
    return float(f"{number:.9g}") if math.isfinite(number) else None


@dataclass(slots=True)
class CameraStream:
    """What one camera's results carry from one to the next; owned by the postprocess thread."""

    name: str
    publish: Publish
    next_seq: int
    dropped: int = 0
    still: int = 0
    last_labels: tuple[int, ...] | None = None
    processed: int = 0
    lost: int = 0  # frames that a new model failed on, since the start
    second: int = 0  # runs of second stages
    last_frame_id: int = 0

    def lose(self, dropped: int, still: int) -> None:
        """Count a frame that has no result, and those that were skipped before it."""
        self.dropped += dropped + 1
        self.still += still
        self.lost += 1

    def wants(self, class_ids: tuple[int, ...]) -> bool:
        """Return whether a frame with these classes is published under this camera's policy."""
        has_changed = class_ids != self.last_labels
        self.last_labels = class_ids
        if self.publish == "all":
            return True
        return bool(class_ids) if self.publish == "detections" else has_changed

    def encode(
        self,
        frame: Frame,
        frame_size: tuple[int, int],
        findings: Findings,
        times: FrameTimes,
        origin: Origin,
        *,
        clock_synced: bool | None,
    ) -> tuple[int, bytes]:
        """Return (seq, JSON) of the next result of this stream."""
        seq, self.next_seq = self.next_seq, self.next_seq + 1
        dropped, self.dropped = self.dropped, 0
        still, self.still = self.still, 0
        result = Result(
            device=origin.device,
            camera=self.name,
            boot_id=origin.boot_id,
            seq=seq,
            frame_id=frame.frame_id,
            captured_at=round(frame.captured_at, 6),
            clock_synced=clock_synced,
            latency_ms=_ms(times.total),
            dropped=dropped,
            still=still,
            frame=FrameSize(width=frame_size[0], height=frame_size[1]),
            model=origin.model,
            accelerator=origin.accelerator,
            stage_ms=StageTimes(
                queue=_ms(times.queue),
                preprocess=_ms(times.preprocess),
                inference=_ms(times.inference),
                postprocess=_ms(times.postprocess),
                cascade=_ms(times.cascade) if times.cascade else UNSET,
            ),
            detections=findings.detections,
            classes=findings.classes,
            keypoints=findings.keypoints,
            regions=findings.regions,
            tensors=findings.tensors,
            cascade=findings.cascade,
        )
        return seq, encode(result)


def _ms(ns: int) -> float:
    return round(ns / 1e6, 3)
