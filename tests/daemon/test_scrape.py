"""The answers to /metrics, /healthz and /readyz, over real sockets."""

from __future__ import annotations

import gzip
import http.client
import logging
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up_board import MadeUpBoard
from watching import WITHIN_S, eventually

from agent.daemon import scrape
from agent.daemon.scrape import MAX_CONNECTIONS, MAX_HEAD_BYTES, ScrapeServer
from agent.telemetry.metrics import Metrics

METRICS = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.0 200 OK\r\n"


@dataclass
class Told:
    """What the server asks for, to be changed by a test."""

    metrics: Metrics | None = None
    alive: list[str] = field(default_factory=list)
    ready: list[str] = field(default_factory=list)


@pytest.fixture
def told() -> Told:
    board = MadeUpBoard()
    board.go_on(1)
    return Told(board.metrics(time.monotonic()))


Start = Callable[..., ScrapeServer]


@pytest.fixture
def start(told: Told, monkeypatch) -> Iterator[Start]:
    """Start servers that are stopped afterwards, soon; any free port."""
    monkeypatch.setattr(scrape._Listener, "timeout", 0.02)
    started: list[ScrapeServer] = []

    def start(host: str = "127.0.0.1", port: int = 0, **options: float) -> ScrapeServer:
        server = ScrapeServer(
            host,
            port,
            lambda: told.metrics,
            alive=lambda: told.alive,
            ready=lambda: told.ready,
            **options,
        )
        started.append(server)
        server.start()
        eventually(lambda: server.ports or server.problem)
        return server

    yield start
    for server in started:
        server.stop()
        assert not server.ports


@pytest.fixture
def server(start: Start) -> ScrapeServer:
    return start()


def dial(server: ScrapeServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.ports[0]), timeout=WITHIN_S)


def whole(end: socket.socket) -> bytes:
    """Read until the other side ends."""
    parts = []
    while part := end.recv(65536):
        parts.append(part)
    return b"".join(parts)


def ask(server: ScrapeServer, request: bytes) -> bytes:
    with dial(server) as end:
        end.sendall(request)
        return whole(end)


def get(server: ScrapeServer, path: str, method: str = "GET", **headers: str):
    """Ask as an ordinary client does; returns (status, headers, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", server.ports[0], timeout=WITHIN_S)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def test_metrics_are_told(server, told):
    status, headers, body = get(server, "/metrics")
    assert status == 200
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert int(headers["Content-Length"]) == len(body)
    assert b'\nedge_agent_camera_up{camera="door"} 1.0\n' in body
    assert headers["Connection"] == "close"
    assert headers["Access-Control-Allow-Origin"] is None
    assert headers["Server"] is None
    assert server.asked_at is not None


def test_the_format_is_the_scrapers_choice(server):
    _, headers, body = get(server, "/metrics?a=b", Accept="application/openmetrics-text")
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")


def test_what_asks_for_gzip_gets_it(server):
    _, headers, body = get(server, "/metrics", **{"Accept-Encoding": "deflate, gzip;q=1.0"})
    assert headers["Content-Encoding"] == "gzip"
    assert b"edge_agent_build_info" in gzip.decompress(body)
    _, headers, _ = get(server, "/metrics", **{"Accept-Encoding": "gzip;q=0"})
    assert headers["Content-Encoding"] is None


def test_each_answer_says_what_those_before_have_cost(server):
    first, second = get(server, "/metrics")[2], get(server, "/metrics")[2]
    assert b"\nedge_agent_scrapes_total 0.0\n" in first
    assert b"\nedge_agent_scrapes_total 1.0\n" in second
    assert b"\nedge_agent_scrape_cpu_seconds_total 0.0\n" not in second


def test_the_age_of_the_figures_is_told(server, told):
    told.metrics = MadeUpBoard().metrics(time.monotonic() - 100.0)
    lines = get(server, "/metrics")[2].decode().splitlines()
    (age,) = (line for line in lines if line.startswith("edge_agent_snapshot_age_seconds "))
    assert 100 <= float(age.split()[1]) < 200


def test_nothing_is_known_before_the_first_snapshot(server, told):
    told.metrics = None
    assert get(server, "/metrics")[0] == 503


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/nothing"])
def test_head_is_as_get_without_the_body(server, path):
    status, headers, body = get(server, path)
    head_status, head_headers, nothing = get(server, path, "HEAD")
    assert (head_status, nothing) == (status, b"")
    assert head_headers["Content-Type"] == headers["Content-Type"]
    assert abs(int(head_headers["Content-Length"]) - len(body)) < 50  # the cost differs in digits
    # An ordinary client does not look for what must not be there.
    raw = ask(server, f"HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert raw.partition(b"\r\n\r\n")[2] == b""


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health(server, told, path):
    assert get(server, path)[::2] == (200, b"ok\n")
    reasons = ["no model runs", "camera door: no frames,\nas it is unplugged"]
    told.alive = told.ready = reasons
    status, headers, body = get(server, path)
    assert (status, headers["Content-Type"]) == (503, "text/plain; charset=utf-8")
    assert body == b"no model runs\ncamera door: no frames, as it is unplugged\n"
    told.alive = told.ready = []
    assert get(server, path)[0] == 200


def test_alive_and_ready_differ(server, told):
    told.ready = ["no model runs"]
    assert get(server, "/healthz")[0] == 200
    assert get(server, "/readyz")[0] == 503


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metrics2", "/../metrics", "*"])
def test_other_paths_name_what_there_is(server, path):
    status, _, body = get(server, path)
    assert (status, body) == (404, b"there are /metrics, /healthz, /readyz here\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get", "A"])
def test_nothing_can_be_changed(server, method):
    status, headers, _ = get(server, "/metrics", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_a_body_is_not_read_and_takes_no_answer_away(server):
    request = b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 20000000\r\n\r\n"
    assert ask(server, request + b"x" * 20_000_000).startswith(b"HTTP/1.0 405 ")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /healthz HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /healthz?x HTTP/1.1\r\nhOST:a\r\nConnection: keep-alive\r\n\r\n", b"200"),
        (b"GET /health z HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"GET /healthz HTTP/one\r\nHost: a\r\n\r\n", b"400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"505"),
        (b"\x16\x03\x01\x02\x00\x01\x00\n\x01\xfc\x03\x03", b"400"),
        (b"GET /" + b"a" * MAX_HEAD_BYTES, b"431"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 20_000, b"431"),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 2_000_000, b"431"),
    ],
)
def test_requests_of_all_kinds(server, request_, status):
    answer = ask(server, request_)
    assert answer.split(b" ", 2)[:2] == [b"HTTP/1.0", status]
    assert b"Python" not in answer
    assert get(server, "/healthz")[0] == 200


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_are_answered_or_not_and_hurt_nobody(server, caplog, received):
    with dial(server) as end:
        end.sendall(received)
        end.shutdown(socket.SHUT_WR)
        answer = whole(end)
    assert not answer or answer.startswith(b"HTTP/1.0 ")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_of_several_requests_at_once_the_first_is_answered(server):
    answer = ask(server, METRICS * 50)
    assert answer.startswith(OK)
    assert answer.count(b"HTTP/1.0 ") == 1


def test_a_request_may_come_byte_by_byte(server):
    with dial(server) as end:
        for byte in METRICS:
            end.sendall(bytes([byte]))
        assert whole(end).startswith(OK)


def test_a_client_may_end_its_side_at_once(server):
    with dial(server) as end:
        end.sendall(METRICS)
        end.shutdown(socket.SHUT_WR)
        assert whole(end).startswith(OK)
    with dial(server) as end:
        end.sendall(b"GET /metr")
        end.shutdown(socket.SHUT_WR)
        assert b" 404 " in whole(end)


def test_who_dawdles_is_cut_off_and_holds_up_nobody(monkeypatch, start):
    monkeypatch.setattr(scrape, "CONNECTION_S", 0.6)
    server = start()
    with dial(server) as slow:
        began = time.monotonic()
        slow.sendall(b"GET /metrics HTTP/1.1\r\nA: ")
        with pytest.raises(OSError):  # noqa: PT012 - whichever of them comes first
            while True:
                assert get(server, "/healthz")[0] == 200
                slow.sendall(b"a")  # a byte now and then would do for a timeout of each read
        assert time.monotonic() - began >= 0.5


def open_ones(server: ScrapeServer) -> int:
    """Return how many connections there are."""
    return len(server._listener._deadlines)


def dial_narrow(server: ScrapeServer) -> socket.socket:
    """Connect so that far less than an answer fits into what the kernel keeps."""
    server._listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    end = socket.socket()
    end.settimeout(WITHIN_S)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    end.connect(("127.0.0.1", server.ports[0]))
    return end


def test_who_reads_slowly_gets_all(server):
    expected = len(ask(server, METRICS))
    server.asked_at = None
    with dial_narrow(server) as end:
        end.sendall(METRICS)
        eventually(lambda: server.asked_at)
        assert get(server, "/healthz")[0] == 200  # nobody waits for it
        assert abs(len(whole(end)) - expected) < 50  # the cost differs in digits


def test_who_never_reads_is_cut_off(monkeypatch, start):
    server = start()
    expected = len(ask(server, METRICS))
    server.asked_at = None
    monkeypatch.setattr(scrape, "CONNECTION_S", 0.3)
    with dial_narrow(server) as end:
        end.sendall(METRICS)
        eventually(lambda: server.asked_at)
        eventually(lambda: not open_ones(server))
        received = len(whole(end))
    assert received < expected - 1000


def test_many_that_say_nothing_keep_nobody_out(server):
    """The oldest has to go: a request takes milliseconds, and these had theirs."""
    silent = [dial(server) for _ in range(4 * MAX_CONNECTIONS)]
    try:
        assert get(server, "/metrics")[0] == 200
        assert open_ones(server) <= MAX_CONNECTIONS
        assert silent[0].recv(1) == b""
    finally:
        for end in silent:
            end.close()
    eventually(lambda: not open_ones(server))


def test_what_hangs_in_our_code_takes_no_more_than_its_share(monkeypatch, start, told):
    """The threads of connections that cannot end are no more than there may be connections."""
    monkeypatch.setattr(scrape, "MAKE_ROOM_S", 0.05)
    server = start()
    held = threading.Event()
    server._alive = lambda: [] if held.wait(WITHIN_S) else ["never"]
    ends = []
    try:
        for _ in range(MAX_CONNECTIONS):
            ends.append(dial(server))
            ends[-1].sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        eventually(lambda: open_ones(server) == MAX_CONNECTIONS)
        with dial(server) as refused:
            assert refused.recv(1) == b""
        assert open_ones(server) == MAX_CONNECTIONS
    finally:
        held.set()
        for end in ends:
            end.close()
    eventually(lambda: not open_ones(server))
    assert get(server, "/readyz")[0] == 200


def test_who_is_asked_is_never_asked_twice_at_once(server):
    asked: list[str] = []

    def alive() -> list[str]:
        asked.append("begins")
        time.sleep(0.02)
        asked.append("ends")
        return []

    server._alive = server._ready = alive
    paths = ["/healthz", "/readyz"] * 2
    threads = [threading.Thread(target=get, args=(server, path)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert asked == ["begins", "ends"] * 4


def test_a_client_that_breaks_off_is_not_worth_a_line(server, caplog):
    with dial(server) as end:
        end.sendall(b"GET /")
        eventually(lambda: open_ones(server))
        reset = struct.pack("ii", 1, 0)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    eventually(lambda: not open_ones(server))
    assert not caplog.records


def test_many_side_by_side(server):
    statuses: list[int] = []

    def scrape_often():
        statuses.extend(get(server, "/metrics")[0] for _ in range(20))

    # Half of what there may be: a connection that ends is still there for a moment.
    threads = [threading.Thread(target=scrape_often) for _ in range(MAX_CONNECTIONS // 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert statuses == [200] * 20 * (MAX_CONNECTIONS // 2)


def test_no_descriptors_are_a_problem_that_passes(monkeypatch, start, caplog):
    monkeypatch.setattr(scrape, "ACCEPT_AGAIN_S", 0.02)
    server = start()
    listener = server._listener
    failing = [True]

    class Exhausted:
        """The socket of a process that has no descriptor left."""

        def __init__(self, end: socket.socket) -> None:
            self.end = end

        def __getattr__(self, name):
            return getattr(self.end, name)

        def accept(self):
            if failing[0]:
                raise OSError(24, "Too many open files")
            return self.end.accept()

    listener.socket = Exhausted(listener.socket)
    with caplog.at_level(logging.ERROR), dial(server) as end:
        end.sendall(METRICS)
        eventually(lambda: server.problem)
        assert server.problem == "cannot accept connections: Too many open files"
        time.sleep(0.1)
        failing[0] = False
        assert whole(end).startswith(OK)
    assert server.problem is None
    assert len(caplog.records) == 1


def test_a_fault_of_ours_is_an_answer(server, told, caplog):
    told.metrics = "no snapshot"
    with caplog.at_level(logging.ERROR):
        assert [get(server, "/metrics")[0] for _ in range(3)] == [500] * 3
    assert caplog.text.count("cannot answer path=/metrics") == 1, "not with each scrape"
    assert get(server, "/healthz")[0] == 200


def test_an_address_in_use_is_tried_again(start, caplog):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with caplog.at_level(logging.INFO):
            server = start(port=port, retry_s=0.05)
            assert server.problem == f"cannot listen at 127.0.0.1:{port}: Address already in use"
            time.sleep(0.2)
    eventually(lambda: server.ports)
    assert server.problem is None
    assert get(server, "/healthz")[0] == 200
    told = [record.getMessage() for record in caplog.records]
    assert len([line for line in told if "cannot listen" in line]) == 1


@pytest.mark.parametrize("host", ["192.0.2.1", "a..b", "ÿ" * 300])
def test_no_address_ends_the_daemon(start, host):
    server = start(host, 9464)
    assert server.problem is not None
    assert "cannot listen at" in server.problem
    assert not server.ports


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as end:
            end.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize(
    ("host", "addresses"),
    [("::1", ["[::1]"]), ("::", ["[::1]", "127.0.0.1"]), ("localhost", ["127.0.0.1"])],
)
def test_ipv6(start, host, addresses):
    server = start(host)
    for address in addresses:
        url = f"http://{address}:{server.ports[0]}/healthz"
        with urllib.request.urlopen(url, timeout=10) as response:
            assert response.read() == b"ok\n"


def test_it_listens_where_it_was_told_to_and_nowhere_else(server):
    assert server._listener.socket.getsockname()[0] == "127.0.0.1"


def test_the_port_is_free_at_once_afterwards(start):
    server = start()
    port = server.ports[0]
    assert get(server, "/healthz")[0] == 200
    server.stop()
    again = start(port=port)
    assert again.ports == [port]


def test_stopping_waits_for_nobody(start):
    server = start()
    with dial(server) as end:
        end.sendall(b"GET /")
        eventually(lambda: open_ones(server))
        server.stop()
        server.stop()
        assert not server._thread.is_alive()
        assert end.recv(1) == b""


def test_it_may_be_stopped_without_a_start():
    server = ScrapeServer("127.0.0.1", 0, lambda: None, alive=list, ready=list)
    server.stop()
    assert server.ports == []
