"""manifest.json: what a model is, which files belong to it, where it is from, where it may run.

It lies beside a model in its folder, and comes first in a bundle, which is such a folder in one
file. Unknown keys are refused, so that a misspelt `letterbox` is an error and not a silently
stretched image.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
# Of a board's id, such as `rpi-*`; `*` and `?` only, as fnmatch(3) has them.
BoardGlob = Annotated[str, Meta(pattern=r"^[A-Za-z0-9*?._-]{1,64}\Z")]
AgentVersion = Annotated[str, Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9}){0,5}\Z")]
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
    """One file of the folder."""

    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    size: Annotated[int, Meta(ge=0)]


class Golden(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Inputs with expected outputs, and how far a runtime may differ."""

    file: FileName
    score_tolerance: float
    iou: float


class Budget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a board may have to spend on a model; more is refused there."""

    p95_ms: Annotated[float, Meta(gt=0, le=60_000, description="95 % of runs take no longer")]
    rss_mib: Annotated[
        float, Meta(gt=0, le=1 << 20, description="of the process that runs the model alone")
    ]


class TensorManifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One input or output; 0 in `shape` is a size that the model leaves open."""

    name: Annotated[str, Meta(max_length=256)]
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=2**31)], ...], Meta(max_length=16)]
    dtype: Annotated[str, Meta(pattern=r"^[a-z0-9]{1,16}\Z")]


class TensorsManifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of them, in the model's order."""

    inputs: Annotated[tuple[TensorManifest, ...], Meta(max_length=64)]
    outputs: Annotated[tuple[TensorManifest, ...], Meta(max_length=64)]


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """manifest.json of a folder; what a bundle's must say besides is in `agent.ota.manifest`."""

    schema: Literal["edge-agent/manifest/1"] = "edge-agent/manifest/1"
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
    version: Annotated[str, Meta(pattern=r"^[A-Za-z0-9.+_-]{1,64}\Z")] | None = None
    # Over the air: the order of releases, and what a board with this one never goes below again.
    release_counter: Annotated[int, Meta(ge=0, le=2**53)] = 0
    security_floor: Annotated[int, Meta(ge=0, le=2**53)] = 0
    boards: tuple[BoardGlob, ...] = ()  # that it is for; none: all
    min_agent: AgentVersion | None = None
    task: Literal["detection", "classification", "pose", "segmentation", "raw"] | None = None
    head: HeadManifest = HeadManifest()
    input: InputManifest = InputManifest()
    tensors: TensorsManifest | None = None
    model: FileName = "model.tflite"
    edgetpu: FileName | None = None  # the same network compiled for the Edge TPU
    labels: FileName | None = None
    custom_ops: tuple[str, ...] = ()
    golden: Golden | None = None
    budget: dict[BoardGlob, Budget] = field(default_factory=dict)
    license: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    files: dict[str, FileEntry] = field(default_factory=dict)
