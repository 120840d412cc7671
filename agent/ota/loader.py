"""Which model an engine starts with: trial, active, previous, factory, or none at all.

Nothing here raises: a board whose every model is damaged still starts, says so, and takes the
update that heals it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.ota.disk import Disk, RealDisk
from agent.ota.refusal import RefusalError
from agent.ota.rules import ON_TRIAL
from agent.ota.state import BundleRef, EngineState, Source, State
from agent.ota.store import Store
from agent.ota.whole import check_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The model to load, and why none of those before it.

    manifest_sha256: what whoever loads it must find, so that the bytes it loads are the bytes that
        were checked; "" for the factory's, of which nobody knows it
    """

    source: Source
    path: Path | None = None
    ref: BundleRef | None = None
    manifest_sha256: str = ""
    why: tuple[str, ...] = ()


def choose(
    state: State,
    store: Store,
    engine: str,
    factory: Path | None,
    *,
    may_try: bool = True,
    breathe: Callable[[], object] = lambda: None,
    disk: Disk | None = None,
) -> Choice:
    """Return the first model that is whole; every file of it has just been read and compared.

    factory: the model that the settings name, a folder or a .tflite file
    may_try: False where the candidate's start could not be counted on the disk first
    breathe: called now and then while files are read; the largest take half a minute
    """
    why: list[str] = []
    look = disk or RealDisk()
    for source, ref in _in_order(state, engine, why, may_try=may_try):
        where = source if ref is None else f"{source} {ref.title}"
        if ref is None:
            fault = _fault_of_factory(look, factory, breathe)
        else:
            fault = _fault_of_bundle(store, ref, breathe)
        if fault is not None:
            why.append(f"{where}: {fault}")
        elif ref is None:
            return Choice(source="factory", path=factory, why=tuple(why))
        else:
            return Choice(
                source=source,
                path=store.path(ref),
                ref=ref,
                manifest_sha256=ref.manifest_sha256,
                why=tuple(why),
            )
    return Choice(source="none", why=tuple(why))


def _in_order(
    state: State, engine: str, why: list[str], *, may_try: bool
) -> list[tuple[Source, BundleRef | None]]:
    """Return what to look at, the factory's model as None; each once."""
    found: list[tuple[Source, BundleRef | None]] = []
    trial = state.deployment
    if trial is not None and trial.phase in ON_TRIAL and trial.engine == engine:
        if may_try:
            found.append(("candidate", trial.candidate))
        else:
            why.append("candidate: this start could not be counted on the disk first")
    runs = state.engines.get(engine, EngineState())
    # No bundle that is active means that the factory's model is.
    found += [("active", runs.active), ("previous", runs.previous), ("factory", None)]
    ordered: list[tuple[Source, BundleRef | None]] = []
    for source, ref in found:
        if ref not in [seen for _, seen in ordered] and (ref is not None or source != "previous"):
            ordered.append((source if ref is not None else "factory", ref))
    return ordered


def _fault_of_bundle(store: Store, ref: BundleRef, breathe: Callable[[], object]) -> str | None:
    try:
        store.verify(ref, breathe)
    except RefusalError as error:
        return str(error)
    except Exception as error:  # whatever it is, there is a next one
        return f"{type(error).__name__}: {error}"
    return None


def _fault_of_factory(
    disk: Disk, factory: Path | None, breathe: Callable[[], object]
) -> str | None:
    if factory is None:
        return "there is none"
    try:
        if not disk.is_folder(factory):
            with disk.open(factory) as file:
                return None if file.read(1) else f"{factory}: is empty"
        check_folder(disk, factory, manifest_sha256=None, besides=None, breathe=breathe)
    except RefusalError as error:
        return str(error)
    except Exception as error:  # then there is no model, and the board starts all the same
        return f"{factory}: {error}"
    return None
