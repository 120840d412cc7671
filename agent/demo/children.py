"""Child processes that never outlive the demo, and the signals that end it.

Every child leads a session of its own: Ctrl-C in the terminal reaches the demo alone, which
ends the children in reverse order, and a child that must be killed takes its own children
along. Signals only set a mark, so that nothing interrupts the cleaning up.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import agent
from agent.trial_words import signal_name

POLL_S = 0.02
ENDS_WITHIN_S = 12.0  # the daemon gives its worker 4 s and the broker 4 s
LOG_TAIL_BYTES = 16_384
LEASH = Path(__file__).with_name("leash.py")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Interrupted(Exception):  # noqa: N818 - an event, not an error
    """A signal asked the demo to end."""


@final
class Signals:
    """While entered, signals that end programs are counted instead; restored after."""

    def __init__(self) -> None:
        self.last = 0
        self.count = 0

    def __enter__(self) -> Signals:
        self._old = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def _note(self, number: int, frame: object) -> None:
        del frame
        self.last = number
        self.count += 1

    def sleep(self, seconds: float) -> None:
        """Sleep for a moment.

        Raises:
            Interrupted: a signal came.
        """
        if not self.count:
            time.sleep(seconds)
        if self.count:
            raise Interrupted

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A running child and the file that takes whatever it says."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self, lines: int) -> list[str]:
        """Return the last lines of its log."""
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - LOG_TAIL_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]
        return []

    def obituary(self) -> str:
        """Say how it ended."""
        code = self.process.returncode
        if code is None or code >= 0:
            return f"ended with exit code {code}"
        return f"died of {signal_name(-code)}"


@final
@dataclass(slots=True)
class Children:
    """Starts children in `folder`, and ends them all in reverse order on exit."""

    folder: Path
    signals: Signals
    started: list[Child] = field(default_factory=list)

    def __enter__(self) -> Children:
        return self

    def start(self, name: str, command: Sequence[str]) -> Child:
        """Start a child; its output goes to a log in the folder."""
        log = self.folder / f"{name}-{len(self.started)}.log"
        leashed = [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), *command]
        with log.open("wb") as output:
            process = subprocess.Popen(
                leashed,
                cwd=self.folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        child = Child(name=name, process=process, log=log)
        self.started.append(child)
        return child

    def end(self, child: Child) -> None:
        """Ask it to end; kill it when it does not, or when the user insists."""
        if child not in self.started:
            return
        insisted = self.signals.count
        deadline = time.monotonic() + ENDS_WITHIN_S
        if child.process.poll() is None:
            child.process.terminate()
        while child.process.poll() is None and time.monotonic() < deadline:
            if self.signals.count > insisted:
                break
            time.sleep(POLL_S)
        # Whatever is left of its session, such as the worker of a daemon that was killed.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()
        self.started.remove(child)

    def __exit__(self, *exc: object) -> None:
        for child in reversed(self.started.copy()):
            self.end(child)


def _environment() -> dict[str, str]:
    """Return ours, with this very agent importable from any working directory.

    Children run in the temporary folder: `-m` looks into the working directory first, and a
    stray `agent.py` of the user must not be taken for the daemon.
    """
    package = str(Path(agent.__file__).resolve().parent.parent)
    others = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    places = [package, *(str(Path(place).absolute()) for place in others)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
