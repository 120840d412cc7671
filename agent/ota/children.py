"""Child processes of updates: killed, and seen off without anybody waiting for them."""

from __future__ import annotations

import contextlib
import subprocess
from typing import Final

# A killed process is gone in some 10 ms, unless a disk or a driver holds it.
AT_ONCE_S: Final = 0.05

# Killed and not gone yet.
_ending: list[subprocess.Popen[bytes]] = []


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process unless it has ended, and wait for no more than a moment."""
    with contextlib.suppress(OSError):
        process.kill()
    try:
        process.wait(AT_ONCE_S)
    except subprocess.TimeoutExpired:
        _ending.append(process)


def see_off() -> None:
    """Forget those that have ended since; for whoever starts the next one."""
    _ending[:] = [process for process in _ending if process.poll() is None]
