"""The manifest beside a model: what its tensors mean, which files belong to it, where it is from.

Strict JSON into typed records; unknown keys are refused, so that a misspelt `letterbox`
is an error and not a silently stretched image.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from agent.errors import ModelError

MAX_MANIFEST_BYTES = 1 << 20
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
# What a head may be called; each is a module of agent/vision/heads or part of one.
HeadType = Literal[
    "ssd",
    "ssd_raw",
    "yolov5",
    "yolov8",
    "yolo_segment",
    "yolo_split",
    "yolo_end_to_end",
    "nanodet",
    "blazeface",
    "classify",
    "movenet",
    "posenet",
    "yolo_pose",
    "segment",
    "raw",
]


class HeadManifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the outputs are decoded; `None` is read from the model."""

    type: HeadType | None = None
    score_threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    iou_threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    nms: Literal["per_class", "agnostic"] | None = None
    max_detections: Annotated[int, Meta(ge=1, le=1000)] = 100
    box_units: Literal["normalized", "pixels"] | None = None
    box_format: Literal["xywh", "xyxy", "yxyx"] | None = None  # xywh: of the centre
    logits: bool | None = None  # whether scores still need a sigmoid or softmax
    top_k: Annotated[int, Meta(ge=1, le=1000)] = 3
    # Prior boxes as a .npy file. SSD: float[n, 4] ymin, xmin, ymax, xmax, 0 to 1 of the input;
    # YOLO feature maps: float[maps, priors, 2] width, height in pixels, smallest stride first.
    anchors: FileName | None = None
    # Recurrent state: input name -> name of the output that is fed back into it.
    state: dict[str, str] = field(default_factory=dict)


class InputManifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How pixels become the input; real = (pixel - mean) / std, per channel or one for all."""

    resize: Literal["stretch", "letterbox"] | None = None
    color: Literal["rgb", "bgr"] = "rgb"
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Meta(gt=0)], ...] | None = None
    # Pixels; for models that leave them open, such as MoveNet MultiPose.
    width: Annotated[int, Meta(ge=1, le=4096)] | None = None
    height: Annotated[int, Meta(ge=1, le=4096)] | None = None


class FileEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of the bundle."""

    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    size: Annotated[int, Meta(ge=0)]


class Golden(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Inputs with expected outputs, and how far a runtime may differ."""

    file: FileName
    score_tolerance: float
    iou: float


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """manifest.json."""

    schema: Literal["edge-agent/manifest/1"] = "edge-agent/manifest/1"
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    version: Annotated[str, Meta(pattern=r"^[A-Za-z0-9.+_-]{1,64}$")] | None = None
    release_counter: Annotated[int, Meta(ge=0)] = 0
    security_floor: Annotated[int, Meta(ge=0)] = 0
    task: Literal["detection", "classification", "pose", "segmentation", "raw"] | None = None
    head: HeadManifest = HeadManifest()
    input: InputManifest = InputManifest()
    model: FileName = "model.tflite"
    edgetpu: FileName | None = None  # the same network compiled for the Edge TPU
    labels: FileName | None = None
    custom_ops: tuple[str, ...] = ()
    files: dict[str, FileEntry] = field(default_factory=dict)
    golden: Golden | None = None
    license: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


def parse_manifest(data: bytes, *, where: str) -> Manifest:
    """Parse manifest.json.

    Raises:
        ModelError: naming the key that is wrong.
    """
    try:
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.ValidationError, msgspec.DecodeError, RecursionError) as error:
        raise ModelError(f"{where}: {error}") from error
