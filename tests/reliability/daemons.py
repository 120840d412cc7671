"""The whole daemon as systemd runs it: `edge-agent run` under a notify socket that we hold."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil
from e2e.harness import config_text

from agent.choices import CHOICES_FILE
from reliability.collector import Collector
from reliability.observed_agent import Observation
from reliability.rig import Rig, child_environment

STOP_WITHIN_S = 15.0
STARTS_WITHIN_S = 120.0
# How the default model runs best here is measured once, and then given to all.
_choices: dict[str, bytes] = {}


@dataclass(frozen=True, slots=True)
class Notification:
    """One word to systemd, such as "WATCHDOG=1"; `at` is monotonic."""

    word: str
    at: float


class NotifySocket:
    """Hears what the service says to systemd."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: list[Notification] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._listen, name="notify", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while data := self._socket.recv(4096):
            now = time.monotonic()
            self.heard += [Notification(word, now) for word in data.decode().split("\n")]

    def last(self, word: str) -> float | None:
        """Return when a word was heard last."""
        times = [one.at for one in list(self.heard) if one.word == word]
        return times[-1] if times else None

    def close(self) -> None:
        """End the thread and the socket."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", str(self.path))
        self._thread.join(5)
        self._socket.close()


class Agent:
    """One run of the daemon; `systemd` is None unless it has a watchdog."""

    def __init__(
        self,
        rig: Rig,
        port: int,
        *,
        fps: float = 10.0,
        watchdog_s: float | None = None,
        observation: Observation | None = None,
        log_folder: Path | None = None,
        mqtt_lines: str = "",
    ) -> None:
        self.state = rig.folder / "state"
        self.state.mkdir(exist_ok=True)
        self.log = (log_folder or rig.folder) / "agent.log"
        if CHOICES_FILE in _choices:
            (self.state / CHOICES_FILE).write_bytes(_choices[CHOICES_FILE])
        config = rig.folder / "agent.toml"
        config.write_text(
            config_text(
                port,
                "synthetic",
                camera=f"fps = {fps:g}",
                mqtt_lines=mqtt_lines,
                state_dir=self.state,
            )
        )
        environment: dict[str, str] = {}
        self.systemd: NotifySocket | None = None
        if watchdog_s is not None:
            path = rig.folder / "notify"
            path.unlink(missing_ok=True)
            self.systemd = NotifySocket(path)
            rig.keep(self.systemd.close)
            environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": f"{watchdog_s * 1e6:.0f}"}
        module = ["agent"]
        if observation is not None:
            module = ["reliability.observed_agent", msgspec.json.encode(observation).decode()]
        command = [sys.executable, "-m", *module, "run", "--config", str(config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stderr=log, env=child_environment(**environment)
            )
        rig.keep(self.end)

    def processes(self) -> dict[str, psutil.Process]:
        """Return the control process and its worker, where there is one."""
        control = psutil.Process(self.process.pid)
        found = {"control": control}
        for child in control.children():
            with contextlib.suppress(psutil.Error):  # it may end at any moment
                if "agent.vision.worker" in " ".join(child.cmdline()):
                    found["worker"] = child
        return found

    def wait_heard(self, collector: Collector, more: int) -> None:
        """Wait until that many further results of it have come, its start included.

        Raises:
            RuntimeError: it has ended.
            TimeoutError: nothing came.
        """
        goal = len(collector.heard) + more
        collector.wait(
            lambda: len(collector.heard) >= goal or self.process.poll() is not None,
            STARTS_WITHIN_S,
            f"{more} results",
        )
        if len(collector.heard) < goal:
            last = self.log.read_text().splitlines()[-1:]
            raise RuntimeError(f"the daemon ended, exit code {self.process.poll()}: {last}")

    def stop(self) -> tuple[int, float]:
        """SIGTERM; return its exit code and how many seconds it took to end."""
        began = time.monotonic()
        self.process.terminate()
        try:
            code = self.process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = -signal.SIGKILL
        self._keep_choices()
        return code, time.monotonic() - began

    def kill(self, number: int = signal.SIGKILL) -> float:
        """End it with a signal; return when that was, by the monotonic clock."""
        at = time.monotonic()
        self.process.send_signal(number)
        try:
            self.process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return at

    def end(self) -> None:
        """End it however it stands; may be called again."""
        if self.process.poll() is None:
            self.kill()
        self._keep_choices()

    def _keep_choices(self) -> None:
        path = self.state / CHOICES_FILE
        if path.exists():
            _choices[CHOICES_FILE] = path.read_bytes()


def health(status: dict[str, Any]) -> list[str]:
    """Return the codes of what a status says is wrong."""
    return [problem["code"] for problem in status["health"]]
