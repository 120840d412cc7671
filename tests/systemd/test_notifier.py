"""What systemd hears, on real sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.daemon.systemd import STATUS_BYTES, VARIABLES, Notifier


@pytest.fixture(params=["in a folder", "abstract"])
def systemd(request, tmp_path):
    """A socket as systemd has it, and how NOTIFY_SOCKET names it."""
    name = str(tmp_path / "notify") if request.param == "in a folder" else f"@{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0"))
        listener.setblocking(False)
        yield listener, name


def test_each_word_is_one_datagram(systemd):
    listener, name = systemd
    notifier = Notifier({"NOTIFY_SOCKET": name})
    before_usec = time.monotonic_ns() // 1000
    assert all(
        [
            notifier.ready(),
            notifier.status("2 of 3 engines run"),
            notifier.watchdog(),
            notifier.stopping(),
            notifier.reloading(),
        ]
    )
    heard = [listener.recv(4096).decode() for _ in range(5)]
    assert heard[:4] == ["READY=1", "STATUS=2 of 3 engines run", "WATCHDOG=1", "STOPPING=1"]
    word, stamp = heard[4].splitlines()
    assert word == "RELOADING=1"
    name, _, usec = stamp.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before_usec <= int(usec) <= time.monotonic_ns() // 1000


@given(text=st.text())
def test_a_status_is_one_line_that_systemd_takes_whatever_it_says(text):
    """Text of a camera or broker must not become another word, such as MAINPID=1."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("")  # unix(7): the kernel chooses an abstract name
        listener.setblocking(False)
        name = "@" + listener.getsockname()[1:].decode()
        assert Notifier({"NOTIFY_SOCKET": name}).status(text)
        heard = listener.recv(65536).decode("utf-8")  # systemd ignores what is not UTF-8
    assert heard.startswith("STATUS=")
    assert "\n" not in heard
    assert "\0" not in heard
    assert len(heard.encode()) <= len("STATUS=") + STATUS_BYTES


def test_a_long_status_is_cut_between_characters(systemd):
    listener, name = systemd
    assert Notifier({"NOTIFY_SOCKET": name}).status("ü" * 5000)
    assert set(listener.recv(65536).decode().removeprefix("STATUS=")) == {"ü"}


@pytest.mark.parametrize(
    "address", ["", "/nowhere/notify", "@nobody-listens", "a\0b", "/" + "x" * 300, "\udc80", "@"]
)
def test_nothing_is_raised_where_nobody_listens(address):
    notifier = Notifier({"NOTIFY_SOCKET": address})
    assert not notifier.ready()
    assert not notifier.status("still here")


def test_without_systemd_every_word_goes_nowhere():
    notifier = Notifier({})
    words = [notifier.ready(), notifier.reloading(), notifier.watchdog(), notifier.stopping()]
    assert not any(words)
    assert notifier.watchdog_s is None


def test_a_systemd_that_does_not_listen_holds_nobody_up(systemd):
    """Its queue is full; a blocking socket would wait for ever."""
    listener, name = systemd
    notifier = Notifier({"NOTIFY_SOCKET": name})
    for _ in range(10_000):
        if not notifier.watchdog():
            break
    else:
        pytest.fail("the queue of the socket was never full")
    while True:  # what had been taken is whole
        try:
            assert listener.recv(4096) == b"WATCHDOG=1"
        except BlockingIOError:
            break
    assert notifier.ready()


def test_children_do_not_inherit_what_was_meant_for_us(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "/run/somewhere")
    notifier = Notifier(os.environ)
    code = f"import os; print([name for name in {VARIABLES} if name in os.environ])"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"
    assert set(notifier.variables) == set(VARIABLES)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),  # meant for somebody else
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_PID": str(os.getpid())}, None),
    ],
)
def test_when_systemd_wants_to_hear_from_us(variables, expected):
    assert Notifier(variables).watchdog_s == expected


def test_it_stays_small():
    """The reason for not taking a package: docstrings, comments and blank lines aside."""
    source = Path(sys.modules[Notifier.__module__].__file__).read_text(encoding="utf-8")
    body = source[source.index("class Notifier") :]
    code, is_text = 0, False
    for line in map(str.strip, body.splitlines()):
        quotes = line.count('"""')
        if quotes or is_text:
            is_text ^= quotes == 1
        elif line and not line.startswith("#"):
            code += 1
    assert code <= 40
