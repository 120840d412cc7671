"""One finding of `edge-agent check`."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

State = Literal["ok", "warn", "fail"]


class Check(Struct, frozen=True, kw_only=True):
    """One finding; `remedy` says what to do."""

    name: str
    state: State
    message: str
    remedy: str | None = None


def ok(name: str, message: str) -> Check:
    """Return a finding that needs nothing."""
    return Check(name=name, state="ok", message=message)


def warn(name: str, message: str, remedy: str) -> Check:
    """Return a finding with which the agent runs, but does not keep every promise."""
    return Check(name=name, state="warn", message=message, remedy=remedy)


def fail(name: str, message: str, remedy: str) -> Check:
    """Return a finding that keeps something from working; it changes the exit code."""
    return Check(name=name, state="fail", message=message, remedy=remedy)


def worst(name: str, message: str, faults: list[tuple[State, str, str]]) -> Check:
    """Return one finding for several faults, each a state, what is wrong and what to do."""
    if not faults:
        return ok(name, message)
    state: State = "fail" if any(fault[0] == "fail" for fault in faults) else "warn"
    return Check(
        name=name,
        state=state,
        message="; ".join([message, *(fault[1] for fault in faults)])
        if message
        else "; ".join(fault[1] for fault in faults),
        remedy="; ".join(dict.fromkeys(fault[2] for fault in faults)),
    )
