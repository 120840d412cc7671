"""How an order fares: the table of phases, and what each change does to the state.

Pure: states in, states out. `agent.ota.updater` writes each state down before it acts on it, and
what is done for a phase can be done again, so that a kill or a power cut anywhere is a repetition.

    accepted ▶ metadata ▶ downloading ▶ verify ▶ selftest ▶ shadow ▶ trial ▶ probation ▶ committed
       └────────────┴──────────┴──────────┴─ refused ─┴─────────┘      └─────────┴─▶ rolled_back
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from msgspec.structs import replace

from agent.contract.updates import Phase
from agent.ota.admission import check_floor
from agent.ota.refusal import Code, RefusalError
from agent.ota.state import (
    BundleRef,
    Denied,
    Deployment,
    Order,
    ReleaseFloor,
    State,
    shown,
)

Event = Literal[
    "ordered",  # a newer order for the same model
    "done",  # what the phase is there for
    "factory",  # the factory's model is wanted: nothing to fetch, nothing to try
    "at_hand",  # the store has the bundle
    "already",  # it is what runs
    "damaged",  # what was fetched or stored is not what it was
    "proven",  # it ran here before
    "refused",
    "crashed",  # and has tries left; a restart of agent or board counts as one
    "failed",
    "recalled",  # by an order, while on trial
    "passed",  # its probation
    "outlived",  # committed, and then crashed too often
]

# What is not in here does not happen: an event that its phase does not know is a fault of ours.
TABLE: Mapping[Phase, Mapping[Event, Phase]] = {
    "idle": {"ordered": "accepted"},
    "accepted": {
        "ordered": "accepted",
        "done": "metadata",
        "at_hand": "verify",  # one step back, to what is still here
        "factory": "trial",
        "already": "committed",
        "refused": "refused",
    },
    "metadata": {
        "ordered": "accepted",
        "done": "downloading",
        "at_hand": "verify",
        "already": "committed",
        "refused": "refused",
    },
    "downloading": {"ordered": "accepted", "done": "verify", "refused": "refused"},
    "verify": {
        "ordered": "accepted",
        "done": "selftest",
        "proven": "trial",
        "damaged": "downloading",
        "refused": "refused",
    },
    "selftest": {"ordered": "accepted", "done": "shadow", "refused": "refused"},
    "shadow": {"ordered": "accepted", "done": "trial", "refused": "refused"},
    # From here on the candidate serves cameras. Newer orders wait, but for those that call it back.
    "trial": {
        "done": "probation",
        "crashed": "trial",
        "failed": "rolled_back",
        "recalled": "rolled_back",
    },
    "probation": {
        "passed": "committed",
        "crashed": "trial",
        "failed": "rolled_back",
        "recalled": "rolled_back",
    },
    "committed": {"ordered": "accepted", "outlived": "rolled_back"},
    "rolled_back": {"ordered": "accepted"},
    "refused": {"ordered": "accepted"},
}
ENDS: frozenset[Phase] = frozenset({"idle", "committed", "rolled_back", "refused"})
ON_TRIAL: frozenset[Phase] = frozenset({"trial", "probation"})
# Whatever goes round in circles ends: changes of phase and resumptions of one order. The longest
# way without a fault has 8. Mender's updater gives up after 28 writes of its state.
MOST_TRANSITIONS = 32


@dataclass(frozen=True, slots=True)
class Limits:
    """How often a phase may be begun for one order, and how long one beginning may take."""

    tries: int
    within_s: float


# Steps have deadlines of their own; these are for steps that forget theirs.
LIMITS: Mapping[Phase, Limits] = {
    # The network's and the clock's troubles pass: with the pauses of `back_off_s`, four days.
    "metadata": Limits(100, 1800.0),
    "downloading": Limits(100, 86400.0),
    # What may take the board down with it is not tried often.
    "verify": Limits(3, 3600.0),
    "selftest": Limits(2, 1800.0),
    "shadow": Limits(2, 1800.0),
    # Three workers at most are given to a candidate, crashes and power cuts alike.
    "trial": Limits(3, 600.0),
}
BACK_OFF_FIRST_S = 30.0
BACK_OFF_MOST_S = 3600.0
# A committed model that ends its worker this often within that time is left: R-B4.
MOST_CRASHES = 5
CRASHES_WITHIN_S = 600.0


def phase_of(state: State) -> Phase:
    """Return how the last order fares."""
    return state.deployment.phase if state.deployment is not None else "idle"


def wanted(state: State, engine: str) -> BundleRef | None:
    """Return what an engine is to run now; None: the factory's model."""
    deployment = state.deployment
    if deployment is not None and deployment.phase in ON_TRIAL and deployment.engine == engine:
        return deployment.candidate
    return state.engine(engine).active


def kept(state: State) -> frozenset[str]:
    """Return the hashes of all bundles that may still be needed."""
    refs = [ref for one in state.engines.values() for ref in (one.active, one.previous)]
    if state.deployment is not None and state.deployment.phase not in ENDS:
        refs.append(state.deployment.candidate)
    return frozenset(ref.sha256 for ref in refs if ref is not None)


def take_up(state: State, order: Order) -> State:
    """Begin with an order; whatever was under way before `trial` is given up for it."""
    if "ordered" not in TABLE[phase_of(state)]:
        raise ValueError(f"no order is taken up in phase {phase_of(state)}")
    engine = order.desired.engine
    return replace(
        state,
        deployment=Deployment(order=order),
        orders=state.orders | {engine: order},
        counters=state.counters | {engine: order.desired.counter},
    )


def may_be_put_off(deployment: Deployment, order: Order) -> bool:
    """Return whether another model's way back need not wait for what is being prepared.

    That may take days without a network, and a way back needs none.
    """
    is_way_back = order.desired.action != "run" and deployment.order.desired.action == "run"
    is_prepared = "ordered" in TABLE[deployment.phase] and deployment.phase not in ENDS
    return is_way_back and is_prepared and order.engine != deployment.engine


def put_off(state: State) -> State:
    """Return the state without the order that is being prepared: so that one is news again.

    Its counter stays, and nothing that is older is.
    """
    engine = _underway(state).engine
    others = {name: order for name, order in state.orders.items() if name != engine}
    return replace(state, deployment=None, orders=others)


def learn(state: State, **found: Any) -> State:  # noqa: ANN401  fields of Deployment
    """Return the state with what was found out on the way, where anything was."""
    known = {name: value for name, value in found.items() if value is not None}
    return replace(state, deployment=replace(_underway(state), **known)) if known else state


def follow(
    state: State, event: Event, *, code: Code | None = None, message: str | None = None
) -> State:
    """Return the state after an event: the one way from phase to phase.

    Raises:
        KeyError: the table has no such row.
    """
    deployment = _underway(state)
    phase = TABLE[deployment.phase][event]
    if deployment.transitions >= MOST_TRANSITIONS and phase not in ENDS:
        phase = _end_of(deployment.phase)
        code, message = "E_LOOP", f"went through {MOST_TRANSITIONS} phases without an end"
    attempts = 0
    if phase == "trial":  # a worker is given to it; counted here, before that
        attempts = deployment.attempts + 1 if event == "crashed" else 1
    elif phase == "probation" or phase in ENDS:
        attempts = deployment.attempts
    after = replace(
        deployment,
        phase=phase,
        code=code,
        message=None if message is None else shown(message),
        attempts=attempts,
        transitions=deployment.transitions + 1,
    )
    state = replace(state, deployment=after)
    if event == "passed" and phase == "committed":
        return _committed(state, after)
    if phase == "rolled_back":
        return _denied(state, after)
    return state


def begin(state: State, last: tuple[Code, str] | None = None) -> State:
    """Return the state to write before a phase's work is begun, which counts it.

    Where it has been begun too often: refused, for what went wrong last.
    """
    deployment = _underway(state)
    if deployment.attempts >= LIMITS[deployment.phase].tries:
        code, message = last or ("E_LOOP", "the agent or the board ended each time")
        said = f"{deployment.phase} tried {deployment.attempts} times: {message}"
        return follow(state, "refused", code=code, message=said)
    return replace(state, deployment=replace(deployment, attempts=deployment.attempts + 1))


def crashed(state: State, code: Code, message: str) -> State:
    """Return the state after a worker has ended with the candidate: another try, or none left."""
    deployment = _underway(state)
    if deployment.attempts < LIMITS["trial"].tries:
        return follow(state, "crashed", code=code, message=message)
    said = f"given {deployment.attempts} workers; the last: {message}"
    return follow(state, "failed", code=code, message=said)


def resume(state: State) -> State:
    """Return the state to write when the agent starts, before any worker does."""
    deployment = state.deployment
    if deployment is None or deployment.phase in ENDS:
        return state
    if deployment.phase in ON_TRIAL:
        return crashed(state, "E_CRASH", "the agent or the board ended during its trial")
    if deployment.transitions >= MOST_TRANSITIONS:
        return follow(
            state,
            "refused",
            code="E_LOOP",
            message=f"begun again {MOST_TRANSITIONS} times without an end",
        )
    return replace(state, deployment=replace(deployment, transitions=deployment.transitions + 1))


def stop(state: State) -> State:
    """Return the state to write when the agent is stopped in an orderly way: no try is lost."""
    deployment = state.deployment
    if deployment is None or deployment.phase in ENDS or not deployment.attempts:
        return state
    return replace(state, deployment=replace(deployment, attempts=deployment.attempts - 1))


def decide(state: State) -> State:
    """Return the state after `accepted`: which way an order goes."""
    deployment = _underway(state)
    desired = deployment.order.desired
    if desired.action == "run":
        return follow(state, "done")
    engine = state.engine(deployment.engine)
    if engine.active is None:
        return follow(state, "already", message="runs the factory's model already")
    if desired.action == "factory":
        return follow(learn(state, is_resolved=True), "factory")
    named = (desired.name, desired.version)
    if desired.name is not None and named != (engine.active.name, engine.active.version):
        return follow(state, "already", message=f"does not run {named[0]}@{named[1]}")
    if engine.previous is None:
        return follow(learn(state, is_resolved=True), "factory")
    try:
        check_floor(state, engine.previous)
    except RefusalError as refusal:
        return follow(state, "refused", code=refusal.code, message=str(refusal))
    return follow(learn(state, candidate=engine.previous, is_resolved=True), "at_hand")


def is_recall(deployment: Deployment, order: Order) -> bool:
    """Return whether an order wants what is on trial to end at once."""
    desired, tried = order.desired, deployment.order.desired
    if order.engine != deployment.engine or desired.action in ("run", tried.action):
        return False
    if desired.action == "factory":
        return True
    named = (desired.name, desired.version)
    return tried.action == "run" and named in ((None, None), (tried.name, tried.version))


def recall(state: State, order: Order) -> tuple[State, State]:
    """Return the state in which the trial ended, and the one in which the order is taken up.

    What ran before the trial is one step back: a rollback is done with that.
    """
    by = order.desired.deployment_id
    ended = follow(state, "recalled", code="E_RECALLED", message=f"called back by {by}")
    taken = take_up(ended, order)
    if order.desired.action == "rollback":
        taken = follow(taken, "already", message="ended a trial")
    return ended, taken


def fall_back(state: State, engine: str, message: str) -> State:
    """Return the state after a committed model has crashed too often: one step back.

    The factory's model, of which there is nothing further back, stays.
    """
    before = state.engine(engine)
    left, back = before.active, before.previous
    if left is None:
        return state
    if back is not None:
        try:
            check_floor(state, back)
        except RefusalError:
            back = None
    deployment = state.deployment
    if (
        deployment is not None
        and deployment.phase == "committed"
        and deployment.engine == engine
        and deployment.candidate == left
    ):
        state = follow(state, "outlived", code="E_CRASH", message=message)
    after = replace(state.engine(engine), active=back, previous=None)
    return replace(state, engines=state.engines | {engine: after})


def back_off_s(failures: int, chance: float) -> float:
    """Return how long to wait before the next try; twice as long each time, half of it by chance.

    So boards that failed together do not come back together.
    """
    longest = min(BACK_OFF_MOST_S, BACK_OFF_FIRST_S * 2.0 ** min(failures, 20))
    return longest * (0.5 + 0.5 * chance)


def _underway(state: State) -> Deployment:
    if state.deployment is None:
        raise KeyError("no order was ever taken up")
    return state.deployment


def _end_of(phase: Phase) -> Phase:
    return "rolled_back" if phase in ON_TRIAL else "refused"


def _committed(state: State, deployment: Deployment) -> State:
    """Make the candidate the model that runs: with the phase, in the same write."""
    name, ref = deployment.engine, deployment.candidate
    before = state.engine(name)
    if deployment.order.desired.action != "run":
        previous = None  # what an operator has gone back from is nothing to fall back to
    elif before.active is not None and ref is not None and before.active.sha256 == ref.sha256:
        previous = before.previous
    else:
        previous = before.active
    engines = state.engines | {name: replace(before, active=ref, previous=previous)}
    if ref is None:
        return replace(state, engines=engines)
    floor = state.release(ref.name)
    raised = ReleaseFloor(
        release_counter=max(floor.release_counter, ref.release_counter),
        security_floor=max(floor.security_floor, ref.security_floor),
    )
    return replace(state, engines=engines, releases=state.releases | {ref.name: raised})


def _denied(state: State, deployment: Deployment) -> State:
    ref = deployment.candidate
    if ref is None or deployment.code == "E_RECALLED":
        return state
    entry = Denied(
        sha256=ref.sha256,
        deployment_id=deployment.order.desired.deployment_id,
        code=deployment.code or "E_CRASH",
    )
    before = state.engine(deployment.engine)
    others = tuple(one for one in before.denied if one != entry)
    return replace(
        state,
        engines=state.engines | {deployment.engine: replace(before, denied=(*others, entry))},
    )
