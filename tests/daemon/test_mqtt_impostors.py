"""A23: who is not the broker that was meant hears nothing, least of all the password.

What boards without a certificate may not do: `tests/install/test_broker.py`; which sentence each
fault gets: `test_mqtt_dial.py`. The time of a certificate is always checked: there is no setting
that leaves it out.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import warnings

import pytest
from brokers import _signed, make_certificates

from agent.config import MqttConfig
from agent.daemon.mqtt import probe
from agent.errors import BrokerError


class Impostor:
    """Takes connections with a certificate, and keeps what is said to it once they are private."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.heard = b""
        self.dialled = 0
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        return f"mqtts://localhost:{self._listener.getsockname()[1]}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:  # all is over
                return
            self.dialled += 1
            plain.settimeout(30.0)
            with (
                contextlib.suppress(OSError),
                plain,
                self._context.wrap_socket(plain, server_side=True) as private,
            ):
                self.heard += private.recv(4096)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Return the authority that is trusted, and of each kind the files of a server."""
    folder = tmp_path_factory.mktemp("good")
    good = make_certificates(folder)
    other = tmp_path_factory.mktemp("other")
    others = make_certificates(other)  # its authority has the same name
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    authority = good.ca, folder / "ca.key"
    return good.ca, {
        "the broker": (good.server, good.server_key),
        "another authority's": (others.server, others.server_key),
        "self-signed": (others.ca, other / "ca.key"),
        "another host's": _signed(elsewhere, "host", "elsewhere.example", *authority, 2),
        "expired": _signed(elsewhere, "expired", "localhost", *authority, -1),
        "old TLS": (good.server, good.server_key),
    }


@pytest.fixture
def settings(tmp_path, certificates):
    (tmp_path / "password").write_text("pa55word\n")
    return {
        "ca_file": str(certificates[0]),
        "username": "board",
        "password_file": str(tmp_path / "password"),
    }


def context_of(kind, files):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    if kind == "old TLS":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
    return context


KINDS = ["another authority's", "self-signed", "another host's", "expired", "old TLS"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_impostor_hears_nothing(certificates, settings, kind):
    with Impostor(context_of(kind, certificates[1][kind])) as impostor:
        with pytest.raises(BrokerError) as caught:
            probe(MqttConfig(url=impostor.url, **settings), 5.0)
        assert impostor.dialled
    assert impostor.heard == b""
    assert "pa55word" not in str(caught.value)


def test_the_broker_that_was_meant_does(certificates, settings):
    """So that silence above means something."""
    context = context_of("", certificates[1]["the broker"])
    with Impostor(context) as broker, pytest.raises(BrokerError):
        probe(MqttConfig(url=broker.url, **settings), 5.0)
    assert b"pa55word" in broker.heard
