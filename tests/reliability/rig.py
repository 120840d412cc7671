"""What a scenario is made of: brokers, the proxy, a collector, and processes of the product.

A `Rig` belongs to one run of one scenario; everything it gave out is ended with it, by pid.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from brokers import RunningBroker, mosquitto

from agent.contract.payloads import GapReason
from reliability.checker import Findings, Put, check
from reliability.collector import Collector
from reliability.logbook import read_logbook
from reliability.producer import Settings
from reliability.proxy import Proxy

PROJECT = Path(__file__).resolve().parents[2]
TESTS = PROJECT / "tests"
# A link that waits half a minute between attempts, as in the field, would only make the
# scenarios longer; those that are about these times use the defaults.
FAST_LINK = {"retry_first_s": 0.05, "retry_max_s": 0.5, "connect_timeout_s": 3.0}
ANSWER_WITHIN_S = 60.0
STOP_WITHIN_S = 15.0
SIGNALLED_WITHIN_S = 0.2
# Where an entry of a log begins: with the time, or with a priority for the journal.
LOG_ENTRY = re.compile(r"^(?=\d\d:\d\d:\d\d |<\d>)", re.MULTILINE)


def child_environment(**more: str) -> dict[str, str]:
    """Return the environment in which a child finds the product and this package."""
    paths = [str(PROJECT), str(TESTS), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}


@dataclass(slots=True)
class Outcome:
    """What one run of a scenario found; `bad` holds what broke a guarantee, as sentences."""

    findings: Findings = field(default_factory=Findings)
    figures: dict[str, float] = field(default_factory=dict)  # name with its unit
    bad: list[str] = field(default_factory=list)
    skipped: str = ""  # why it could not be run here

    def expect(self, is_so: object, otherwise: str) -> None:
        """Note a broken guarantee."""
        if not is_so:
            self.bad.append(otherwise)


class Producer:
    """The producer process, from the outside."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.settings = settings
        self._answers: deque[dict[str, Any]] = deque()
        self._answered = threading.Condition()
        command = [sys.executable, "-m", "reliability.producer", msgspec.json.encode(settings)]
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=log.parent,
                env=child_environment(),
            )
        self._reader = threading.Thread(target=self._read, name="answers", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._answered:
                self._answers.append(json.loads(line))
                self._answered.notify_all()

    def _command(self, command: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()

    def produce(
        self, count: int, per_s: float, *, streams: tuple[str, ...] = (), payload_bytes: int = 0
    ) -> None:
        """Have it put so many records at this rate, one order after the other; returns at once."""
        order = {"streams": streams, "payload_bytes": payload_bytes}
        self._command({"produce": count, "per_s": per_s, **order})

    def counters(self) -> dict[str, Any]:
        """Return its counters of this moment.

        Raises:
            TimeoutError: it does not answer.
        """
        self._command({"say": True})
        with self._answered:
            if not self._answered.wait_for(lambda: self._answers, ANSWER_WITHIN_S):
                raise TimeoutError("the producer process does not answer")
            return self._answers.popleft()

    def wait(self, until: Callable[[dict[str, Any]], Any], timeout_s: float, what: str) -> float:
        """Wait until its counters make `until` true; return the seconds that took."""
        began = time.monotonic()
        while not until(counters := self.counters()):
            if time.monotonic() - began > timeout_s:
                raise TimeoutError(f"{what} did not happen within {timeout_s:g} s: {counters}")
            time.sleep(0.02)
        return time.monotonic() - began

    def wait_connected(self, timeout_s: float = 60.0) -> None:
        """Wait until the broker has accepted its connection."""
        self.wait(lambda c: c["connected"], timeout_s, "a connection")

    def wait_drained(self, timeout_s: float = 120.0) -> float:
        """Wait until all is put and acknowledged, and all gaps are said; return the seconds."""
        return self.wait(
            lambda c: not (c["to_put"] or c["waiting"] or c["has_gaps"]), timeout_s, "the drain"
        )

    def kill(self) -> float:
        """Kill it at once; return when that was, by the monotonic clock."""
        at = time.monotonic()
        self.process.kill()
        self.process.wait()
        self._let_go()
        return at

    def stop(self) -> tuple[int, float]:
        """SIGTERM; return its exit code and how many seconds it took to end."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()
            code = -signal.SIGKILL
        took_s = time.monotonic() - began
        self._let_go()
        return code, took_s

    def _let_go(self) -> None:
        self._reader.join(30)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def end(self) -> None:
        """End it however it stands; may be called again."""
        if self.process.poll() is None:
            self.kill()
        else:
            self._let_go()


class Rig:
    """Gives out what a scenario asks for, and ends it all."""

    def __init__(
        self,
        folder: Path,
        *,
        is_quick: bool = False,
        soak_s: float = 300.0,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.folder = folder
        self.is_quick = is_quick
        self.soak_s = soak_s
        self.say = say
        self.logbook = folder / "puts.log"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Rig:  # noqa: PYI034 - nothing derives from it
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def keep(self, end: Callable[[], object]) -> None:
        """Have something ended with the rig, before what was given out earlier."""
        self._stack.callback(end)

    def broker(self, *lines: str, users: dict[str, str] | None = None) -> RunningBroker:
        """Start a mosquitto that keeps sessions and messages over its own restarts."""
        keeps = (
            "persistence true",
            f"persistence_location {self.folder}/",
            "max_queued_messages 0",
        )
        broker = mosquitto(self.folder, *keeps, *lines, users=users).start()
        self.keep(broker.stop)
        return broker

    def collector(
        self, port: int, *, mqtt5: bool = True, user: tuple[str, str] | None = None
    ) -> Collector:
        """Subscribe to everything."""
        collector = Collector(port, mqtt5=mqtt5, user=user)
        self.keep(collector.close)
        return collector

    def proxy(self, port: int) -> Proxy:
        """Start a clean proxy in front of a port."""
        return self._stack.enter_context(Proxy(port))

    def producer(self, port: int, **settings: Any) -> Producer:
        """Start the producer process; on the same outbox as the last one of this rig."""
        settings = {
            "folder": str(self.folder / "state"),
            "timing": FAST_LINK,
            "faults": str(self.folder),
            **settings,
        }
        if settings["folder"]:
            Path(settings["folder"]).mkdir(exist_ok=True)
        whole = Settings(port=port, log=str(self.logbook), **settings)
        producer = Producer(whole, self.folder / "producer.log")
        self.keep(producer.end)
        return producer

    def puts(self) -> list[Put]:
        """Return what has been put so far, over all runs of the producer."""
        return read_logbook(self.logbook)

    def check(
        self,
        collector: Collector,
        outcome: Outcome,
        *,
        sudden_ends: Iterable[float] = (),
        may_give_up: Iterable[GapReason] = (),
    ) -> None:
        """Let the subscriber hear all there is, compare, and note what is wrong."""
        collector.catch_up()
        # A signal is on its way for a moment, in which records are put as before.
        ends = [at + late_s for at in sudden_ends for late_s in (0.0, SIGNALLED_WITHIN_S)]
        outcome.findings = check(self.puts(), collector.heard, collector.gaps, sudden_ends=ends)
        outcome.bad += outcome.findings.violations(may_give_up)
        crashes = self.tracebacks()
        outcome.expect(not crashes, f"unexpected traceback in the log: {crashes[:1]}")

    def tracebacks(self) -> list[str]:
        """Return the last lines of all tracebacks in the logs of the product's processes.

        Those with an injected error anywhere in their chain are what was asked for.
        """
        found = []
        for log in self.folder.glob("*.log"):
            if log.name.startswith(("mosquitto", "puts")):
                continue
            entries = LOG_ENTRY.split(log.read_text(errors="replace"))
            found += [one for one in entries if "Traceback" in one and "InjectedError" not in one]
        return [entry.strip().splitlines()[-1] for entry in found]
