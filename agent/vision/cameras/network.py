"""Why a camera on the network cannot be opened, in words.

OpenCV only says that it failed. So after a failure the server is asked once more, by hand,
and without credentials: sending them before it is known how would give them away.
"""

from __future__ import annotations

import re
import socket
import ssl
from urllib.parse import SplitResult, urlsplit

TIMEOUT_S = 2.0
# IANA: rtsp 554, rtsps 322.
PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
MAX_STATUS_LINE_BYTES = 256


def why_not(url: str) -> str:
    """Return why `url` could not be opened, in words that need no URL in them."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
        port = parts.port or PORTS[parts.scheme.lower()]
    except ValueError:
        return (
            "the address is malformed; percent-encode special characters in its password,"
            " such as %2F for a slash and %40 for an at sign"
        )
    if not host:
        return "the address has no host"
    try:
        with socket.create_connection((host, port), TIMEOUT_S) as connection:
            return _explain(
                _status(connection, parts, host, port), has_credentials=bool(parts.username)
            )
    except socket.gaierror:
        return f"the name {host} is not known; check it, or give the camera's IP address"
    except ConnectionRefusedError:
        return f"nothing listens on {host} port {port}; check the port and that it is switched on"
    except TimeoutError:
        return f"{host} port {port} does not answer within {TIMEOUT_S:g} s; is it switched on?"
    except OSError as error:
        return f"{host} port {port} cannot be reached: {error.strerror or 'broken connection'}"


def _status(connection: socket.socket, parts: SplitResult, host: str, port: int) -> int | None:
    """Ask for the stream; return the status code, None where the answer is none."""
    if parts.scheme.lower() in ("rtsps", "https"):
        # Only a diagnosis: FFmpeg does not verify cameras' certificates by default either.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = context.wrap_socket(connection, server_hostname=host)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    name = f"[{host}]" if ":" in host else host
    if parts.scheme.lower().startswith("rtsp"):
        request = f"DESCRIBE {parts.scheme}://{name}:{port}{path} RTSP/1.0\r\nCSeq: 1\r\n\r\n"
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
