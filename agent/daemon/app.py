"""The composition root of the control process: the only place where settings meet constructors.

One thread runs `supervise`: it waits on the worker's link, on signals and on timers. The MQTT
link has a thread of its own, so that a slow broker or resolver never delays supervision.
"""

from __future__ import annotations

import logging
import selectors
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from agent.config import Config, device_id
from agent.contract import topics
from agent.contract.topics import Topics
from agent.daemon.mqtt import MqttLink
from agent.daemon.outbox import GapNote, Outbox, Record
from agent.daemon.report import Report
from agent.daemon.supervisor import Supervisor
from agent.link import Resume, Start

log = logging.getLogger(__name__)

STOP_WORKER_WITHIN_S = 4.0
FLUSH_WITHIN_S = 4.0


@dataclass(slots=True)
class Daemon:
    """Everything that runs in the control process."""

    supervisor: Supervisor
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

    def make_start(resume: dict[str, Resume]) -> Start:
        return Start(
            device=device,
            boot_id=boot_id,
            model=config.model,
            cameras=config.camera,
            resume=resume,
        )

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
        accelerator_wanted=config.model.accelerator,
        names=names,
        mqtt=mqtt,
        worker_pid=lambda: supervisor.worker_pid,
        worker_restarts=lambda: supervisor.restarts,
    )
    supervisor = Supervisor(make_start=make_start, listener=report)
    return Daemon(
        supervisor=supervisor,
        mqtt=mqtt,
        report=report,
        telemetry_interval_s=config.telemetry.interval_s,
    )


def run_daemon(config: Config, warnings: list[str]) -> int:
    """Run until SIGTERM or SIGINT; return the exit code."""
    for warning in warnings:
        log.warning("configuration: %s", warning)
    daemon = build_daemon(config)
    with _stop_on_signals() as stop:
        daemon.supervisor.start()  # first: its libraries load while the broker is looked up
        daemon.report.publish_all()
        daemon.mqtt.start()
        try:
            _supervise(daemon, stop)
        finally:
            daemon.supervisor.stop(STOP_WORKER_WITHIN_S)
            is_flushed = daemon.mqtt.stop(FLUSH_WITHIN_S)
    if not is_flushed:
        log.warning("stopped with results unsent waiting=%d", daemon.mqtt.outbox.waiting)
    return 0


def _supervise(daemon: Daemon, stop: _StopRequest) -> None:
    """The main loop: the worker's messages, the supervisor's timers, telemetry."""
    next_telemetry = time.monotonic() + daemon.telemetry_interval_s
    with selectors.DefaultSelector() as selector:
        selector.register(stop.wake, selectors.EVENT_READ)
        registered: socket.socket | None = None
        while not stop.is_set:
            due_s = daemon.supervisor.check()
            link = daemon.supervisor.link
            if link is not registered:
                if registered is not None:
                    selector.unregister(registered)  # finds closed sockets as well
                if link is not None:
                    selector.register(link, selectors.EVENT_READ)
                registered = link
            timeout = max(0.0, min(due_s, next_telemetry - time.monotonic()))
            for key, _ in selector.select(timeout):
                if key.fileobj is stop.wake:
                    stop.wake.recv(64)
                else:
                    daemon.supervisor.receive()
            if time.monotonic() >= next_telemetry:
                next_telemetry = time.monotonic() + daemon.telemetry_interval_s
                daemon.report.publish_telemetry()


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
