"""`edge-agent model inspect`: what a model is, how it would be used, and how to say otherwise.

It loads the model just as the worker does, so what is printed is what would happen. Of a
model that is refused, all that can be known is printed with the reason.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import msgspec
import numpy as np
from msgspec import Struct

from agent.config import ModelConfig
from agent.contract.manifest import FileName, HeadType, Manifest
from agent.errors import EXIT_OK, ModelError
from agent.vision.accelerate import open_wanted
from agent.vision.child import may_crash, run_in_child, serve
from agent.vision.engines import Engine, TensorSpec
from agent.vision.model import Model, build_model, lowest_score
from agent.vision.model_files import ModelFiles, read_model
from agent.vision.tflite_file import TfliteFile, parse_tflite

RUNS, LONGEST_S = 20, 3.0
LABELS_SHOWN = 5
# Heads whose boxes or figures are suppressed in the model, or that need no suppression.
SUPPRESSED_KINDS = frozenset({"ssd", "yolo_end_to_end", "movenet", "posenet"})

Json = dict[str, Any]


class Request(Struct, frozen=True, kw_only=True):
    """One call of `run_inspect`, as a child process is told it."""

    config: ModelConfig
    as_json: bool
    shown: str = ""  # for a folder that nobody knows: what it was unpacked from
    bundle: Json | None = None  # what that says of itself


def run_inspect(
    config: ModelConfig, *, as_json: bool, shown: str = "", bundle: Json | None = None
) -> int:
    """Print what a model is; return the exit code. See `Request`."""
    request = Request(config=config, as_json=as_json, shown=shown, bundle=bundle)
    if not may_crash(config.runtime):
        return inspect_here(request)
    try:
        return run_in_child(__name__, request, model=config.path)
    except ModelError as error:  # it took the child with it, so only the file can speak
        known, _, _ = _of_file(config)
        return _refuse(known, error, request)


def inspect_here(request: Request) -> int:
    """Do what was asked in this process; see `run_inspect`."""
    config = request.config
    known, files, file = _of_file(config)
    try:
        files = files or read_model(config.path)
        model = build_model(files, config)
    except ModelError as error:
        if files is not None and file is not None:
            known |= _tensors_of_refused(files, config)
        return _refuse(known, error, request)
    file = file or parse_tflite(files.plain.data, where=files.where)
    known |= _tensors(model.engine)
    document = _named(request, {"model": known, **_use(config, files, file, model)})
    if request.as_json:
        _print_json(document)
    else:
        _print_lines(_lines(document))
    return EXIT_OK


def _refuse(known: Json, error: ModelError, request: Request) -> int:
    reason = str(error)
    if known["path"] not in reason:
        reason = f"{known['path']}: {reason}"
    document = _named(request, {"model": known, "refused": reason})
    if request.as_json:
        _print_json(document)
    else:
        _print_lines(_file_lines(document["model"]))
        print(f"edge-agent: refused: {document['refused']}", file=sys.stderr)
    return error.exit_code


def _named(request: Request, document: Json) -> Json:
    """Put the bundle's name where that of the folder is that it was unpacked into."""

    def named(value: Any) -> Any:  # noqa: ANN401 # JSON
        if isinstance(value, str):
            return value.replace(request.config.path, request.shown)
        if isinstance(value, dict):
            return {key: named(item) for key, item in value.items()}
        return [named(item) for item in value] if isinstance(value, list) else value

    return document if request.bundle is None else {"bundle": request.bundle, **named(document)}


def _of_file(config: ModelConfig) -> tuple[Json, ModelFiles | None, TfliteFile | None]:
    """Return what the file itself says, as far as it can be read."""
    known: Json = {"path": config.path}
    try:
        files = read_model(config.path)
    except ModelError:
        return known, None, None
    manifest = files.manifest
    known |= {
        "path": files.where,
        "size_bytes": len(files.plain.data),
        "sha256": files.plain.sha256,
        "name": manifest.name,
        "version": manifest.version,
        "license": manifest.license,
        "provenance": manifest.provenance,
    }
    try:
        file = parse_tflite(files.plain.data, where=files.where)
    except ModelError:
        return known, files, None
    known |= {
        "version": manifest.version or file.version,
        "own_name": file.name,
        "description": file.description,
        "license": manifest.license or _text(file.exporter.get("license")),
        "provenance": manifest.provenance or _exported_by(file),
        "custom_operators": sorted(file.custom_ops),
    }
    return known, files, file


def _exported_by(file: TfliteFile) -> Json:
    """Return who exported the model, where the exporter left notes."""
    notes = {key: _text(file.exporter.get(key)) for key in ("author", "date", "docs")}
    return {key: text for key, text in notes.items() if text}


def _text(value: object) -> str | None:
    return value[:200] if isinstance(value, str) else None


def _tensors(engine: Engine) -> Json:
    return {"inputs": _specs(engine.inputs), "outputs": _specs(engine.outputs)}


def _specs(specs: Sequence[TensorSpec]) -> list[Json]:
    return [
        {
            "name": spec.name,
            "shape": list(spec.shape),
            "dtype": str(spec.dtype),
            "scale": spec.scale,
            "zero_point": spec.zero_point,
        }
        for spec in specs
    ]


def _tensors_of_refused(files: ModelFiles, config: ModelConfig) -> Json:
    """Return the tensors where a runtime takes the model and only we cannot use it."""
    try:
        engine = open_wanted(files, config).engine
    except ModelError:
        return {}
    return _tensors(engine)


def _use(config: ModelConfig, files: ModelFiles, file: TfliteFile, model: Model) -> Json:
    """Return how the agent would run this model."""
    engine, plan, head = model.engine, model.plan, model.head
    score = lowest_score(config, files.manifest, head.kind)
    return {
        "runtime": engine.runtime,
        "accelerator": {
            "wanted": config.accelerator,
            "used": engine.accelerator,
            "operators": _operators(engine),
            "reason": model.reason,
        },
        "threads": engine.threads,
        "invoke_ms": _median_invoke_ms(model),
        "head": {
            "kind": head.kind,
            "task": head.task,
            "why": head.why,
            "keypoints": list(head.keypoint_names),
            "other_types": [kind for kind in get_args(HeadType) if kind != head.kind],
        },
        "class_count": head.class_count or len(model.labels) or None,
        "labels": {
            "count": len(model.labels),
            "source": _labels_source(config, files, file, model.labels),
            "first": list(model.labels[:LABELS_SHOWN]),
        },
        "input_handling": {
            "resize": plan.resize,
            "width": plan.width,
            "height": plan.height,
            "color": plan.color if plan.channels == 3 else "grey",
            "pixels": _pixels(files.manifest, file, model),
        },
        "thresholds": _thresholds(model, score),
        "notes": list(model.notes),
        "manifest_example": manifest_example(files, file, model, score),
    }


def _operators(engine: Engine) -> Json | None:
    """Return how much of the model the accelerator runs; None where none is used."""
    if engine.delegated is None:
        return None
    accelerated, total = engine.delegated
    return {"accelerated": accelerated, "total": total}


def _thresholds(model: Model, score: float) -> Json:
    """Return the limits that this task has; None where the model settles it itself."""
    limits = model.limits
    assert limits is not None, "build_model settles them"
    if model.head.task == "classification":
        return {"score": score, "top_k": limits.top_k}
    if model.head.task == "segmentation":
        is_mask = model.head.class_count == 2 and model.engine.outputs[0].shape[-1] != 2
        return {"score": score if is_mask else None}  # where classes compete, the best one wins
    if model.head.task == "raw":
        return {}
    suppresses = model.head.kind not in SUPPRESSED_KINDS
    return {
        "score": score,
        "iou": limits.iou_threshold if suppresses else None,
        "max_detections": limits.max_detections,
    }


def _median_invoke_ms(model: Model) -> float:
    """Return the median of RUNS runs on grey; fewer where the model is slow."""
    tensor = np.full(model.plan.shape, 64, model.plan.dtype)
    model.engine.load_input(tensor, model.image_input)
    times_ms: list[float] = []
    ends = time.monotonic() + LONGEST_S
    while len(times_ms) < RUNS and (not times_ms or time.monotonic() < ends):
        started = time.monotonic_ns()
        model.engine.invoke()
        times_ms.append((time.monotonic_ns() - started) / 1e6)
    return round(statistics.median(times_ms), 3)


def _labels_source(
    config: ModelConfig, files: ModelFiles, file: TfliteFile, labels: tuple[str, ...]
) -> str | None:
    """Say where `read_labels` found these."""
    if not labels:
        return None
    if config.labels_file:
        return config.labels_file
    if files.manifest.labels is not None:
        return str(files.folder / files.manifest.labels)
    for name, lines in file.label_files.items():
        own = tuple(line.strip() for line in lines)
        if labels in (own, own[1:]):  # the first may be the background's
            return f"{name} inside the model"
    if file.exporter.get("names"):
        return "the exporter's notes inside the model"
    return "what is known of this family"


def _pixels(manifest: Manifest, file: TfliteFile, model: Model) -> str:
    """Say in words how a pixel's byte becomes a number of the input."""
    plan = model.plan
    if plan.flip_sign:
        return "int8: pixels minus 128"
    if plan.table is None:
        return f"{plan.dtype} pixels as they are"
    if manifest.input.mean is not None:
        source = "mean and std of the manifest"
    elif file.mean is not None:
        source = "mean and std of the model's metadata"
    else:
        source = "as its family was trained"
    low, high = plan.table.min(), plan.table.max()
    return f"{plan.dtype}: pixels 0 to 255 become {low:g} to {high:g}, {source}"


def manifest_example(files: ModelFiles, file: TfliteFile, model: Model, score: float) -> Json:
    """Return a manifest that says what was found, to be changed where it is wrong."""
    head = files.manifest.head
    usual = {item.name: item.default for item in msgspec.structs.fields(head)}
    told = {
        key: value
        for key, value in msgspec.structs.asdict(head).items()
        if value not in (usual[key], None, {})
    }
    normalization = _normalization(files.manifest, file, model)
    asked = files.manifest.input
    sizes = {"width": asked.width, "height": asked.height}
    given = {side: size for side, size in sizes.items() if size is not None}
    return {
        "schema": files.manifest.schema,
        "name": model.identity.name,
        "model": _file_name(files.where),
        **({"labels": files.manifest.labels} if files.manifest.labels else {}),
        "head": {**model.head.read_as, **told, "type": model.head.kind, "score_threshold": score},
        "input": {"resize": model.plan.resize, "color": model.plan.color, **given, **normalization},
        **({"custom_ops": sorted(file.custom_ops)} if file.custom_ops else {}),
    }


def _normalization(manifest: Manifest, file: TfliteFile, model: Model) -> Json:
    """Return mean and std as they are used; nothing where bytes go in as they are."""
    mean, std, table = manifest.input.mean, manifest.input.std, model.plan.table
    if mean is None and model.plan.dtype == np.float32 and table is not None:
        mean, std = file.mean, file.std
        if mean is None:  # the family's, read back from what it does to pixels
            step = (float(table[0, 255, 0]) - float(table[0, 0, 0])) / 255
            mean, std = (round(-float(table[0, 0, 0]) / step, 3),), (round(1 / step, 3),)
    return {} if mean is None or std is None else {"mean": list(mean), "std": list(std)}


def _file_name(path: str) -> str:
    """Return the model's file name, or the usual one where a manifest may not say that."""
    try:
        return msgspec.convert(path.rsplit("/", 1)[-1], FileName)
    except msgspec.ValidationError:
        return "model.tflite"


def _print_json(document: Json) -> None:
    print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def _print_lines(lines: Iterator[tuple[str, str]]) -> None:
    for name, text in lines:
        print(f"{name:<12} {text}")


def _file_lines(model: Json) -> Iterator[tuple[str, str]]:
    if "sha256" not in model:
        return
    yield "model", " ".join(filter(None, [model["name"], model["version"]]))
    if model.get("own_name"):
        yield "", ": ".join(filter(None, [model["own_name"], model["description"]]))
    yield "file", f"{model['path']}, {model['size_bytes'] / 1e6:.1f} MB"
    yield "sha256", model["sha256"]
    yield "license", model["license"] or "not said"
    if not model["provenance"]:
        yield "provenance", "not said"
    for row, (key, value) in enumerate(model["provenance"].items()):
        text = "; ".join(map(str, value)) if isinstance(value, list) else str(value)
        yield "" if row else "provenance", f"{key}: {text}"
    for kind in ("input", "output"):
        for spec in model.get(f"{kind}s", ()):
            quantized = f", scale {spec['scale']:g}, zero point {spec['zero_point']}"
            quantized = quantized if spec["scale"] else ""
            yield kind, f"{spec['name']}: {spec['dtype']} {spec['shape']}{quantized}"
    if "custom_operators" in model:
        yield "custom ops", ", ".join(model["custom_operators"]) or "none"


def _lines(document: Json) -> Iterator[tuple[str, str]]:
    yield from _file_lines(document["model"])
    used, labels, pixels = document["accelerator"], document["labels"], document["input_handling"]
    yield "runtime", document["runtime"]
    why = f"; {used['reason']}" if used["reason"] else ""
    part = used["operators"]
    taken = f", {part['accelerated']} of {part['total']} operators" if part else ""
    yield "accelerator", f"{used['used']}{taken} (wanted: {used['wanted']}{why})"
    yield "speed", f"{document['invoke_ms']:g} ms per run (median), threads: {document['threads']}"
    head = document["head"]
    yield "task", head["task"]
    yield "head", head["why"]
    if head["keypoints"]:
        yield "points", f"{len(head['keypoints'])}: {', '.join(head['keypoints'])}"
    yield "classes", str(document["class_count"] or "not known")
    first = "; ".join(labels["first"])  # labels have commas of their own
    more = "; …" if labels["count"] > len(labels["first"]) else ""
    yield "labels", f"{labels['count']} from {labels['source']}: {first}{more}" if first else "none"
    size = f"{pixels['width']}x{pixels['height']}"
    yield "pixels", f"{pixels['resize']} to {size}, {pixels['color']}; {pixels['pixels']}"
    limits = {key: value for key, value in document["thresholds"].items() if value is not None}
    yield "thresholds", ", ".join(f"{key} {value:g}" for key, value in limits.items()) or "none"
    for note in document["notes"]:
        yield "note", note
    yield "override", "put this beside the model as manifest.json, change it, and give the folder"
    yield "", '(a list of your own: add "labels": "labels.txt"; other types of head:'
    yield "", f"{', '.join(head['other_types'])}):"
    example = msgspec.json.format(msgspec.json.encode(document["manifest_example"]), indent=2)
    for line in example.decode().splitlines():
        yield "", line


if __name__ == "__main__":
    sys.exit(serve(Request, inspect_here))
