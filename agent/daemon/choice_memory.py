"""What workers learned about running models here, kept in the state directory."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from agent.choices import Choice, add_choices, newest, read_choices
from agent.link import Learned

log = logging.getLogger(__name__)


class ChoiceMemory:
    """In memory always; on disk as far as it can be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_said = False
        self.choices: dict[str, Choice] = read_choices(path)

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
        self.choices = newest(self.choices, {learned.key: learned.choice})
        try:
            self.choices = add_choices(self._path, self.choices)
        except OSError as error:
            if not self._is_said:
                log.warning("choices not kept path=%s reason=%s", self._path, error.strerror)
                self._is_said = True
