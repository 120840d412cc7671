"""From decoded boxes or scores to the JSON that subscribers get."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.config import Publish
from agent.contract.payloads import (
    Classification,
    Detection,
    FrameSize,
    ModelIdentity,
    Result,
    StageTimes,
    encode,
)
from agent.vision.handoff import Frame
from agent.vision.heads import Boxes, Scores, Task
from agent.vision.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Monotonic stamps of one frame, nanoseconds."""

    taken_ns: int
    prepared_ns: int
    invoke_started_ns: int
    invoked_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who speaks: the same for every result of a worker."""

    device: str
    boot_id: str
    model: ModelIdentity
    accelerator: str
    task: Task


def detections_of(boxes: Boxes, xyxy: npt.NDArray[np.float32], model: Model) -> list[Detection]:
    """Return the payload's list; xyxy float32[n, 4] pixels of the frame, as `boxes`' rows."""
    return [
        Detection(
            label=model.label(class_id),
            class_id=class_id,
            score=round(score, 4),
            box=(round(box[0], 1), round(box[1], 1), round(box[2], 1), round(box[3], 1)),
        )
        for class_id, score, box in zip(
            boxes.class_ids.tolist(), boxes.scores.tolist(), xyxy.tolist(), strict=True
        )
    ]


def classes_of(scores: Scores, model: Model) -> list[Classification]:
    """Return the payload's list."""
    return [
        Classification(label=model.label(class_id), class_id=class_id, score=round(score, 4))
        for class_id, score in zip(scores.class_ids.tolist(), scores.scores.tolist(), strict=True)
    ]


@dataclass(slots=True)
class CameraStream:
    """What one camera's results carry from one to the next; owned by the postprocess thread."""

    name: str
    publish: Publish
    next_seq: int
    dropped: int = 0
    last_labels: tuple[int, ...] | None = None
    processed: int = 0
    last_frame_id: int = 0

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
        found: list[Detection] | list[Classification],
        timing: Timing,
        origin: Origin,
        *,
        clock_synced: bool | None,
    ) -> tuple[int, bytes]:
        """Return (seq, JSON) of the next result of this stream."""
        seq, self.next_seq = self.next_seq, self.next_seq + 1
        dropped, self.dropped = self.dropped, 0
        done_ns = time.monotonic_ns()
        result = Result(
            device=origin.device,
            camera=self.name,
            boot_id=origin.boot_id,
            seq=seq,
            frame_id=frame.frame_id,
            captured_at=round(frame.captured_at, 6),
            clock_synced=clock_synced,
            latency_ms=_ms(frame.captured_ns, done_ns),
            dropped=dropped,
            frame=FrameSize(width=frame_size[0], height=frame_size[1]),
            model=origin.model,
            accelerator=origin.accelerator,
            stage_ms=StageTimes(
                queue=_ms(
                    frame.captured_ns + timing.prepared_ns,
                    timing.taken_ns + timing.invoke_started_ns,
                ),
                preprocess=_ms(timing.taken_ns, timing.prepared_ns),
                inference=_ms(timing.invoke_started_ns, timing.invoked_ns),
                postprocess=_ms(timing.invoked_ns, done_ns),
            ),
            **{"detections" if origin.task == "detection" else "classes": found},  # type: ignore[arg-type]
        )
        return seq, encode(result)


def _ms(start_ns: int, end_ns: int) -> float:
    return round((end_ns - start_ns) / 1e6, 3)
