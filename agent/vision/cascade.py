"""Second-stage models on the boxes of a first: a classifier looks at each `cat`.

Runs in the postprocess thread, which owns the second engines, while the first engine is
already at the next frame. What it may cost is bounded per frame; what it left out is counted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from agent.config import SecondStage
from agent.contract.payloads import CascadeRun, Detection
from agent.errors import ModelError
from agent.vision.encode import classes_of
from agent.vision.engines import Tensor
from agent.vision.handoff import U8Image
from agent.vision.heads import Scores
from agent.vision.model import Model
from agent.vision.preprocess import preprocess

log = logging.getLogger(__name__)

# Boxes thinner than this hold nothing that a classifier could see.
SMALLEST_CROP_PX = 4


@dataclass(slots=True)
class Stage:
    """One second model with its memory; all of it belongs to one thread."""

    config: SecondStage
    model: Model
    tensor: Tensor = field(init=False)
    outputs: list[Tensor] = field(init=False)
    crop_s: float = 0.0  # what the last crop took

    def __post_init__(self) -> None:
        if self.model.head.task != "classification":
            raise ModelError(
                f"[models.{self.config.model}] is a {self.model.head.task} model; a second stage "
                "must be a classifier"
            )
        if self.model.feedback:
            raise ModelError(
                f"[models.{self.config.model}] keeps state from frame to frame, which crops of "
                "different objects cannot share"
            )
        self.tensor = self.model.plan.new_tensor()
        self.outputs = self.model.new_outputs()

    def wants(self, detection: Detection) -> bool:
        """Return whether this stage is for such a box."""
        return not self.config.labels or detection.label in self.config.labels

    def classify(self, crop: U8Image) -> Scores:
        """Run the model on uint8[h, w, 3] BGR."""
        engine = self.model.engine
        preprocess(crop, self.model.plan, self.tensor)
        engine.load_input(self.tensor, self.model.image_input)
        engine.invoke()
        engine.read_outputs(self.outputs)
        decoded = self.model.decode(self.outputs)
        assert isinstance(decoded, Scores)
        return decoded


class SecondStages:
    """The second stages of a model as they are loaded, and what is to be said of them."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.notes: list[str] = []
        self.fallbacks: list[str] = []  # models whose accelerator may come back

    def add(self, config: SecondStage, load: Callable[[], Model]) -> None:
        """Load one; where that cannot be done the first model works without it."""
        where = f"[models.{config.model}]"
        try:
            model = load()
            self.stages.append(Stage(config, model))
        except ModelError as error:
            log.error("second stage left out model=%s: %s", config.model, error)  # noqa: TRY400
            self.notes.append(f"{where}: left out: {error}")
            return
        said = [model.reason, *model.notes]
        self.notes += [f"{where}: {note}" for note in said if note]
        if model.is_fallback:
            self.fallbacks.append(config.model)


class Cascade:
    """All second stages of one first model."""

    def __init__(
        self, stages: Sequence[Stage], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stages = stages
        self._clock = clock

    def look(
        self, pixels: U8Image, detections: list[Detection], tick: Callable[[], None]
    ) -> tuple[list[Detection], list[CascadeRun]]:
        """Return the detections, best first as they came, with what the second stages say.

        A box belongs to the first stage that wants its label. Within a frame's budget the best
        boxes come first; the first crop is always looked at, as a budget smaller than one run
        would otherwise switch a stage off without a word. `tick` says that the thread is alive.
        """
        runs = []
        taken: set[int] = set()
        detections = list(detections)
        for stage in self.stages:
            rows = [
                row
                for row, found in enumerate(detections)
                if row not in taken and stage.wants(found)
            ]
            taken.update(rows)
            crops = self._run(stage, pixels, detections, rows, tick)
            runs.append(
                CascadeRun(
                    name=stage.config.model,
                    model=stage.model.identity,
                    accelerator=stage.model.engine.accelerator,
                    crops=crops,
                    skipped=len(rows) - crops,
                )
            )
        return detections, runs

    def _run(
        self,
        stage: Stage,
        pixels: U8Image,
        detections: list[Detection],
        rows: list[int],
        tick: Callable[[], None],
    ) -> int:
        """Look at as many of these rows as the budget allows; return how many."""
        budget_s = stage.config.budget_ms / 1e3
        started = now = self._clock()
        looked = 0
        for row in rows:
            is_spent = looked > 0 and now - started + stage.crop_s > budget_s
            if looked == stage.config.max_crops or is_spent:
                break
            crop = crop_of(pixels, detections[row].box, stage.config.margin)
            if crop is None:
                continue
            tick()
            scores = stage.classify(crop)
            detections[row] = msgspec.structs.replace(
                detections[row],
                classes=classes_of(scores, stage.model),
                classified_by=stage.config.model,
            )
            looked += 1
            before, now = now, self._clock()
            stage.crop_s = now - before
        return looked


def crop_of(
    pixels: U8Image, box: tuple[float, float, float, float], margin: float
) -> U8Image | None:
    """Return the part of uint8[H, W, 3] in a box px widened on each side; None if too thin."""
    height, width = pixels.shape[:2]
    x_min, y_min, x_max, y_max = box
    wider, higher = margin * (x_max - x_min), margin * (y_max - y_min)
    left, right = max(0, round(x_min - wider)), min(width, round(x_max + wider))
    top, bottom = max(0, round(y_min - higher)), min(height, round(y_max + higher))
    if min(right - left, bottom - top) < SMALLEST_CROP_PX:
        return None
    return pixels[top:bottom, left:right]
