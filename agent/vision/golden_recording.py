"""Makes a golden file: pictures, and what a model answers to them, for `agent.vision.golden`.

What is promised must hold on every board, and kernels round differently. So whatever can run the
model here (each runtime, with XNNPACK and without) answers as well, and the narrowest tolerance
that all of them keep is promised.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from agent.config import ModelConfig
from agent.contract.manifest import Golden
from agent.errors import ModelError
from agent.vision.engines import Tensor, installed_runtimes
from agent.vision.golden import (
    MAX_FILE_BYTES,
    MAX_PICTURES,
    Arrays,
    answers,
    differences,
    read_golden,
    real_numbers,
)
from agent.vision.heads import Boxes, Scores
from agent.vision.model import Model, build_model, lowest_score
from agent.vision.model_files import ModelFiles, read_model
from agent.vision.preprocess import U8Image, preprocess

FILE = "golden.npz"
# Of scores, and of the range of other outputs; and the overlap of boxes. The first is what the
# shipped model needs on the kernels there are, with a margin.
STEPS = ((0.08, 0.85), (0.15, 0.7), (0.25, 0.5))
# Where nobody chose pictures: what they may add to a bundle, before it is compressed.
MOST_ARRAY_BYTES = 32 << 20
PATTERN_SIDE = 320
Picture = tuple[str, U8Image]  # what it is called, and uint8[h, w, 3] BGR


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A golden file and what it promises."""

    golden: Golden
    data: bytes
    pictures: tuple[str, ...]
    found: int  # findings in all of them that are compared; of tensors: their number
    left_out: tuple[str, ...]  # pictures on which kernels do not agree
    kernels: tuple[str, ...]  # that gave these answers


def usual_pictures() -> Iterator[Picture]:
    """Yield the shipped model's golden pictures, where it is there, and two patterns."""
    try:
        files = read_model("default")
        golden = files.manifest.golden
        for number, picture in enumerate(read_golden(golden, files)["inputs"] if golden else (), 1):
            yield f"default {number}", np.ascontiguousarray(picture[..., ::-1])  # RGB
    except (ModelError, KeyError):
        pass
    y, x = np.mgrid[:PATTERN_SIDE, :PATTERN_SIDE]
    slope = np.stack([x, y, x + y], axis=-1) * 255 // (2 * PATTERN_SIDE)
    yield "slope", slope.astype(np.uint8)
    rings = (np.hypot(x - PATTERN_SIDE / 2, y - PATTERN_SIDE / 3) // 24).astype(np.int64)
    yield "rings", np.stack([rings * 37 % 256, rings * 91 % 256, rings * 53 % 256], -1).astype("u1")


def record(
    files: ModelFiles, config: ModelConfig, pictures: Sequence[Picture], *, is_chosen: bool
) -> Recorded:
    """Record what a model answers, with a tolerance that all kernels here keep.

    files: with the manifest that will be checked against, but for `golden`
    is_chosen: somebody chose the pictures, so none is left out for its size

    Raises:
        ModelError: the model cannot be run, or its kernels agree on no picture.
    """
    models = list(_every_kernel(files, config))
    tensors = [_prepared(models[0], pixels) for _, pixels in pictures]
    names = [name for name, _ in pictures]
    if not is_chosen:
        room = max(1, MOST_ARRAY_BYTES // _bytes_each(models[0]))
        tensors, names = tensors[:room], names[:room]
    tensors, names = tensors[:MAX_PICTURES], names[:MAX_PICTURES]
    threshold = lowest_score(ModelConfig(), files.manifest, models[0].head.kind)
    all_scores = _with_all_scores(files, config, models[0])
    tries: list[tuple[Golden, Arrays, list[bool]]] = []
    for tolerance, iou in STEPS:
        golden = Golden(file=FILE, score_tolerance=tolerance, iou=iou)
        arrays = _answered(all_scores, tensors, tolerance)
        tries.append((golden, arrays, _agreed(models, golden, arrays, threshold)))
        # Of pictures that happen to be there, a narrow promise on some is worth more than a wide
        # one on all; of pictures that somebody chose, all count.
        if 2 * sum(tries[-1][2]) > len(tensors) and (all(tries[-1][2]) or not is_chosen):
            break
    # What the widest tolerance does not keep is left out; the rest may do with a narrower one.
    golden, arrays, agreed = next(each for each in tries if each[2] == tries[-1][2])
    if not any(agreed):
        raise ModelError(
            f"{files.where}: its answers differ between the kernels here on every picture; give "
            "pictures of what it is for with --golden"
        )
    kept = [number for number, is_kept in enumerate(agreed) if is_kept]
    arrays = {
        name: values if name == "tolerances" else values[kept] for name, values in arrays.items()
    }
    data = _npz(arrays)
    if len(data) > MAX_FILE_BYTES:
        raise ModelError(
            f"the golden file has {len(data) >> 20} MiB, the most is {MAX_FILE_BYTES >> 20}; give "
            "fewer pictures"
        )
    return Recorded(
        golden=golden,
        data=data,
        pictures=tuple(names[number] for number in kept),
        found=_findings(arrays, threshold),
        left_out=tuple(name for name, is_kept in zip(names, agreed, strict=True) if not is_kept),
        kernels=tuple(dict.fromkeys(map(kernels_of, models))),
    )


def kernels_of(model: Model) -> str:
    """Return "litert 2.3.0 cpu:xnnpack"."""
    return f"{model.engine.runtime} {model.engine.accelerator}"


def _every_kernel(files: ModelFiles, config: ModelConfig) -> Iterator[Model]:
    """Yield the model as it was asked for, then each other way the processor runs it here.

    Raises:
        ModelError: it cannot be run as it was asked for.
    """
    plain = ModelConfig(
        path=config.path,
        accelerator=config.accelerator,
        delegate_options=config.delegate_options,
        runtime=config.runtime,
        threads=config.threads,
    )
    yield build_model(files, plain)
    # tflite-runtime crashes on some models, and then the whole command is gone: only if asked for.
    for runtime in installed_runtimes(config.runtime)[:1]:
        other = msgspec.structs.replace(plain, accelerator="cpu", runtime=runtime, xnnpack="off")
        try:
            yield build_model(files, other)
        except ModelError:
            continue  # as a compiled one, that has no plain kernels


def _prepared(model: Model, pixels: U8Image) -> Tensor:
    tensor = model.plan.new_tensor()
    preprocess(pixels, model.plan, tensor)
    return tensor


def _bytes_each(model: Model) -> int:
    """Return what one picture and its answers take, uncompressed."""
    outputs = sum(4 * math.prod(spec.shape) for spec in model.engine.outputs)
    return model.plan.new_tensor().nbytes + outputs


def _with_all_scores(files: ModelFiles, config: ModelConfig, model: Model) -> Model:
    """Return the model; a classifier so that it gives every class, and not only its best."""
    count = model.head.class_count
    if model.head.task != "classification" or count is None:
        return model
    head = msgspec.structs.replace(files.manifest.head, top_k=count, score_threshold=0.0)
    manifest = msgspec.structs.replace(files.manifest, head=head)
    told = ModelFiles(
        plain=files.plain, edgetpu=files.edgetpu, folder=files.folder, manifest=manifest
    )
    return build_model(told, msgspec.structs.replace(config, score_threshold=None))


def _answered(model: Model, tensors: Sequence[Tensor], tolerance: float) -> Arrays:
    """Run the pictures; return the arrays of a golden file."""
    outputs = [answers(model, tensor) for tensor in tensors]
    inputs = np.stack([tensor[0] for tensor in tensors])
    found = [model.decode(each) for each in outputs]
    if all(isinstance(each, Boxes) for each in found):
        return {"inputs": inputs, **_boxes([each for each in found if isinstance(each, Boxes)])}
    if all(isinstance(each, Scores) for each in found) and model.head.class_count:
        scores = np.zeros((len(found), model.head.class_count), np.float32)
        for row, each in zip(scores, found, strict=True):
            assert isinstance(each, Scores)
            row[each.class_ids] = each.scores
        return {"inputs": inputs, "scores": scores}
    return {"inputs": inputs, **_tensors(model, outputs, tolerance)}


def _boxes(found: Sequence[Boxes]) -> Arrays:
    most = max(1, *(len(each.scores) for each in found))
    boxes = np.zeros((len(found), most, 4), np.float32)
    classes = np.zeros((len(found), most), np.int32)
    scores = np.zeros((len(found), most), np.float32)
    for number, each in enumerate(found):
        rows = len(each.scores)
        boxes[number, :rows] = each.xyxy_norm[:, [1, 0, 3, 2]]
        classes[number, :rows] = each.class_ids
        scores[number, :rows] = each.scores
    count = np.array([len(each.scores) for each in found], np.int32)
    return {"boxes": boxes, "classes": classes, "scores": scores, "count": count}


def _tensors(model: Model, outputs: Sequence[Sequence[Tensor]], tolerance: float) -> Arrays:
    """Return all outputs as real numbers, and how far those of each may differ."""
    arrays: Arrays = {}
    tolerances = []
    for position, spec in enumerate(model.engine.outputs):
        stored = np.stack([each[position] for each in outputs])
        if stored.dtype.kind in "iub" and not spec.scale:
            arrays[f"output_{position}"] = stored
            tolerances.append(tolerance)
            continue
        real = real_numbers(stored, spec)
        if not np.isfinite(real).all():
            raise ModelError(f'output "{spec.name}" gives what is no number, so nothing to promise')
        arrays[f"output_{position}"] = real.astype(np.float32)
        # Where all are the same there is no range; and a few steps of a coarse scale are nothing.
        reach = float(np.ptp(real)) or float(np.abs(real).max())
        tolerances.append(max(tolerance * reach, 4 * abs(spec.scale), 1e-6))
    return {**arrays, "tolerances": np.array(tolerances, np.float64)}


def _agreed(
    models: Sequence[Model], golden: Golden, arrays: Arrays, threshold: float
) -> list[bool]:
    """Return for each picture whether every kernel gives what is promised."""
    said = [list(differences(model, golden, arrays, threshold)) for model in models]
    return [not any(of_picture) for of_picture in zip(*said, strict=True)]


def _findings(arrays: Arrays, threshold: float) -> int:
    if "output_0" in arrays:
        return sum(name.startswith("output_") for name in arrays)
    return (
        int((arrays["scores"] >= max(threshold, 1e-9)).sum())
        if "boxes" in arrays
        else len(arrays["scores"])
    )


def _npz(arrays: Arrays) -> bytes:
    stream = io.BytesIO()
    # numpy dates every member 1980-01-01, so equal arrays give equal bytes.
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()
