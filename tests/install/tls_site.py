"""A broker set up as systemd/mosquitto/README.md says, but in a folder of the test's own."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from brokers import RunningBroker, free_port

PROJECT = Path(__file__).resolve().parents[2]
SHIPPED = PROJECT / "systemd" / "mosquitto"
# What Debian's /etc/mosquitto/mosquitto.conf says besides the log and the pid file, so that a
# key that stands in both and may stand in one only is noticed.
DEBIAN = "persistence true\npersistence_location {folder}/\ninclude_dir {folder}/conf.d\n"


def make_certificates(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script with a folder of its own."""
    command = [str(SHIPPED / "make-certificates"), "--dir", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Site:
    """A running broker and the certificates of its clients."""

    broker: RunningBroker
    certificates: Path
    installed: Path

    def client(self, name: str) -> tuple[str, str]:
        """Return the certificate and the key of a client."""
        return tuple(str(self.certificates / "devices" / f"{name}.{end}") for end in ("pem", "key"))  # type: ignore[return-value]


def make_all(folder: Path) -> None:
    """Make an authority, the server's certificate, and those of two boards and three others."""
    for arguments in (
        ("authority",),
        ("server", "localhost", "127.0.0.1"),
        ("device", "cam-a"),
        ("device", "cam-b"),
        ("client", "operator"),
        ("client", "reader"),
        ("client", "repository"),
    ):
        done = make_certificates(folder, *arguments)
        assert done.returncode == 0, done.stderr


def set_up(folder: Path, certificates: Path, program: str) -> Site:
    """Lay out what README.md puts into /etc/mosquitto; the broker is not started yet."""
    own = folder / "certificates"
    shutil.copytree(certificates, own)
    settings = own / "openssl.cnf"
    settings.write_text(settings.read_text().replace(str(certificates), str(own)))
    installed = folder / "mosquitto" / "edge-agent"
    installed.mkdir(parents=True)
    for name in ("ca.pem", "revoked.pem", "server.pem", "server.key"):
        shutil.copy(own / name, installed)
    shutil.copy(SHIPPED / "acl", installed)
    port = free_port()
    shipped = (SHIPPED / "edge-agent.conf").read_text()
    assert "\nlistener 8883\n" in shipped
    adapted = shipped.replace("\nlistener 8883\n", f"\nlistener {port} 127.0.0.1\n")
    (installed.parent / "conf.d").mkdir()
    (installed.parent / "conf.d" / "edge-agent.conf").write_text(
        adapted.replace("/etc/mosquitto", str(installed.parent))
    )
    main = installed.parent / "mosquitto.conf"
    # Started by root, mosquitto would become a user who cannot read the test's own folder.
    main.write_text("user root\nlog_type all\n" + DEBIAN.format(folder=installed.parent))
    broker = RunningBroker([program, "-c", str(main)], port, folder / "mosquitto.log")
    return Site(broker=broker, certificates=own, installed=installed)
