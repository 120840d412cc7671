"""A model, its second stages and all that goes with them, loaded and ready to be given frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from agent.choices import Choice
from agent.config import ModelConfig, SecondStage
from agent.contract.payloads import MeasuredRun
from agent.link import Ready, Start, Swap
from agent.vision.cascade import Cascade, SecondStages
from agent.vision.chooser import FirstLook
from agent.vision.encode import Origin
from agent.vision.filter import filter_of
from agent.vision.heads import Task
from agent.vision.model import Model, load_model
from agent.vision.notes import camera_notes
from agent.vision.recurrent import State
from agent.vision.swap import Setup


class Assembly:
    """Loads what a worker's start message names, and later other models in the first one's place.

    learn: hears how a model runs best here
    opening: called with True while an accelerator is opened in this process, then with False
    """

    def __init__(
        self, start: Start, learn: Callable[[str, Choice], None], opening: Callable[[bool], None]
    ) -> None:
        self._start = start
        self._learn = learn
        self._opening = opening
        # Of the model that was assembled last with second stages; they outlive a swap.
        self._second: tuple[tuple[SecondStage, ...], SecondStages] | None = None

    def first(self) -> Setup:
        """Load what the worker starts with.

        Raises:
            ModelError: it cannot be used; why, in a sentence.
        """
        start = self._start
        return self._assemble(start, start.choices)

    def replacement(self, swap: Swap) -> Setup:
        """Load a model for the same cameras while another one runs.

        Raises:
            ModelError: as `first`.
        """
        began = time.monotonic()
        setup = self._assemble(swap, {**self._start.choices, **swap.choices})
        setup.token, setup.hold_s = swap.token, swap.hold_s
        setup.load_ms = round((time.monotonic() - began) * 1e3, 1)
        return setup

    def _assemble(self, wanted: Start | Swap, choices: Mapping[str, Choice]) -> Setup:
        start, config = self._start, wanted.model
        chooser = FirstLook(choices, start.most_threads, self._learn, lambda: self._opening(True))
        model = self._load(config, chooser, wanted.avoid, wanted.manifest_sha256)
        measured_ms = chooser.measured_ms  # of this model; second stages are chosen next
        second = self._second_stages(config, chooser, model.head.task, wanted.avoid)
        return Setup(
            model=model,
            cascade=Cascade(second.stages) if second.stages else None,
            states={
                camera.name: State(model.engine, model.feedback)
                for camera in start.cameras
                if model.feedback
            },
            keeps={camera.name: filter_of(camera) for camera in start.cameras},
            origin=Origin(
                device=start.device,
                boot_id=start.boot_id,
                model=model.identity,
                accelerator=model.engine.accelerator,
            ),
            ready=_ready(
                model,
                second,
                wanted,
                measured_ms,
                camera_notes(start.cameras, model.head.task),
            ),
        )

    def _load(
        self, config: ModelConfig, chooser: FirstLook, avoid: str, manifest_sha256: str = ""
    ) -> Model:
        """Load a model; while its accelerator is opened in this process, a stage says so."""
        try:
            return load_model(config, chooser=chooser, avoid=avoid, manifest_sha256=manifest_sha256)
        finally:
            self._opening(False)

    def _second_stages(
        self, config: ModelConfig, chooser: FirstLook, task: Task, avoid: str
    ) -> SecondStages:
        """Load the models that look at boxes; without one of them the others work, and say so.

        Those that are loaded are used on: their engines belong to the postprocess thread, which
        looks at one frame at a time, of whichever setup.
        """
        if task != "detection" or not config.then:
            return SecondStages()
        if self._second is None or config.then != self._second[0]:
            second = SecondStages()
            for stage in config.then:
                load = partial(self._load, self._start.second[stage.model], chooser, avoid)
                second.add(stage, load)
            self._second = config.then, second
        return self._second[1]


def _ready(
    model: Model,
    second: SecondStages,
    wanted: Start | Swap,
    measured_ms: float | None,
    notes: Iterable[str],
) -> Ready:
    engine = model.engine
    return Ready(
        model=model.identity,
        path=wanted.model.path,
        manifest_sha256=wanted.manifest_sha256,
        task=model.head.task,
        head=model.head.kind,
        accelerator=engine.accelerator,
        reason=model.reason,
        is_accelerated=any(
            not one.engine.accelerator.startswith("cpu")
            for one in (model, *(stage.model for stage in second.stages))
        ),
        fallbacks=(*([""] if model.is_fallback else []), *second.fallbacks),
        run=MeasuredRun(
            runtime=engine.runtime,
            threads=engine.threads,
            xnnpack=engine.accelerator == "cpu:xnnpack",
            invoke_ms=measured_ms,
        ),
        first_invoke_s=engine.first_invoke_s,
        notes=(*model.notes, *second.notes, *notes),
    )
