"""A model looks at frames that this board's cameras have just given, and is compared; in the child.

What the active model found in them comes with them. Cameras' filters are left out on both sides,
as some of them remember earlier frames, which nobody has here.
"""

from __future__ import annotations

import time

from agent.errors import ModelError
from agent.ota.refusal import RefusalError
from agent.ota.selftest import ExamReport, ExamRequest, Stage
from agent.vision.agreement import Agreement
from agent.vision.encode import findings_of
from agent.vision.engines import Tensor
from agent.vision.examine import (
    LONGEST_REST_S,
    Say,
    as_refusal,
    is_other_engine,
    no_longer_than,
    peak_mib,
    prepare,
)
from agent.vision.handoff import U8Image
from agent.vision.lending import LentFrame, LentFrames, Thing, things_of
from agent.vision.measure import is_finite
from agent.vision.model import Model, build_model
from agent.vision.own_time import Took, percentile, timed
from agent.vision.preprocess import preprocess
from agent.vision.recurrent import State


class _Candidate:
    """The model at work, as a worker would run it, one frame after the other."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._tensor: Tensor = model.plan.new_tensor()
        self._outputs = model.new_outputs()
        self._states: dict[str, State] = {}

    def look(self, lent: LentFrame, pixels: U8Image) -> tuple[list[Thing], Took]:
        """Return what it finds in a frame, and how long that took.

        Raises:
            RefusalError: E_NAN.
        """
        things: list[Thing] = []
        is_good = True

        def work() -> None:
            nonlocal is_good
            model, engine = self.model, self.model.engine
            where = preprocess(pixels, model.plan, self._tensor, lent.region)
            engine.load_input(self._tensor, model.image_input)
            state = self._state_of(lent.camera)
            if state is not None:
                state.feed(engine)
            engine.invoke()
            engine.read_outputs(self._outputs)
            if state is not None:
                state.keep(self._outputs)
            decoded = model.decode(self._outputs)
            is_good = is_finite(decoded)
            things.extend(things_of(findings_of(decoded, where, model), lent.width, lent.height))

        took = timed(work)
        if not is_good:
            raise RefusalError(
                "E_NAN", "gives findings that are no numbers for this board's frames"
            )
        return things, took

    def _state_of(self, camera: str) -> State | None:
        model = self.model
        if model.feedback and camera not in self._states:
            self._states[camera] = State(model.engine, model.feedback)
        return self._states.get(camera)


def compare(request: ExamRequest, frames: int, say: Say) -> ExamReport:
    """Run a model on the lent frames of a descriptor.

    Raises:
        RefusalError: it fails on them; E_FRAME, or what the exam would have found.
    """
    try:
        lent = LentFrames(frames)
    except ModelError as error:  # the worker's fault or ours
        raise RefusalError("E_SELFTEST", str(error), is_final=False) from error
    files, config = prepare(request, say)
    say(Stage(what="loading it", progress=0.1))
    with as_refusal("E_CRASH", of_model="E_COMPAT"), no_longer_than(request):
        model = build_model(files, config, choice=request.way)
    candidate = _Candidate(model)
    is_same_task = lent.index.task == model.head.task
    agreement = Agreement(model.head.task if is_same_task else "")
    took: list[Took] = []
    for number, (frame, pixels) in enumerate(lent.pictures(), 1):
        say(Stage(what="running it on recent frames", progress=number / len(lent.index.frames)))
        with as_refusal("E_FRAME"), no_longer_than(request):
            things, time_taken = candidate.look(frame, pixels)
        took.append(time_taken)
        agreement.add(frame.things, things)
        time.sleep(min(time_taken.wall_s, LONGEST_REST_S))
    return ExamReport(
        ok=True,
        task=model.head.task,
        runtime=model.engine.runtime,
        accelerator=model.engine.accelerator,
        threads=model.engine.threads,
        runs=len(took),
        p50_ms=_ms(took, 0.5),
        p95_ms=_ms(took, 0.95),
        wall_p95_ms=round(1e3 * percentile([each.wall_s for each in took], 0.95), 3),
        rss_mib=peak_mib(),
        not_comparable="accelerator" if is_other_engine(request, files) else None,
        agreement=agreement.share,
        both=round(agreement.both, 4),
        only_active=round(agreement.only_active, 4),
        only_candidate=round(agreement.only_candidate, 4),
    )


def _ms(took: list[Took], share: float) -> float:
    return round(1e3 * percentile([each.own_s for each in took], share), 3)
