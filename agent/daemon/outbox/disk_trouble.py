"""How trouble with the disk is said, and when what failed is tried again."""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger(__name__)

RETRY_FIRST_S, RETRY_MAX_S = 0.5, 30.0


class Trouble:
    """One thing we want of the disk: whether it fails now, and when to try it again."""

    def __init__(self, sentence: str) -> None:
        self.said: str | None = None
        self.since = 0.0
        self.retry_at = 0.0
        self._sentence = sentence
        self._wait_s = RETRY_FIRST_S

    def comes(self, reason: str, now: float) -> None:
        """Note a failure; what is new is logged."""
        if self.said is None:
            self.since = now
        said = self._sentence.format(reason)
        if said != self.said:
            log.error("%s", said)
        self.said = said
        self.retry_at = now + self._wait_s
        self._wait_s = min(RETRY_MAX_S, self._wait_s * 2)

    def goes(self) -> None:
        """Note a success."""
        if self.said is not None:
            log.info("works again; it was: %s", self.said)
        self.said, self.retry_at, self._wait_s = None, 0.0, RETRY_FIRST_S


def jumped(path: Path | None, streams: int) -> str | None:
    """Return the sentence about streams that began before their numbers could be read."""
    if not streams:
        return None
    return (
        f"{path} could not be read yet: the result numbers of {streams} streams jump ahead, so that"
        " none repeats; check the disk"
    )


def damaged_rows(path: Path, count: int) -> str | None:
    """Return the sentence about records that were damaged one by one."""
    if not count:
        return None
    return (
        f"{count} messages that waited in {path} were damaged or gone, and gap messages name them;"
        " check the disk"
    )


def hanging(path: Path) -> str:
    """Return the sentence about a disk that does not answer."""
    return (
        f"the disk of {path.parent} has not answered for a while: results wait in memory only;"
        " look at the disk and its cable, or replace the card"
    )
