"""`edge-agent detect`: one model on still images, through the pipeline's own pre and post steps.

What cannot be read is named and left out; everything else is still processed. With `as_json`
one document goes to stdout and nothing else does.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
from msgspec import UNSET, Struct, UnsetType

from agent.config import ModelConfig
from agent.contract.payloads import (
    Keypoint,
    Milliseconds,
    ModelIdentity,
    Region,
    TensorStatistics,
)
from agent.errors import EXIT_OK, EXIT_UNAVAILABLE, ModelError, UnavailableError
from agent.vision.cameras.images import SUFFIXES, load_image
from agent.vision.child import may_crash, run_in_child, serve
from agent.vision.draw import caption, draw, save_picture
from agent.vision.encode import Findings, findings_of
from agent.vision.heads import Decoded
from agent.vision.model import Model, load_model
from agent.vision.preprocess import Transform, U8Image, preprocess

log = logging.getLogger(__name__)


class UsedModel(ModelIdentity, frozen=True, kw_only=True):
    """Which model, and what really ran it."""

    task: str
    runtime: str
    accelerator: str


class StillTimes(Struct, frozen=True, kw_only=True):
    """Where one image's time went, without reading and decoding the file."""

    preprocess: Milliseconds
    inference: Milliseconds
    postprocess: Milliseconds


class StillResult(Findings, frozen=True, kw_only=True):
    """One image: its findings, or the reason why there are none."""

    image: str
    width: int | UnsetType = UNSET
    height: int | UnsetType = UNSET
    stage_ms: StillTimes | UnsetType = UNSET
    error: str | UnsetType = UNSET


class Report(Struct, frozen=True, kw_only=True):
    """The document that `--json` prints."""

    model: UsedModel
    results: list[StillResult]


class Request(Struct, frozen=True, kw_only=True):
    """One call of `run_detect`, as a child process is told it."""

    config: ModelConfig
    images: list[str]
    as_json: bool
    save: str | None


def run_detect(config: ModelConfig, images: list[str], *, as_json: bool, save: Path | None) -> int:
    """Run a model on images and folders of images; return the exit code.

    Raises:
        ModelError: the model cannot be used.
        UnavailableError: the folder for pictures cannot be made.
    """
    request = Request(
        config=config, images=images, as_json=as_json, save=None if save is None else str(save)
    )
    if may_crash(config.runtime):
        return run_in_child(__name__, request, model=config.path)
    return detect_here(request)


def detect_here(request: Request) -> int:
    """Do what was asked in this process; see `run_detect`."""
    folder = _made(request.save)
    stills = StillModel(load_model(request.config))
    for note in (*stills.model.notes, stills.model.reason):
        if note:
            log.warning("%s", note)
    results = []
    paths = _expand(request.images)
    with _progress(paths, as_json=request.as_json) as shown:
        for path in shown:
            result = _process(path, stills, folder)
            results.append(result)
            if not request.as_json:
                _print(result)
    if request.as_json:
        report = Report(model=stills.used, results=results)
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    return EXIT_UNAVAILABLE if any(result.error for result in results) else EXIT_OK


class StillModel:
    """A loaded model with memory for one frame; the calling thread owns it."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.used = UsedModel(
            **msgspec.structs.asdict(model.identity),
            task=model.head.task,
            runtime=model.engine.runtime,
            accelerator=model.engine.accelerator,
        )
        self.last: tuple[Decoded, Transform]  # of the picture looked at last
        self._tensor = model.plan.new_tensor()
        self._outputs = model.new_outputs()
        states = {position: model.engine.inputs[position] for position, _ in model.feedback}
        self._states = [(at, np.zeros(spec.shape, spec.dtype)) for at, spec in states.items()]

    def find(self, pixels: U8Image) -> tuple[Findings, StillTimes]:
        """Return what the model finds in uint8[H, W, 3] BGR, and how long each step took."""
        model = self.model
        started = time.monotonic_ns()
        transform = preprocess(pixels, model.plan, self._tensor)
        prepared = time.monotonic_ns()
        try:
            model.engine.load_input(self._tensor, model.image_input)
            for position, nothing in self._states:  # each picture stands for itself
                model.engine.load_input(nothing, position)
            model.engine.invoke()
            model.engine.read_outputs(self._outputs)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"{model.identity.name}: the runtime failed: {error}") from error
        invoked = time.monotonic_ns()
        self.last = model.decode(self._outputs), transform
        found = findings_of(*self.last, model)
        times = StillTimes(
            preprocess=_ms(started, prepared),
            inference=_ms(prepared, invoked),
            postprocess=_ms(invoked, time.monotonic_ns()),
        )
        return found, times


def _ms(start_ns: int, end_ns: int) -> float:
    return round((end_ns - start_ns) / 1e6, 3)


def _made(folder: str | None) -> Path | None:
    """Make the folder for pictures before any work is done for it."""
    if folder is None:
        return None
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(
            f"--save {shown_name(folder)}: cannot be made: {error.strerror}"
        ) from error
    return Path(folder)


def _expand(images: list[str]) -> list[Path]:
    """Return the images; a folder stands for those in it, sorted, and for itself without any."""
    paths: list[Path] = []
    for image in images:
        path = Path(image)
        try:
            inside = sorted(e for e in path.iterdir() if e.suffix.lower() in SUFFIXES)
        except OSError:
            inside = []
        paths += inside or [path]
    return paths


def _process(path: Path, stills: StillModel, folder: Path | None) -> StillResult:
    image = shown_name(path)
    try:
        pixels = _read(path)
        found, times = stills.find(pixels)
        if folder is not None:
            saved = save_picture(draw(pixels, found), folder, path.name)
            print(f"{image}: saved as {shown_name(saved)}", file=sys.stderr)
    except (OSError, ValueError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        reason = reason or "needs more memory than there is"
        print(f"edge-agent: {image}: {reason}", file=sys.stderr)
        return StillResult(image=image, error=reason)
    height, width = pixels.shape[:2]
    return StillResult(
        image=image,
        width=width,
        height=height,
        stage_ms=times,
        **msgspec.structs.asdict(found),
    )


def _read(path: Path) -> U8Image:
    if path.is_dir():
        raise ValueError(f"a folder without pictures ({' '.join(SUFFIXES)})")
    if path.exists() and not path.is_file():
        raise ValueError("not a file")  # a pipe or a device may have no end
    return load_image(path)


def shown_name(path: Path | str) -> str:
    """Return a file name that can be printed, whatever bytes it is made of."""
    return os.fsencode(path).decode("utf-8", "replace")


def _print(result: StillResult) -> None:
    if result.error is not UNSET:
        return  # said on stderr
    lines = list(_lines(result))
    for line in lines or ["nothing found"]:
        print(f"{result.image}: {line}")


def _lines(found: Findings) -> Iterator[str]:
    """Say in words what was found; a figure's points and a tensor's numbers follow it, indented."""
    for detection in found.detections or ():
        yield f"{caption(detection)} at {_numbers(detection.box)}"
        yield from map(_point_line, detection.keypoints or ())
    for item in found.classes or ():
        yield caption(item)
    for pose in found.keypoints or ():
        yield caption(pose) + (f" at {_numbers(pose.box)}" if pose.box else "")
        yield from map(_point_line, pose.points)
    for region in found.regions or ():
        yield f"{caption(region)} of the picture{_pieces(region)}"
    for tensor in found.tensors or ():
        yield _tensor_line(tensor)


def _pieces(region: Region) -> str:
    if not region.polygons:
        return ""
    x, y = zip(*region.polygons[0], strict=True)
    bounds = _numbers((min(x), min(y), max(x), max(y)))
    return f", outlines: {len(region.polygons)}, the largest at {bounds}"


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(map(str, values))


def _point_line(point: Keypoint) -> str:
    score = "" if point.score is None else f" {point.score:.2f}"
    return f"  {point.label or 'point'}{score} at {point.x}, {point.y}"


def _tensor_line(tensor: TensorStatistics) -> str:
    known = [tensor.min, tensor.max, tensor.mean]
    low, high, mean = ("none" if value is None else f"{value:g}" for value in known)
    line = f"{tensor.name} {tensor.dtype} {tensor.shape}: {low} to {high}, mean {mean}"
    if tensor.not_finite:
        line += f", {tensor.not_finite} not finite"
    if tensor.values:
        shown = ("none" if value is None else f"{value:g}" for value in tensor.values)
        line += f": {', '.join(shown)}"
    return line


@contextmanager
def _progress(paths: list[Path], *, as_json: bool) -> Iterator[Iterable[Path]]:
    """Show a bar on a terminal, unless the findings themselves are seen coming."""
    is_silent = as_json or not sys.stdout.isatty()
    if len(paths) < 2 or not is_silent or not sys.stderr.isatty():
        yield paths
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield paths
        return
    console = Console(stderr=True)
    with Progress(console=console, redirect_stdout=False, transient=True) as progress:
        yield progress.track(paths, description="detect")


if __name__ == "__main__":
    sys.exit(serve(Request, detect_here))
