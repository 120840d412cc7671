"""`edge-agent bench heads`: what it costs to turn outputs into findings, per kind of head.

The outputs are made (see `outputs`), the decoders are those of the pipeline: recognised and
bound as for a model, with the thresholds that the kind has by default. Two times per row: the
decoder alone, and with it the way to the JSON of the result. The caches are warm here; after a
network has run they are not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from agent.bench import outputs
from agent.bench.bench import write_json
from agent.bench.outputs import Outputs
from agent.config import ModelConfig
from agent.contract.manifest import Manifest
from agent.contract.payloads import encode
from agent.errors import EXIT_FAILURE, EXIT_OK, AgentError, ModelError
from agent.vision.encode import findings_of
from agent.vision.engines import TensorSpec
from agent.vision.heads import Boxes, ClassMap, Decoded, Found, Head, Limits, Look, Poses, Scores
from agent.vision.heads.choose import FAMILIES, recognise
from agent.vision.model import UNKNOWN_CLASS_COUNT, Model, lowest_score
from agent.vision.preprocess import Transform, plan_input, preprocess
from agent.vision.tflite_file import TfliteFile

FRAME = (720, 1280, 3)
FEWEST_RUNS = 100  # below, the 99th percentile is the slowest
WARM_UP_RUNS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kind of head at a typical size."""

    kind: str
    name: str
    make: Callable[[], Outputs]


ROWS = (
    Row(kind="ssd", name="SSD, operator's 10 boxes", make=outputs.ssd),
    Row(kind="ssd_raw", name="SSD raw, 1917 x 91 uint8", make=outputs.ssd_raw),
    Row(kind="yolov8", name="YOLOv8 640 int8, typical",
        make=lambda: outputs.yolov8(objects=6, each=5)),
    Row(kind="yolov8", name="YOLOv8 640 int8, busy",
        make=lambda: outputs.yolov8(objects=60, each=10)),
    Row(kind="yolov8", name="YOLOv8 640 float, typical",
        make=lambda: outputs.yolov8(objects=6, each=5, stored=outputs.FLOAT)),
    Row(kind="yolov5", name="YOLOv5 640 int8, typical",
        make=lambda: outputs.yolov5(objects=6, each=15)),
    Row(kind="yolov5", name="YOLOv5 640 int8, busy",
        make=lambda: outputs.yolov5(objects=60, each=15)),
    Row(kind="yolo_segment", name="YOLO with masks 640 int8, boxes",
        make=lambda: outputs.yolo_segment(objects=6, each=5)),
    Row(kind="yolo_split", name="YOLO split 640 int8, boxes and scores",
        make=lambda: outputs.yolo_split(objects=6, each=5)),
    Row(kind="yolo_split", name="YOLO split 640 int8, six maps",
        make=lambda: outputs.yolo_maps(objects=6, each=5)),
    Row(kind="yolo_end_to_end", name="YOLO end to end, 300 rows", make=outputs.yolo_end_to_end),
    Row(kind="nanodet", name="NanoDet 320 uint8, 2100 cells",
        make=lambda: outputs.nanodet(objects=6, each=5)),
    Row(kind="blazeface", name="BlazeFace 128, 896 priors", make=outputs.blazeface),
    Row(kind="classify", name="classification, 1001 uint8", make=outputs.classes),
    Row(kind="movenet", name="MoveNet, one figure", make=outputs.movenet),
    Row(kind="posenet", name="PoseNet 31 x 41, three figures", make=outputs.posenet),
    Row(kind="yolo_pose", name="YOLO pose 640 int8",
        make=lambda: outputs.yolo_pose(objects=3, each=5)),
    Row(kind="segment", name="segmentation, 513 x 513 classes",
        make=lambda: outputs.segments(513, channels=1)),
    Row(kind="segment", name="segmentation, 257 x 257 x 21 scores",
        make=lambda: outputs.segments(257, channels=21)),
    Row(kind="raw", name="raw, 56 x 56 x 24 int8", make=outputs.raw),
)  # fmt: skip
HEADINGS = (
    "head", "candidates", "found", "decode p50", "p99 ms", "to JSON p50", "p99 ms", "runs",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stand:
    """What `findings_of` asks a model for."""

    head: Head
    engine: Any
    labels: tuple[str, ...]
    head_outputs: tuple[int, ...] = ()

    def label(self, class_id: int) -> str | None:
        return self.labels[class_id] if class_id < len(self.labels) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Engine:
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A row made ready: `decode` and `finish` are what is measured."""

    decode: Callable[[], Decoded]
    finish: Callable[[], bytes]
    candidates: int
    why: str


def run_heads(*, seconds: float, json_file: Path | None) -> int:
    """Measure every kind, print a table, and write the figures; 1 where a kind has none."""
    if not 0 < seconds <= 600:
        raise AgentError(f"--seconds {seconds:g}: must be above 0, up to 600")
    measured = [{"kind": row.kind, "name": row.name, **_measured(row, seconds)} for row in ROWS]
    measured += [
        {"kind": kind, "name": kind, "error": "no row of this bench is of this kind"}
        for kind in sorted(without_a_row(FAMILIES))
    ]
    for line in table(measured):
        print(line)
    if json_file is not None:
        write_json(json_file, {"seconds": seconds, "seed": outputs.SEED, "heads": measured})
    return EXIT_FAILURE if any("error" in one for one in measured) else EXIT_OK


def without_a_row(kinds: Sequence[str] | dict[str, Any]) -> set[str]:
    """Return the kinds of head that ROWS leave out."""
    return {*kinds, "raw"} - {row.kind for row in ROWS}


def _measured(row: Row, seconds: float) -> dict[str, Any]:
    try:
        bench = prepare(row)
    except ModelError as error:
        return {"error": str(error)}
    decode_ms = _times_ms(bench.decode, seconds / 2)
    finish_ms = _times_ms(bench.finish, seconds / 2)
    return {
        "candidates": bench.candidates,
        "found": count(bench.decode()),
        "decode_p50_ms": statistics.median(decode_ms),
        "decode_p99_ms": percentile_99(decode_ms),
        "to_json_p50_ms": statistics.median(finish_ms),
        "to_json_p99_ms": percentile_99(finish_ms),
        "runs": min(len(decode_ms), len(finish_ms)),
        "why": bench.why,
    }


def prepare(row: Row) -> Bench:
    """Recognise and bind the row's outputs as a model's are.

    Raises:
        ModelError: its head is not built in, or does not take these outputs.
    """
    if row.kind != "raw" and row.kind not in FAMILIES:
        raise ModelError(f"no head of the kind {row.kind} is built in")
    made = row.make()
    image = TensorSpec(
        index=0,
        name="image",
        shape=made.image,
        dtype=np.dtype(np.uint8),
        scale=0.0,
        zero_point=0,
    )
    found = recognise(
        Look(
            file=_file(made),
            image=image,
            outputs=made.specs,
            first_run=made.tensors,
            wanted=made.wanted,
            folder=Path(),
        )
    )
    decode, where = found.bind(_limits(found)), _transform(image, found)
    class_count = found.class_count or 0
    model = cast(
        "Model",
        _Stand(
            head=Head(
                kind=found.kind,
                task=found.task,
                class_count=found.class_count,
                why=found.why,
                decode=decode,
                keypoint_names=found.keypoint_names,
            ),
            engine=_Engine(outputs=made.specs),
            labels=tuple(f"class {number}" for number in range(class_count)),
        ),
    )

    def finish() -> bytes:
        return encode(findings_of(decode(made.tensors), where, model))

    return Bench(
        decode=lambda: decode(made.tensors),
        finish=finish,
        candidates=made.candidates,
        why=found.why,
    )


def _file(made: Outputs) -> TfliteFile:
    return TfliteFile(
        custom_ops=frozenset(),
        outputs=tuple(spec.index for spec in made.specs),
        producers={},
        ssd_outputs=made.ssd_outputs,
        ssd_classes=made.ssd_classes,
        mean=None,
        std=None,
        name=None,
        description=None,
        version=None,
    )


def _limits(found: Found) -> Limits:
    """Return the limits of a model without a manifest or configuration of its own."""
    lowest = lowest_score(ModelConfig(), Manifest(name="bench"), found.kind)
    head = Manifest(name="bench").head
    return Limits(
        thresholds=np.full(found.class_count or UNKNOWN_CLASS_COUNT, lowest, np.float32),
        iou_threshold=found.iou_threshold,
        max_detections=head.max_detections,
        is_agnostic=found.is_agnostic,
        top_k=head.top_k,
    )


def _transform(image: TensorSpec, found: Found) -> Transform:
    plan = plan_input(image, resize=found.resize, color="rgb", mean=None, std=None)
    return preprocess(np.zeros(FRAME, np.uint8), plan, plan.new_tensor())


def _times_ms(work: Callable[[], object], seconds: float) -> list[float]:
    for _ in range(WARM_UP_RUNS):
        work()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < FEWEST_RUNS or time.perf_counter() < until:
        started = time.perf_counter_ns()
        work()
        times.append((time.perf_counter_ns() - started) / 1e6)
    return times


def percentile_99(values: Sequence[float]) -> float:
    """Return the smallest value that 99 of 100 do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-99 * len(ordered) // 100) - 1)]


def count(decoded: Decoded) -> int:
    """Return how many findings there are: boxes, classes, figures, classes of a map, tensors."""
    if isinstance(decoded, (Boxes, Scores, Poses)):
        return len(decoded.scores)
    if isinstance(decoded, ClassMap):
        return len(np.unique(decoded.class_ids))
    return len(decoded.values)


def table(measured: Sequence[dict[str, Any]]) -> list[str]:
    """Return aligned lines; a kind without figures has its reason instead."""
    keys = ("decode_p50_ms", "decode_p99_ms", "to_json_p50_ms", "to_json_p99_ms")
    rows = [HEADINGS]
    rows += [
        (
            one["name"], str(one["candidates"]), str(one["found"]),
            *(f"{one[key]:.3f}" for key in keys), str(one["runs"]),
        )
        for one in measured
        if "error" not in one
    ]  # fmt: skip
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEADINGS))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]
    return lines + [f"{one['name']}: {one['error']}" for one in measured if "error" in one]
