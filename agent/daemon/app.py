"""The composition root of the control process: the only place where settings meet constructors.

One thread runs the main loop: it waits on the workers' links, on signals and on timers. The MQTT
link has a thread of its own, so that a slow broker or resolver never delays supervision; so has
the outbox, so that a slow disk never does.

Each model that cameras name is an engine with a worker process of its own: whatever one of
them does, the cameras of the others go on.
"""

from __future__ import annotations

import faulthandler
import logging
import math
import os
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.choices import CHOICES_FILE, most_threads
from agent.config import CameraConfig, Config, device_id
from agent.contract import topics
from agent.contract.topics import Topics
from agent.daemon import reload
from agent.daemon.clock_repair import ClockRepair
from agent.daemon.instance import acquire
from agent.daemon.liveness import Liveness, Watchdog
from agent.daemon.main_loop import MainLoop, Outcome, Requests, requests_from_signals
from agent.daemon.mqtt import MqttLink
from agent.daemon.outbox import GapNote, Outbox, Record
from agent.daemon.report import TELEMETRY_STREAM, EngineReport, Report, detections_stream
from agent.daemon.systemd import Notifier
from agent.daemon.workers.backoff_memory import BACKOFF_FILE, BackoffMemory
from agent.daemon.workers.choice_memory import ChoiceMemory
from agent.daemon.workers.failover import Failover
from agent.daemon.workers.memory_limit import WorkerMemory, read_budget
from agent.daemon.workers.probing import AcceleratorProbes
from agent.daemon.workers.supervisor import Supervisor, stop_all
from agent.errors import AgentError
from agent.link import Resume, Start

log = logging.getLogger(__name__)

# What each step of an end may take, and all of them together: less than the 10 s that are promised
# for SIGTERM, whatever hangs.
STOP_WORKER_WITHIN_S = 3.0
FLUSH_WITHIN_S = 3.0
SAVE_WITHIN_S = 2.0
END_WITHIN_S = 8.0
# How long one turn of a loop may take. Every wait of the link's thread is a fraction of a second;
# a worn SD card may hold a write back for many seconds.
MQTT_STUCK_S = 15.0
DISK_STUCK_S = 60.0

Load = Callable[[], tuple[Config, list[str]]]


@dataclass(slots=True)
class Daemon:
    """Everything that runs in the control process."""

    supervisors: list[Supervisor]
    mqtt: MqttLink
    outbox: Outbox
    report: Report
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
    )
    outbox.open()
    report = Report(
        device=device,
        boot_id=boot_id,
        groups=config.device.groups,
        cameras=config.camera,
        names=names,
        mqtt=mqtt,
        clock=clock,
        telemetry_seq=outbox.first_seq(TELEMETRY_STREAM),
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
    )
    supervisors = [build_engine(config, name, cameras, share) for name, cameras in served.items()]
    return Daemon(supervisors=supervisors, mqtt=mqtt, outbox=outbox, report=report, backoff=backoff)


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


def build_engine(
    config: Config, name: str, cameras: tuple[CameraConfig, ...], share: EngineShare
) -> Supervisor:
    """Wire one engine: its report and its supervisor."""
    model = config.models[name] if name else config.model
    second = {stage.model: config.models[stage.model] for stage in model.then}
    models = {"": model, **second}

    def make_start(resume: dict[str, Resume], avoid: str) -> Start:
        return Start(
            device=device_id(config.device),
            boot_id=share.boot_id,
            model=model,
            second=second,
            cameras=cameras,
            resume=resume,
            avoid=avoid,
            most_threads=share.most_threads,
            choices=share.choices.short,
        )

    listener = EngineReport(
        name=name,
        cameras=tuple(camera.name for camera in cameras),
        accelerator_wanted=model.accelerator,
        worker_pid=lambda: supervisor.worker_pid,
        restarts=lambda: supervisor.restarts,
        report=share.report,
        learn=share.choices.learn,
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
    return supervisor


def run_daemon(load: Load) -> int:
    """Run until SIGTERM or SIGINT; return the exit code. SIGHUP reads the settings anew.

    Raises:
        ConfigError: the settings cannot be used.
        UnavailableError: another agent runs on the same state folder.
    """
    faulthandler.enable()  # where every thread was goes to the journal when the watchdog ends us
    notifier = Notifier(os.environ)
    with requests_from_signals() as requests:
        config, warnings = load()
        running = reload.settings_of(config)
        for warning in warnings:
            log.warning("configuration: %s", warning)
        notifier.watchdog()  # after a reload it counts on
        lock = acquire(Path(config.device.state_dir))

        outcome = _run(build_daemon(config), config, requests, notifier, Reload(running, load))
        if lock is not None:
            lock.release()
        if outcome == "reload" and not requests.stop:
            reload.re_execute(notifier.variables)
    return 0


@dataclass(slots=True)
class Reload:
    """What becomes of a SIGHUP; `refused` says why the last one changed nothing, if it should."""

    running: reload.Settings
    load: Load
    refused: str = ""

    def is_wanted(self, outbox: Outbox) -> bool:
        """Return whether there are other settings to be used; bad ones are refused with a line."""
        self.refused = ""
        if outbox.alarm and outbox.waiting > outbox.on_disk:
            self.refused = "no reload now: what waits would be lost, as the disk takes nothing"
            log.error("%s", self.refused)
            return False
        try:
            if reload.must_restart(self.running, self.load):
                log.info("configuration changed; starting anew")
                return True
        except AgentError as error:
            log.error("configuration refused, the old one goes on: %s", error)  # noqa: TRY400
            self.refused = "the new configuration was refused, the old one goes on"
        else:
            log.info("configuration unchanged")
        return False


def _run(
    daemon: Daemon,
    config: Config,
    requests: Requests,
    notifier: Notifier,
    settings: Reload,
) -> Outcome:
    """Run what is built until it is asked to end; then end it in order."""
    liveness = Liveness()
    liveness.watch("mqtt", MQTT_STUCK_S, lambda: daemon.mqtt.ticked_at)
    # Live publishing goes on without a disk that hangs; a restart would not bring it back.
    liveness.watch(
        "outbox",
        DISK_STUCK_S,
        lambda: math.inf if daemon.outbox.is_held_by_disk else daemon.outbox.ticked_at,
    )
    loop = MainLoop(
        supervisors=daemon.supervisors,
        mqtt=daemon.mqtt,
        report=daemon.report,
        requests=requests,
        notifier=notifier,
        watchdog=Watchdog(liveness, notifier.watchdog_s, notifier.watchdog),
        telemetry_interval_s=config.telemetry.interval_s,
        wants_reload=lambda: settings.is_wanted(daemon.outbox),
        refused=lambda: settings.refused,
        prove=daemon.backoff.prove,
    )
    hold_s = daemon.backoff.begin()
    if hold_s:
        log.warning("ended uncleanly several times; workers start in_s=%.0f", hold_s)
    for supervisor in daemon.supervisors:  # first: libraries load while the broker is looked up
        if hold_s:
            supervisor.start_later(hold_s)
        else:
            supervisor.start()
    daemon.report.publish_all()
    daemon.mqtt.start()
    outcome: Outcome = "stop"
    try:
        outcome = loop.run()
    finally:
        notifier.reloading() if outcome == "reload" else notifier.stopping()
        notifier.watchdog()  # nobody else says so until the end, or until the new program runs
        _end(daemon, is_orderly=sys.exc_info()[0] is None)
        notifier.watchdog()
    return outcome


def _end(daemon: Daemon, *, is_orderly: bool) -> None:
    """Take the workers' last results, send what can be sent, and save the rest."""
    deadline = time.monotonic() + END_WITHIN_S

    def left(most_s: float) -> float:
        return max(0.1, min(most_s, deadline - time.monotonic()))

    stop_all(daemon.supervisors, left(STOP_WORKER_WITHIN_S))
    is_flushed = daemon.mqtt.stop(left(FLUSH_WITHIN_S))
    if is_orderly:
        daemon.backoff.prove()  # written while the outbox is
    unsaved = daemon.outbox.close(left(SAVE_WITHIN_S))
    daemon.backoff.flush(left(SAVE_WITHIN_S))
    if unsaved:
        log.error("stopped; what waited could not be saved lost=%d", unsaved)
    elif not is_flushed:
        log.info("stopped; what waits is saved waiting=%d", daemon.outbox.waiting)
