"""Whether this board may run a version, going by what it remembers: asked before it is fetched."""

from __future__ import annotations

from msgspec.structs import replace

from agent.contract.updates import Floors
from agent.ota.compat import is_at_least, is_for_board
from agent.ota.refusal import RefusalError
from agent.ota.state import BundleRef, State
from agent.ota.steps import Target


def floors_for(state: State, name: str | None) -> Floors:
    """Return what this board never goes below again, for models of this name."""
    floor = state.release(name or "")
    return replace(
        state.floors,
        release_counter=floor.release_counter,
        security_floor=floor.security_floor,
    )


def check_target(state: State, target: Target, *, board: str, agent_version: str) -> None:
    """Look at what the repository says of a version, before a byte of it is fetched.

    Raises:
        RefusalError: not this one, not here, or not any more.
    """
    deployment = state.deployment
    assert deployment is not None
    desired, ref = deployment.order.desired, target.ref
    if (ref.name, ref.version) != (desired.name, desired.version):
        raise RefusalError("E_COMPAT", f"asked for {desired.name}@{desired.version}: {ref.title}")
    if not is_for_board(target.boards, board):
        boards = ", ".join(target.boards)[:200]
        raise RefusalError("E_COMPAT", f"{ref.title} is for {boards}; this is {board}")
    if target.min_agent is not None and not is_at_least(agent_version, target.min_agent):
        raise RefusalError(
            "E_COMPAT", f"{ref.title} needs edge-agent {target.min_agent}; this is {agent_version}"
        )
    check_floor(state, ref)
    for engine in state.engines.values():
        for known in (engine.active, engine.previous):
            if known is not None and known.title == ref.title and known.sha256 != ref.sha256:
                raise RefusalError("E_CONFLICT", f"{ref.title} is known here with other content")
    by = desired.deployment_id
    for denied in state.engine(deployment.engine).denied:
        if (denied.sha256, denied.deployment_id) == (ref.sha256, by):
            raise RefusalError("E_DENIED", f"was rolled back under {by} before: {denied.code}")


def check_floor(state: State, ref: BundleRef) -> None:
    """Look whether a model is older than this board may go back to.

    Raises:
        RefusalError: E_ROLLBACK.
    """
    floor = state.release(ref.name).security_floor
    if ref.release_counter < floor:
        raise RefusalError(
            "E_ROLLBACK", f"{ref.title} is release {ref.release_counter}; {floor} is the lowest"
        )
