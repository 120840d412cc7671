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


class HeadManifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the outputs are decoded; `None` is read from the model."""

    type: Literal["ssd", "yolov5", "yolov8", "classify"] | None = None
    score_threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    iou_threshold: Annotated[float, Meta(ge=0, le=1)] = 0.45
    max_detections: Annotated[int, Meta(ge=1, le=1000)] = 100
    box_units: Literal["normalized", "pixels"] | None = None
    logits: bool | None = None
    top_k: Annotated[int, Meta(ge=1, le=1000)] = 3


class InputManifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How pixels become the input; real = (pixel - mean) / std, per channel or one for all."""

    resize: Literal["stretch", "letterbox"] | None = None
    color: Literal["rgb", "bgr"] = "rgb"
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Meta(gt=0)], ...] | None = None


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
    task: Literal["detection", "classification"] | None = None
    head: HeadManifest = HeadManifest()
    input: InputManifest = InputManifest()
    model: FileName = "model.tflite"
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
