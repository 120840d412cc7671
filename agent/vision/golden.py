"""Whether a model gives the answers its manifest promises, on this runtime and this processor.

`golden.file` names a .npz archive of inputs and what came of them when the model was made:

    inputs     [n, *input] the image input as it is stored, n times
    boxes      float[n, k, 4] ymin, xmin, ymax, xmax, 0 to 1 of the input     } detection: compared
    classes    float or int[n, k]                                             } after decoding, from
    scores     float[n, k]; count float or int[n]: how many rows hold (else k)} the threshold on
    scores     float[n, classes] without `boxes`: classification, of every class
    output_0, output_1, …  [n, *output] any other task: real numbers of each output
    tolerances float[outputs] how far those of each may differ; else all by `score_tolerance`

Detections agree where the class is the same, the boxes overlap by `golden.iou` and the scores
differ by at most `golden.score_tolerance`. Scores and outputs may differ by as much; of integers
without a scale, such as class maps, that share of the numbers may differ. Equal bits are never
expected: kernels round differently from one processor to the next. Of many pictures the first
MAX_PICTURES are run.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from agent.config import ModelConfig
from agent.contract.manifest import Golden
from agent.errors import ModelError
from agent.vision.engines import Tensor, TensorSpec
from agent.vision.heads import Boxes, Scores
from agent.vision.model import Model, lowest_score
from agent.vision.model_files import ModelFiles, read_listed

MAX_FILE_BYTES = 64 << 20
# Unpacked; three 300x300 pictures are 0.8 MB, and a ZIP bomb is not unpacked at all.
MAX_ARRAYS_BYTES = 256 << 20
MAX_ARRAYS = 64
MAX_PICTURES = 16  # on the slowest board each costs a second

Arrays = dict[str, Tensor]


def check_golden(model: Model, files: ModelFiles) -> None:
    """Run the promised inputs; `model` must be loaded without thresholds of the configuration.

    Raises:
        ModelError: answers differ, or the file with them cannot be used.
    """
    golden = files.manifest.golden
    if golden is None:
        return
    arrays = read_golden(golden, files)
    threshold = lowest_score(ModelConfig(), files.manifest, model.head.kind)
    for number, difference in enumerate(differences(model, golden, arrays, threshold), 1):
        if difference:
            raise ModelError(
                f"gives other answers than its manifest promises: picture {number}: {difference}"
            )


def differences(model: Model, golden: Golden, arrays: Arrays, threshold: float) -> Iterator[str]:
    """Run each picture; yield in words how the answers differ from the promise; empty: they do not.

    threshold: the lowest score that counts

    Raises:
        ModelError: the arrays cannot be used.
    """
    inputs = arrays.get("inputs")
    if inputs is None or inputs.ndim < 1 or not len(inputs):
        raise ModelError(f"{golden.file}: has no array `inputs`; make it anew with the model")
    spec = model.engine.inputs[model.image_input]
    for number, picture in enumerate(inputs[:MAX_PICTURES]):
        if picture.dtype != spec.dtype or picture.size != math.prod(spec.shape):
            raise ModelError(
                f"{golden.file}: inputs are {picture.dtype} {list(picture.shape)}, the model takes "
                f"{spec.dtype} {list(spec.shape)}; make it anew with the model"
            )
        outputs = answers(model, picture.reshape(spec.shape))
        try:
            yield _difference(model, outputs, arrays, number, golden, threshold)
        except (IndexError, ValueError, TypeError) as error:
            raise ModelError(f"{golden.file}: does not fit the model: {error}") from error


def answers(model: Model, tensor: Tensor) -> list[Tensor]:
    """Run one prepared input; return the outputs as they are stored."""
    model.engine.load_input(tensor, model.image_input)
    model.engine.invoke()
    outputs = model.new_outputs()
    model.engine.read_outputs(outputs)
    return outputs


def _difference(
    model: Model,
    outputs: list[Tensor],
    arrays: Arrays,
    number: int,
    golden: Golden,
    threshold: float,
) -> str:
    """Return in words how the outputs differ from what is promised; empty: they do not."""
    if "output_0" in arrays:
        for position, (spec, output) in enumerate(zip(model.engine.outputs, outputs, strict=True)):
            wanted = arrays.get(f"output_{position}")
            tolerance = golden.score_tolerance
            if "tolerances" in arrays:
                tolerance = float(arrays["tolerances"][position])
            if wanted is not None and _is_other(output, spec, wanted[number], tolerance):
                return f'output "{spec.name}" differs'
        return ""
    found = model.decode(outputs)
    if "boxes" in arrays and isinstance(found, Boxes):
        return _other_boxes(found, _promised(arrays, number), threshold, golden)
    if "scores" in arrays and isinstance(found, Scores):
        promised = np.asarray(arrays["scores"][number], np.float32)
        return _other_scores(found, promised, threshold, golden)
    names = ", ".join(sorted(arrays))
    raise ModelError(
        f"{golden.file}: has {names}, which says nothing of a model for {model.head.task}; "
        "give its outputs as output_0, output_1, …"
    )


def _promised(arrays: Arrays, number: int) -> Boxes:
    rows = len(arrays["scores"][number])
    if "count" in arrays:
        rows = min(rows, int(arrays["count"][number]))
    yxyx = np.asarray(arrays["boxes"][number][:rows], np.float32)
    return Boxes(
        xyxy_norm=yxyx[:, [1, 0, 3, 2]],
        scores=np.asarray(arrays["scores"][number][:rows], np.float32),
        class_ids=np.asarray(arrays["classes"][number][:rows]).astype(np.intp),
    )


def _other_boxes(found: Boxes, promised: Boxes, threshold: float, golden: Golden) -> str:
    """Compare both ways: neither side may hold what the other has not."""
    # What stands closer to the threshold may fall on either side of it.
    sure = threshold + golden.score_tolerance
    for wanted, others, verb in ((promised, found, "is missing"), (found, promised, "is new")):
        for row in np.flatnonzero(wanted.scores >= sure):
            class_id, score = int(wanted.class_ids[row]), float(wanted.scores[row])
            is_like = (
                (others.class_ids == class_id)
                & (np.abs(others.scores - score) <= golden.score_tolerance)
                & (_overlaps(others.xyxy_norm, wanted.xyxy_norm[row]) >= golden.iou)
            )
            if not is_like.any():
                return f"a box of class {class_id} with score {score:.2f} {verb}"
    return ""


def _overlaps(boxes: npt.NDArray[np.float32], box: npt.NDArray[np.float32]) -> Tensor:
    """Return the intersection over union of float32[n, 4] xyxy with one, inside the input."""
    boxes, box = np.clip(boxes, 0, 1), np.clip(box, 0, 1)
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    shared = np.maximum(sides, 0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return np.asarray(shared / np.maximum(areas - shared, np.finfo(np.float32).tiny))


def _other_scores(
    found: Scores, promised: npt.NDArray[np.float32], threshold: float, golden: Golden
) -> str:
    """Compare what was found with the promised score of each class, and the best of both."""
    for class_id, score in zip(found.class_ids.tolist(), found.scores.tolist(), strict=True):
        if abs(promised[class_id] - score) > golden.score_tolerance:
            return f"class {class_id} has score {score:.2f} instead of {promised[class_id]:.2f}"
    best = int(promised.argmax())
    if promised[best] < threshold + golden.score_tolerance:
        return ""  # it may stand on either side of the threshold
    if not len(found.scores) or found.scores[0] < promised[best] - golden.score_tolerance:
        return f"class {best} with score {promised[best]:.2f} is missing"
    return ""


def _is_other(output: Tensor, spec: TensorSpec, wanted: Tensor, tolerance: float) -> bool:
    wanted = wanted.reshape(output.shape)
    if output.dtype.kind in "iub" and not spec.scale:
        return float((output != wanted).mean()) > tolerance
    # Written so that a NaN on either side differs.
    return not bool((np.abs(real_numbers(output, spec) - wanted) <= tolerance).all())


def real_numbers(output: Tensor, spec: TensorSpec) -> npt.NDArray[np.float64]:
    """Return what stored numbers stand for."""
    real = output.astype(np.float64)
    return (real - spec.zero_point) * spec.scale if spec.scale else real


def read_golden(golden: Golden, files: ModelFiles) -> Arrays:
    """Read the archive: nothing is unpickled, and nothing larger than the limits is unpacked.

    Raises:
        ModelError: not the file the manifest names, or not plain arrays.
    """
    path = files.folder / golden.file
    data = read_listed(path, MAX_FILE_BYTES, files.manifest.files)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if len(infos) > MAX_ARRAYS or sum(each.file_size for each in infos) > MAX_ARRAYS_BYTES:
                raise ModelError(
                    f"{path}: holds more than {MAX_ARRAYS} arrays or {MAX_ARRAYS_BYTES >> 20} MiB; "
                    "a few pictures are enough"
                )
            return {
                each.filename.removesuffix(".npy"): _read_array(_unpack(archive, each))
                for each in infos
            }
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise ModelError(f"{path}: is not an archive of arrays: {error}") from error
    except ValueError as error:
        raise ModelError(f"{path}: holds what is no array: {error}") from error


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:
        return file.read(info.file_size)  # never more than it says, whatever it unpacks to


def _read_array(data: bytes) -> Tensor:
    """Parse one .npy file; the size its header claims is held against the bytes there are."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if header is None:
        raise ValueError(f"array format {version} is not known")
    shape, _, dtype = header(stream)
    if dtype.kind not in "biuf" or math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError("an array is not of numbers, or not of the size it says")
    stream.seek(0)
    return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
