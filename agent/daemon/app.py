"""The composition root of the control process: the only place where settings meet constructors.

One thread runs `supervise`: it waits on the workers' links, on signals and on timers. The MQTT
link has a thread of its own, so that a slow broker or resolver never delays supervision.

Each model that cameras name is an engine with a worker process of its own: whatever one of
them does, the cameras of the others go on.
"""

from __future__ import annotations

import logging
import selectors
import signal
import socket
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agent.choices import CHOICES_FILE, most_threads
from agent.config import CameraConfig, Config, device_id
from agent.contract import topics
from agent.contract.topics import Topics
from agent.daemon.choice_memory import ChoiceMemory
from agent.daemon.failover import Failover
from agent.daemon.mqtt import MqttLink
from agent.daemon.outbox import GapNote, Outbox, Record
from agent.daemon.probing import AcceleratorProbes
from agent.daemon.report import EngineReport, Report
from agent.daemon.supervisor import Supervisor, stop_all
from agent.link import Resume, Start
from agent.sensors.coral import find_corals

log = logging.getLogger(__name__)

STOP_WORKER_WITHIN_S = 4.0
FLUSH_WITHIN_S = 4.0
# Reading a few directories of sysfs costs well under a millisecond.
HOT_PLUG_LOOK_S = 2.0
HOT_PLUG_LOOKS = 3  # a stick that is enumerated anew may be missing at one of them


@dataclass(slots=True)
class Daemon:
    """Everything that runs in the control process."""

    supervisors: list[Supervisor]
    mqtt: MqttLink
    report: Report
    telemetry_interval_s: float


def build_daemon(config: Config) -> Daemon:
    """Wire the control process; nothing runs yet."""
    device = device_id(config.device)
    # One id per run of the daemon, so that (device, boot_id, camera, seq) never repeats although
    # seq starts at 1 again.
    boot_id = uuid.uuid4().hex
    names = Topics(config.mqtt.prefix, device)

    def gap_record(note: GapNote) -> Record:
        return report.gap_record(note)

    mqtt = MqttLink(
        config.mqtt,
        client_id=f"edge-agent-{device}",
        availability_topic=names.name(topics.AVAILABILITY),
        outbox=Outbox(int(config.mqtt.outbox_max_mb * 1e6)),
        gap_record=gap_record,
    )
    report = Report(
        device=device,
        boot_id=boot_id,
        groups=config.device.groups,
        cameras=config.camera,
        names=names,
        mqtt=mqtt,
    )
    memory = ChoiceMemory(Path(config.device.state_dir) / CHOICES_FILE)
    served = cameras_by_model(config)
    supervisors = [
        build_engine(config, name, cameras, device, boot_id, report, memory, len(served))
        for name, cameras in served.items()
    ]
    return Daemon(
        supervisors=supervisors,
        mqtt=mqtt,
        report=report,
        telemetry_interval_s=config.telemetry.interval_s,
    )


def cameras_by_model(config: Config) -> dict[str, tuple[CameraConfig, ...]]:
    """Return the models that cameras name, the one of [model] first, each with its cameras."""
    names = sorted({camera.model for camera in config.camera})
    return {
        name: tuple(camera for camera in config.camera if camera.model == name) for name in names
    }


def build_engine(
    config: Config,
    name: str,
    cameras: tuple[CameraConfig, ...],
    device: str,
    boot_id: str,
    report: Report,
    memory: ChoiceMemory,
    engines: int,
) -> Supervisor:
    """Wire one engine: its report and its supervisor."""
    model = config.models[name] if name else config.model
    second = {stage.model: config.models[stage.model] for stage in model.then}
    models = {"": model, **second}

    def make_start(resume: dict[str, Resume], avoid: str) -> Start:
        return Start(
            device=device,
            boot_id=boot_id,
            model=model,
            second=second,
            cameras=cameras,
            resume=resume,
            avoid=avoid,
            most_threads=most_threads(engines),
            choices=memory.short,
        )

    listener = EngineReport(
        name=name,
        cameras=tuple(camera.name for camera in cameras),
        accelerator_wanted=model.accelerator,
        worker_pid=lambda: supervisor.worker_pid,
        restarts=lambda: supervisor.restarts,
        report=report,
        learn=memory.learn,
    )
    report.engines.append(listener)
    supervisor = Supervisor(
        make_start=make_start,
        listener=listener,
        failover=Failover(tuple(one.accelerator for one in models.values())),
        start_probe=lambda names: AcceleratorProbes([models[one] for one in names], memory.learn),
    )
    return supervisor


def run_daemon(config: Config, warnings: list[str]) -> int:
    """Run until SIGTERM or SIGINT; return the exit code."""
    for warning in warnings:
        log.warning("configuration: %s", warning)
    daemon = build_daemon(config)
    with _stop_on_signals() as stop:
        for supervisor in daemon.supervisors:
            supervisor.start()  # first: libraries load while the broker is looked up
        daemon.report.publish_all()
        daemon.mqtt.start()
        try:
            _supervise(daemon, stop)
        finally:
            stop_all(daemon.supervisors, STOP_WORKER_WITHIN_S)
            is_flushed = daemon.mqtt.stop(FLUSH_WITHIN_S)
    if not is_flushed:
        log.warning("stopped with results unsent waiting=%d", daemon.mqtt.outbox.waiting)
    return 0


def _supervise(daemon: Daemon, stop: _StopRequest) -> None:
    """The main loop: the worker's messages, the supervisor's timers, telemetry."""
    next_telemetry = time.monotonic() + daemon.telemetry_interval_s
    corals = HotPlug()
    with selectors.DefaultSelector() as selector:
        selector.register(stop.wake, selectors.EVENT_READ)
        registered: list[socket.socket | None] = [None] * len(daemon.supervisors)
        while not stop.is_set:
            if corals.has_come(time.monotonic()):
                for supervisor in daemon.supervisors:
                    supervisor.failover.on_plugged_in(time.monotonic())
            due_s = min(supervisor.check() for supervisor in daemon.supervisors)
            _follow(selector, registered, [one.link for one in daemon.supervisors])
            timeout = max(0.0, min(due_s, next_telemetry - time.monotonic()))
            for key, _ in selector.select(timeout):
                if key.fileobj is stop.wake:
                    stop.wake.recv(64)
                else:
                    daemon.supervisors[key.data].receive()
            if time.monotonic() >= next_telemetry:
                next_telemetry = time.monotonic() + daemon.telemetry_interval_s
                daemon.report.publish_telemetry()


@dataclass(slots=True)
class HotPlug:
    """Notices Corals that are plugged in while the daemon runs."""

    root: Path = Path("/")
    _seen: deque[frozenset[str]] = field(default_factory=lambda: deque(maxlen=HOT_PLUG_LOOKS))
    _next_look: float = 0.0

    def has_come(self, now: float) -> bool:
        """Return whether there is one that was not there at the last looks.

        A stick is known by its port: its number changes whenever it is enumerated anew, which
        every probe of it may cause.
        """
        if now < self._next_look:
            return False
        self._next_look = now + HOT_PLUG_LOOK_S
        there = frozenset(f"{coral.kind} {coral.where}" for coral in find_corals(self.root))
        is_new = bool(self._seen) and bool(there.difference(*self._seen))
        self._seen.append(there)
        return is_new


def _follow(
    selector: selectors.BaseSelector,
    registered: list[socket.socket | None],
    links: list[socket.socket | None],
) -> None:
    """Wait on the links that the supervisors have now.

    All that are gone are let go first: a new link may have the number of another's old one.
    """
    changed = [at for at, link in enumerate(links) if link is not registered[at]]
    for at in changed:
        old, registered[at] = registered[at], None
        if old is not None:
            selector.unregister(old)  # finds closed sockets as well
    for at in changed:
        link = links[at]
        if link is not None:
            selector.register(link, selectors.EVENT_READ, at)
            registered[at] = link


@dataclass(slots=True)
class _StopRequest:
    """Set by a signal; `wake` becomes readable, so that a waiting loop notices at once."""

    wake: socket.socket
    is_set: bool = False


@contextmanager
def _stop_on_signals() -> Iterator[_StopRequest]:
    """Turn SIGTERM and SIGINT into a request to stop; the old handlers are put back after."""
    wake, inner = socket.socketpair()
    wake.setblocking(False)
    inner.setblocking(False)
    request = _StopRequest(wake)

    def stop(number: int, frame: object) -> None:
        del number, frame
        request.is_set = True

    old_wakeup = signal.set_wakeup_fd(inner.fileno(), warn_on_full_buffer=False)
    old = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        signal.set_wakeup_fd(old_wakeup)
        for number, handler in old.items():
            signal.signal(number, handler)
        wake.close()
        inner.close()
