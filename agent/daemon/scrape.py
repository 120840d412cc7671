"""Answers Prometheus and whoever watches over the daemon: /metrics, /healthz and /readyz.

The standard library's HTTP server, with an end to what clients may take of it: so many
connections, so long a request, and one deadline for all of a connection, however slowly its bytes
trickle. Nothing here changes anything, asks a resolver who somebody is, or logs each request. An
address that cannot be listened at yet is a problem that is told; it never ends the daemon.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import http.client
import io
import logging
import math
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

from agent.telemetry.metrics import Metrics, ScrapeCost

log = logging.getLogger(__name__)

MAX_CONNECTIONS, MAX_HEAD_BYTES = 8, 8192
CONNECTION_S, POLL_S = 10.0, 0.25  # from accept to close, and how often that is looked at
MAKE_ROOM_S = LINGER_S = 1.0
RETRY_S, ACCEPT_AGAIN_S, STOP_WITHIN_S = 30.0, 0.5, 2.0
PATHS = ("/metrics", "/healthz", "/readyz")


class ScrapeServer:
    """See the module's docstring.

    `latest` is the newest snapshot, None before the first; `alive` and `ready` say what is wrong.
    They are called on the server's threads, one at a time. Of a name's addresses one is listened
    at, of IPv4 if there is one; `retry_s` is between attempts.

    Attributes:
        problem: why nobody can be answered at the moment; None: all is well. Any thread.
        asked_at: monotonic seconds of the last /metrics; None: never asked. Any thread.
    """

    def __init__(
        self, host: str, port: int, latest: Callable[[], Metrics | None], *,
        alive: Callable[[], list[str]], ready: Callable[[], list[str]], retry_s: float = RETRY_S,
    ) -> None:  # fmt: skip
        self._host, self._port, self._retry_s = host, port, retry_s
        self._latest, self._alive, self._ready = latest, alive, ready
        self.problem: str | None = None
        self.asked_at: float | None = None
        self._cost = ScrapeCost()
        self._failure = ""  # said last
        self._answering = threading.Lock()
        self._listener: _Listener | None = None
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agent.scrape", daemon=True)

    @property
    def ports(self) -> list[int]:
        """The ports that are listened at now."""
        listener = self._listener
        return [] if listener is None else [listener.server_address[1]]

    def start(self) -> None:
        """Begin to listen; what keeps it from doing so is in `problem`."""
        self._thread.start()

    def stop(self) -> None:
        """End; connections are closed as they are. May be called again, or without a start."""
        self._has_ended.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_WITHIN_S)

    def note(self, problem: str | None) -> None:
        """Keep what is the problem now, and say it if it is another one."""
        if problem not in (None, self.problem):
            log.error("%s; tried again", problem)
        self.problem = problem

    def answer(self, path: str, accept: str, encodings: str) -> tuple[int, bytes, dict[str, str]]:
        """Return the status, the body, and headers of its own."""
        if path not in PATHS:
            return 404, f"there are {', '.join(PATHS)} here\n".encode(), {}
        try:
            with self._answering:
                if path == "/metrics":
                    return self._metrics(accept, encodings)
                problems = self._alive() if path == "/healthz" else self._ready()
        except Exception as error:  # a figure that cannot be told must not end the answers
            if repr(error) != self._failure:  # once, not with each scrape for ever
                self._failure = repr(error)
                log.exception("cannot answer path=%s", path)
            return 500, b"failed; the journal says how\n", {}
        lines = [" ".join(problem.split()) + "\n" for problem in problems] or ["ok\n"]
        return 503 if problems else 200, "".join(lines).encode(), {}

    def _metrics(self, accept: str, encodings: str) -> tuple[int, bytes, dict[str, str]]:
        from agent.telemetry.exposition import exposition, weight  # only where somebody asks

        self.asked_at, began_s = time.monotonic(), time.thread_time()
        if (metrics := self._latest()) is None:
            return 503, b"nothing is known yet\n", {}
        cost = replace(self._cost, snapshot_age_s=max(0.0, self.asked_at - metrics.at))
        body, content_type = exposition(metrics, accept, cost)
        headers = {"Content-Type": content_type}
        if weight(encodings, "gzip") > 0:  # a ninth of the size for a millisecond
            body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
        cpu_s = cost.cpu_s + time.thread_time() - began_s
        self._cost = ScrapeCost(scrapes=cost.scrapes + 1, cpu_s=cpu_s)
        return 200, body, headers

    def _run(self) -> None:
        at = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        while not self._has_ended.is_set():
            try:
                with _Listener(self, self._host, self._port) as self._listener:
                    self.note(None)
                    log.info("metrics are served at=%s", at)
                    while not self._has_ended.is_set():
                        self._listener.handle_request()
                        self._listener.cut(time.monotonic())
                    self._listener.cut(math.inf)
            except (OSError, UnicodeError) as error:  # noqa: PERF203 - UnicodeError: no host's name
                self.note(f"cannot listen at {at}: {getattr(error, 'strerror', None) or error}")
                self._has_ended.wait(self._retry_s)
            finally:
                self._listener = None


class _Listener(ThreadingTCPServer):
    """Accepts connections, each for a thread of its own, and ends those that take too long."""

    allow_reuse_address = daemon_threads = True
    request_queue_size, timeout = 128, POLL_S

    def __init__(self, owner: ScrapeServer, host: str, port: int) -> None:
        self.owner = owner
        self._deadlines: dict[socket.socket, float] = {}  # the oldest connection first
        self._changed = threading.Condition()
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        super().__init__(address, _Request)  # type: ignore[arg-type]

    def get_request(self) -> tuple[socket.socket, object]:
        """Accept one; if there are too many the oldest goes, as a request takes milliseconds."""
        try:
            end, address = super().get_request()
        except OSError as error:  # out of descriptors or memory: to try at once is no use
            self.owner.note(f"cannot accept connections: {error.strerror}")
            time.sleep(ACCEPT_AGAIN_S)
            raise
        self.owner.note(None)
        with self._changed:
            if len(self._deadlines) >= MAX_CONNECTIONS:
                self.cut(next(iter(self._deadlines.values())))
                if not self._changed.wait(MAKE_ROOM_S):  # all are held up by a fault of ours
                    end.close()
                    raise OSError(errno.EBUSY, "no connection makes room")
            self._deadlines[end] = time.monotonic() + CONNECTION_S
        return end, address

    def cut(self, now: float) -> None:
        """End the connections that have had their time: their threads wake up and close them."""
        with self._changed:  # nobody else closes one meanwhile, whose number may become another's
            for end in [end for end, deadline in self._deadlines.items() if deadline <= now]:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        with self._changed:
            self._deadlines.pop(request, None)
            self._changed.notify_all()
        super().shutdown_request(request)

    def handle_error(self, *_: object, **__: object) -> None:
        if not isinstance(error := sys.exc_info()[1], OSError):  # which is a client that has gone
            log.error("a connection has failed", exc_info=error)


class _Request(BaseHTTPRequestHandler):
    """One connection, on its own thread; HTTP/1.0, so it is for one request."""

    server: _Listener
    default_request_version = "HTTP/1.0"  # of what is no request; 0.9 would have no status

    def setup(self) -> None:
        super().setup()
        self.rfile = _Head(self.connection.makefile("rb", buffering=0))

    def do_GET(self) -> None:
        accept, encodings = (self.headers.get(n, "") for n in ("Accept", "Accept-Encoding"))
        self._send(*self.server.owner.answer(self.path.partition("?")[0], accept, encodings))

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def send_error(self, code: int, *_: object, **__: object) -> None:
        """Answer what the library refuses, echoing nothing; 501 is a method that has no do_."""
        if code == HTTPStatus.NOT_IMPLEMENTED:
            self._send(405, b"only GET and HEAD\n", {"Allow": "GET, HEAD"})
        else:
            self._send(code, f"{HTTPStatus(code).phrase}\n".encode(), {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response_only(status)  # no Server, as no version is anybody's business; no log
        always = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"}
        ends = {"Content-Length": str(len(body)), "Connection": "close"}
        for name, value in (always | headers | ends).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def finish(self) -> None:
        """Read what still comes: to close before would reset the connection, answer and all."""
        super().finish()
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(LINGER_S)
        while self.connection.recv(65536):
            pass


class _Head(io.BufferedReader):
    """What a client sends, of which only so much can be a request's head."""

    _left = MAX_HEAD_BYTES

    def readline(self, size: int | None = -1, /) -> bytes:  # noqa: ARG002
        if self._left <= 0:
            raise http.client.LineTooLong("head")
        line = super().readline(self._left)
        self._left -= len(line)
        return line
