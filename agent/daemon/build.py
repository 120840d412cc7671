"""The composition root of the control process: the only place where settings meet constructors.

Each model that cameras name is an engine with a worker process of its own: whatever one of
them does, the cameras of the others go on.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent import __version__
from agent.choices import CHOICES_FILE, most_threads
from agent.config import CameraConfig, Config, ModelConfig, check_listen, device_id
from agent.contract import topics
from agent.contract.topics import Topics
from agent.daemon.announced import ANNOUNCED_FILE, AnnouncedMemory
from agent.daemon.announcer import Announcer
from agent.daemon.build_updates import build_updates
from agent.daemon.clock_repair import ClockRepair
from agent.daemon.counts import CountReport
from agent.daemon.delivered import note_delivered
from agent.daemon.engine_report import EngineReport
from agent.daemon.label_book import LabelBook, Listed
from agent.daemon.liveness import Liveness
from agent.daemon.mqtt import MqttLink
from agent.daemon.outbox import GapNote, Outbox, Record
from agent.daemon.report import Report, detections_stream
from agent.daemon.system import SystemReader
from agent.daemon.telemetry_report import TELEMETRY_STREAM, Instruments, TelemetryReport
from agent.daemon.update_steps import EngineModel
from agent.daemon.updates import Updates, VitalsOf
from agent.daemon.vitals import VitalsReader
from agent.daemon.workers.backoff_memory import BACKOFF_FILE, BackoffMemory
from agent.daemon.workers.choice_memory import ChoiceMemory
from agent.daemon.workers.exchange import ModelExchange
from agent.daemon.workers.failover import Failover
from agent.daemon.workers.memory_limit import WorkerMemory, read_budget
from agent.daemon.workers.probing import AcceleratorProbes
from agent.daemon.workers.supervisor import Supervisor
from agent.link import Resume, Start
from agent.sensors import calibration
from agent.sensors.board import identify
from agent.sensors.files import BoardFiles
from agent.sensors.reader import BoardReader
from agent.sensors.sampler import Sampler
from agent.telemetry.baseline import read_baseline
from agent.telemetry.energy import EnergyMeter
from agent.telemetry.latency import LatencyBook

if TYPE_CHECKING:
    from agent.daemon.scrape import ScrapeServer

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Daemon:
    """Everything that runs in the control process."""

    supervisors: list[Supervisor]
    updates: Updates
    mqtt: MqttLink
    outbox: Outbox
    report: Report
    telemetry: TelemetryReport
    instruments: Instruments
    counts: CountReport
    announcer: Announcer
    announced: AnnouncedMemory
    backoff: BackoffMemory


def build_daemon(config: Config) -> Daemon:
    """Wire the control process; of its threads only the outbox's runs yet."""
    device = device_id(config.device)
    boot_id = uuid.uuid4().hex  # one id per run of the daemon
    names = Topics(config.mqtt.prefix, device)
    state_dir = Path(config.device.state_dir)

    def gap_record(note: GapNote) -> Record:
        return report.gap_record(note)

    def wake() -> None:
        mqtt.wake()

    clock = ClockRepair()
    instruments = build_instruments(config, state_dir)
    outbox = Outbox(
        max_bytes=int(config.mqtt.outbox_max_mb * 1e6),
        folder=state_dir,
        repair=clock.repair,
        on_refill=wake,
    )
    mqtt = MqttLink(
        config.mqtt,
        client_id=f"edge-agent-{device}",
        availability_topic=names.name(topics.AVAILABILITY),
        outbox=outbox,
        gap_record=gap_record,
        on_delivered=note_delivered(
            instruments.latency,
            {detections_stream(camera.name): camera.name for camera in config.camera},
        ),
    )
    outbox.open()
    announced = AnnouncedMemory(state_dir / ANNOUNCED_FILE)
    labels = LabelBook(listed_labels(config), announced.stored.labels)
    cameras = [camera.name for camera in config.camera]
    counts = CountReport(names=names, cameras=cameras, labels=labels, retain=mqtt.retain)
    announcer = Announcer(
        prefix=config.mqtt.discovery,
        names=names,
        version=__version__,
        interval_s=config.telemetry.interval_s,
        engines=tuple(cameras_by_model(config)),
        cameras=tuple(cameras),
        labels=labels,
        memory=announced,
        broker=mqtt,
    )
    report = Report(
        device=device,
        boot_id=boot_id,
        groups=config.device.groups,
        cameras=config.camera,
        names=names,
        mqtt=mqtt,
        clock=clock,
        latency=instruments.latency,
        counts=counts,
    )
    telemetry = TelemetryReport(
        device=device,
        boot_id=boot_id,
        first_seq=outbox.first_seq(TELEMETRY_STREAM),
        names=names,
        report=report,
        mqtt=mqtt,
        clock=clock,
        instruments=instruments,
        follow=announcer.follow,
    )
    memory = ChoiceMemory(state_dir / CHOICES_FILE)
    backoff = BackoffMemory(state_dir / BACKOFF_FILE)
    served = cameras_by_model(config)
    share = EngineShare(
        boot_id=boot_id,
        report=report,
        outbox=outbox,
        choices=memory,
        backoff=backoff,
        worker_memory=WorkerMemory(read_budget()),
        most_threads=most_threads(len(served)),
        updates=lambda: updates,
    )
    engines = {name: build_engine(config, name, cameras, share) for name, cameras in served.items()}
    updates = build_updates(
        config,
        {
            name: EngineModel(settings=engine.settings, exchange=engine.exchange)
            for name, engine in engines.items()
        },
        vitals=VitalsOf(
            {name: engine.report.vitals for name, engine in engines.items()},
            mqtt,
            instruments.board,
        ),
        report=report,
        mqtt=mqtt,
        names=names,
        boot_id=boot_id,
    )
    return Daemon(
        supervisors=[engine.supervisor for engine in engines.values()],
        updates=updates,
        mqtt=mqtt,
        outbox=outbox,
        report=report,
        telemetry=telemetry,
        instruments=instruments,
        counts=counts,
        announcer=announcer,
        announced=announced,
        backoff=backoff,
    )


def listed_labels(config: Config) -> dict[str, Listed]:
    """Return which labels the configuration names for each camera."""
    models = {
        camera.name: config.models[camera.model] if camera.model else config.model
        for camera in config.camera
    }
    return {
        name: Listed(
            labels=tuple(model.labels), only=model.only_listed, denied=frozenset(model.deny)
        )
        for name, model in models.items()
    }


def build_instruments(config: Config, state_dir: Path) -> Instruments:
    """Wire what measures; the board is not looked at yet."""
    baseline, why_no_baseline = read_baseline(state_dir)
    fitted, why_not_fitted = calibration.load_calibration(
        state_dir / calibration.FILE_NAME, identify(BoardFiles()).id
    )
    for why in (why_no_baseline, why_not_fitted):
        if why is not None:
            log.warning("not used: %s", why)
    energy = EnergyMeter(baseline)
    return Instruments(
        board=Sampler(BoardReader(calibration=fitted), on_look=energy.add),
        energy=energy,
        latency=LatencyBook({camera.name: camera.deadline_ms for camera in config.camera}),
        vitals=VitalsReader(SystemReader(state_dir)),
        scraped=VitalsReader(SystemReader(state_dir)),
    )


def cameras_by_model(config: Config) -> dict[str, tuple[CameraConfig, ...]]:
    """Return the models that cameras name, the one of [model] first, each with its cameras."""
    names = sorted({camera.model for camera in config.camera})
    return {
        name: tuple(camera for camera in config.camera if camera.model == name) for name in names
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineShare:
    """What all engines have in common."""

    boot_id: str
    report: Report
    outbox: Outbox
    choices: ChoiceMemory
    backoff: BackoffMemory
    worker_memory: WorkerMemory
    most_threads: int
    updates: Callable[[], Updates]  # once all is wired


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One model that cameras name, with a worker of its own."""

    settings: ModelConfig
    supervisor: Supervisor
    report: EngineReport
    exchange: ModelExchange


def build_engine(
    config: Config, name: str, cameras: tuple[CameraConfig, ...], share: EngineShare
) -> Engine:
    """Wire one engine: its report, its supervisor, and who exchanges its model."""
    model = config.models[name] if name else config.model
    second = {stage.model: config.models[stage.model] for stage in model.then}
    models = {"": model, **second}

    def make_start(resume: dict[str, Resume], avoid: str) -> Start:
        runnable = share.updates().runnable(name, model)
        return Start(
            device=device_id(config.device),
            boot_id=share.boot_id,
            model=runnable.model,
            manifest_sha256=runnable.manifest_sha256,
            second=second,
            cameras=cameras,
            resume=resume,
            avoid=avoid,
            most_threads=share.most_threads,
            choices={**share.choices.short, **exchange.choices},
        )

    listener = EngineReport(
        name=name,
        cameras=tuple(camera.name for camera in cameras),
        accelerator_wanted=model.accelerator,
        worker_pid=lambda: supervisor.worker_pid,
        restarts=lambda: {str(why): count for why, count in supervisor.restarts_by_reason.items()},
        report=share.report,
        learn=share.choices.learn,
        note_ready=lambda ready: share.updates().note_ready(name, ready),
    )
    share.report.engines.append(listener)
    supervisor = Supervisor(
        name=name,
        make_start=make_start,
        listener=listener,
        failover=Failover(tuple(one.accelerator for one in models.values())),
        start_probe=lambda names: AcceleratorProbes(
            [models[one] for one in names], share.choices.learn
        ),
        first_seq={
            camera.name: share.outbox.first_seq(detections_stream(camera.name))
            for camera in cameras
        },
        backoff=share.backoff,
        memory=share.worker_memory,
    )
    exchange = ModelExchange(name, supervisor, lambda down: share.updates().note_down(down))
    supervisor.attendant = exchange
    return Engine(settings=model, supervisor=supervisor, report=listener, exchange=exchange)


def build_scrape(config: Config, daemon: Daemon, liveness: Liveness) -> ScrapeServer | None:
    """Return what answers Prometheus and health checks; None where nobody is to be answered."""
    where = check_listen(config.telemetry.prometheus)
    if where is None:
        return None
    from agent.daemon.scrape import ScrapeServer  # with it an HTTP server's modules

    telemetry = daemon.telemetry
    server = ScrapeServer(
        *where,
        lambda: telemetry.metrics,
        alive=lambda: liveness.silent(time.monotonic()),
        ready=telemetry.why_not_ready,
    )
    telemetry.serve(lambda: server.problem)
    return server
