"""What an operator should know of a model and its settings though it runs: for status and check.

A setting that does nothing is said, as is a label that no class has: both look like a model
that finds nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence

from agent.config import CameraConfig, ModelConfig
from agent.vision.heads import Found, Task

# Keys of [model] -> the field of `Limits` that a family may ignore.
LIMIT_KEYS = {
    "score_threshold": "thresholds",
    "max_detections": "max_detections",
    "iou_threshold": "iou_threshold",
    "nms": "is_agnostic",
}
# Keys of [[camera]] that ask where something is or how large; tasks whose findings have no place.
PLACE_KEYS = ("zones", "masks", "min_area", "max_area")
WITHOUT_PLACE: dict[Task, str] = {
    "classification": "classes of a whole picture have no place in it",
    "segmentation": "regions are published as they are",
    "raw": "raw outputs are published as they are",
}


def model_notes(config: ModelConfig, found: Found, labels: Sequence[str]) -> tuple[str, ...]:
    """Return what in the model's settings has no effect, and why."""
    return (
        *_unknown_labels("model.labels", config.labels, labels),
        *_unknown_labels("model.deny", config.deny, labels),
        *_idle_limits(config, found),
        *_stage_notes(config, found, labels),
    )


def _unknown_labels(key: str, wanted: Iterable[str], labels: Sequence[str]) -> Iterator[str]:
    for label in wanted:
        if label not in labels:
            close = difflib.get_close_matches(label, labels, n=1)
            hint = f"; did you mean `{close[0]}`?" if close else ""
            yield f"{key}.{label}: the model has no such label{hint}"


def _idle_limits(config: ModelConfig, found: Found) -> Iterator[str]:
    # Where boxes arrive suppressed class by class, they may still suppress each other across.
    is_agnostic = config.nms == "agnostic" and "is_agnostic" not in found.ignores
    for key, limit in LIMIT_KEYS.items():
        if key == "iou_threshold" and is_agnostic:
            continue
        if getattr(config, key) is not None and limit in found.ignores:
            yield f"model.{key}: has no effect on a model of this kind ({found.kind})"


def _stage_notes(config: ModelConfig, found: Found, labels: Sequence[str]) -> Iterator[str]:
    for stage in config.then:
        if found.task != "detection":
            yield (
                f"[models.{stage.model}]: left out: a second stage looks at boxes, and the task of "
                f"this model is {found.task}"
            )
        yield from _unknown_labels(f"model.then.{stage.model}", stage.labels, labels)


def camera_notes(cameras: Iterable[CameraConfig], task: Task) -> Iterator[str]:
    """Yield which filters of cameras do nothing for a task's findings."""
    plain = CameraConfig()
    for camera in cameras:
        keys = PLACE_KEYS if task in WITHOUT_PLACE else ()
        if task in ("segmentation", "raw"):
            keys = (*keys, "confirm")
        set_keys = [key for key in keys if getattr(camera, key) != getattr(plain, key)]
        if set_keys:
            yield (
                f"camera {camera.name}: {', '.join(set_keys)} "
                f"{'has' if len(set_keys) == 1 else 'have'} no effect: {WITHOUT_PLACE[task]}"
            )
