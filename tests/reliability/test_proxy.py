"""Each toxic does to a plain echo connection what it says; a schedule is its seed's alone."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliability.proxy import NAMES, Proxy, Toxic, random_schedule


@pytest.fixture
def echo() -> Iterator[int]:
    """Return the port of a server that says back what it hears."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with Proxy(echo) as running:
        yield running


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as connection:
        assert exchange(connection, b"hello") == b"hello"
        yield connection


def exchange(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    back = b""
    while len(back) < len(data):
        piece = connection.recv(65536)
        if not piece:
            return back
        back += piece
    return back


def ends(connection: socket.socket) -> str:
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        return "reset"
    return "closed"


def test_a_clean_proxy_passes_everything_both_ways(client):
    data = bytes(range(256)) * 2000
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    back = b""
    while len(back) < len(data):
        back += client.recv(65536)
    sender.join()
    assert back == data


@pytest.mark.parametrize("direction", ["up", "down"])
def test_latency_delays_and_keeps_everything(proxy, client, direction):
    proxy.set(Toxic("latency", direction, 0.1))
    began = time.monotonic()
    assert exchange(client, b"late") == b"late"
    assert time.monotonic() - began >= 0.1


def test_bandwidth_is_no_more_than_it_says(proxy, client):
    proxy.set(Toxic("bandwidth", "up", 10_000))
    began = time.monotonic()
    assert exchange(client, b"x" * 2_000) == b"x" * 2_000
    assert time.monotonic() - began >= 0.19


def test_slicer_cuts_and_loses_nothing(proxy, client):
    proxy.set(Toxic("slicer", "up", 3), Toxic("slicer", "down", 2))
    assert exchange(client, b"0123456789") == b"0123456789"


def test_timeout_swallows_until_it_is_taken_away_and_then_ends_the_connection(proxy, client):
    proxy.set(Toxic("timeout", "up"))
    client.sendall(b"gone")
    client.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(30)
    proxy.set()
    assert ends(client) in ("closed", "reset")


def test_timeout_with_a_time_ends_the_connection_by_itself(proxy, client):
    proxy.set(Toxic("timeout", "up", 0.05))
    client.sendall(b"gone")
    assert ends(client) in ("closed", "reset")


def test_reset_peer_resets(proxy, client):
    proxy.set(Toxic("reset_peer", "up", 0.0))
    assert ends(client) == "reset"


def test_limit_data_ends_the_connection_at_its_limit(proxy, client):
    proxy.set(Toxic("limit_data", "down", len(b"hello") + 2))
    assert exchange(client, b"abc") == b""


def test_slow_close_holds_the_end_back(proxy, client):
    proxy.set(Toxic("slow_close", "up", 0.1))
    began = time.monotonic()
    client.shutdown(socket.SHUT_WR)
    assert ends(client) in ("closed", "reset")
    assert time.monotonic() - began >= 0.1


def test_down_ends_what_is_there_and_refuses_what_comes_until_it_is_over(proxy, client):
    proxy.set(Toxic("down"))
    assert ends(client) in ("closed", "reset")
    try:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as refused:
            assert ends(refused) in ("closed", "reset")
    except ConnectionResetError:
        pass  # as early as that
    proxy.set()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as again:
        assert exchange(again, b"back") == b"back"


@given(st.integers(0, 10_000), st.floats(0, 20))
def test_a_schedule_is_its_seeds_alone_and_ends_clean(seed, length_s):
    steps = random_schedule(seed, length_s)
    assert steps == random_schedule(seed, length_s)
    assert steps[-1][1] == ()
    times = [at for at, _ in steps]
    assert times == sorted(times)


def test_schedules_of_the_seeds_that_are_run_use_every_toxic_both_ways():
    used = {
        (toxic.name, toxic.direction)
        for seed in range(1, 51)
        for _, toxics in random_schedule(seed, 6.0)
        for toxic in toxics
    }
    assert used == {(name, direction) for name in NAMES for direction in ("up", "down")}
