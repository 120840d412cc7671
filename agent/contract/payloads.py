"""The payloads, as types: the one source of the JSON, the JSON Schemas and the README's table.

Units are in the names, times are Unix seconds, unknown is `null` and never 0.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

CameraState = Literal["online", "offline", "starting", "frozen"]
GapReason = Literal["queue_full", "too_large", "refused", "damaged", "restart"]
Count = Annotated[int, Meta(ge=0)]
Milliseconds = Annotated[float, Meta(ge=0)]
Score = Annotated[float, Meta(ge=0, le=1)]
UnixSeconds = Annotated[float, Meta(description="Unix time in seconds")]
# What bounds a result's size, whatever a model gives.
MAX_POLYGONS, MAX_POLYGON_POINTS = 8, 64  # of one class, the largest pieces; simplified to this
MAX_TENSOR_VALUES, MAX_TENSOR_NAME = 16, 128
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class ModelIdentity(Struct, frozen=True, kw_only=True):
    """Which model, down to its bytes."""

    name: str
    version: str | None
    sha256: Sha256


class FrameSize(Struct, frozen=True, kw_only=True):
    """Size of the captured frame in pixels."""

    width: Count
    height: Count


class StageTimes(Struct, frozen=True, kw_only=True):
    """Where one frame's time went, in milliseconds on the monotonic clock; adds up to latency_ms.

    `queue` is all waiting, before preprocess and before inference; `inference` includes copying
    the tensors; `postprocess` runs to the encoded result.
    """

    queue: Milliseconds
    preprocess: Milliseconds
    inference: Milliseconds
    postprocess: Milliseconds
    cascade: Annotated[Milliseconds, Meta(description="second stages")] | UnsetType = UNSET


Box = Annotated[
    tuple[float, float, float, float],
    Meta(description="[x_min, y_min, x_max, y_max] in pixels of the captured frame"),
]


class Classification(Struct, frozen=True, kw_only=True):
    """One class of a whole frame, or of one box of it."""

    label: str | None
    class_id: Count
    score: Score


class Keypoint(Struct, frozen=True, kw_only=True):
    """One point of a figure or an object, in pixels of the captured frame and inside it."""

    label: Annotated[str | None, Meta(description="such as left_knee; the order is the model's")]
    score: Annotated[Score | None, Meta(description="null where the model gives none")]
    x: float
    y: float


class Detection(Struct, frozen=True, kw_only=True):
    """One object; `classes` and `classified_by` come from a second stage that looked at it."""

    label: str | None
    class_id: Count
    score: Score
    box: Box
    keypoints: list[Keypoint] | UnsetType = UNSET
    classes: list[Classification] | UnsetType = UNSET
    classified_by: Annotated[str, Meta(description="its name in [models]")] | UnsetType = UNSET


class Pose(Struct, frozen=True, kw_only=True):
    """One figure; every one has all points, the hidden ones with low scores.

    Where a model scores points alone, the figure's score is their mean; where it gives no box,
    `box` is null.
    """

    label: str | None
    class_id: Count
    score: Score
    box: Box | None
    points: list[Keypoint]


class Region(Struct, frozen=True, kw_only=True):
    """One class of a segmented frame: its share, and outlines of its largest pieces.

    The background is no region. Polygons are outer outlines, simplified: they run around holes,
    which `area` does not count.
    """

    label: str | None
    class_id: Count
    area: Annotated[float, Meta(ge=0, le=1, description="share of the frame, all pieces")]
    polygons: Annotated[
        list[
            Annotated[list[tuple[float, float]], Meta(min_length=3, max_length=MAX_POLYGON_POINTS)]
        ],
        Meta(max_length=MAX_POLYGONS, description="[x, y] in pixels, largest piece first"),
    ]


class TensorStatistics(Struct, frozen=True, kw_only=True):
    """One output that no decoder reads; numbers are dequantized, `null` where none is finite."""

    name: Annotated[str, Meta(max_length=MAX_TENSOR_NAME)]
    shape: list[Count]
    dtype: Annotated[str, Meta(description="as stored, such as int8")]
    min: float | None
    max: float | None
    mean: float | None
    not_finite: Count
    values: (
        Annotated[
            list[float | None],
            Meta(max_length=MAX_TENSOR_VALUES, description="of tensors with few elements"),
        ]
        | UnsetType
    ) = UNSET


class CascadeRun(Struct, frozen=True, kw_only=True):
    """What one second stage did for one frame."""

    name: Annotated[str, Meta(description="its name in [models]")]
    model: ModelIdentity
    accelerator: str
    crops: Count
    skipped: Annotated[
        int, Meta(ge=0, description="boxes not looked at: over max_crops or budget_ms, or too thin")
    ]


class Result(Struct, frozen=True, kw_only=True):
    """One processed frame; `(device, boot_id, camera, seq)` identifies it for ever.

    `seq` goes on over restarts, so that a repeated message is known by `(device, camera, seq)`
    alone as long as the board keeps its state; it has no holes but those a gap message names.

    `dropped` counts the frames of this camera that were captured but not processed since
    the result before, `still` those that a motion gate found unchanged: frame_id grows by
    `dropped` + `still` + 1 from one processed frame to the next.
    """

    schema: Literal["edge-agent/detections/1"] = "edge-agent/detections/1"
    device: str
    camera: str
    boot_id: Annotated[str, Meta(description="one run of the daemon")]
    seq: Annotated[int, Meta(ge=1)]
    frame_id: Annotated[int, Meta(ge=1)]
    captured_at: UnixSeconds
    clock_synced: bool | None
    clock_repaired: (
        Annotated[
            bool, Meta(description="captured_at was corrected when the clock was synchronized")
        ]
        | UnsetType
    ) = UNSET
    latency_ms: Annotated[float, Meta(ge=0, description="capture to encoded result")]
    dropped: Count
    frame: FrameSize
    model: ModelIdentity
    accelerator: Annotated[str, Meta(description="what really ran, such as cpu:xnnpack")]
    stage_ms: StageTimes
    still: Annotated[
        int, Meta(ge=0, description="frames since the result before in which nothing moved")
    ] = 0
    detections: list[Detection] | UnsetType = UNSET
    classes: list[Classification] | UnsetType = UNSET
    keypoints: list[Pose] | UnsetType = UNSET
    regions: list[Region] | UnsetType = UNSET
    tensors: list[TensorStatistics] | UnsetType = UNSET
    cascade: list[CascadeRun] | UnsetType = UNSET


# Task -> the list that a result of such a model has, empty where nothing was found.
FINDINGS = {
    "detection": "detections",
    "classification": "classes",
    "pose": "keypoints",
    "segmentation": "regions",
    "raw": "tensors",
}


class Accelerator(Struct, frozen=True, kw_only=True):
    """What was asked for, what runs, and why they differ."""

    wanted: str
    used: str | None
    reason: str | None


class MeasuredRun(Struct, frozen=True, kw_only=True):
    """How the interpreter runs: measured on this board, or told by the configuration."""

    runtime: str
    threads: int
    xnnpack: bool
    invoke_ms: Annotated[float, Meta(description="median, measured when it was chosen")] | None


class EngineStatus(Struct, frozen=True, kw_only=True):
    """One model at work for some of the cameras."""

    name: Annotated[str, Meta(description="in [models]; empty for [model]")]
    cameras: list[str]
    model: ModelIdentity | None
    task: str | None
    head: str | None
    accelerator: Accelerator
    run: MeasuredRun | None


class Board(Struct, frozen=True, kw_only=True):
    """What the agent runs on."""

    model: str | None
    machine: str
    python: str
    runtime: str | None


class CameraSummary(Struct, frozen=True, kw_only=True):
    """A camera's line in the status."""

    name: str
    state: CameraState
    reason: str | None


class Problem(Struct, frozen=True, kw_only=True):
    """Something that is wrong now; the list is empty on a healthy board.

    Those that a measurement raised say its value and the limit that it passed, both in `unit`, and
    end only when it is well back inside.
    """

    code: Annotated[
        str,
        Meta(
            description="model, camera.<name>, worker, accelerator, config, outbox or needs_reboot"
        ),
    ]
    message: str
    since: UnixSeconds
    value: float | None = None
    limit: float | None = None
    unit: str | None = None
    remedy: Annotated[str | None, Meta(description="what to do")] = None


class Status(Struct, frozen=True, kw_only=True):
    """Retained: what this board is and how it fares."""

    schema: Literal["edge-agent/status/1"] = "edge-agent/status/1"
    device: str
    boot_id: str
    agent_version: str
    started_at: UnixSeconds
    board: Board
    groups: tuple[str, ...]
    model: ModelIdentity | None
    task: str | None
    accelerator: Accelerator
    engines: list[EngineStatus]
    cameras: list[CameraSummary]
    health: list[Problem]
    clock_synced: bool | None


class CameraStatus(Struct, frozen=True, kw_only=True):
    """Retained: one camera."""

    schema: Literal["edge-agent/camera-status/1"] = "edge-agent/camera-status/1"
    device: str
    camera: str
    state: CameraState
    since: UnixSeconds
    reason: str | None
    source: Annotated[str, Meta(description="without any password")]
    width: Count | None
    height: Count | None
    fps: float | None


class Counts(Struct, frozen=True, kw_only=True):
    """Retained: how many a camera sees now; null while it is not online.

    Of each label the most in any one frame of the last two seconds, so that a frame that misses
    somebody does not count, and of labels seen before also the 0. What nothing has looked at since,
    as with a motion gate, stays as it was seen.
    """

    schema: Literal["edge-agent/counts/1"] = "edge-agent/counts/1"
    device: str
    camera: str
    at: UnixSeconds
    total: Annotated[Count | None, Meta(description="of all labels")]
    counts: Annotated[
        dict[str, Count] | None,
        Meta(description="of each label; class_<id> without one; at most 32 of a camera"),
    ]


class Gap(Struct, frozen=True, kw_only=True):
    """Records that were given up: every `seq` from `from_seq` to `to_seq` of the stream.

    For the reason `restart` those of them that never came were lost when the agent or its board
    ended suddenly, or were never used: how many is unknown, and `count` null.
    """

    schema: Literal["edge-agent/gap/1"] = "edge-agent/gap/1"
    device: str
    boot_id: str
    stream: Annotated[str, Meta(description="the topic below the device, camera/<name>/detections")]
    from_seq: Count
    to_seq: Count
    count: Count | None
    reason: GapReason


encode = msgspec.json.Encoder().encode
