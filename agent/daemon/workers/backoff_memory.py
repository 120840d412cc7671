"""How often things failed, kept over restarts of the daemon: `backoff.json` in the state folder.

Written only when something fails or recovers, by a thread of its own: a disk that hangs delays
nobody, and one that takes nothing makes this a memory of one run. Ages are by the wall clock,
the only one that outlives a board's restart: what is from the future counts as fresh, so a clock
that was set back forgets nothing, and one set forward by an hour forgets everything, which costs
some quick retries.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from agent.durable import write_durably
from agent.sensors.clock import read_kernel_boot_id

log = logging.getLogger(__name__)

BACKOFF_FILE = "backoff.json"
FORGET_AFTER_S = 3600.0
# Counts end somewhere; the times made of them are capped much earlier.
MOST_FAILURES = 12
# What goes on failing with the same count is written anew this often, so that it stays fresh.
REFRESH_S = 600.0
MAX_FILE_BYTES = 1 << 16
# A daemon that ends uncleanly within this time of its start may be in a crash loop.
PROVEN_AFTER_S = 120.0
CRASH_FIRST_S = 5.0
CRASH_MOST_S = 300.0
AFTER_BOOT_MOST_S = 10.0


class Failures(Struct, frozen=True):
    """So many in a row, the last at this wall clock time."""

    count: Annotated[int, Meta(ge=0, le=MOST_FAILURES)]
    at: float


class _Stored(Struct, frozen=True):
    engines: dict[str, Failures] = {}
    unclean: Failures | None = None  # unclean ends of the daemon soon after its start
    is_running: bool = False  # a daemon was started, and neither ended in order nor proved itself
    boot: str = ""  # the kernel's id of the boot in which that was


class BackoffMemory:
    """See the module's docstring; any thread. `path` None: of this run alone."""

    def __init__(
        self,
        path: Path | None,
        *,
        wall_clock: Callable[[], float] = time.time,
        boot: str | None = None,
    ) -> None:
        """Read what is there; `boot` is by default the running kernel's id."""
        self._path = path
        self._boot = boot if boot is not None else read_kernel_boot_id()
        self._wall_clock = wall_clock
        self._changed = threading.Condition()
        # Guarded by `_changed`.
        self._stored = self._read()
        self._is_written = True
        self._writer: threading.Thread | None = None

    def failures(self, engine: str) -> int:
        """Return how often in a row an engine's workers have failed, as far as that matters now."""
        known = self._stored.engines.get(engine)
        return known.count if known is not None and self._is_fresh(known) else 0

    def note_failure(self, engine: str, count: int) -> None:
        """An engine's worker has failed, for the `count`th time in a row."""
        count = min(count, MOST_FAILURES)
        now = self._wall_clock()
        known = self._stored.engines.get(engine)
        if known is not None and known.count == count and 0 <= now - known.at < REFRESH_S:
            return
        self._change(engines={**self._stored.engines, engine: Failures(count, now)})

    def note_recovery(self, engine: str) -> None:
        """An engine's worker has proved itself."""
        if engine in self._stored.engines:
            rest = {name: one for name, one in self._stored.engines.items() if name != engine}
            self._change(engines=rest)

    def begin(self, within_s: float = 1.0) -> float:
        """The daemon starts; return for how many seconds it should leave its workers alone.

        None for the first start, nor after one unclean end; then 10, 20, 40 … up to 300 s. After a
        restart of the board never more than 10 s: boards whose power is cut again and again have no
        crash loop, and one whose workers bring the kernel down can still be reached. That it runs
        is on disk before this returns, if the disk takes it within `within_s`.
        """
        boot = self._boot or ""
        most_s = CRASH_MOST_S if boot == self._stored.boot else AFTER_BOOT_MOST_S
        count = 0
        if self._stored.is_running:
            before = self._stored.unclean
            count = before.count if before is not None and self._is_fresh(before) else 0
            count = min(count + 1, MOST_FAILURES)
        self._change(unclean=Failures(count, self._wall_clock()), is_running=True, boot=boot)
        self.flush(within_s)
        return min(most_s, CRASH_FIRST_S * 2.0 ** (count - 1)) if count > 1 else 0.0

    def prove(self) -> None:
        """The daemon has run for PROVEN_AFTER_S, or ends in order: it is in no crash loop."""
        if self._stored.is_running:
            self._change(unclean=None, is_running=False)

    def flush(self, within_s: float) -> bool:
        """Wait until all is on disk; False: it is not yet."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_written, within_s)

    def _is_fresh(self, failures: Failures) -> bool:
        return self._wall_clock() - failures.at < FORGET_AFTER_S

    def _change(self, **fields: object) -> None:
        with self._changed:
            self._stored = msgspec.structs.replace(self._stored, **fields)
            if self._path is None:
                return
            self._is_written = False
            if self._writer is None:
                self._writer = threading.Thread(
                    target=self._write_all, name="agent.backoff", daemon=True
                )
                self._writer.start()

    def _write_all(self) -> None:
        """Write until nothing changes any more, then end."""
        while True:
            with self._changed:
                stored = self._stored
            self._write(stored)
            with self._changed:
                if self._stored is stored:
                    self._is_written, self._writer = True, None
                    self._changed.notify_all()
                    return

    def _write(self, stored: _Stored) -> None:
        assert self._path is not None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(self._path, msgspec.json.encode(stored))
        except OSError as error:
            log.warning("back-off not kept path=%s reason=%s", self._path, error.strerror)

    def _read(self) -> _Stored:
        if self._path is None:
            return _Stored()
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(MAX_FILE_BYTES), type=_Stored)
        except FileNotFoundError:
            return _Stored()
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("back-off not read path=%s reason=%s", self._path, error)
            return _Stored()
