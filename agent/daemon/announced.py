"""What was announced to Home Assistant, kept over restarts: `announced.json` in the state folder.

Without it nobody would know that a camera which is gone was ever announced. Written only when it
changes, by a thread of its own: a disk that hangs delays nobody, and one that takes nothing makes
this a memory of one run.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from agent.contract.home_assistant_board import BoardFacts
from agent.durable import write_durably

log = logging.getLogger(__name__)

ANNOUNCED_FILE = "announced.json"
MAX_FILE_BYTES = 1 << 20


class Announced(Struct, frozen=True, kw_only=True):
    """The topic of the announcement, its components by platform, and what it was made of."""

    topic: Annotated[str, Meta(max_length=1024)] = ""  # empty: nothing is announced
    components: dict[str, str] = {}
    labels: dict[str, list[str]] = {}
    board: BoardFacts = BoardFacts()


class AnnouncedMemory:
    """See the module's docstring; any thread. `path` None: of this run alone."""

    def __init__(self, path: Path | None) -> None:
        """Read what is there."""
        self._path = path
        self._is_said = False
        self._changed = threading.Condition()
        # Guarded by `_changed`.
        self.stored = self._read()
        self._writer: threading.Thread | None = None

    def keep(self, announced: Announced) -> None:
        """Remember this from now on."""
        with self._changed:
            if announced == self.stored:
                return
            self.stored = announced
            if self._path is None or self._writer is not None:
                return
            self._writer = threading.Thread(
                target=self._write_all, name="agent.announced", daemon=True
            )
            try:
                self._writer.start()
            except RuntimeError:  # no thread can be had now; the next change may find one
                self._writer = None

    def flush(self, within_s: float) -> bool:
        """Wait until all that can be is on disk; False: it is not yet."""
        with self._changed:
            return self._changed.wait_for(lambda: self._writer is None, within_s)

    def _read(self) -> Announced:
        if self._path is None:
            return Announced()
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            return msgspec.json.decode(content, type=Announced)
        except FileNotFoundError:
            return Announced()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.warning("what was announced is not known path=%s reason=%s", self._path, error)
            return Announced()

    def _write_all(self) -> None:
        """Write until nothing changes any more, then end."""
        while True:
            written = self.stored
            self._write(written)
            with self._changed:
                if self.stored is written:
                    self._writer = None
                    self._changed.notify_all()
                    return

    def _write(self, announced: Announced) -> None:
        assert self._path is not None
        try:
            write_durably(self._path, msgspec.json.encode(announced))
        except OSError as error:
            if not self._is_said:
                log.warning("announcements not kept path=%s reason=%s", self._path, error.strerror)
                self._is_said = True
