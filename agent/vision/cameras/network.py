"""What an address on the network names, and why a camera there cannot be opened, in words.

OpenCV only says that it failed. So after a failure the server is asked once more, by hand,
and without credentials: sending them before it is known how would give them away. Python's
own words about an address may quote the password in it, so they are never passed on.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from typing import NamedTuple
from urllib.parse import urlsplit

from agent.errors import CameraError
from agent.redaction import redact
from agent.vision.cameras.waiting import finish_in_time

RESOLVE_LIMIT_S = 5.0
TIMEOUT_S = 3.0  # for all that `why_not` asks
# IANA: rtsp 554, rtsps 322.
PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
MAX_STATUS_LINE_BYTES = 256


class Address(NamedTuple):
    """The parts of a URL that its server needs."""

    scheme: str
    host: str
    port: int
    path: str
    has_credentials: bool


def scheme_of(source: str) -> str:
    """Return what stands before `://`, in lower case."""
    scheme, separator, _ = source.partition("://")
    return scheme.lower() if separator else ""


def parse(url: str) -> Address:
    """Take an address apart.

    Raises:
        CameraError: it is malformed; without a cause, as that may quote the password.
    """
    try:
        parts = urlsplit(url)
        host, port, name = parts.hostname, parts.port, parts.username
    except ValueError:
        raise CameraError(
            f"{redact(url)}: the address is malformed; percent-encode special characters in its"
            " password, such as %2F for a slash and %40 for an at sign"
        ) from None
    if not host:
        raise CameraError(f"{redact(url)}: the address has no host")
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    scheme = parts.scheme.lower()
    return Address(scheme, host, port or PORTS[scheme], path, has_credentials=bool(name))


def resolve(address: Address) -> list[str]:
    """Return the IP addresses of a host, none where a proxy is to look its name up.

    Raises:
        CameraError: there are none, or the name server is silent. Without the URL.
    """
    host = address.host
    # FFmpeg's HTTP goes through this proxy; a board behind one may have no name server at all.
    if address.scheme.startswith("http") and os.environ.get("http_proxy"):
        return []
    try:
        found = finish_in_time(
            lambda: socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM),
            RESOLVE_LIMIT_S,
            name="agent.camera-resolve",
        )
    except TimeoutError:
        raise CameraError(
            f"the name {host} could not be resolved within {RESOLVE_LIMIT_S:g} s; look at this"
            " board's network and name server, or give the camera's IP address"
        ) from None
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise CameraError(
                f"the name {host} is not known, as no name server answers; look at this board's"
                " network and name server, or give the camera's IP address"
            ) from None
        raise CameraError(
            f"the name {host} is not known; check it, or give the camera's IP address"
        ) from None
    except (OSError, ValueError):
        raise CameraError(f"the name {host} is not one that a host can have") from None
    return [str(target[0]) for *_, target in found]


def why_not(address: Address, ips: list[str]) -> str:
    """Return why a stream could not be opened, in words that need no URL in them."""
    _, host, port, _, has_credentials = address
    if not ips:
        return "no video that can be decoded comes through the proxy that http_proxy names"
    deadline = time.monotonic() + TIMEOUT_S
    try:
        with _connect(ips, port, deadline) as connection:
            return _explain(_status(connection, address, deadline), has_credentials=has_credentials)
    except ConnectionRefusedError:
        return f"nothing listens on {host} port {port}; check the port and that it is switched on"
    except TimeoutError:
        return f"{host} port {port} does not answer within {TIMEOUT_S:g} s; is it switched on?"
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        return f"{host} port {port} cannot be reached: {reason or 'broken connection'}"


def _connect(ips: list[str], port: int, deadline: float) -> socket.socket:
    """Return a connection to the first that accepts one; each gets its share of the time."""
    failure: OSError = TimeoutError()
    for index, ip in enumerate(ips):
        share_s = _left(deadline) / (len(ips) - index)
        try:
            return socket.create_connection((ip, port), share_s)
        except OSError as error:
            failure = error
    raise failure


def _left(deadline: float) -> float:
    """Return the seconds to a deadline; never zero, which would mean not to wait at all."""
    return max(0.01, deadline - time.monotonic())


def _status(connection: socket.socket, address: Address, deadline: float) -> int | None:
    """Ask for the stream; return the status code, None where the answer is none."""
    scheme, host, port, path, _ = address
    connection.settimeout(_left(deadline))
    if scheme in ("rtsps", "https"):
        # Only a diagnosis: FFmpeg does not verify cameras' certificates by default either.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = context.wrap_socket(connection, server_hostname=host)
        connection.settimeout(_left(deadline))
    name = f"[{host}]" if ":" in host else host
    if scheme.startswith("rtsp"):
        request = f"DESCRIBE {scheme}://{name}:{port}{path} RTSP/1.0\r\nCSeq: 1\r\n\r\n"
    else:
        request = f"GET {path or '/'} HTTP/1.0\r\nHost: {name}:{port}\r\n\r\n"
    connection.sendall(request.encode("utf-8"))
    line = connection.recv(MAX_STATUS_LINE_BYTES)
    found = re.match(rb"(?:RTSP|HTTP)/\d\.\d (\d{3})", line)
    return int(found[1]) if found else None


def _explain(status: int | None, *, has_credentials: bool) -> str:
    if status in (401, 403):
        if has_credentials:
            return "the server does not accept the user name and password in the address"
        return "the server wants a user name and password: put them before the host in the address"
    if status == 404:
        return "the server has nothing at this path; look it up in the camera's manual"
    if status is None:
        return "what answers there speaks another protocol; check the scheme and the port"
    if 200 <= status < 300:
        return "the server answers, but sends no video that can be decoded"
    return f"the server answers with status {status}"
