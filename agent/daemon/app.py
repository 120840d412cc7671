"""The control process, from its start to its end.

One thread runs the main loop: it waits on the workers' links, on signals and on timers. The MQTT
link has a thread of its own, so that a slow broker or resolver never delays supervision; so has
the outbox, so that a slow disk never does, and whatever looks at the board, so that a driver that
hangs never does.
"""

from __future__ import annotations

import faulthandler
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.config import Config
from agent.daemon import reload
from agent.daemon.build import Daemon, build_daemon, build_scrape
from agent.daemon.instance import acquire
from agent.daemon.liveness import Liveness, Watchdog
from agent.daemon.main_loop import MainLoop, Outcome, Requests, requests_from_signals
from agent.daemon.outbox import Outbox
from agent.daemon.systemd import Notifier
from agent.daemon.workers.stopping import stop_all
from agent.errors import AgentError

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
MAIN_STUCK_S = 15.0

Load = Callable[[], tuple[Config, list[str]]]


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
        telemetry=daemon.telemetry,
        counts=daemon.counts,
        announcer=daemon.announcer,
        updates=daemon.updates,
        requests=requests,
        notifier=notifier,
        watchdog=Watchdog(liveness, notifier.watchdog_s, notifier.watchdog),
        telemetry_interval_s=config.telemetry.interval_s,
        wants_reload=lambda: settings.is_wanted(daemon.outbox),
        refused=lambda: settings.refused,
        prove=daemon.backoff.prove,
    )
    liveness.watch("main", MAIN_STUCK_S, lambda: loop.ticked_at)
    scrape = build_scrape(config, daemon, liveness)
    daemon.updates.ring = requests.ring
    daemon.updates.breathe = notifier.watchdog
    daemon.updates.resume()
    hold_s = daemon.backoff.begin()
    if hold_s:
        log.warning("ended uncleanly several times; workers start in_s=%.0f", hold_s)
    for supervisor in daemon.supervisors:  # first: libraries load while the broker is looked up
        if hold_s:
            supervisor.start_later(hold_s)
        else:
            supervisor.start()
    daemon.report.publish_all()
    daemon.counts.check(time.monotonic())  # that nobody knows yet, instead of the last run's
    daemon.announcer.check(time.monotonic())
    daemon.mqtt.start()
    daemon.instruments.board.start()
    if scrape is not None:
        scrape.start()
    outcome: Outcome = "stop"
    try:
        outcome = loop.run()
    finally:
        notifier.reloading() if outcome == "reload" else notifier.stopping()
        notifier.watchdog()  # nobody else says so until the end, or until the new program runs
        if scrape is not None:
            scrape.stop()
        _end(daemon, is_orderly=sys.exc_info()[0] is None)
        notifier.watchdog()
    return outcome


def _end(daemon: Daemon, *, is_orderly: bool) -> None:
    """Take the workers' last results, send what can be sent, and save the rest."""
    deadline = time.monotonic() + END_WITHIN_S

    def left(most_s: float) -> float:
        return max(0.1, min(most_s, deadline - time.monotonic()))

    if is_orderly:
        daemon.updates.stop()  # first: workers that end now say nothing of their models
    stop_all(daemon.supervisors, left(STOP_WORKER_WITHIN_S))
    daemon.instruments.board.stop()
    is_flushed = daemon.mqtt.stop(left(FLUSH_WITHIN_S))
    if is_orderly:
        daemon.backoff.prove()  # written while the outbox is
    unsaved = daemon.outbox.close(left(SAVE_WITHIN_S))
    daemon.backoff.flush(left(SAVE_WITHIN_S))
    daemon.announced.flush(left(SAVE_WITHIN_S))
    if unsaved:
        log.error("stopped; what waited could not be saved lost=%d", unsaved)
    elif not is_flushed:
        log.info("stopped; what waits is saved waiting=%d", daemon.outbox.waiting)
