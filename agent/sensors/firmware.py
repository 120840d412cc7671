"""Questions to the Raspberry Pi's firmware, put seldom.

Every answer costs a call into the firmware, and a process where the mailbox cannot be used; asking
for the throttled word in a tight loop is known to tear holes into sound (zynthian-ui, issue 412).
The firmware renews its flags each 100 ms and the kernel looks at them each 2 s, so a state that
lasts is seen all the same (raspberrypi/linux, drivers/hwmon/raspberrypi-hwmon.c).
"""

from __future__ import annotations

from agent.sensors.commands import Ask

EVERY_S = 5.0
# Where nothing answers, a question costs a search for a program, or its whole time-out.
SILENT_FOR_S = 60.0
# A look waits for it, so what takes longer counts as no answer.
WITHIN_S = 2.0


class SeldomAsked:
    """One question, and its last answer."""

    def __init__(self, ask: Ask, *command: str) -> None:
        self._ask = ask
        self._command = command
        self._answer: str | None = None
        self._next_s: float | None = None

    def is_due(self, at_s: float) -> bool:
        """Return whether `answer` would ask now."""
        return self._next_s is None or at_s >= self._next_s

    def answer(self, at_s: float, *, at_once: bool = False) -> str | None:
        """Return what the firmware says, or said EVERY_S ago at most; None: nothing."""
        if at_once or self.is_due(at_s):
            self._answer = self._ask(*self._command, within_s=WITHIN_S)
            self._next_s = at_s + (SILENT_FOR_S if self._answer is None else EVERY_S)
        return self._answer
