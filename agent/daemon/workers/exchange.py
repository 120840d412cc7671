"""An engine's model exchanged for another, as steps that an updater begins and polls.

    swap ── worker runs on the processor ──▶ Swap beside the model that runs ──▶ Swapped
      ├──── it holds the wanted one still ─▶ Revert ───────────────────────────▶ Swapped
      └──── on an accelerator, or no worker ▶ another worker, told by make_start ▶ its first result

An accelerator serves one process and one model at a time here, so there the worker is replaced;
everything else is exchanged between two frames. A worker has one order at a time: what is wanted
meanwhile waits for its answer, as nobody knows before what it will run. Frames that the worker
lends go from its hand to the child's: this process holds their descriptor for a moment, and never
maps it.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from agent.choices import Choice
from agent.config import ModelConfig
from agent.daemon.workers.failover import Failover
from agent.daemon.workers.restart_reasons import RestartReason
from agent.link import (
    Keep,
    LendFrames,
    Lent,
    Ready,
    ResultOut,
    Revert,
    Swap,
    SwapFailed,
    SwapFault,
    Swapped,
    ToWorker,
)
from agent.ota.refusal import Code
from agent.ota.selftest import Exam, ExamReport, ExamRequest, reply_of, start_shadow
from agent.ota.steps import Down, Refused, Reply, Succeeded, Working

log = logging.getLogger(__name__)

FRAMES = 24
EVERY_S = 0.5
LEND_WITHIN_S = 30.0
# What the worker says late, it does not say at all.
LENT_GRACE_S = 5.0
# A worker that was started anew is believed without a frame after this: no camera may give any.
NO_FRAME_S = 10.0
HOLD_S = 60.0
# busy: by a swap that was begun before, or not ready yet.
CODES: dict[SwapFault, Code] = {
    "refused": "E_SELFTEST",
    "frame_failed": "E_FRAME",
    "busy": "E_SYSTEM",
    "nothing_held": "E_SYSTEM",
}


class Workers(Protocol):
    """The engine's supervisor."""

    failover: Failover

    def tell(self, message: ToWorker) -> bool:
        """Tell the worker something beside its work; False: there is none that runs."""

    def replace(self, why: RestartReason) -> None:
        """Have another worker take over."""


@dataclass(slots=True, kw_only=True)
class SwapStep:
    """One swap; the updater's `Step`."""

    token: str
    model: ModelConfig
    manifest_sha256: str
    reply: Reply = field(default_factory=Working)
    gap_ms: float | None = None  # without results, once it is done
    load_ms: float | None = None  # while results of the model before went on
    is_replaced: bool = False  # by another worker
    ready_at: float | None = None  # of that worker
    ready: Ready | None = None
    last_result_ns: int | None = None  # of the model before, with another worker
    before: Ready | None = None  # of the model that ran when the worker was told
    is_revert: bool = False
    hold_s: float = 0.0

    @property
    def wanted(self) -> tuple[str, str]:
        """What tells models apart, see `_named`."""
        return self.model.path, self.manifest_sha256

    @property
    def is_waiting(self) -> bool:
        """Whether nothing has come of it, and it is not given up."""
        return isinstance(self.reply, Working)

    def poll(self) -> Reply:
        """Return how it fares."""
        waits_s = 0.0 if self.ready_at is None else time.monotonic() - self.ready_at
        if self.is_waiting and self.ready is not None and waits_s > NO_FRAME_S:
            self.reply = Succeeded(model=self.ready.model)
        return self.reply

    def stop(self) -> None:
        """Take no answer any more; what the worker has begun it ends."""
        if self.is_waiting:
            self.reply = Refused(code="E_SYSTEM", message="given up", is_final=False)


@dataclass(slots=True, kw_only=True)
class ShadowStep:
    """Frames lent and looked at; the updater's `Step`. `agreement` None: nothing to compare."""

    token: str
    request: ExamRequest
    deadline: float
    learn: Callable[[ExamReport], None]
    exam: Exam | None = None
    reply: Reply = field(default_factory=Working)

    def poll(self) -> Reply:
        """Return how it fares."""
        if not isinstance(self.reply, Working):
            return self.reply
        if self.exam is None:
            if time.monotonic() > self.deadline:
                self.leave("the worker lent no frames in time")
            return self.reply
        report = self.exam.poll()
        if report is None:
            return Working(progress=self.exam.progress)
        self.reply = reply_of(report)
        self.learn(report)
        return self.reply

    def begin(self, frames: int) -> None:
        """Have a child look at the frames of this descriptor."""
        try:
            self.exam = start_shadow(self.request, frames)
        except OSError as error:
            self.refuse(f"no process can be started: {error.strerror}")

    def refuse(self, message: str) -> None:
        """End it without having learnt anything of the model; it may be tried again."""
        self.reply = Refused(code="E_SYSTEM", message=message, is_final=False)

    def leave(self, why: str) -> None:
        """End it as there is nothing to compare: no reason to stay with a model that cannot run."""
        log.warning("nothing to compare the new model with reason=%s", why)
        self.reply = Succeeded(agreement=None)

    def stop(self) -> None:
        """Give it up."""
        if self.exam is not None:
            self.exam.stop()
        if isinstance(self.reply, Working):
            self.refuse("given up")


@dataclass(slots=True)
class ModelExchange:
    """One engine's; its supervisor's `Attendant`, on the main loop's thread.

    tell: hears what says something of the model that runs and was not asked for: its worker is
        gone, or it failed on a frame and the model before goes on in the same worker
    """

    engine: str  # in [models]; empty for [model]
    workers: Workers
    tell: Callable[[Down], None]
    choices: dict[str, Choice] = field(default_factory=dict)  # as examined, of this run alone
    ready: Ready | None = None  # of the worker that runs
    _held: Ready | None = None  # of the model before
    _asked: SwapStep | None = None  # that the worker has yet to answer
    _swap: SwapStep | None = None  # that somebody waits for
    _shadow: ShadowStep | None = None  # that waits for its frames
    _last_result_ns: int | None = None

    @property
    def way(self) -> Choice | None:
        """How the model that runs does so on the processor, for one that is to take its place."""
        return None if self.ready is None else way_of(self.ready)

    def swap(
        self, model: ModelConfig, *, manifest_sha256: str = "", hold_s: float = HOLD_S
    ) -> SwapStep:
        """Have the engine run this model; `make_start` must name the same one from now on."""
        step = SwapStep(
            token=uuid.uuid4().hex, model=model, manifest_sha256=manifest_sha256, hold_s=hold_s
        )
        self._swap = step
        if self._asked is None:
            self._begin(step)
        return step

    def _begin(self, step: SwapStep) -> None:
        ready = self.ready
        if ready is not None and _named(ready) == step.wanted:
            self._end(step, Succeeded(model=ready.model))
            return
        if ready is not None and not ready.is_accelerated:
            step.before = ready
            is_held = self._held is not None and _named(self._held) == step.wanted
            step.is_revert = is_held and self._ask(step, Revert(token=step.token))
        if not step.is_revert:
            self._load(step)

    def _ask(self, step: SwapStep, order: Swap | Revert) -> bool:
        if not self.workers.tell(order):
            return False
        self._asked = step
        return True

    def _load(self, step: SwapStep) -> None:
        """Have a model loaded beside the one that runs, or by another worker."""
        step.is_revert = False
        order = Swap(
            token=step.token,
            model=step.model,
            manifest_sha256=step.manifest_sha256,
            avoid=self.workers.failover.avoid,
            choices=self.choices,
            hold_s=step.hold_s,
        )
        if step.before is None or not self._ask(step, order):
            step.is_replaced = True
            self.ready = self._held = None
            self.workers.replace("swap")

    def keep(self) -> None:
        """The model that runs stays; its worker lets go of the one before."""
        self._held = None
        self.workers.tell(Keep())

    def shadow(
        self, request: ExamRequest, *, frames: int = FRAMES, within_s: float = LEND_WITHIN_S
    ) -> ShadowStep:
        """Have recent frames replayed through a model, and compared with what runs."""
        now = time.monotonic()
        step = ShadowStep(
            token=uuid.uuid4().hex,
            request=request,
            deadline=now + within_s + LENT_GRACE_S,
            learn=self.learn,
        )
        self._shadow = step
        order = LendFrames(token=step.token, count=frames, every_s=EVERY_S, within_s=within_s)
        if not self.workers.tell(order):
            self._shadow = None
            step.leave("no model runs")
        return step

    def learn(self, report: ExamReport) -> None:
        """Remember how an examined model was run, so that the worker need not try it first."""
        if report.choice is not None:
            self.choices[report.choice_key] = report.choice

    def on_ready(self, ready: Ready) -> None:
        """A model runs."""
        self.ready = ready
        step = self._swap
        if step is not None and step.is_replaced:
            if _named(ready) == step.wanted:
                step.ready, step.ready_at = ready, time.monotonic()
                step.last_result_ns = self._last_result_ns
            else:
                reason = f"the new worker runs {ready.model.name} instead"
                self._end(step, Refused(code="E_SELFTEST", message=reason))

    def on_result(self, result: ResultOut) -> None:
        """There is a result."""
        self._last_result_ns = result.encoded_ns
        step = self._swap
        if step is not None and step.ready is not None:
            if step.last_result_ns is not None:
                step.gap_ms = round((result.encoded_ns - step.last_result_ns) / 1e6, 1)
            self._end(step, Succeeded(model=step.ready.model))

    def on_swap(self, answer: Swapped | SwapFailed) -> None:
        """The worker has another model, or goes on with the one before."""
        asked = self._asked
        if asked is not None and answer.token == asked.token:
            self._asked = None
            self._answer(asked, answer)
            waiting = self._swap
            if waiting is not None and waiting.is_waiting and self._asked is None:
                self._begin(waiting)
        elif isinstance(answer, SwapFailed) and answer.code == "frame_failed":
            self._note_back(self._held)
            if asked is not None:
                asked.before = self.ready
            log.error("model failed engine=%s reason=%s", self.engine or "-", answer.reason)
            self.tell(
                Down(engine=self.engine, code="E_FRAME", reason=answer.reason, is_native=True)
            )

    def _answer(self, step: SwapStep, answer: Swapped | SwapFailed) -> None:
        if isinstance(answer, Swapped):
            step.gap_ms, step.load_ms = answer.gap_ms, answer.load_ms
            self._held = step.before if step.hold_s > 0 and not step.is_revert else None
            self._end(step, Succeeded(model=answer.model))
        elif answer.code == "nothing_held":
            self._held = None
            if step.is_waiting:
                self._load(step)
        else:
            if answer.code == "frame_failed":
                self._note_back(step.before)
            is_final = answer.code in ("refused", "frame_failed")
            code = CODES[answer.code]
            self._end(step, Refused(code=code, message=answer.reason, is_final=is_final))

    def _note_back(self, before: Ready | None) -> None:
        """The worker has gone back by itself; it says `Ready` with its next frame."""
        self.ready, self._held = before or self.ready, None

    def _end(self, step: SwapStep, reply: Reply) -> None:
        if self._swap is step:
            self._swap = None
        if step.is_waiting:
            step.reply = reply

    def on_lent(self, lent: Lent, descriptor: int | None) -> None:
        """Frames were lent: hand them on, and let go of them."""
        step = self._shadow
        try:
            if step is None or step.token != lent.token or not isinstance(step.reply, Working):
                return
            self._shadow = None
            if descriptor is None:  # no camera gave any; that is no fault of the candidate's
                step.reply = Succeeded(agreement=None)
            else:
                step.begin(descriptor)
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def on_replaced(self) -> None:
        """The worker has ended as it was asked to; another one starts, told by `make_start`."""
        self.ready = self._held = self._asked = None
        if self._swap is not None:
            self._swap.is_replaced = True
        if self._shadow is not None:
            self._shadow.leave("its worker has gone")
            self._shadow = None

    def on_down(self, down: Down) -> None:
        """The worker is gone unasked; another one is started, and told what to run."""
        self.on_replaced()
        self.tell(down)


def way_of(ready: Ready) -> Choice | None:
    """Return how a model runs on the processor, None where it runs elsewhere."""
    if not ready.accelerator.startswith("cpu"):
        return None
    run = ready.run
    return Choice(
        runtime="litert" if run.runtime.startswith("litert") else "tflite-runtime",
        xnnpack=run.xnnpack,
        threads=run.threads,
        invoke_ms=run.invoke_ms,
        candidates=(),
        measured_at=0.0,
    )


def _named(ready: Ready) -> tuple[str, str]:
    """Return what tells models apart: the path and the manifest that were asked for."""
    return ready.path, ready.manifest_sha256
