"""Wires models over the air: the part of the composition root that knows `agent.ota`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from agent import __version__
from agent.choices import most_threads
from agent.config import Config, mirrors_of
from agent.contract import topics
from agent.contract.payloads import encode
from agent.contract.topics import Topics
from agent.contract.updates import Reported
from agent.daemon.mqtt import MqttLink
from agent.daemon.report import Report
from agent.daemon.update_steps import EngineModel, UpdateSteps
from agent.daemon.updates import Updates
from agent.ota.clock_policy import is_local
from agent.ota.fetch_mqtt import ChunkRelay
from agent.ota.fetching import Fetching, Source
from agent.ota.freshness import Freshness
from agent.ota.slots import Slots
from agent.ota.state import Scope
from agent.ota.steps import Vitals
from agent.ota.store import Store
from agent.ota.store_steps import StoreSteps
from agent.ota.told import Board
from agent.ota.updater import Updater
from agent.sensors.board import identify
from agent.sensors.files import BoardFiles

# Below `device.state_dir`.
MODELS_FOLDER = "models"
STATE_FOLDER = "update"
METADATA_FOLDER = "update/metadata"
OVER_MQTT = "mqtt:"


def build_updates(
    config: Config,
    engines: Mapping[str, EngineModel],
    *,
    vitals: Callable[[str], Vitals],
    report: Report,
    mqtt: MqttLink,
    names: Topics,
    boot_id: str,
) -> Updates:
    """Wire the updater; it reads nothing from the disk yet."""
    state_dir = Path(config.device.state_dir)
    board = Board(
        device=names.device,
        boot_id=boot_id,
        id=identify(BoardFiles()).id,
        agent_version=__version__,
    )
    models = state_dir / MODELS_FOLDER
    slots, store = Slots(state_dir / STATE_FOLDER), Store(models)
    relay = None
    if OVER_MQTT in mirrors_of(config.update.repository):
        relay = ChunkRelay(prefix=names.prefix, device=names.device, publish=mqtt.tell)

    def tell(reported: Reported) -> None:
        mqtt.retain(names.name(topics.MODEL_REPORTED), encode(reported))

    fetching = build_fetching(config, board.id, relay)
    steps = UpdateSteps(
        engines=engines,
        store=store,
        stored=StoreSteps(store, board.id),
        fetching=fetching,
        most_threads=most_threads(len(engines)),
    )
    updater = Updater(
        slots=slots,
        steps=steps,
        engines=tuple(engines),
        board=board,
        is_enabled=config.update.enabled,
        has_repository=fetching is not None,
        probation_s=config.update.probation_s,
        vitals=vitals,
        tell=tell,
    )
    updates = Updates(
        updater=updater,
        slots=slots,
        store=store,
        models=models,
        report=report,
        relay=relay,
        freshness=Freshness(fetching) if fetching is not None and config.update.enabled else None,
    )
    updates.subscribe(mqtt, desired_topics(names, config.device.groups))
    return updates


def desired_topics(names: Topics, groups: tuple[str, ...]) -> dict[str, Scope]:
    """Return where orders for this board come from."""
    found: dict[str, Scope] = {names.name(topics.MODEL_DESIRED): "device"}
    for group in groups:
        found[names.name(topics.GROUP_DESIRED, group=group)] = "group"
    return found


def build_fetching(config: Config, board: str, relay: ChunkRelay | None) -> Fetching | None:
    """Return what asks the repository; None where the settings name none."""
    mirrors = mirrors_of(config.update.repository)
    if not mirrors:
        return None
    source = Source(
        repository=mirrors,
        root=Path(config.update.root),
        metadata_dir=Path(config.device.state_dir) / METADATA_FOLDER,
        board=board,
        ca_file=config.update.ca_file,
        allow_floor=is_near_by(config),
    )
    return Fetching(source, relay)


def is_near_by(config: Config) -> bool:
    """Return whether all mirrors are near by; the one behind the broker is where that is."""
    mirrors = mirrors_of(config.update.repository)
    return all(is_local(config.mqtt.url if url == OVER_MQTT else url) for url in mirrors)
