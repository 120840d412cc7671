"""The workers' end, at the end of the program."""

from __future__ import annotations

import time
from collections.abc import Sequence

from agent.daemon.workers.supervisor import Supervisor

# Killed workers have this long, together; see `KilledProcesses`.
GONE_AT_STOP_WITHIN_S = 0.5


def stop_all(supervisors: Sequence[Supervisor], within_s: float) -> None:
    """Stop workers side by side: all are asked before any is waited for."""
    deadline = time.monotonic() + within_s
    for supervisor in supervisors:
        supervisor.ask_to_stop()
    for supervisor in supervisors:
        supervisor.stop(max(0.2, deadline - time.monotonic()))
    gone_by = time.monotonic() + GONE_AT_STOP_WITHIN_S
    for supervisor in supervisors:
        supervisor.see_off(max(0.0, gone_by - time.monotonic()))
