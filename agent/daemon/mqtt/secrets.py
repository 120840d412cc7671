"""What a connection needs of the disk: the password, the certificates and the key.

Read anew for each connection, as they are renewed under the same names. Once they were good, a
disk that gives errors or no answer at all does not end the link: the last good ones are used. For
one thread.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import ssl
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from agent.config import MqttConfig
from agent.daemon.mqtt.dial import read_password
from agent.daemon.mqtt.tls import tls_context
from agent.errors import BrokerError

log = logging.getLogger(__name__)

# A worn SD card may take seconds for a file; a connection must not wait much longer than that.
READ_WITHIN_S = 3.0

T = TypeVar("T")


class Kept(Generic[T]):
    """One thing that is read from the disk, and the last good one."""

    def __init__(self, what: str, read: Callable[[], T], within_s: float) -> None:
        self._what = what
        self._read = read
        self._within_s = within_s
        self._last: list[T] = []
        self._reader: threading.Thread | None = None
        self._is_said = False

    def get(self) -> T:
        """Return it as it is now, or as it was last where the disk does not say.

        Raises:
            BrokerError: it cannot be read, and never could.
        """
        if not self._last:
            self._last = [self._read()]
            return self._last[0]
        try:
            self._last = [self._read_in_time()]
            self._is_said = False
        except (BrokerError, TimeoutError) as error:
            if not self._is_said:
                reason = str(error) or f"no answer within {self._within_s:g} s"
                log.warning("%s is used as it was before: %s", self._what, reason)
                self._is_said = True
        return self._last[0]

    def _read_in_time(self) -> T:
        if self._reader is not None and self._reader.is_alive():
            raise TimeoutError  # the one before still hangs
        answer: queue.SimpleQueue[T | BrokerError] = queue.SimpleQueue()

        def read() -> None:
            try:
                answer.put(self._read())
            except BrokerError as error:
                answer.put(error)

        self._reader = threading.Thread(target=read, name="agent.mqtt-secrets", daemon=True)
        self._reader.start()
        with contextlib.suppress(queue.Empty):
            found = answer.get(timeout=self._within_s)
            if isinstance(found, BrokerError):
                raise found
            return found
        raise TimeoutError


class Secrets:
    """The password and the TLS settings of [mqtt]; each call may raise BrokerError."""

    def __init__(self, settings: MqttConfig, within_s: float = READ_WITHIN_S) -> None:
        self._password: Kept[str | None] = Kept(
            "mqtt.password_file", lambda: read_password(settings.password_file), within_s
        )
        self._context: Kept[ssl.SSLContext] = Kept(
            "the certificates of [mqtt]", lambda: tls_context(settings), within_s
        )

    def password(self) -> str | None:
        """Return the password, None where none is configured."""
        return self._password.get()

    def context(self) -> ssl.SSLContext:
        """Return the TLS settings."""
        return self._context.get()
