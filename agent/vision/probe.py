"""One camera or one model tried for a moment: `python -m agent.vision.probe camera|model`.

`edge-agent check` runs this as a child, because drivers and runtimes may hang or crash. The
section of the configuration comes as JSON on stdin, not as an argument: sources hold
passwords, and everybody can read a process's arguments. The answer is the last line of
stdout; libraries may have printed before it.
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.choices import Choice, read_choices
from agent.config import CameraConfig, ModelConfig
from agent.errors import EXIT_OK, EXIT_USAGE, AgentError
from agent.redaction import redact

MEASURE_S = 2.0
FIRST_FRAME_WITHIN_S = 12.0
MODEL_RUNS, LONGEST_RUNS_S = 10, 3.0


class ModelQuestion(Struct, frozen=True, kw_only=True):
    """Which model to try, and where it may be written how it runs best here."""

    config: ModelConfig
    most_threads: int
    choices_file: str = ""


class Refused(Struct, frozen=True, tag="refused"):
    """It cannot be used."""

    reason: str


class CameraFound(Struct, frozen=True, kw_only=True, tag="camera"):
    """What came out of a camera."""

    width: int
    height: int
    live: bool
    frames: int
    fps: float | None
    brightness: float


class ModelFound(Struct, frozen=True, kw_only=True, tag="model"):
    """What a model did."""

    name: str
    version: str | None
    task: str
    runtime: str
    accelerator: str
    delegated: tuple[int, int] | None  # operators that the accelerator runs, of all
    reason: str | None
    invoke_ms: float
    notes: tuple[str, ...]
    choice: Choice | None  # how the processor runs it best; None: it was not asked
    is_remembered: bool  # and not measured just now


Answer = Refused | CameraFound | ModelFound


def probe_camera(config: CameraConfig) -> CameraFound | Refused:
    """Open a camera, read for a moment, and say what came."""
    from agent.vision.cameras import EndOfStream, open_camera

    camera = open_camera(config)
    stamps: list[float] = []
    try:
        frame = None
        ends = time.monotonic() + FIRST_FRAME_WITHIN_S
        while time.monotonic() < ends:
            try:
                pixels = camera.read(frame)
            except EndOfStream:
                break
            if pixels is None:
                continue
            stamps.append(time.monotonic())
            frame = pixels
            if len(stamps) == 1:
                ends = stamps[0] + MEASURE_S
    finally:
        camera.close()
    if frame is None:
        return Refused(f"gave no frame within {FIRST_FRAME_WITHIN_S:g} s; check its cable")
    lasted_s = stamps[-1] - stamps[0]
    return CameraFound(
        width=frame.shape[1],
        height=frame.shape[0],
        live=camera.live,
        frames=len(stamps),
        fps=round((len(stamps) - 1) / lasted_s, 1) if lasted_s > 0 else None,
        brightness=round(float(frame.mean()), 1),
    )


def probe_model(question: ModelQuestion) -> ModelFound:
    """Load a model as the worker does, and run it a few times."""
    from agent.vision.chooser import FirstLook
    from agent.vision.model import load_model
    from agent.vision.model_files import read_model
    from agent.vision.trial import choice_key

    config, most_threads = question.config, question.most_threads
    remembered = read_choices(Path(question.choices_file)) if question.choices_file else {}
    learned: dict[str, Choice] = {}
    chooser = FirstLook(remembered, most_threads, learned.__setitem__)
    model = load_model(config, chooser=chooser)
    key = choice_key(read_model(config.path), config, most_threads)
    times_ms: list[float] = []
    ends = time.monotonic() + LONGEST_RUNS_S
    while len(times_ms) < MODEL_RUNS and (not times_ms or time.monotonic() < ends):
        started = time.monotonic_ns()
        model.engine.invoke()
        times_ms.append((time.monotonic_ns() - started) / 1e6)
    return ModelFound(
        name=model.identity.name,
        version=model.identity.version,
        task=model.head.task,
        runtime=model.engine.runtime,
        accelerator=model.engine.accelerator,
        delegated=model.engine.delegated,
        reason=model.reason,
        invoke_ms=round(statistics.median(times_ms), 1),
        notes=model.notes,
        choice=learned.get(key) or remembered.get(key),
        is_remembered=key not in learned,
    )


def main() -> int:
    """Answer one question on stdout."""
    logging.basicConfig(level=logging.ERROR)
    data = sys.stdin.buffer.read()
    answer: Answer
    try:
        if sys.argv[1:] == ["camera"]:
            answer = probe_camera(msgspec.json.decode(data, type=CameraConfig))
        elif sys.argv[1:] == ["model"]:
            answer = probe_model(msgspec.json.decode(data, type=ModelQuestion))
        else:
            print("usage: python -m agent.vision.probe camera|model < JSON", file=sys.stderr)
            return EXIT_USAGE
    except AgentError as error:
        answer = Refused(redact(str(error)))
    print(f"\n{msgspec.json.encode(answer).decode()}", flush=True)
    return EXIT_OK


if __name__ == "__main__":
    # As the worker: leaving at once cannot hang or crash in a driver's destructor.
    os._exit(main())
