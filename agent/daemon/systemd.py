"""What systemd is told about this process: the words of sd_notify(3) that a daemon needs.

Nothing here fails or waits: without systemd every word goes nowhere, and one that cannot be
delivered is lost, as whoever runs us must not be held up by whoever watches us. Written here
because the packages for it are frozen since 2017 (sdnotify: waits for ever on a full socket,
loses what is not Latin-1) or come without wheels (systemd-python).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
# systemd ignores datagrams of more than 4096 bytes (NOTIFY_BUFFER_MAX, src/basic/constants.h).
STATUS_BYTES = 1000


class Notifier:
    """Speaks to the systemd whose variables stand in `environment`, and takes them out of it.

    Children would otherwise speak in our name. A program that takes our place is given
    `variables`: `agent.daemon.reload`.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        self.variables = {name: environment.pop(name) for name in VARIABLES if name in environment}
        address = self.variables.get("NOTIFY_SOCKET", "")
        # unix(7): a name that starts with a zero byte lies in no folder; "@" stands for it.
        self._address = "\0" + address[1:] if address.startswith("@") else address

    @property
    def is_heard(self) -> bool:
        """Whether there is a systemd to speak to."""
        return bool(self._address)

    @property
    def watchdog_s(self) -> float | None:
        """Seconds in which we must be heard of, as in sd_watchdog_enabled(3); None: never."""
        usec = self.variables.get("WATCHDOG_USEC", "")
        is_ours = self.variables.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        return int(usec) / 1e6 if is_ours and usec.isdecimal() and int(usec) > 0 else None

    def ready(self) -> bool:
        """Say that start-up or reloading is over."""
        return self._send("READY=1")

    def status(self, text: str) -> bool:
        """Show one line in `systemctl status`."""
        line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        whole = line.encode(errors="replace")[:STATUS_BYTES].decode(errors="ignore")
        return self._send(f"STATUS={whole}")

    def reloading(self) -> bool:
        """Say that settings are read anew; `ready` must follow. From v253 on it needs the time."""
        return self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> bool:
        """Say that we are about to end."""
        return self._send("STOPPING=1")

    def watchdog(self) -> bool:
        """Say that we are alive."""
        return self._send("WATCHDOG=1")

    def _send(self, message: str) -> bool:
        """Send one datagram; return whether it was taken."""
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                return sender.sendto(message.encode(), self._address) > 0
        except (OSError, ValueError):  # ValueError: an address with a zero byte inside
            return False
