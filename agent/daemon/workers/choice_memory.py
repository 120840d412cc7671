"""What workers learned about running models here, kept in the state directory."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import msgspec

from agent.choices import Choice, add_choices, newest, read_choices
from agent.link import Learned

log = logging.getLogger(__name__)


class ChoiceMemory:
    """In memory always; on disk as far as it can be written, by a thread of its own.

    A disk that hangs must not hold up whoever learns, the daemon's main loop.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_said = False
        self._changed = threading.Condition()
        # Guarded by `_changed`.
        self.choices: dict[str, Choice] = read_choices(path)
        self._writer: threading.Thread | None = None

    @property
    def short(self) -> dict[str, Choice]:
        """The choices without what else was tried, for a worker's start message."""
        return {
            key: msgspec.structs.replace(choice, candidates=())
            for key, choice in self.choices.items()
        }

    def learn(self, learned: Learned) -> None:
        """Keep one, and what another process has stored meanwhile: `edge-agent model tune`.

        A disk that takes nothing costs another measurement at the next start.
        """
        with self._changed:
            self.choices = newest(self.choices, {learned.key: learned.choice})
            if self._writer is None:
                self._writer = threading.Thread(
                    target=self._write_all, name="agent.choices", daemon=True
                )
                self._writer.start()

    def flush(self, within_s: float) -> bool:
        """Wait until all that can be is on disk; False: it is not yet."""
        with self._changed:
            return self._changed.wait_for(lambda: self._writer is None, within_s)

    def _write_all(self) -> None:
        """Write until nothing changes any more, then end."""
        while True:
            written = self.choices
            kept = self._write(written)
            with self._changed:
                if self.choices is written:
                    self.choices, self._writer = kept, None
                    self._changed.notify_all()
                    return

    def _write(self, choices: dict[str, Choice]) -> dict[str, Choice]:
        try:
            return add_choices(self._path, choices)
        except OSError as error:
            if not self._is_said:
                log.warning("choices not kept path=%s reason=%s", self._path, error.strerror)
                self._is_said = True
            return choices
