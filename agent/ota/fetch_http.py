"""A repository on a web server: files from an offset on, with every length and redirect checked.

On `http.client` alone. Who serves the files is believed nothing: TUF decides what they are worth,
and all that happens here is that nobody makes a board wait, fill its disk, unpack anything or
carry credentials elsewhere. Proxies of the environment are not used: a board that gets out through
one only has MQTT as its way.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import re
import socket
import ssl
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from agent import __version__
from agent.ota.jobs import Limits
from agent.ota.refusal import RefusalError
from agent.ota.transport import STEPS, Pace, RangeError, StatusError, Watch
from agent.redaction import redact

PORTS = {"http": 80, "https": 443}
REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 5
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15}|\*)")
# OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID: x509_vfy.h.
NOT_YET_VALID = 9
WENT_AWAY = (http.client.BadStatusLine, BrokenPipeError, ConnectionResetError)


@functools.cache
def _tls(ca_file: str) -> ssl.SSLContext:
    """Return what verifies servers: by the file's authorities if there is one, else the system's.

    Made once: reading the system's takes tens of milliseconds.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise RefusalError("E_NET", f"{ca_file}: no certificates ({error})") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


class _Line:
    """A connection, and the socket to cut it by, which is known before http.client knows it."""

    def __init__(self, scheme: str, host: str, port: int, ca_file: str, limits: Limits) -> None:
        self.origin = scheme, host, port
        self._ca_file = ca_file
        self._limits = limits
        self.http = http.client.HTTPConnection(host, port)
        # So that the Host header names the port only where it is another than the scheme's.
        self.http.default_port = PORTS[scheme]
        self.socket: socket.socket | None = None

    def connect(self) -> None:
        scheme, host, port = self.origin
        self.socket = socket.create_connection((host, port), timeout=self._limits.connect_s)
        # Of a single read. Too slow is for the watch to say, and sooner.
        self.socket.settimeout(self._limits.window_s * 1.5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if scheme == "https":
            # In two steps, for the watch: a handshake can be dripped too.
            tls = _tls(self._ca_file).wrap_socket(
                self.socket, server_hostname=host, do_handshake_on_connect=False
            )
            self.socket = tls
            tls.do_handshake()
        self.http.sock = self.socket

    def cut(self) -> None:
        """End it under whoever reads; for the watch's thread."""
        with contextlib.suppress(OSError):
            if self.socket is not None:
                # The plain one: TLS' own would say goodbye first, and wait.
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def close(self) -> None:
        self.http.close()
        if self.socket is not None:
            self.socket.close()


class HttpReply:
    """The body of an answer; see `transport.Reply`."""

    def __init__(
        self, transport: HttpTransport, line: _Line, response: http.client.HTTPResponse,
        pace: Pace, watch: Watch, url: str,
    ) -> None:  # fmt: skip
        self.start = 0
        self.total: int | None = None
        self.tag = _strong(response.headers.get("ETag"))
        self._transport = transport
        self._line = line
        self._response = response
        self._pace = pace
        self._watch = watch
        self._name = redact(url)
        # http.client counts what is left in some versions of Python alone, in `read1`.
        self._left: int | None = None if response.chunked else response.length
        self._is_whole = False

    def check(self, offset: int) -> None:
        """Take the answer's word on lengths, as far as it makes sense."""
        said = (self._response.headers.get("Content-Encoding") or "identity").strip().lower()
        if said != "identity":
            raise RefusalError("E_NET", f"{self._name}: is sent as {said[:20]!r}, unasked")
        if self._response.status == http.HTTPStatus.OK:
            self.total = self._left
            return
        header = self._response.headers.get("Content-Range", "")
        found = _CONTENT_RANGE.fullmatch(header.strip())
        if found is None or int(found[1]) != offset:
            raise RangeError(f"{self._name}: asked from byte {offset} on, it sends {header[:60]!r}")
        self.start = offset
        self.total = None if found[3] == "*" else int(found[3])
        length = int(found[2]) + 1 - offset
        if length < 1 or (self._left is not None and self._left != length):
            raise RangeError(f"{self._name}: sends {self._left} bytes as {header[:60]!r}")
        self._left = length

    def read(self, most: int) -> bytes:
        """See `transport.Reply`."""
        if self._left == 0 or self._is_whole:
            self._is_whole = True
            return b""
        try:
            piece = self._response.read1(most if self._left is None else min(most, self._left))
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            # The latter two: http.client on a connection that was cut while it read a chunk.
            raise _explain(self._name, error, self._watch) from error
        if self._watch.complaint is not None:
            raise _explain(self._name, None, self._watch)
        self._pace.note(len(piece))
        if piece and self._left is not None:
            self._left -= len(piece)
        elif not piece:
            if self._left:
                raise RefusalError("E_NET", f"{self._name}: ended {self._left} bytes early")
            self._is_whole = True
        return piece

    def close(self) -> None:
        """See `transport.Reply`; after the last byte the connection serves for the next file."""
        self._watch.stop()
        is_done = self._left == 0 or (self._is_whole and self._response.chunked)
        is_kept = is_done and not self._response.will_close and self._watch.complaint is None
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            self._response.close()
        if is_kept:
            self._transport.keep(self._line)
        else:
            self._line.close()


class HttpTransport:
    """See `transport.Transport`; one connection at a time, kept from file to file."""

    def __init__(self, url: str, *, ca_file: str = "", limits: Limits) -> None:
        parts = urlsplit(url)
        try:
            has_host = parts.scheme in PORTS and bool(parts.hostname) and parts.port != 0
        except ValueError:
            has_host = False
        if not has_host:
            raise RefusalError("E_NET", f"{redact(url)}: is no https:// or http:// url")
        self.name = redact(url)
        self._base = url if url.endswith("/") else f"{url}/"
        self._ca_file = ca_file
        self._limits = limits
        self._kept: _Line | None = None

    def keep(self, line: _Line) -> None:
        """Take a connection back."""
        self.close()
        self._kept = line

    def open(self, path: str, *, offset: int = 0, tag: str | None = None) -> HttpReply:
        """See `transport.Transport`."""
        headers = {
            "User-Agent": f"edge-agent/{__version__}",
            "Accept-Encoding": "identity",
            # Caches in between may have an older timestamp: RFC 9111, 5.2.1.4.
            **({"Cache-Control": "no-cache"} if path.endswith("timestamp.json") else {}),
            **({"Range": f"bytes={offset}-"} if offset else {}),
            **({"If-Range": tag} if offset and tag else {}),
        }
        url, pace = self._base + path, Pace(self._limits)
        for _ in range(MOST_REDIRECTS):
            reply, status, location = self._ask(url, headers, pace)
            if status in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT):
                try:
                    reply.check(offset)
                except RefusalError:
                    reply.close()
                    raise
                return reply
            reply.close()
            if status in REDIRECTS:
                url = _follow(url, location)
            elif status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise RangeError(f"{redact(url)}: has nothing from byte {offset} on")
            else:
                raise StatusError(status, f"{redact(url)}: answers {status}")
        raise RefusalError("E_NET", f"{self.name}: redirects more than {MOST_REDIRECTS - 1} times")

    def _ask(
        self, url: str, headers: dict[str, str], pace: Pace
    ) -> tuple[HttpReply, int, str | None]:
        parts = urlsplit(url)
        origin = parts.scheme, parts.hostname or "", parts.port or PORTS[parts.scheme]
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers = {**headers, "Authorization": _basic(pair)}
        target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
        kept, self._kept = self._kept, None
        if kept is not None and kept.origin != origin:
            kept.close()
            kept = None
        line = kept or _Line(*origin, self._ca_file, self._limits)
        watch = Watch(pace, line.cut, min(1.0, self._limits.window_s / STEPS))
        try:
            if line is not kept:
                line.connect()
            line.http.request("GET", target, headers=headers)
            response = line.http.getresponse()
        except (OSError, http.client.HTTPException, ValueError) as error:
            watch.stop()
            line.close()
            if line is kept and isinstance(error, WENT_AWAY) and watch.complaint is None:
                return self._ask(url, headers, pace)  # it was closed while nobody looked
            raise _explain(redact(url), error, watch) from error
        except RefusalError:
            watch.stop()
            line.close()
            raise
        reply = HttpReply(self, line, response, pace, watch, url)
        return reply, response.status, response.headers.get("Location")

    def close(self) -> None:
        """See `transport.Transport`."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None


def _follow(url: str, location: str | None) -> str:
    """Return where a redirect leads, which is on the same host or nowhere.

    Whoever answers for a mirror could otherwise send boards anywhere in their own network, with
    the mirror's credentials. From http to https is the one change that may be made.
    """
    there = urljoin(url, location or "")
    old, new = urlsplit(url), urlsplit(there)
    try:
        is_same_port = (new.port or PORTS.get(new.scheme)) == (old.port or PORTS[old.scheme])
        is_upgrade = (old.scheme, new.scheme) == ("http", "https")
        is_here = new.hostname == old.hostname and (
            is_upgrade or (new.scheme == old.scheme and is_same_port)
        )
    except ValueError:
        is_here = False
    if location is None or not is_here:
        raise RefusalError("E_NET", f"{redact(url)}: redirects to another server")
    netloc = old.netloc.rpartition("@")[0]
    host = new.netloc.rpartition("@")[2]
    return urlunsplit(new._replace(netloc=f"{netloc}@{host}" if netloc else host))


def _basic(pair: str) -> str:
    import base64

    return "Basic " + base64.b64encode(pair.encode()).decode()


def _strong(tag: str | None) -> str | None:
    """Return an ETag that If-Range may carry: RFC 9110, 13.1.5 leaves out weak ones."""
    if tag is None or not tag.startswith('"') or not tag.isascii() or len(tag) > 256:
        return None
    return tag


def _explain(name: str, error: Exception | None, watch: Watch) -> RefusalError:
    if watch.complaint is not None:
        return RefusalError("E_SLOW", f"{name}: {watch.complaint}")
    if isinstance(error, TimeoutError):
        return RefusalError("E_SLOW", f"{name}: does not answer")
    if isinstance(error, ssl.SSLCertVerificationError):
        code = "E_CLOCK" if error.verify_code == NOT_YET_VALID else "E_NET"
        return RefusalError(code, f"{name}: {error.verify_message}")  # type: ignore[arg-type]
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return RefusalError("E_NET", f"{name}: {said}")
