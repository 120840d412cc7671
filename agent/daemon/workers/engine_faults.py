"""What a worker's end says of its model, for whoever may give the engine another one. Pure."""

from __future__ import annotations

from agent.daemon.workers.restart_reasons import RestartReason
from agent.link import Failed
from agent.ota.refusal import Code
from agent.ota.steps import Down

# A model cannot make a camera's driver hang, nor the kernel refuse a process.
_CODES: dict[RestartReason, tuple[Code, bool]] = {
    "crashed": ("E_CRASH", True),
    "memory": ("E_CRASH", True),
    "hang": ("E_HANG", True),
    "silent": ("E_HANG", True),
    "slow_start": ("E_HANG", True),
    "camera_hang": ("E_HANG", False),
    "not_started": ("E_SYSTEM", False),
    "accelerator_back": ("E_SYSTEM", False),
    "swap": ("E_SYSTEM", False),
}


def down_of(engine: str, why: RestartReason, reason: str, said: Failed | None) -> Down:
    """Return the event for a worker that is gone; `said` are its own last words, if it had any."""
    if why == "model":
        # Without a word the runtime crashed while loading; with one, the model was refused.
        return Down(
            engine=engine,
            code="E_CRASH" if said is None else "E_COMPAT",
            reason=reason,
            is_native=True,
        )
    code, is_native = _CODES[why]
    if why == "crashed" and said is not None:
        is_native = said.code == "frame"  # else a camera's or our own fault
    return Down(engine=engine, code=code, reason=reason, is_native=is_native)
