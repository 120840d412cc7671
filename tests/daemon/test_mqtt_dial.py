"""Reaching a broker: credentials (A26), TLS (A23), and the sentence each fault gets."""

from __future__ import annotations

import socket

import pytest
from brokers import free_port, is_listening, make_certificates, mosquitto
from watching import eventually, record

from agent.config import MqttConfig
from agent.daemon.mqtt import probe
from agent.daemon.mqtt.dial import Patience, dial, parse_address, read_password
from agent.daemon.mqtt.words import explain_connack, explain_disconnect
from agent.errors import BrokerError


def is_up(link):
    return lambda: link.connection.connected


def test_a_wrong_password_names_the_keys(tmp_path, start_broker, make_link):
    broker = start_broker(mosquitto(tmp_path, users={"board": "right"}))
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    settings = {"username": "board", "password_file": str(secret)}
    link = make_link(broker.port, settings=settings)
    eventually(lambda: link.connection.reason)
    assert "mqtt.password_file" in link.connection.reason
    assert "hunter2" not in link.connection.reason
    secret.write_text("right\n")
    eventually(is_up(link))
    url = f"mqtt://127.0.0.1:{broker.port}"
    with pytest.raises(BrokerError, match=r"mqtt\.username is empty"):
        probe(MqttConfig(url=url), 30.0)
    assert probe(MqttConfig(url=url, **settings), 30.0) == "5"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def tls_url(broker, host="localhost"):
    return f"mqtts://{host}:{broker.port}"


def test_tls_with_the_right_authority_and_client_certificate(
    tmp_path, start_broker, watch, make_link, certificates
):
    plain = free_port()
    broker = start_broker(
        mosquitto(
            tmp_path, "require_certificate true", f"listener {plain} 127.0.0.1",
            "allow_anonymous true", tls=certificates,
        )
    )  # fmt: skip
    eventually(lambda: is_listening(plain))
    watcher = watch(plain)
    files = {
        "ca_file": str(certificates.ca),
        "cert_file": str(certificates.client),
        "key_file": str(certificates.client_key),
    }
    link = make_link(broker.port, host="localhost", scheme="mqtts", settings=files)
    for seq in range(1, 101):
        link.put(record(seq, size=40_000))
    eventually(lambda: watcher.seqs() == list(range(1, 101)))
    with pytest.raises(BrokerError, match="client certificate"):
        probe(MqttConfig(url=tls_url(broker), ca_file=files["ca_file"]), 30.0)


def test_tls_faults_each_have_their_own_sentence(tmp_path, start_broker, certificates):
    broker = start_broker(mosquitto(tmp_path, tls=certificates))
    ca = str(certificates.ca)
    assert probe(MqttConfig(url=tls_url(broker), ca_file=ca), 30.0) == "5"
    with pytest.raises(BrokerError, match=r"authority that the system knows.*mqtt\.ca_file"):
        probe(MqttConfig(url=tls_url(broker)), 30.0)
    with pytest.raises(BrokerError, match="another host"):
        probe(MqttConfig(url=tls_url(broker, "127.0.0.1"), ca_file=ca), 30.0)
    with pytest.raises(BrokerError, match=r"mqtts://"):
        probe(MqttConfig(url=tls_url(broker).replace("mqtts", "mqtt")), 30.0)
    with pytest.raises(BrokerError, match=r"mqtt\.ca_file.*not a PEM file"):
        probe(MqttConfig(url=tls_url(broker), ca_file=str(certificates.server_key)), 30.0)
    with pytest.raises(BrokerError, match=r"mqtt\.key_file.*own key"):
        probe(
            MqttConfig(
                url=tls_url(broker), ca_file=ca, cert_file=str(certificates.client),
                key_file=str(certificates.server_key),
            ),
            5.0,
        )  # fmt: skip


def test_a_server_certificate_that_expired_is_named_and_accepted_once_renewed(
    tmp_path, start_broker, make_link
):
    expired = make_certificates(tmp_path, server_days=-1)
    broker = start_broker(mosquitto(tmp_path, tls=expired))
    link = make_link(
        broker.port, host="localhost", scheme="mqtts", settings={"ca_file": str(expired.ca)}
    )
    eventually(lambda: link.connection.reason)
    assert "out of date (certificate has expired)" in link.connection.reason
    assert "this board's clock" in link.connection.reason
    make_certificates(tmp_path)  # in the same files, by another authority of the same name
    broker.stop()
    broker.start()
    eventually(is_up(link))


def test_a_client_certificate_that_expired_is_named(tmp_path, start_broker, make_link):
    expired = make_certificates(tmp_path, client_days=-1)
    broker = start_broker(mosquitto(tmp_path, "require_certificate true", tls=expired))
    files = {
        "ca_file": str(expired.ca),
        "cert_file": str(expired.client),
        "key_file": str(expired.client_key),
    }
    link = make_link(broker.port, host="localhost", scheme="mqtts", settings=files)
    eventually(lambda: link.connection.reason)
    assert "client certificate in mqtt.cert_file has expired" in link.connection.reason


def test_a_client_certificate_that_is_demanded_and_missing_is_named(
    tmp_path, start_broker, make_link, certificates
):
    broker = start_broker(mosquitto(tmp_path, "require_certificate true", tls=certificates))
    link = make_link(
        broker.port, host="localhost", scheme="mqtts", settings={"ca_file": str(certificates.ca)}
    )
    eventually(lambda: link.connection.reason)
    assert "mqtt.cert_file" in link.connection.reason


def test_the_end_of_a_tls_connection_is_no_fault_of_its_handshake(
    tmp_path, start_broker, make_link, certificates
):
    broker = start_broker(mosquitto(tmp_path, tls=certificates))
    link = make_link(
        broker.port, host="localhost", scheme="mqtts", settings={"ca_file": str(certificates.ca)}
    )
    eventually(is_up(link))
    heard = []
    link._on_change = heard.append
    broker.process.kill()
    eventually(lambda: heard)
    assert heard[0].reason in (
        f"localhost:{broker.port} closed the connection",
        f"connection to localhost:{broker.port} lost: Connection reset by peer",
    )


def test_tls_towards_a_plain_port_says_so(broker):
    with pytest.raises(BrokerError, match=r"TLS"):
        probe(MqttConfig(url=tls_url(broker)), 30.0)


def test_unreachable_brokers_each_have_their_own_sentence():
    with pytest.raises(BrokerError, match=r"cannot be resolved|not resolved within"):
        probe(MqttConfig(url="mqtt://broker.invalid"), 30.0)
    with pytest.raises(BrokerError, match="connection refused"):
        probe(MqttConfig(url=f"mqtt://127.0.0.1:{free_port()}"), 30.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"mqtt://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BrokerError, match="is it an MQTT broker"):
            # Both versions of MQTT are tried in this time, each with a look-up of its own.
            probe(MqttConfig(url=url), 2.0)


def test_a_password_is_the_first_line_and_no_longer_than_mqtt_allows(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"  spaced word \r\nsecond line\n")
    assert read_password(str(secret)) == "  spaced word "
    secret.write_bytes(b"x" * 70_000)
    with pytest.raises(BrokerError, match="longer than any MQTT password"):
        read_password(str(secret))
    with pytest.raises(BrokerError, match="cannot be read"):
        read_password(str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mqtt://broker", "broker:1883"),
        ("mqtts://broker/", "broker:8883"),
        ("mqtt://[::1]:9", "[::1]:9"),
        ("mqtts://[fe80::1%eth0]", "[fe80::1%eth0]:8883"),
    ],
)
def test_addresses(url, shown):
    assert str(parse_address(url)) == shown


@pytest.mark.parametrize(
    "url", ["mqtt://broker:99999", "http://broker", "mqtt://:1883", "mqtt://u:hunter2@broker"]
)
def test_addresses_that_are_none(url):
    with pytest.raises(BrokerError, match=r"mqtt\.url") as caught:
        parse_address(url)
    assert "hunter2" not in str(caught.value)


def test_an_ipv6_address_is_dialled():
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 loopback address")
    with server:
        settings = MqttConfig(url=f"mqtt://[::1]:{server.getsockname()[1]}")
        dial(parse_address(settings.url), settings, Patience(30.0)).close()


@pytest.mark.parametrize("code", [*range(0x80, 0xA3)])
def test_every_reason_code_has_a_sentence(code):
    settings = MqttConfig(username="board", password_file="secret")
    assert explain_connack(code, "host:1883", settings).startswith("host:1883 ")
    assert explain_disconnect(code, "host:1883").startswith("host:1883 ")
