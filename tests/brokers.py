"""Real MQTT brokers for tests: mosquitto on a free loopback port, and amqtt, which speaks 3.1.1.

Each runs as a child process in a folder of its own, may be stopped and started again on the
same port, and is ended by its own pid. Nothing here listens anywhere but on loopback.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Debian installs the broker where an ordinary user's PATH does not reach.
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
STARTS_WITHIN_S = 30.0
ENDS_WITHIN_S = 5.0
# Below those that Linux gives to whoever asks for any (ip_local_port_range), so that nobody gets
# one between our look at it and its use; and a part of them for each process of pytest-xdist.
PORTS, PARTS = range(20_000, 32_000), 12

AMQTT = """
import asyncio, sys
from amqtt.broker import Broker

async def main():
    broker = Broker({
        "listeners": {"default": {"type": "tcp", "bind": "127.0.0.1:" + sys.argv[1]}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    })
    await broker.start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


@dataclass(frozen=True)
class Certificates:
    """An authority, a certificate for localhost, and one for a client; all PEM files."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


@dataclass
class RunningBroker:
    """A broker process that can be ended and started again on its port."""

    command: Sequence[str]
    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> RunningBroker:
        """Start the process and wait until it listens."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not is_listening(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the broker did not start: {self.log.read_text()}")
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        """End the process; may be called again."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


def is_listening(port: int) -> bool:
    """Return whether something accepts connections on a loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """Return a loopback port that nothing uses, nor will use unless it is told to."""
    ours = PORTS[int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % PARTS :: PARTS]
    for port in random.SystemRandom().sample(ours, len(ours)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


def mosquitto(
    folder: Path,
    *lines: str,
    port: int | None = None,
    users: dict[str, str] | None = None,
    tls: Certificates | None = None,
) -> RunningBroker:
    """Return a mosquitto that is not started yet; `lines` are added to its configuration."""
    if MOSQUITTO is None:
        raise RuntimeError("mosquitto is not installed (Debian: apt-get install mosquitto)")
    port = port or free_port()
    # Started by root, mosquitto would become a user who cannot read the test's own folder.
    config = ["user root", f"listener {port} 127.0.0.1"]
    if tls is not None:
        config += [f"cafile {tls.ca}", f"certfile {tls.server}", f"keyfile {tls.server_key}"]
    config += ["persistence false", "log_type all", *_authentication(folder, users), *lines]
    path = folder / f"mosquitto-{port}.conf"
    path.write_text("\n".join(config) + "\n", encoding="utf-8")
    command = [MOSQUITTO, "-c", str(path)]
    return RunningBroker(command=command, port=port, log=folder / f"mosquitto-{port}.log")


def amqtt(folder: Path) -> RunningBroker:
    """Return an amqtt broker, which hangs up on MQTT 5 without a word; not started yet."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-c", AMQTT, str(port)]
    return RunningBroker(command=command, port=port, log=folder / f"amqtt-{port}.log")


def make_certificates(
    folder: Path, *, host: str = "localhost", server_days: int = 2, client_days: int = 2
) -> Certificates:
    """Make an authority and its certificates with the openssl command.

    Each is valid from now on for so many days; a negative number makes one that expired.
    """
    ca, ca_key = folder / "ca.pem", folder / "ca.key"
    # fmt: off
    _openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-keyout", str(ca_key), "-out", str(ca), "-days", "2", "-subj", "/CN=test authority",
        "-addext", "basicConstraints=critical,CA:TRUE",
        "-addext", "keyUsage=critical,keyCertSign,cRLSign",
    )
    # fmt: on
    server, server_key = _signed(folder, "server", host, ca, ca_key, server_days)
    client, client_key = _signed(folder, "client", "board", ca, ca_key, client_days)
    return Certificates(
        ca=ca, server=server, server_key=server_key, client=client, client_key=client_key
    )


def _signed(
    folder: Path, name: str, host: str, ca: Path, ca_key: Path, days: int
) -> tuple[Path, Path]:
    key, request, certificate = (folder / f"{name}.{end}" for end in ("key", "csr", "pem"))
    extensions = folder / f"{name}.ext"
    extensions.write_text(f"subjectAltName=DNS:{host}\n", encoding="utf-8")
    # fmt: off
    _openssl(
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-keyout", str(key), "-out", str(request), "-subj", f"/CN={host}",
    )
    _openssl(
        "x509", "-req", "-in", str(request), "-CA", str(ca), "-CAkey", str(ca_key),
        "-CAcreateserial", "-out", str(certificate), "-days", str(days),
        "-extfile", str(extensions),
    )
    # fmt: on
    return certificate, key


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def _authentication(folder: Path, users: dict[str, str] | None) -> list[str]:
    if users is None:
        return ["allow_anonymous true"]
    passwords = folder / "passwords"
    passwords.write_text("".join(f"{name}:{word}\n" for name, word in users.items()))
    passwords.chmod(0o600)
    subprocess.run(["mosquitto_passwd", "-U", str(passwords)], check=True, capture_output=True)
    return ["allow_anonymous false", f"password_file {passwords}"]
