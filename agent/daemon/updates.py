"""Models over the air, as the daemon runs them: the updater, tied to engines, broker and status.

    desired topics ──▶ Updater ──▶ steps ── processes, store, workers
    chunk topics ───▶ ChunkRelay ◀──┘└────▶ reported topic

Everything here belongs to the main loop's thread; only messages come on the link's.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from agent.config import ModelConfig
from agent.daemon.engine_vitals import EngineVitals
from agent.daemon.mqtt import MqttLink
from agent.daemon.report import Report
from agent.daemon.update_steps import runs_of
from agent.link import Ready
from agent.ota.admission import floors_for
from agent.ota.fetch_mqtt import ChunkRelay
from agent.ota.freshness import Freshness
from agent.ota.loader import choose
from agent.ota.rules import ENDS, phase_of, wanted
from agent.ota.slots import Slots
from agent.ota.state import Scope
from agent.ota.steps import Down, Vitals
from agent.ota.store import Store
from agent.ota.swaps import is_run
from agent.ota.updater import Updater
from agent.sensors.sampler import Sampler
from agent.shipped import place_of

# Pieces of files: one is asked for at a time, so more is a flood.
MOST_CHUNKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Runnable:
    """What an engine's next worker is to load."""

    model: ModelConfig
    manifest_sha256: str = ""  # of an installed bundle


@dataclass(slots=True, kw_only=True)
class Updates:
    """See the module's docstring. Call order: `resume`, `runnable` for each worker, `check`."""

    updater: Updater
    slots: Slots
    store: Store
    models: Path  # the store's folder
    report: Report
    relay: ChunkRelay | None
    freshness: Freshness | None
    ring: Callable[[], None] = lambda: None  # wakes the main loop; from any thread
    breathe: Callable[[], object] = lambda: None  # says that this thread is at work
    _chunks: deque[tuple[str, bytes]] = field(default_factory=lambda: deque(maxlen=MOST_CHUNKS))

    def subscribe(self, mqtt: MqttLink, desired: dict[str, Scope]) -> None:
        """Have orders, by topic, and pieces of files handed over; before the link starts."""

        def listen(topic: str, scope: Scope) -> None:
            def on_desired(topic: str, payload: bytes, retained: bool) -> None:
                del topic, retained
                self.updater.on_desired(payload, scope)
                self.ring()

            mqtt.subscribe(topic, 1, on_desired)

        for topic, scope in desired.items():
            listen(topic, scope)
        if self.relay is not None:
            mqtt.subscribe(self.relay.topic_filter, 0, self._on_chunk)

    def _on_chunk(self, topic: str, payload: bytes, retained: bool) -> None:
        del retained
        self._chunks.append((topic, payload))
        self.ring()

    def resume(self) -> None:
        """Go on with what the last run was about; before any worker starts."""
        self.updater.resume(time.monotonic())

    def runnable(self, engine: str, settings: ModelConfig) -> Runnable:
        """Return what an engine's worker is to load; called for each start of one.

        Where no bundle is to be run, or none of them is whole, that is the model that the settings
        name: whether it can be loaded, its worker finds out and says.
        """
        state, may_try = self.updater.for_worker(engine)
        choice = choose(
            state,
            self.store,
            engine,
            place_of(settings.path),
            may_try=may_try,
            breathe=self.breathe,
        )
        # What is wrong with the settings' model its worker says, and better.
        damaged = [why for why in choice.why if not why.startswith("factory: ")]
        self._note_store(engine, "; ".join(damaged) or None)
        if choice.ref is None:
            return Runnable(model=settings)
        model = replace(settings, path=str(choice.path))
        return Runnable(model=model, manifest_sha256=choice.manifest_sha256)

    def note_ready(self, engine: str, ready: Ready) -> None:
        """A worker has loaded a model."""
        runs = runs_of(engine, ready, self.models)
        self.updater.on_engine_event(runs)
        if is_run(runs, wanted(self.updater.state, engine)):
            self._note_store(engine, None)  # what was passed over for damage has been replaced

    def _note_store(self, engine: str, why: str | None) -> None:
        self.report.note(f"model_store.{engine}".rstrip("."), why)

    def note_down(self, down: Down) -> None:
        """A worker is gone, or gave its model up."""
        self.updater.on_engine_event(down)

    def check(self, now: float) -> float:
        """Do what is due; return in how many seconds to look again."""
        while self._chunks and self.relay is not None:
            self.relay.on_message(*self._chunks.popleft())
        due_s = self.updater.check(now)
        self.report.note("update_state", self.slots.alarm)
        if self.freshness is not None:
            state = self.updater.state
            is_free = phase_of(state) in ENDS
            self.freshness.check(now, floors_for(state, None), is_free=is_free)
            self.report.note("repository", self.freshness.problem)
        return due_s

    def stop(self) -> None:
        """Give up what is under way; the next run goes on with it."""
        self.updater.stop()
        if self.freshness is not None:
            self.freshness.stop()


@dataclass(frozen=True, slots=True)
class VitalsOf:
    """How an engine fares: what a probation is judged by."""

    engines: dict[str, EngineVitals]
    mqtt: MqttLink
    board: Sampler

    def __call__(self, engine: str) -> Vitals:
        """See `Vitals`."""
        now = time.monotonic()
        return self.engines[engine].read(
            now,
            acknowledged=self.mqtt.outbox.published,
            is_connected=self.mqtt.connection.connected,
            is_throttled=self._is_throttled(now),
        )

    def _is_throttled(self, now: float) -> bool | None:
        look = self.board.fresh(now)
        if look is None or look.reading.throttle is None:
            return None
        return look.reading.throttle.throttled_now
