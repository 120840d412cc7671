"""The unit as it is installed on the machine, and the questions that tests ask it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from machine import Machine, wait_until

UNIT = "edge-agent.service"
CONFIG = "/etc/edge-agent/agent.toml"
DROP_INS = f"/etc/systemd/system/{UNIT}.d"
BROKER = "mosquitto.service"
TOPICS = "edge/boot"
# A machine may be a hundred times slower than a board; what takes longer than this hangs.
SOON_S = 60.0
SETTINGS = """\
[device]
id = "boot"
[telemetry]
interval_s = {interval_s}
[[camera]]
name = "clip"
source = "/opt/edge-agent/source/agent/demo/clip.mp4"
realtime = true
loop = true
fps = 5
"""


@dataclass(frozen=True)
class Service:
    """edge-agent.service in a machine, with a broker beside it."""

    machine: Machine

    def install(self) -> None:
        """Give it settings and a broker; nothing runs yet but the broker."""
        self.machine.write(CONFIG, SETTINGS.format(interval_s=10))
        self.machine.write(
            "/etc/mosquitto/conf.d/boot.conf", "listener 1883 127.0.0.1\nallow_anonymous true\n"
        )
        self.machine.systemctl("start", BROKER)

    def drop_in(self, name: str, *lines: str, section: str = "Service") -> None:
        """Add lines to the unit, in place of earlier ones under this name."""
        text = "\n".join([f"[{section}]", *lines, ""])
        self.machine.write(f"{DROP_INS}/{name}.conf", text)
        self.machine.systemctl("daemon-reload")

    def undo_drop_in(self, name: str) -> None:
        """Take them away again."""
        self.machine.run("rm", "-f", f"{DROP_INS}/{name}.conf", check=True)
        self.machine.systemctl("daemon-reload")

    def start(self) -> None:
        """Start it and wait for READY=1."""
        self.machine.systemctl("start", UNIT)

    def show(self, name: str) -> str:
        """Return a property of the unit."""
        return self.machine.show(UNIT, name)

    @property
    def is_active(self) -> bool:
        """Whether systemd says that it is ready."""
        return self.show("ActiveState") == "active"

    @property
    def pid(self) -> int:
        """The daemon's process id inside the machine; 0: there is none."""
        return int(self.show("MainPID") or 0)

    @property
    def restarts(self) -> int:
        """How often systemd has started it again by itself."""
        return int(self.show("NRestarts") or 0)

    def processes(self) -> dict[int, str]:
        """Return what runs in the unit's cgroup: process id and command."""
        group = self.show("ControlGroup")
        if not group:
            return {}
        root = "/sys/fs/cgroup/systemd" if self.machine.hierarchy == "legacy" else "/sys/fs/cgroup"
        pids = self.machine.run("cat", f"{root}{group}/cgroup.procs").stdout.split()
        lines = {
            int(pid): self.machine.run("cat", f"/proc/{pid}/cmdline").stdout.replace("\0", " ")
            for pid in pids
        }
        return {pid: line.strip() for pid, line in lines.items() if line}

    def workers(self) -> list[int]:
        """Return the process ids of the vision workers."""
        return [pid for pid, line in self.processes().items() if "agent.vision.worker" in line]

    def kill(self, number: str, pid: int) -> None:
        """Send a signal to one process."""
        self.machine.run("kill", f"-{number}", str(pid), check=True)

    def next_result(self, camera: str = "clip") -> dict[str, object]:
        """Wait for a result that is published from now on.

        Raises:
            TimeoutError: there is none.
        """
        topic = f"{TOPICS}/camera/{camera}/detections"
        done = self.machine.run("mosquitto_sub", "-t", topic, "-C", "1", "-W", str(int(SOON_S)))
        if done.returncode:
            raise TimeoutError(f"no result within {SOON_S:.0f} s\n{self.journal(30)}")
        result: dict[str, object] = json.loads(done.stdout)
        return result

    def retained(self, name: str) -> str:
        """Return a retained message; empty when there is none."""
        return self.machine.run(
            "mosquitto_sub", "-t", f"{TOPICS}/{name}", "-C", "1", "-W", "5"
        ).stdout.strip()

    def journal(self, lines: int = 0, *words: str) -> str:
        """Return what the unit has logged, the last lines of it, or all."""
        count = ["-n", str(lines)] if lines else []
        command = ["journalctl", "-u", UNIT, "--no-pager", "-o", "cat", *count, *words]
        return self.machine.run(*command).stdout

    @property
    def refusals(self) -> int:
        """How often it has called its settings wrong, as an error."""
        return self.journal(0, "-p", "err").count(CONFIG)

    def wait_for_another(self, pid: int, within_s: float = SOON_S) -> float:
        """Wait until a daemon with another process id is ready; return the seconds."""

        def is_there() -> bool:
            return self.is_active and self.pid not in (0, pid)

        return wait_until(is_there, within_s, f"{UNIT} is ready again\n{self.journal(30)}")
