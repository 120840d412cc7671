"""The steps that the store does, as the updater polls them: each on a thread of its own.

Unpacking and comparing 100 MB is reading, hashing and waiting for the disk, all of which let other
threads run. One of them works at a time; one that was given up ends its work unheard, as nothing
stops a thread, and the next begins after that. Ending the process in the middle of it is what
the store is made for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable

from msgspec.structs import replace

from agent.ota.manifest import budget_for, parse_manifest
from agent.ota.refusal import RefusalError
from agent.ota.state import BundleRef
from agent.ota.steps import Refused, Reply, Succeeded, Working
from agent.ota.store import Store

log = logging.getLogger(__name__)

# Of nice(2): whatever serves cameras comes first.
NICE = 10
MANIFEST = "manifest.json"


class Work:
    """One piece of work on a thread; a `Step`."""

    def __init__(self, name: str, do: Callable[[], Reply], turn: threading.Lock) -> None:
        """Begin; raises OSError where there can be no thread."""
        self._do = do
        self._turn = turn
        self._reply: Reply = Working()
        self._is_given_up = False
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise OSError(str(error)) from error

    def poll(self) -> Reply:
        """See `Step`."""
        return self._reply

    def stop(self) -> None:
        """See `Step`."""
        self._is_given_up = True

    def _run(self) -> None:
        # A unit's filter may refuse it (@resources); Linux takes a thread's id for a process's.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        with self._turn:
            if self._is_given_up:
                return
            try:
                self._reply = self._do()
            except RefusalError as refusal:
                self._reply = Refused(
                    code=refusal.code, message=str(refusal), is_final=refusal.is_final
                )
            except Exception as error:  # a fault of ours must not leave the updater waiting
                log.exception("store failed")
                message = f"{type(error).__name__}: {error}"
                self._reply = Refused(code="E_SYSTEM", message=message, is_final=False)


class StoreSteps:
    """The part of `steps.Steps` that is the store's; `board` is BoardIdentity.id."""

    def __init__(self, store: Store, board: str) -> None:
        self._store = store
        self._board = board
        self._turn = threading.Lock()

    def verify(self, ref: BundleRef, size: int) -> Work:
        """Take a fetched bundle in, or look whether the one that is here is whole."""
        del size  # the store counts for itself

        def do() -> Reply:
            try:
                part = self._store.part(ref.sha256)
            except OSError as error:
                return Refused(code="E_SYSTEM", message=str(error), is_final=False)
            return Succeeded(ref=self._with_budget(self._store.put(part, ref)))

        return Work("verify", do, self._turn)

    def collect(self, keep: frozenset[str], keep_fetched: frozenset[str]) -> Work:
        """Throw away all bundles but these, by hash."""

        def do() -> Reply:
            collected = self._store.collect(keep, keep_fetched)
            if collected.removed or collected.fault:
                log.info("store collected removed=%d %s", len(collected.removed), collected.fault)
            return Succeeded()

        return Work("collect", do, self._turn)

    def has(self, ref: BundleRef) -> bool:
        """Return whether a bundle is here, by its name alone."""
        return self._store.has(ref)

    def require_space(self, ref: BundleRef, size: int) -> None:
        """Refuse a bundle that does not fit; raises RefusalError."""
        del ref
        self._store.require_space(size)

    def _with_budget(self, ref: BundleRef) -> BundleRef:
        """Return the reference with what the bundle may take on this board."""
        manifest = parse_manifest(self._store.read(ref, MANIFEST))
        budget = budget_for(manifest, self._board)
        if budget is None:
            return ref
        return replace(ref, p95_ms=budget.p95_ms, rss_mib=budget.rss_mib)
