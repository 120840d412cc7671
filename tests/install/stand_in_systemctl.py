#!/usr/bin/python3 -IS
"""In place of systemctl and systemd-run where no systemd runs: one unit, really started.

Knows what scripts/install uses. Each start has an invocation id of its own; a process that ended
is started again when somebody looks, after RestartSec= of 0.2 s. Ready is who has written
/run/edge-agent/ready. Files below /run/stand-in are its memory; `calls` lists what was asked.
"""

import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid

MEMORY = pathlib.Path("/run/stand-in")
READY = pathlib.Path("/run/edge-agent/ready")
# systemd.unit(5), in this order.
UNITS = [
    pathlib.Path(folder) / "edge-agent.service"
    for folder in (
        "/etc/systemd/system",
        "/run/systemd/system",
        "/usr/local/lib/systemd/system",
        "/usr/lib/systemd/system",
    )
]
WANTS = pathlib.Path("/etc/systemd/system/multi-user.target.wants/edge-agent.service")
RESTART_S = 0.2


def recall(name: str) -> str:
    try:
        return (MEMORY / name).read_text()
    except FileNotFoundError:
        return ""


def remember(name: str, text: object) -> None:
    (MEMORY / name).write_text(str(text))


def is_alive() -> bool:
    try:
        state = pathlib.Path(f"/proc/{recall('pid') or 'none'}/stat").read_text()
    except FileNotFoundError:
        return False
    return state.rpartition(")")[2].split()[0] not in "ZX"


def stop() -> None:
    if is_alive():
        os.kill(int(recall("pid")), signal.SIGKILL)
    remember("pid", "")
    READY.unlink(missing_ok=True)


def start() -> None:
    """By the unit as it was at the last daemon-reload, as systemd does."""
    READY.unlink(missing_ok=True)
    command = re.search(r"^ExecStart=(.*)$", recall("loaded"), re.MULTILINE)
    if command is None:
        sys.exit("Unit edge-agent.service not found.")
    try:
        process = subprocess.Popen(
            shlex.split(command[1]), start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        remember("pid", process.pid)
    except OSError:
        remember("pid", "")
    remember("started", time.time())
    remember("run", uuid.uuid4().hex)
    remember("wanted", "yes")


def reload() -> None:
    found = [unit for unit in UNITS if unit.exists()]
    remember("loaded", found[0].read_text() if found else "")


def look() -> tuple[str, str]:
    """Return ActiveState and SubState; starts again what has ended."""
    if not recall("wanted"):
        return "inactive", "dead"
    if not is_alive():
        if time.time() > float(recall("started")) + RESTART_S:
            start()
        return "activating", "auto-restart"
    return ("active", "running") if READY.exists() else ("activating", "start")


def systemctl(arguments: list[str]) -> int:
    words = [word for word in arguments if not word.startswith("-")]
    command = words[0]
    if command == "daemon-reload":
        reload()
    elif command in ("restart", "start") and "edge-agent.service" in words:
        stop()
        start()
    elif command == "stop" and "edge-agent.service" in words:
        stop()
        remember("wanted", "")
    elif command == "stop":
        (MEMORY / "guard").unlink(missing_ok=True)
    elif command == "enable":
        reload()
        WANTS.parent.mkdir(parents=True, exist_ok=True)
        WANTS.unlink(missing_ok=True)
        WANTS.symlink_to(next(unit for unit in UNITS if unit.exists()))
    elif command == "disable":
        WANTS.unlink(missing_ok=True)
    elif command == "is-enabled":
        return 0 if WANTS.is_symlink() else 1
    elif command == "show":
        state, substate = look()
        print(f"ActiveState={state}\nSubState={substate}\nInvocationID={recall('run')}")
        says = READY.with_name("says")
        print(f"StatusText={says.read_text() if READY.exists() and says.exists() else ''}")
    return 0


def systemd_run(arguments: list[str]) -> int:
    """Keep the command of a timer; the test is the clock."""
    remember("guard", shlex.join(word for word in arguments if not word.startswith("--")))
    return 0


def main() -> int:
    MEMORY.mkdir(exist_ok=True)
    with (MEMORY / "calls").open("a") as calls:
        calls.write(shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]) + "\n")
    run = systemd_run if sys.argv[0].endswith("systemd-run") else systemctl
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
