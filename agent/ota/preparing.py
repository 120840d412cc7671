"""The phases before the trial: each is one step of another process, begun, polled and judged.

Nothing here touches what serves cameras, and nothing here is lost but time when the power goes:
the phase is begun again, as often as `rules.LIMITS` says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from msgspec.structs import replace

from agent.ota import rules
from agent.ota.admission import check_target, floors_for
from agent.ota.floors import highest_floors
from agent.ota.refusal import RefusalError
from agent.ota.state import Deployment, State
from agent.ota.steps import Refused, Runs, Step, Steps, Succeeded, Target, Working
from agent.ota.told import Board

log = logging.getLogger(__name__)

# Nothing is measured on a throttled board, for so long at most.
COOL_WITHIN_S = 3600.0


class Preparing:
    """One phase's work; `check` returns the state that follows, to be written by whoever asks."""

    def __init__(
        self,
        steps: Steps,
        board: Board,
        is_throttled: Callable[[str], bool],
        chance: Callable[[], float],
    ) -> None:
        self._steps = steps
        self._board = board
        self._is_throttled = is_throttled
        self._chance = chance
        self._step: Step | None = None
        self.enter(0.0)

    def enter(self, now: float) -> None:
        """Forget all of the phase before; what it had under way is given up."""
        self.stop()
        self.working = Working()
        self.trouble: Refused | None = None  # why the phase is begun again
        self.waits_for = ""
        self._entered_at = self._begun_at = self._begin_at = now
        self._is_counted = False  # this beginning, in the state
        self._failures = 0  # in a row, without any progress between

    @property
    def is_busy(self) -> bool:
        """Whether a step is under way."""
        return self._step is not None

    def stop(self) -> None:
        """Give up what is under way."""
        if self._step is not None:
            self._step.stop()
        self._step = None

    def check(self, now: float, state: State, runs: Runs | None) -> State | None:
        """Do what is due; return the state that follows. It is acted upon once it comes back.

        runs: what the engine runs now
        """
        deployment = state.deployment
        assert deployment is not None
        if deployment.phase == "accepted":
            return rules.decide(state)
        if self._step is not None:
            return self._look(self._step, now, state, deployment, runs)
        if now < self._begin_at or self._has_to_cool(now, deployment):
            return None
        if self._is_counted:
            self._is_counted = False
            self._begin(now, state, deployment)
            return None
        trouble = self.trouble
        begun = rules.begin(state, (trouble.code, trouble.message) if trouble else None)
        self._is_counted = rules.phase_of(begun) == deployment.phase
        return begun

    def _has_to_cool(self, now: float, deployment: Deployment) -> bool:
        self.waits_for = ""
        if deployment.phase not in ("selftest", "shadow"):
            return False
        if now - self._entered_at > COOL_WITHIN_S or not self._is_throttled(deployment.engine):
            return False
        self.waits_for = "the board to cool"
        return True

    def _begin(self, now: float, state: State, deployment: Deployment) -> None:
        self._begun_at, self.working = now, Working()
        try:
            self._step = self._start(state, deployment)
        except OSError as error:
            self._again(now, Refused(code="E_SYSTEM", message=str(error), is_final=False))

    def _start(self, state: State, deployment: Deployment) -> Step:
        desired, ref = deployment.order.desired, deployment.candidate
        floors = floors_for(state, desired.name)
        if deployment.phase == "metadata":
            return self._steps.metadata(desired, floors)
        assert ref is not None
        if deployment.phase == "downloading":
            return self._steps.download(desired, ref, deployment.size or 0, floors)
        if deployment.phase == "verify":
            return self._steps.verify(ref, deployment.size or 0)
        try_out = self._steps.selftest if deployment.phase == "selftest" else self._steps.shadow
        return try_out(deployment.engine, ref)

    def _look(
        self, step: Step, now: float, state: State, deployment: Deployment, runs: Runs | None
    ) -> State | None:
        reply = step.poll()
        if isinstance(reply, Working):
            self._note_progress(reply)
            limit_s = rules.LIMITS[deployment.phase].within_s
            if now - self._begun_at > limit_s:
                step.stop()
                late = f"{deployment.phase} took more than {limit_s:.0f} s"
                self._again(now, Refused(code="E_SLOW", message=late, is_final=False))
            return None
        self._step = None
        state = rules.learn(state, clock_trusted=reply.clock_trusted)
        if reply.floors is not None:
            state = replace(state, floors=highest_floors(state.floors, reply.floors))
        if isinstance(reply, Succeeded):
            return self._after(reply, state, deployment, runs)
        return self._after_refusal(reply, now, state, deployment)

    def _note_progress(self, reply: Working) -> None:
        before = self.working.bytes_done
        if before is not None and (reply.bytes_done or 0) > before:
            self._failures = 0
        self.working = reply

    def _again(self, now: float, reply: Refused) -> None:
        """Wait, then begin the phase once more."""
        self._step = None
        self.trouble = reply
        self._begin_at = now + rules.back_off_s(self._failures, self._chance())
        self._failures += 1
        log.warning("tried again later code=%s reason=%s", reply.code, reply.message)

    def _after_refusal(
        self, reply: Refused, now: float, state: State, deployment: Deployment
    ) -> State:
        desired = deployment.order.desired
        is_damaged = deployment.phase == "verify" and reply.code == "E_HASH" and not reply.is_final
        if is_damaged and desired.action == "run" and not deployment.is_refetched:
            return rules.follow(rules.learn(state, is_refetched=True), "damaged")
        if is_damaged or reply.is_final:
            return rules.follow(state, "refused", code=reply.code, message=reply.message)
        self._again(now, reply)
        return state

    def _after(
        self, reply: Succeeded, state: State, deployment: Deployment, runs: Runs | None
    ) -> State:
        """Return the state that follows a step's success."""
        if deployment.phase == "metadata":
            assert reply.target is not None
            try:
                return self._after_metadata(reply.target, state, deployment.engine, runs)
            except RefusalError as refusal:
                return rules.follow(state, "refused", code=refusal.code, message=str(refusal))
        state = rules.learn(
            state,
            candidate=reply.ref,
            p95_ms=reply.p95_ms,
            rss_mib=reply.rss_mib,
            agreement=reply.agreement,
        )
        if deployment.phase == "verify" and deployment.order.desired.action == "rollback":
            return rules.follow(state, "proven")
        return rules.follow(state, "done")

    def _after_metadata(
        self, target: Target, state: State, engine: str, runs: Runs | None
    ) -> State:
        """Return which way a version goes that the repository vouches for.

        Raises:
            RefusalError: none.
        """
        board, ref = self._board, target.ref
        check_target(state, target, board=board.id, agent_version=board.agent_version)
        active = state.engine(engine).active
        runs_it = runs is None or runs.bundle == ref.sha256  # or else its files are damaged
        if active is not None and active.sha256 == ref.sha256 and runs_it:
            known = rules.learn(state, candidate=active, is_resolved=True)
            return rules.follow(known, "already")
        known = rules.learn(state, candidate=ref, is_resolved=True, size=target.size)
        if self._steps.has(ref):
            return rules.follow(known, "at_hand")
        self._steps.require_space(ref, target.size)
        return rules.follow(known, "done")
