"""The updater: takes orders up, follows `agent.ota.rules` step by step, and says how it goes.

It runs on the control process's main thread and waits for nothing but the write of its state,
a few kilobytes: what takes longer is a `Step` of another process or thread, which is polled.

    updater.resume()             before any worker is started
    updater.for_worker(engine)   whenever one is: what it is to load
    updater.on_desired(…)        any thread; everything else on one
    updater.on_engine_event(…)
    updater.check(now)           on each turn of the main loop
    updater.stop()
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence

from agent.contract.updates import Reported
from agent.ota import rules
from agent.ota.desired import Orders
from agent.ota.ledger import Ledger, StateFile, is_on_trial
from agent.ota.preparing import Preparing
from agent.ota.probation import Probation
from agent.ota.refusal import PASSING
from agent.ota.state import BundleRef, Deployment, Order, Scope, State
from agent.ota.steps import (
    Down,
    EngineEvent,
    Refused,
    Runs,
    Step,
    Steps,
    Vitals,
    Working,
)
from agent.ota.swaps import Swapped, Swaps, is_run
from agent.ota.told import ENABLED, Board, Now, Teller, declined, report_of

log = logging.getLogger(__name__)

# A flood of messages is looked at so often, and orders are taken up no faster: each is a write.
READ_EVERY_S = 0.5
TAKE_UP_EVERY_S = 2.0
LOOK_S, LOOK_BUSY_S = 1.0, 0.2
COLLECT_WITHIN_S = 300.0
# Crashes and hangs may be somebody else's fault, so there are tries; anything else is the model's.
TRIED_AGAIN = ("E_CRASH", "E_HANG")
DAMAGED = Refused(code="E_HASH", message="its worker found it damaged")


class Updater:
    """See the module's docstring.

    slots: where the state is kept
    engines: by name in [models]; empty for [model]; the first is told of before any order came
    vitals: how an engine fares now; called about once a second
    tell: publishes `reported`; called with each change
    wall: Unix seconds, for messages alone
    """

    def __init__(
        self,
        *,
        slots: StateFile,
        steps: Steps,
        engines: Sequence[str],
        board: Board,
        is_enabled: bool,
        has_repository: bool = True,
        probation_s: float,
        vitals: Callable[[str], Vitals],
        tell: Callable[[Reported], None],
        wall: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._steps = steps
        self._engines = tuple(engines)
        self._board = board
        self._is_enabled, self._has_repository = is_enabled, has_repository
        self._probation_s = probation_s
        self._vitals = vitals
        self._wall = wall
        self._now = self._due_at = 0.0
        self._orders = Orders(self._engines)
        self._declined: dict[str, Order] = {}  # by the settings, the last of each engine
        self._is_declined: Order | None = None  # until another one is under way
        self._read_at = self._take_up_at = 0.0
        self._ledger = Ledger(slots, self._entered)
        self._preparing = Preparing(steps, board, self._is_throttled, chance)
        self._swaps = Swaps(steps, self._engines)
        self._trial_at = 0.0
        self._probation: Probation | None = None
        self._collecting: Step | None = None
        self._collect_by = 0.0
        self._is_littered = True
        self._teller = Teller(tell)

    @property
    def state(self) -> State:
        """The state that is acted upon."""
        return self._ledger.state

    def resume(self, now: float | None = None) -> None:
        """Read the state, and count this start if a candidate is on trial.

        Where that cannot be written, `for_worker` has the model before run meanwhile.
        """
        self._now = time.monotonic() if now is None else now
        self._ledger.open()
        self._preparing.enter(self._now)
        self._trial_at = self._now
        resumed = rules.resume(self.state)
        if resumed is not self.state:
            log.info("update goes on phase=%s", rules.phase_of(self.state))
            # One that has no try left gets none, whether that can be written or not.
            is_over = rules.phase_of(resumed) in rules.ENDS
            self._ledger.put(resumed, self._now, is_way_back=is_over)

    def for_worker(self, engine: str) -> tuple[State, bool]:
        """Return what `loader.choose` goes by for a worker that starts now, and its `may_try`.

        For each start, and for nothing else.
        """
        self._swaps.note_told(engine, self._wanted(engine))
        return self.state, self._ledger.may_try

    def on_desired(self, raw: bytes, scope: Scope) -> None:
        """Note a message of a desired topic; `check` looks at it. Any thread."""
        self._orders.put(raw, scope)

    def on_engine_event(self, event: EngineEvent) -> None:
        """Hear of a worker, before another one takes its place."""
        self._due_at = 0.0
        match event:
            case Runs():
                self._swaps.note_runs(event)
            case Down():
                self._on_down(event)

    def check(self, now: float) -> float:
        """Do what is due; return the seconds until something may be due again.

        The main loop turns with each result, and mostly there is nothing to do here.
        """
        if self._now <= now < self._due_at:
            return self._due_at - now
        self._now = now
        due_s = self._turn(now)
        self._due_at = now + due_s
        return due_s

    def _turn(self, now: float) -> float:
        generation = self.state.generation
        if now >= self._read_at:
            self._read_at = now + READ_EVERY_S
            self._orders.read(self.state, self._wall())
        self._ledger.check(now)
        self._take_orders()
        swapped = self._swaps.check(now, self._wanted)
        if swapped is not None:
            self._on_swapped(swapped)
        if self._ledger.is_saved:
            self._work()
        elif rules.phase_of(self.state) == "probation" and self._ledger.may_try:
            self._judge()
        self._teller.check(now, self.reported())
        if self.state.generation != generation:
            return 0.0
        is_busy = self._preparing.is_busy or self._swaps.is_busy or self._collecting is not None
        return LOOK_BUSY_S if is_busy else LOOK_S

    def reported(self) -> Reported:
        """Return what runs and how the last order fares, as of the last `check`."""
        deployment = self._last()
        engine = deployment.engine if deployment else self._engines[0]
        working, waits_for = self._preparing.working, self._preparing.waits_for
        waits_for = (waits_for or working.waits_for) if self._is_enabled else ENABLED
        if self._probation is not None:
            working = Working(progress=self._probation.progress)
            waits_for = self._probation.waits_for
        now = Now(
            at=self._wall(),
            runs=self._runs(engine),
            working=working,
            trouble=self._preparing.trouble,
            waits_for=self._ledger.trouble or waits_for,
            last=deployment,
            ignored=self._orders.ignored,
        )
        return report_of(self._board, self.state, engine, now)

    def _last(self) -> Deployment | None:
        """Return which order is told of: not always one that is acted upon."""
        if self._is_declined is not None:
            return declined(self._is_declined, is_enabled=self._is_enabled)
        acted, waits = self.state.deployment, self._ledger.newest.deployment
        if waits is not None and (acted is None or waits.order != acted.order):
            return waits  # it was heard, and is taken up once the disk takes it
        if acted is None or acted.engine in self._engines or acted.code == "E_ENGINE":
            return acted
        # What came of a model that the settings had once says nothing of those that run.
        return None if acted.phase in rules.ENDS else acted

    def stop(self) -> None:
        """Give up what is under way; it goes on with the next start."""
        is_underway = self._preparing.is_busy or rules.phase_of(self.state) in rules.ON_TRIAL
        self._preparing.stop()
        self._swaps.stop()
        if self._collecting is not None:
            self._collecting.stop()
        if is_underway and self._ledger.is_saved:
            self._ledger.put(rules.stop(self.state), self._now)

    def _runs(self, engine: str) -> Runs | None:
        return self._swaps.runs(engine) if engine in self._engines else None

    def _is_throttled(self, engine: str) -> bool:
        return bool(self._vitals(engine).is_throttled)

    def _wanted(self, engine: str) -> BundleRef | None:
        if is_on_trial(self.state, engine) and not self._ledger.may_try:
            return self.state.engine(engine).active
        return rules.wanted(self.state, engine)

    def _entered(self, state: State) -> None:
        """A phase begins."""
        self._preparing.enter(self._now)
        self._trial_at, self._probation = self._now, None
        deployment, self._is_declined = state.deployment, None
        assert deployment is not None
        log.info(
            "update phase=%s deployment=%s code=%s reason=%s",
            deployment.phase,
            deployment.order.desired.deployment_id,
            deployment.code,
            deployment.message,
        )
        self._is_littered |= deployment.phase in rules.ENDS
        if deployment.engine not in self._engines:
            return
        if deployment.phase == "trial" and deployment.attempts == 1:
            # Its worker may have been told the same before, and have found it damaged.
            self._swaps.note_due(deployment.engine)
        elif deployment.phase == "committed":
            # After a recall the candidate runs still, and the one before is gone back to.
            if self._swaps.is_told(deployment.engine, self._wanted(deployment.engine)):
                self._steps.keep(deployment.engine)
            self._swaps.forget_crashes(deployment.engine)

    def _take_orders(self) -> None:
        for engine in self._engines:
            order = self._orders.next(self.state, engine)
            if order is None:
                continue
            if self._declines(order):
                if self._declined.get(engine) != order:
                    self._declined[engine] = self._is_declined = order
            elif self._now >= self._take_up_at and not self._ledger.is_saving(order):
                self._take_up(order)

    def _declines(self, order: Order) -> bool:
        has_none = order.desired.action == "run" and not self._has_repository
        return has_none or not self._is_enabled

    def _take_up(self, order: Order) -> None:
        deployment, phase = self.state.deployment, rules.phase_of(self.state)
        is_own = deployment is not None and deployment.engine == order.engine
        if phase in rules.ENDS or (is_own and phase not in rules.ON_TRIAL):
            self._take_up_at = self._now + TAKE_UP_EVERY_S
            self._ledger.put(rules.take_up(self.state, order), self._now)
        elif deployment is not None and rules.may_be_put_off(deployment, order):
            self._take_up_at = self._now + TAKE_UP_EVERY_S
            self._ledger.put(rules.take_up(rules.put_off(self.state), order), self._now)
        elif deployment is not None and rules.is_recall(deployment, order):
            self._take_up_at = self._now + TAKE_UP_EVERY_S
            ended, taken = rules.recall(self.state, order)
            self._ledger.put(ended, self._now, is_way_back=True)
            self._teller.check(self._now, self.reported())
            self._ledger.put(taken, self._now)

    def _work(self) -> None:
        deployment = self.state.deployment
        if self._collecting is not None:
            self._look_at_collecting(self._collecting)
        elif deployment is None or deployment.phase in rules.ENDS:
            self._collect()
        elif deployment.engine not in self._engines:
            self._fail(Refused(code="E_ENGINE", message="this board does not have it any more"))
        elif deployment.phase == "trial":
            self._look_at_trial(deployment)
        elif deployment.phase == "probation":
            self._judge()
        elif self._is_enabled:
            state = self._preparing.check(self._now, self.state, self._runs(deployment.engine))
            if state is not None and state is not self.state:
                self._ledger.put(state, self._now)

    def _collect(self) -> None:
        """Throw away what nothing needs any more; once after each end, and after a start."""
        if not self._is_littered:
            return
        self._is_littered = False
        fetched: frozenset[str] = frozenset()
        last = self.state.deployment
        may_go_on = last is not None and (last.code in PASSING or last.code == "E_LOOP")
        if last is not None and last.candidate is not None and may_go_on:
            fetched = frozenset({last.candidate.sha256})  # it may be ordered once more
        try:
            self._collecting = self._steps.collect(rules.kept(self.state), fetched)
        except OSError as error:
            log.warning("nothing collected reason=%s", error)
        self._collect_by = self._now + COLLECT_WITHIN_S

    def _look_at_collecting(self, step: Step) -> None:
        if isinstance(step.poll(), Working):
            if self._now < self._collect_by:
                return
            step.stop()
        self._collecting = None

    def _look_at_trial(self, deployment: Deployment) -> None:
        engine, ref = deployment.engine, deployment.candidate
        runs = self._runs(engine)
        if runs is not None and self._swaps.is_told(engine, ref):
            if is_run(runs, ref):
                # A restart goes on from either phase in the same way, so this needs no disk.
                self._ledger.put(rules.follow(self.state, "done"), self._now, is_way_back=True)
            else:
                self._fail(DAMAGED)
        elif self._now - self._trial_at > rules.LIMITS["trial"].within_s:
            self._fail(Refused(code="E_HANG", message="was never loaded"))

    def _judge(self) -> None:
        """Watch what serves; for that it need not have been written that it does."""
        deployment = self.state.deployment
        assert deployment is not None
        vitals, ref = self._vitals(deployment.engine), deployment.candidate
        runs = self._runs(deployment.engine)
        if runs is not None and not is_run(runs, ref):
            self._fail(DAMAGED)  # what another worker runs instead proves nothing
            return
        if self._probation is None:
            budget_ms = ref.p95_ms if ref is not None else None
            self._probation = Probation(self._probation_s, budget_ms, self._now, vitals)
        verdict = self._probation.look(self._now, vitals)
        if verdict is None:
            return
        if verdict.code is not None:
            self._fail(Refused(code=verdict.code, message=verdict.message))
        elif self._ledger.is_saved:
            self._ledger.put(rules.follow(self.state, "passed"), self._now)

    def _fail(self, why: Refused) -> None:
        """The candidate goes, whether that can be written or not."""
        event: rules.Event = "refused"
        if rules.phase_of(self.state) in rules.ON_TRIAL:
            event = "failed"
        state = rules.follow(self.state, event, code=why.code, message=why.message)
        self._ledger.put(state, self._now, is_way_back=True)

    def _on_swapped(self, swapped: Swapped) -> None:
        """Go on after a swap; one to the candidate that succeeded is seen by what runs."""
        if swapped.refused is None:
            return
        is_trial = is_on_trial(self.state, swapped.engine) and self._ledger.may_try
        if is_trial:
            self._fail(swapped.refused)
        if swapped.is_stuck or not is_trial:
            log.warning("worker replaced engine=%s reason=%s", swapped.engine, swapped.refused)
            self._swaps.replace(swapped.engine)

    def _on_down(self, event: Down) -> None:
        """Count against the model that its worker was told to run."""
        engine = event.engine
        is_trial = is_on_trial(self.state, engine) and self._ledger.may_try
        is_told = self._swaps.is_told(engine, self._wanted(engine))
        is_told |= is_trial and self._swaps.is_swapping(engine)
        self._swaps.note_down(engine)
        if not event.is_native or not is_told:
            return
        if is_trial:
            self._on_trial_down(event)
        elif self._swaps.note_crash(engine, self._now):
            newest = self._ledger.newest
            fallen = rules.fall_back(newest, engine, f"crashed too often: {event.reason}")
            if fallen is not newest:
                log.error("committed model left engine=%s reason=%s", engine, event.reason)
                self._swaps.forget_crashes(engine)
                self._is_littered = True
                self._ledger.put(fallen, self._now, is_way_back=True)

    def _on_trial_down(self, event: Down) -> None:
        if event.code not in TRIED_AGAIN:
            self._fail(Refused(code=event.code, message=event.reason))
            return
        state = rules.crashed(self.state, event.code, event.reason)
        self._ledger.put(state, self._now, is_way_back=rules.phase_of(state) in rules.ENDS)
