"""From an `mqtt://` address to a connected socket: names, TCP, TLS, each within one time limit.

Every failure leaves as a `BrokerError` whose sentence names the key of the configuration to
look at. Nothing here waits longer than it was told, not even for a name server, and every
wait ends early when the caller says so. Knows sockets, not MQTT.
"""

from __future__ import annotations

import errno
import os
import queue
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

from agent import address as addresses
from agent.address import Address
from agent.config import MqttConfig
from agent.daemon.mqtt.tls import explain_tls, short, tls_context
from agent.errors import BrokerError
from agent.redaction import redact

__all__ = [
    "Address",
    "DialCancelledError",
    "Patience",
    "Wire",
    "dial",
    "parse_address",
    "read_password",
]

# MQTT 5, 3.1.3.6: a password is at most 65,535 bytes.
MAX_PASSWORD_BYTES = 65_535
# Longest sleep before asking again whether the caller still wants the connection.
SLICE_S = 0.1
# tcp(7) TCP_USER_TIMEOUT: bytes nobody acknowledged for this long end the connection. It knows
# a dead network before the missing PUBACK tells of it (20 s); a proxy it does not see through.
UNACKNOWLEDGED_MS = 15_000
# One read takes all the acknowledgements of a window; a TLS record is at most 16 KiB.
READ_BYTES = 16 << 10


class DialCancelledError(Exception):
    """The caller no longer wants the connection."""


class Patience:
    """How much longer a caller is willing to wait; asked before every wait."""

    def __init__(self, timeout_s: float, cancelled: Callable[[], bool] = lambda: False) -> None:
        self.timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._cancelled = cancelled

    def slice_s(self) -> float:
        """Return the next bit of waiting; raises TimeoutError or DialCancelledError at the end."""
        if self._cancelled():
            raise DialCancelledError
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(left, SLICE_S)

    def share(self, parts: int) -> Patience:
        """Return a patience for one of `parts` attempts that are still to be made."""
        left = max(0.0, self._deadline - time.monotonic())
        return Patience(left / parts, self._cancelled)


class Wire:
    """A connected socket as paho wants one: read in large pieces, its last error kept.

    paho reads a packet byte by byte and reports any error as "connection lost"; here one
    system call brings all that has arrived, and the reason survives.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._data = b""
        self._at = 0
        self.ended = False
        self.error: OSError | None = None

    @property
    def buffered(self) -> bool:
        """Return whether there is something to read without waiting for the socket."""
        return self._at < len(self._data)

    def fill(self) -> bool:
        """Read once from the socket; return whether there may be more at once (TLS)."""
        try:
            data = self._sock.recv(READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError as error:
            self._fail(error)
            return False
        if not data:
            self.ended = True
        self._data, self._at = self._data[self._at :] + data, 0
        return isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0

    def recv(self, size: int) -> bytes:
        """Return up to `size` bytes of what `fill` brought; b"" at the end of the connection."""
        if not self.buffered:
            if self.ended:
                return b""
            raise BlockingIOError
        piece = self._data[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def send(self, data: bytes | bytearray) -> int:
        """Write what fits; raises BlockingIOError when nothing does."""
        try:
            return self._sock.send(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None
        except OSError as error:
            # What the peer said before it closed explains more than a write that fails: with
            # TLS 1.3 a refused client certificate is an alert after our side of the handshake.
            self.fill()
            self._fail(error)
            raise

    def close(self) -> None:
        """Close the socket; may be called again."""
        self._sock.close()

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        """Set the socket's mode; paho always asks for non-blocking."""
        self._sock.setblocking(flag)

    def _fail(self, error: OSError) -> None:
        self.ended = True
        self.error = self.error or error


def parse_address(url: str) -> Address:
    """Return the broker's address; the configuration lets no other url through."""
    try:
        return addresses.parse_address(url)
    except ValueError as error:
        raise BrokerError(f'mqtt.url = "{redact(url)}": {error}') from error


def read_password(path: str) -> str | None:
    """Return the first line of the password file, or None where none is configured."""
    if not path:
        return None
    try:
        with Path(path).open("rb") as file:
            line = file.readline(MAX_PASSWORD_BYTES + 2)
        password = line.rstrip(b"\r\n")
        if len(password) > MAX_PASSWORD_BYTES:
            raise BrokerError(
                f'mqtt.password_file = "{path}": the first line is longer than any MQTT password'
            )
        return password.decode("utf-8")
    except OSError as error:
        raise BrokerError(
            f'mqtt.password_file = "{path}": cannot be read: {error.strerror}'
        ) from error
    except UnicodeDecodeError as error:
        raise BrokerError(f'mqtt.password_file = "{path}": the password is not UTF-8') from error


def dial(
    address: Address,
    settings: MqttConfig,
    patience: Patience,
    context: ssl.SSLContext | None = None,
) -> Wire:
    """Return a connected, non-blocking wire; `context` by default from the settings.

    Raises:
        BrokerError: with what to do about it.
        DialCancelledError: as soon as the caller's patience is called off.
    """
    if address.tls and context is None:
        context = tls_context(settings)
    choices = _resolve(address, patience)
    sock = _connect_any(choices, address, patience)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
        if context is not None:
            # From here on the TLS socket owns the descriptor.
            sock = context.wrap_socket(
                sock, server_hostname=address.host, do_handshake_on_connect=False
            )
            _handshake(sock, patience)
    except TimeoutError as error:
        sock.close()
        raise BrokerError(
            f"{address} accepted the connection but not TLS within {patience.timeout_s:g} s; "
            "does this port speak TLS?"
        ) from error
    except OSError as error:
        sock.close()
        raise BrokerError(explain_tls(error, str(address), settings)) from error
    except BaseException:
        sock.close()
        raise
    return Wire(sock)


_Choice = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]]


def _resolve(address: Address, patience: Patience) -> list[_Choice]:
    """Look the name up in a thread of its own, because getaddrinfo(3) takes no time limit."""
    answer: queue.SimpleQueue[list[_Choice] | OSError | UnicodeError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            answer.put(list(found))
        except (OSError, UnicodeError) as error:
            answer.put(error)

    threading.Thread(target=look_up, name="agent.mqtt-resolve", daemon=True).start()
    try:
        while True:
            try:
                found = answer.get(timeout=patience.slice_s())
                break
            except queue.Empty:
                continue
    except TimeoutError as error:
        raise BrokerError(
            f"mqtt.url: the name `{address.host}` was not resolved within "
            f"{patience.timeout_s:g} s; look at this board's network and name server"
        ) from error
    if isinstance(found, list):
        return found
    raise BrokerError(
        f"mqtt.url: the name `{address.host}` cannot be resolved ({short(found)}); "
        "correct it, or look at this board's network and name server"
    ) from found


def _connect_any(choices: list[_Choice], address: Address, patience: Patience) -> socket.socket:
    """Return a socket connected to the first address that answers."""
    failure: OSError = TimeoutError()
    for index, (family, kind, protocol, _, target) in enumerate(choices):
        sock = socket.socket(family, kind, protocol)
        try:
            _connect(sock, target, patience.share(len(choices) - index))
            return sock
        except OSError as error:
            failure = error
            sock.close()
        except BaseException:
            sock.close()
            raise
    raise BrokerError(_explain_connect(failure, address, patience)) from failure


def _connect(sock: socket.socket, target: object, patience: Patience) -> None:
    sock.setblocking(False)
    code = sock.connect_ex(target)  # type: ignore[arg-type]  # as getaddrinfo gave it
    if code == errno.EINPROGRESS:
        _wait(sock, selectors.EVENT_WRITE, patience)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def _handshake(sock: ssl.SSLSocket, patience: Patience) -> None:
    while (event := _shake(sock)) is not None:
        _wait(sock, event, patience)


def _shake(sock: ssl.SSLSocket) -> int | None:
    """Take one step of the handshake; return what it waits for, or None when it is done."""
    try:
        sock.do_handshake()
    except ssl.SSLWantReadError:
        return selectors.EVENT_READ
    except ssl.SSLWantWriteError:
        return selectors.EVENT_WRITE
    return None


def _wait(sock: socket.socket, event: int, patience: Patience) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(sock, event)
        while not selector.select(patience.slice_s()):
            pass


def _explain_connect(error: OSError, address: Address, patience: Patience) -> str:
    if isinstance(error, TimeoutError):
        return (
            f"{address} did not answer within {patience.timeout_s:g} s; look at mqtt.url, "
            "the network and any firewall between"
        )
    if isinstance(error, ConnectionRefusedError):
        return (
            f"nothing listens at {address} (connection refused); start the broker, or correct "
            "mqtt.url"
        )
    return f"{address} cannot be reached ({short(error)}); look at mqtt.url and the network"
