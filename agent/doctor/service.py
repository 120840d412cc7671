"""The service: does the agent start with the board, and is it this user's?"""

from __future__ import annotations

import getpass
from collections.abc import Callable
from pathlib import Path

from agent.doctor.check import Check, State, ok, warn, worst
from agent.sensors.commands import ask

UNIT = "edge-agent.service"
PROPERTIES = "LoadState,ActiveState,SubState,UnitFileState,User,NRestarts,NeedDaemonReload"
RESTARTS_MANY = 10


def check_service(
    root: Path = Path("/"), ask_systemd: Callable[..., str | None] = ask, user: str | None = None
) -> Check:
    """Whether systemd starts the agent with the board, and has it running now."""
    # sd_booted(3): the folder is there exactly where systemd is the first process.
    if not (root / "run/systemd/system").is_dir():
        message = "no systemd here; whatever starts the agent must also start it again"
        return ok("service", message)
    answer = ask_systemd("systemctl", "show", UNIT, f"--property={PROPERTIES}")
    if answer is None:
        return ok("service", "systemd does not answer")
    facts = dict(line.split("=", 1) for line in answer.splitlines() if "=" in line)
    if facts.get("LoadState") == "not-found":
        message = "not installed as a service, so nothing starts the agent with the board"
        return warn("service", message, "sudo scripts/install")
    return _judge(facts, user or _user())


def _judge(facts: dict[str, str], user: str) -> Check:
    faults: list[tuple[State, str, str]] = []
    state, is_enabled = facts.get("ActiveState", ""), facts.get("UnitFileState", "")
    if facts.get("LoadState") == "masked" or is_enabled == "masked":
        message = f"{UNIT} is masked: it cannot be started"
        faults.append(("warn", message, f"sudo systemctl unmask {UNIT}"))
    elif not is_enabled.startswith("enabled"):
        message = f"{UNIT} is {is_enabled or 'not enabled'}: it does not start with the board"
        faults.append(("warn", message, f"sudo systemctl enable {UNIT}"))
    if state == "failed":
        message = f"{UNIT} has failed"
        faults.append(("warn", message, f"`journalctl -u {UNIT} -n 50` says why"))
    if facts.get("SubState") == "auto-restart":
        message = f"{UNIT} has ended and is started again and again"
        faults.append(("warn", message, f"`journalctl -u {UNIT} -n 50` says why"))
    restarts = facts.get("NRestarts", "")
    if restarts.isdecimal() and int(restarts) >= RESTARTS_MANY:
        message = f"systemd has started it again {restarts} times"
        faults.append(("warn", message, f"`journalctl -u {UNIT} -p warning` says why"))
    if facts.get("NeedDaemonReload") == "yes":
        message = "its unit file has changed on disk since systemd read it"
        faults.append(("warn", message, "sudo systemctl daemon-reload"))
    runs_as = facts.get("User", "")
    if runs_as and user != runs_as:
        message = (
            f"it runs as {runs_as}, and this check as {user}, who may read and do other things"
        )
        faults.append(("warn", message, f"sudo -u {runs_as} edge-agent check"))
    return worst("service", f"{UNIT} is {state or 'unknown'} and {is_enabled or 'unknown'}", faults)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in containers
        return "another user"
