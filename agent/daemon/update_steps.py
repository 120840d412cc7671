"""Everything the updater has done for it, put together: see `agent.ota.steps.Steps`.

metadata, download   an update process                  agent.ota.fetching
verify, collect      threads that work on the store     agent.ota.store_steps
selftest, shadow     children that load the model       agent.ota.selftest
swap                 the engine's worker                agent.daemon.workers.exchange
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from agent.config import ModelConfig
from agent.contract.updates import Desired, Floors
from agent.daemon.workers.exchange import ModelExchange
from agent.link import Ready
from agent.ota.fetching import Fetching
from agent.ota.selftest import ExamRequest, ExamStep, start_exam
from agent.ota.state import BundleRef, Source
from agent.ota.steps import Refused, Reply, Runs, Step
from agent.ota.store import Store
from agent.ota.store_steps import StoreSteps


@dataclass(frozen=True, slots=True)
class Told:
    """A step that is over before it begins."""

    reply: Reply

    def poll(self) -> Reply:
        """See `Step`."""
        return self.reply

    def stop(self) -> None:
        """See `Step`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineModel:
    """One engine: what its settings say, and who exchanges its model."""

    settings: ModelConfig
    exchange: ModelExchange

    def runnable(self, store: Store, ref: BundleRef | None) -> tuple[ModelConfig, str]:
        """Return what its worker is told for a bundle, or for the model that the settings name."""
        if ref is None:
            return self.settings, ""
        return replace(self.settings, path=str(store.path(ref))), ref.manifest_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSteps:
    """See the module's docstring; `fetching` None: the settings name no repository."""

    engines: Mapping[str, EngineModel]  # by name in [models]; empty for [model]
    store: Store
    stored: StoreSteps
    fetching: Fetching | None
    most_threads: int

    def metadata(self, wanted: Desired, floors: Floors) -> Step:
        """See `Steps`."""
        if self.fetching is None:
            why = "this board's settings name no repository"
            return Told(Refused(code="E_DISABLED", message=why))
        return self.fetching.metadata(wanted, floors)

    def download(self, wanted: Desired, ref: BundleRef, size: int, floors: Floors) -> Step:
        """See `Steps`."""
        del wanted, floors
        if self.fetching is None:
            return Told(Refused(code="E_DISABLED", message="no repository to fetch it from"))
        return self.fetching.download(ref, size, self.store.part(ref.sha256))

    def verify(self, ref: BundleRef, size: int) -> Step:
        """See `Steps`."""
        return self.stored.verify(ref, size)

    def selftest(self, engine: str, ref: BundleRef) -> Step:
        """See `Steps`."""
        exchange = self.engines[engine].exchange
        return ExamStep(start_exam(self._request(engine, ref)), exchange.learn)

    def shadow(self, engine: str, ref: BundleRef) -> Step:
        """See `Steps`."""
        return self.engines[engine].exchange.shadow(self._request(engine, ref))

    def swap(self, engine: str, ref: BundleRef | None) -> Step:
        """See `Steps`."""
        one = self.engines[engine]
        model, manifest_sha256 = one.runnable(self.store, ref)
        return one.exchange.swap(model, manifest_sha256=manifest_sha256)

    def keep(self, engine: str) -> None:
        """See `Steps`."""
        self.engines[engine].exchange.keep()

    def restart(self, engine: str) -> None:
        """See `Steps`."""
        self.engines[engine].exchange.workers.replace("swap")

    def collect(self, keep: frozenset[str], keep_fetched: frozenset[str]) -> Step:
        """See `Steps`."""
        return self.stored.collect(keep, keep_fetched)

    def has(self, ref: BundleRef) -> bool:
        """See `Steps`."""
        return self.stored.has(ref)

    def require_space(self, ref: BundleRef, size: int) -> None:
        """See `Steps`; raises RefusalError."""
        self.stored.require_space(ref, size)

    def _request(self, engine: str, ref: BundleRef) -> ExamRequest:
        one = self.engines[engine]
        model, manifest_sha256 = one.runnable(self.store, ref)
        return ExamRequest(
            model=model,
            manifest_sha256=manifest_sha256,
            p95_ms=ref.p95_ms,
            rss_mib=ref.rss_mib,
            most_threads=self.most_threads,
            way=one.exchange.way,
        )


def runs_of(engine: str, ready: Ready, models: Path) -> Runs:
    """Return the updater's event for a worker that is ready; `models`: the store's folder."""
    path = Path(ready.path)
    bundle = path.name if path.parent == models else None
    source: Source = "factory" if bundle is None else "active"
    return Runs(engine=engine, bundle=bundle, source=source, model=ready.model)
