"""Processes that were killed: gone in a moment, or stuck in the kernel.

    kill ──gone within GONE_WITHIN_S──▶ forgotten
      └──────still there──────▶ abandoned, told ──ends after all──▶ forgotten, told

Nothing ends a process in uninterruptible sleep but the driver that holds it (proc_pid_stat(5),
state D), so nobody waits for one: what it holds is lost until it ends or the board is restarted,
and another worker does what can be done without.
"""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from agent.daemon.processes import UNINTERRUPTIBLE, read_state

log = logging.getLogger(__name__)

# A worker's memory is given back in some 10 ms and a USB transfer is cancelled within a second;
# what takes longer than this is taken for stuck. To be wrong costs little: it is told when it ends.
GONE_WITHIN_S = 2.0
# All that whoever kills waits for: engines beside this one are served by the same thread.
AT_ONCE_S = 0.05


@dataclass(slots=True)
class _Killed:
    process: subprocess.Popen[bytes]
    killed_at: float
    is_abandoned: bool = False


class KilledProcesses:
    """Kills processes and sees them off; for one thread.

    `tell` is given the process id and the reason of one that is abandoned, and an empty reason
    when the last of them has ended after all.
    """

    def __init__(
        self, tell: Callable[[int, str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._killed: list[_Killed] = []

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a process unless it has ended, and wait for no more than a moment."""
        if process.poll() is not None:
            return
        process.kill()
        try:
            process.wait(timeout=AT_ONCE_S)
        except subprocess.TimeoutExpired:
            self._killed.append(_Killed(process, self._clock()))

    def check(self) -> None:
        """Forget those that have ended; abandon those that should have."""
        now = self._clock()
        for one in list(self._killed):
            if one.process.poll() is not None:
                self._killed.remove(one)
                if one.is_abandoned:
                    log.warning("abandoned process ended after all pid=%d", one.process.pid)
                    self._tell_of_end(one)
            elif not one.is_abandoned and now - one.killed_at > GONE_WITHIN_S:
                one.is_abandoned = True
                reason = _why_stuck(one.process.pid)
                log.error("abandoned reason=%s", reason)
                self._tell(one.process.pid, reason)

    def tell_again(self) -> None:
        """Tell of one that is abandoned, to a listener that may have forgotten."""
        for one in self._killed:
            if one.is_abandoned:
                self._tell(one.process.pid, _why_stuck(one.process.pid))
                return

    @property
    def is_waiting(self) -> bool:
        """Whether one that was killed just now may still hold what the next one needs."""
        return any(not one.is_abandoned for one in self._killed)

    @property
    def pids(self) -> list[int]:
        """Of all that were killed and have not ended."""
        return [one.process.pid for one in self._killed]

    def wait(self, within_s: float) -> None:
        """Wait for those that were killed just now, at the program's end."""
        deadline = time.monotonic() + within_s
        for one in self._killed:
            if not one.is_abandoned:
                try:
                    one.process.wait(timeout=max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    log.warning("killed process has not ended pid=%d", one.process.pid)

    def _tell_of_end(self, ended: _Killed) -> None:
        if any(one.is_abandoned for one in self._killed):
            self.tell_again()
        else:
            self._tell(ended.process.pid, "")


def _why_stuck(pid: int) -> str:
    state = read_state(pid)
    how = "" if state is None else f" (state {state})"
    if state == UNINTERRUPTIBLE:
        how = " as a driver holds it in uninterruptible sleep (state D)"
    return (
        f"process {pid} was killed but has not ended{how}; another one took its place, but what"
        " it holds, a camera or an accelerator, may stay lost until the board is restarted"
    )
