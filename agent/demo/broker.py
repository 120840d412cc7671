"""A broker on loopback for as long as the demo runs: mosquitto, else the embedded amqtt.

A port is chosen by the kernel and may be taken by another program before the broker binds
it; so it counts only when the broker's own process is seen to listen there, else another
is tried.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from agent.demo.children import POLL_S, Child, Children
from agent.errors import BrokerError

HOST = "127.0.0.1"
ATTEMPTS = 5
STARTS_WITHIN_S = 20.0  # amqtt on the slowest boards
# Debian installs the broker where an ordinary user's PATH does not reach.
SYSTEM_FOLDERS = "/usr/sbin:/usr/local/sbin"

INSTALL = (
    "the demo needs a broker and found none: install mosquitto (apt-get install mosquitto)"
    ' or the embedded one (pip install "edge-agent[demo]")'
)

Protocol = Literal["5", "3.1.1"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalBroker:
    """A broker that listens."""

    title: str
    port: int
    newest_protocol: Protocol
    child: Child


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """How to start one kind of broker on a port."""

    name: str
    title: str
    newest_protocol: Protocol
    command: Callable[[int], list[str]]


def start_broker(children: Children) -> LocalBroker:
    """Start the best broker there is and wait until it listens.

    Raises:
        BrokerError: there is none, or it does not start.
        Interrupted: a signal came.
    """
    kinds = [kind for kind in (_mosquitto(children.folder), _amqtt()) if kind is not None]
    if not kinds:
        raise BrokerError(INSTALL)
    said: list[str] = []
    for kind in kinds:  # a confined mosquitto, such as a snap, cannot read our folder
        for _ in range(ATTEMPTS):
            port = _free_port()
            child = children.start(kind.name, kind.command(port))
            if _wait_until_listening(child, port, children):
                return LocalBroker(
                    title=kind.title, port=port, newest_protocol=kind.newest_protocol, child=child
                )
            children.end(child)
        said.append(f"{kind.name} said: {' | '.join(child.tail(3))}")
    raise BrokerError(f"no broker starts on any of {ATTEMPTS} ports; {'; '.join(said)}")


def _mosquitto(folder: Path) -> _Kind | None:
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path=SYSTEM_FOLDERS)
    if program is None:
        return None

    def command(port: int) -> list[str]:
        lines = [f"listener {port} {HOST}", "allow_anonymous true", "persistence false"]
        # While the demo is suspended with Ctrl-Z nothing must be given up; the default is 1000.
        lines.append("max_queued_messages 100000")
        if os.geteuid() == 0:
            # Started by root it would become the user `mosquitto`, who cannot read our folder.
            lines.append("user root")
        config = folder / f"mosquitto-{port}.conf"
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return [program, "-c", str(config)]

    title = f"mosquitto {_mosquitto_version(program)}".strip()
    return _Kind(name="mosquitto", title=title, newest_protocol="5", command=command)


def _mosquitto_version(program: str) -> str:
    """Return the version its help text begins with, or nothing."""
    with suppress(OSError, subprocess.SubprocessError):
        shown = subprocess.run([program, "-h"], capture_output=True, timeout=5.0, check=False)
        found = re.search(rb"version (\d[\w.]*)", shown.stdout)
        return found[1].decode() if found else ""
    return ""


def _amqtt() -> _Kind | None:
    if importlib.util.find_spec("amqtt") is None:
        return None

    def command(port: int) -> list[str]:
        embedded = [sys.executable, "-W", "ignore", "-m", "agent.demo.embedded_broker"]
        return [*embedded, f"{HOST}:{port}"]

    title = f"amqtt {importlib.metadata.version('amqtt')} (embedded)"
    return _Kind(name="amqtt", title=title, newest_protocol="3.1.1", command=command)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_listening(child: Child, port: int, children: Children) -> bool:
    """Return whether the child itself came to listen at the port."""
    deadline = time.monotonic() + STARTS_WITHIN_S
    while child.process.poll() is None and time.monotonic() < deadline:
        if _listens(child.process.pid, port):
            return True
        children.signals.sleep(POLL_S)
    return False


def _listens(pid: int, port: int) -> bool:
    try:
        process = psutil.Process(pid)
        # psutil 6 renamed it; boards may have 5.9.
        read = getattr(process, "net_connections", None) or process.connections
        return any(
            item.status == psutil.CONN_LISTEN and item.laddr.port == port
            for item in read(kind="tcp")
        )
    except psutil.Error:
        return False
