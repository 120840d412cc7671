"""The control process's main loop: workers' messages, timers, signals, the watchdog.

Everything here happens on the main thread and nothing here waits for longer than `LONGEST_WAIT_S`,
so that whoever watches the process (systemd's watchdog) can tell a frozen loop from a quiet one.
"""

from __future__ import annotations

import logging
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agent.daemon.announcer import Announcer
from agent.daemon.counts import CountReport
from agent.daemon.liveness import Watchdog
from agent.daemon.mqtt import MqttLink
from agent.daemon.reload import accept_signals
from agent.daemon.report import Report
from agent.daemon.systemd import Notifier
from agent.daemon.telemetry_report import TelemetryReport
from agent.daemon.updates import Updates
from agent.daemon.workers.backoff_memory import PROVEN_AFTER_S
from agent.daemon.workers.supervisor import Supervisor
from agent.sensors.coral import find_corals

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 1.0
STATUS_EVERY_S = 5.0
# What has not come up by then is said to be degraded, not starting.
READY_WITHIN_S = 30.0
# Reading a few directories of sysfs costs well under a millisecond.
HOT_PLUG_LOOK_S = 2.0
HOT_PLUG_LOOKS = 3  # a stick that is enumerated anew may be missing at one of them

Outcome = Literal["stop", "reload"]


@dataclass(slots=True)
class Requests:
    """What signals ask for; `wake` becomes readable, so that a waiting loop notices at once."""

    wake: socket.socket
    ring: Callable[[], None]  # does nothing but that; from any thread
    stop: bool = False
    reload: bool = False


@contextmanager
def requests_from_signals() -> Iterator[Requests]:
    """Turn SIGTERM, SIGINT and SIGHUP into requests; the old handlers are put back after."""
    wake, inner = socket.socketpair()
    wake.setblocking(False)
    inner.setblocking(False)

    def ring() -> None:
        with suppress(OSError):  # full: it is readable anyway; closed: nobody waits any more
            inner.send(b"\0")

    requests = Requests(wake, ring)

    def ask_to_stop(number: int, frame: object) -> None:
        del number, frame
        requests.stop = True

    def ask_to_reload(number: int, frame: object) -> None:
        del number, frame
        requests.reload = True

    handlers = {
        signal.SIGTERM: ask_to_stop,
        signal.SIGINT: ask_to_stop,
        signal.SIGHUP: ask_to_reload,
    }
    old_wakeup = signal.set_wakeup_fd(inner.fileno(), warn_on_full_buffer=False)
    old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    accept_signals()
    try:
        yield requests
    finally:
        signal.set_wakeup_fd(old_wakeup)
        for number, handler in old.items():
            signal.signal(number, handler)
        wake.close()
        inner.close()


@dataclass(slots=True)
class MainLoop:
    """See the module's docstring. `run` returns why it ended."""

    supervisors: list[Supervisor]
    mqtt: MqttLink
    report: Report
    telemetry: TelemetryReport
    counts: CountReport
    announcer: Announcer
    updates: Updates
    requests: Requests
    notifier: Notifier
    watchdog: Watchdog
    telemetry_interval_s: float
    # Whether a changed configuration is there to be used; says itself what is wrong with it.
    wants_reload: Callable[[], bool]
    refused: Callable[[], str]  # why the configuration on disk is not used, empty if it is
    prove: Callable[[], None]  # called once this run is no part of a crash loop
    ticked_at: float = field(default_factory=time.monotonic)  # when it last turned; any thread
    _is_ready: bool = False
    _is_proven: bool = False
    _next_status: float = 0.0

    def run(self) -> Outcome:
        """Supervise until it is time to stop or to start anew."""
        started = time.monotonic()
        next_telemetry = started + self.telemetry_interval_s
        corals = HotPlug()
        with selectors.DefaultSelector() as selector:
            selector.register(self.requests.wake, selectors.EVENT_READ)
            registered: list[socket.socket | None] = [None] * len(self.supervisors)
            while not self.requests.stop:
                if self.requests.reload:
                    self.requests.reload = False
                    if self.wants_reload():
                        return "reload"
                if corals.has_come(time.monotonic()):
                    for supervisor in self.supervisors:
                        supervisor.failover.on_plugged_in(time.monotonic())
                due_s = min(supervisor.check() for supervisor in self.supervisors)
                _follow(selector, registered, [one.link for one in self.supervisors])
                telemetry_s = next_telemetry - time.monotonic()
                due_s = min(due_s, self._look_after(started), telemetry_s, LONGEST_WAIT_S)
                due_s = min(due_s, self._tell_news(time.monotonic()))
                due_s = min(due_s, self.updates.check(time.monotonic()))
                for key, _ in selector.select(max(0.0, due_s)):
                    if key.fileobj is self.requests.wake:
                        self.requests.wake.recv(64)
                    else:
                        self.supervisors[key.data].receive()
                if time.monotonic() >= next_telemetry:
                    next_telemetry = time.monotonic() + self.telemetry_interval_s
                    self.telemetry.publish()
        return "stop"

    def _tell_news(self, now: float) -> float:
        """Publish what is seen, and who we are; return in how many seconds to look again."""
        self.telemetry.look()
        return min(self.counts.check(now), self.announcer.check(now))

    def _look_after(self, started: float) -> float:
        """Look at the other loops, and tell systemd how all of them fare.

        Returns the seconds until its watchdog is due.
        """
        now = time.monotonic()
        self.ticked_at = now
        self.mqtt.ensure_running()
        self.report.follow_clock()
        due_s = self.watchdog.turn(now)
        if not self._is_proven and now - started > PROVEN_AFTER_S:
            self._is_proven = True
            self.prove()
        if not self._is_ready and (self._are_up() or now - started > READY_WITHIN_S):
            # Said again where systemd's socket was full.
            self._is_ready = self.notifier.ready() or not self.notifier.is_heard
            self._next_status = 0.0
        if now >= self._next_status:
            self._next_status = now + STATUS_EVERY_S
            self.report.look_after_outbox()
            refused = self.refused()
            self.notifier.status(f"{refused}; " * bool(refused) + self.report.summary())
        return due_s

    def _are_up(self) -> bool:
        """Return whether every engine runs, or has at least tried to."""
        return all(one.state == "running" or one.restarts for one in self.supervisors)


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
