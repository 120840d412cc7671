"""What a board says of its models: one retained message, made of what is known and true now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.contract.updates import IgnoredOrder, Reported
from agent.ota.admission import floors_for
from agent.ota.rules import ENDS
from agent.ota.state import Deployment, Order, Source, State, shown
from agent.ota.steps import Refused, Runs, Working

# Progress, attempts and messages that are ignored.
EVERY_S = 2.0
ENABLED = "updates to be enabled in this board's settings"


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """Who speaks."""

    device: str
    boot_id: str  # one run of the daemon
    id: str  # BoardIdentity.id
    agent_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Now:
    """What no state keeps."""

    at: float  # Unix seconds
    runs: Runs | None
    working: Working
    trouble: Refused | None  # why the phase under way is begun again
    waits_for: str  # empty: nothing
    last: Deployment | None  # the order to tell of; no state has one that was declined, or waits
    ignored: IgnoredOrder | None


def report_of(board: Board, state: State, engine: str, now: Now) -> Reported:
    """Return the message about an engine: the last order's if there was one."""
    deployment = now.last
    has = state.engine(engine)
    code, message = _why(deployment, now)
    runs = now.runs
    return Reported(
        device=board.device,
        boot_id=board.boot_id,
        at=now.at,
        engine=engine,
        deployment_id=deployment.order.desired.deployment_id if deployment else None,
        phase=deployment.phase if deployment else "idle",
        code=code,
        message=message,
        progress=now.working.progress,
        model=runs.model if runs else None,
        release_counter=_release_counter(state, engine, runs),
        source=source_of(state, engine, runs),
        candidate=_candidate(deployment),
        previous=has.previous.title if has.previous else None,
        attempts=deployment.attempts if deployment else 0,
        bytes_done=now.working.bytes_done,
        bytes_total=now.working.bytes_total or (deployment.size if deployment else None),
        p95_ms=deployment.p95_ms if deployment else None,
        rss_mib=deployment.rss_mib if deployment else None,
        agreement=deployment.agreement if deployment else None,
        clock_trusted=deployment.clock_trusted if deployment else None,
        floors=floors_for(state, _name(state, engine, deployment)),
        ignored=now.ignored,
    )


def declined(order: Order, *, is_enabled: bool) -> Deployment:
    """Return an order as it is told of that the settings do not allow, and that no state keeps."""
    why = "this board's settings name no repository"
    if not is_enabled:
        why = "updates are disabled in this board's settings"
    return Deployment(order=order, phase="refused", code="E_DISABLED", message=why)


def source_of(state: State, engine: str, runs: Runs | None) -> Source:
    """Return what the model that runs is to this board, by its bytes."""
    if runs is None or runs.source == "none":
        return "none"
    if runs.bundle is None:
        return "factory"
    has, deployment = state.engine(engine), state.deployment
    if has.active is not None and runs.bundle == has.active.sha256:
        return "active"
    candidate = deployment.candidate if deployment and deployment.engine == engine else None
    if candidate is not None and runs.bundle == candidate.sha256:
        return "candidate"
    return "previous"


def _why(deployment: Deployment | None, now: Now) -> tuple[str | None, str | None]:
    if deployment is None:
        return None, None
    if deployment.phase in ENDS:
        return deployment.code, deployment.message
    if now.trouble is not None:
        return now.trouble.code, shown(f"tried again: {now.trouble.message}")
    if now.waits_for:
        return deployment.code, shown(f"waits for {now.waits_for}")
    return deployment.code, deployment.message


def _release_counter(state: State, engine: str, runs: Runs | None) -> int | None:
    has, deployment = state.engine(engine), state.deployment
    known = [has.active, has.previous, deployment.candidate if deployment else None]
    for ref in known:
        if ref is not None and runs is not None and runs.bundle == ref.sha256:
            return ref.release_counter
    return None


def _candidate(deployment: Deployment | None) -> str | None:
    if deployment is None or deployment.phase in ENDS:
        return None
    if deployment.candidate is not None:
        return deployment.candidate.title
    desired = deployment.order.desired
    if deployment.is_resolved or desired.action == "factory":
        return "factory"
    return f"{desired.name}@{desired.version}" if desired.action == "run" else None


def _name(state: State, engine: str, deployment: Deployment | None) -> str | None:
    """Return the model's name whose floors are told."""
    if deployment is not None and deployment.order.desired.name is not None:
        return deployment.order.desired.name
    active = state.engine(engine).active
    if active is not None:
        return active.name
    return next(iter(state.releases)) if len(state.releases) == 1 else None


class Teller:
    """Tells changes that matter at once, all else now and then, and nothing twice."""

    def __init__(self, tell: Callable[[Reported], None]) -> None:
        self._tell = tell
        self._matters: tuple[object, ...] = ()
        self._details: tuple[object, ...] = ()
        self._next_at = 0.0

    def check(self, now: float, news: Reported) -> None:
        """Look whether there is something to tell; `now` in monotonic seconds."""
        matters = (news.deployment_id, news.phase, news.code, news.model, news.source)
        details = (
            *(news.message, news.attempts, news.bytes_done, news.previous),
            *(round(news.progress or 0.0, 2), news.ignored),
        )
        if matters == self._matters and (details == self._details or now < self._next_at):
            return
        self._matters, self._details, self._next_at = matters, details, now + EVERY_S
        self._tell(news)
