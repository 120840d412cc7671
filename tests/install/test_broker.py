"""systemd/mosquitto: the shipped settings, rights and certificates, with a real mosquitto.

What one board may do to another (A24 of the attack list) is asked with MQTT 5, where the broker
says no by reason code; who somebody is (A23) is settled in the handshake.
"""

from __future__ import annotations

import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from brokers import make_certificates as foreign_certificates
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from tls_site import Site, make_certificates

from agent.config import MqttConfig
from agent.contract import topics
from agent.daemon.mqtt import MqttLink, Timing, probe
from agent.daemon.outbox import Outbox, Record
from agent.doctor.broker import attempts_on, travel
from agent.doctor.broker_verdict import judge_trip
from agent.errors import BrokerError
from agent.ota.chunks import chunk_topic, request_topic

WITHIN_S = 30.0
NOT_AUTHORIZED = 0x87  # MQTT 5, 2.4
FAILURE = 0x80  # from here on; 0x10 says that nobody has subscribed
SESSION_S = 600


def eventually(claim: Callable[[], object]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not claim():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


@dataclass
class Client:
    """One MQTT 5 client with a certificate; keeps what it heard and was answered."""

    client: paho.Client
    heard: list[tuple[str, bytes]] = field(default_factory=list)
    answers: dict[tuple[str, int | None], int] = field(default_factory=dict)

    def publish(self, topic: str, payload: bytes = b"x", *, retain: bool = False) -> int:
        """Publish with QoS 1 and return the reason code of the PUBACK."""
        sent = self.client.publish(topic, payload, qos=1, retain=retain)
        eventually(lambda: ("publish", sent.mid) in self.answers)
        return self.answers.pop(("publish", sent.mid))

    def subscribe(self, topic: str) -> int:
        """Subscribe with QoS 1 and return the reason code of the SUBACK."""
        _, mid = self.client.subscribe(topic, qos=1)
        eventually(lambda: ("subscribe", mid) in self.answers)
        return self.answers.pop(("subscribe", mid))

    def topics(self) -> list[str]:
        return [topic for topic, _ in list(self.heard)]


@pytest.fixture
def connect(site: Site) -> Iterator[Callable[..., Client]]:
    opened: list[Client] = []

    def start(name: str, *, client_id: str = "", durable: bool = False) -> Client:
        mqtt = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id or f"test-{name}-{len(opened)}",
            protocol=MQTTProtocolVersion.MQTTv5,
        )
        one = Client(mqtt)
        ready = threading.Event()
        mqtt.tls_set_context(client_context(site, name))
        mqtt.on_connect = lambda *_: ready.set()
        mqtt.on_message = lambda _c, _u, message: one.heard.append((message.topic, message.payload))
        mqtt.on_publish = lambda _c, _u, mid, reason, *_: one.answers.update(
            {("publish", mid): reason.value}
        )
        mqtt.on_subscribe = lambda _c, _u, mid, reasons, *_: one.answers.update(
            {("subscribe", mid): reasons[0].value}
        )
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = SESSION_S if durable else 0
        mqtt.connect("localhost", site.broker.port, clean_start=not durable, properties=properties)
        mqtt.loop_start()
        opened.append(one)
        assert ready.wait(WITHIN_S)
        return one

    yield start
    for one in opened:
        one.client.disconnect()
        one.client.loop_stop()
        one.client._reset_sockets()  # paho would, whenever it is collected


def client_context(site: Site, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(site.certificates / "ca.pem"))
    # The default from Python 3.13 on, which Raspberry Pi OS Trixie has.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_cert_chain(*site.client(name))
    return context


def test_a24_a_board_writes_its_own_topics_and_nobody_elses(site, connect):
    board, operator = connect("cam-a"), connect("operator")
    operator.subscribe("edge/#")
    for own in (
        "edge/cam-a/status",
        "edge/cam-a/camera/door/detections",
        "edge/cam-a/gap",
        "homeassistant/device/cam-a/config",
    ):
        assert board.publish(own) < FAILURE
    for other in (
        "edge/cam-b/status",
        "edge/cam-b/model/reported",
        "edge/cam-b/repo/get",
        "edge/cam-a2/status",
        "homeassistant/device/cam-b/config",
        "homeassistant/status",
        "elsewhere",
        "$SYS/broker/version",
    ):
        assert board.publish(other) == NOT_AUTHORIZED, other
    assert operator.publish("edge/cam-a/command/snapshot") < FAILURE
    eventually(lambda: len(operator.heard) >= 4)  # not what Home Assistant is told
    assert {topic.split("/")[1] for topic in operator.topics()} == {"cam-a"}


def test_a24_a_board_orders_nothing_and_answers_no_board(site, connect):
    """Nor itself: a thief of its key cannot have it go back to a release with a known hole."""
    board = connect("cam-a")
    for topic in (
        "edge/cam-a/model/desired",
        "edge/cam-b/model/desired",
        "edge/group/outdoor/model/desired",
        "edge/cam-a/command/rollback",
        "edge/cam-b/command/rollback",
        chunk_topic("edge", "cam-a", "1-2"),
        chunk_topic("edge", "cam-b", "1-2"),
    ):
        assert board.publish(topic, retain="desired" in topic) == NOT_AUTHORIZED, topic
    operator, late = connect("operator"), connect("cam-b")
    late.subscribe("edge/cam-b/model/desired")
    operator.subscribe("edge/+/model/desired")
    assert operator.publish("edge/cam-b/model/desired", b"order", retain=True) < FAILURE
    eventually(lambda: late.heard and operator.heard)
    assert late.heard == operator.heard == [("edge/cam-b/model/desired", b"order")]


def test_a24_the_rights_are_those_of_the_topic_table(connect):
    """What the agent says on any of its topics goes through, what it hears it may not say."""
    board, operator = connect("cam-a"), connect("operator")
    names = topics.Topics("edge", "cam-a")
    for row in topics.TABLE:
        topic = names.name(row, "door", "outdoor")
        assert (board.publish(topic) < FAILURE) is not row.is_heard, topic
        assert (operator.publish(topic) < FAILURE) is row.is_heard, topic
    assert board.publish(request_topic("edge", "cam-a")) < FAILURE


def test_a24_each_board_gets_the_pieces_that_it_asked_for(connect):
    a, b, server = connect("cam-a"), connect("cam-b"), connect("repository")
    server.subscribe(request_topic("edge", "+"))
    server.subscribe("edge/#")
    for board in (a, b):
        board.subscribe("#")
        board.subscribe(chunk_topic("edge", "+", "+"))
    assert b.publish("edge/cam-b/status") < FAILURE
    assert a.publish(request_topic("edge", "cam-a")) < FAILURE
    eventually(lambda: server.heard)
    assert set(server.topics()) == {request_topic("edge", "cam-a")}
    for topic in ("edge/cam-a/model/desired", "edge/group/outdoor/model/desired",
                  request_topic("edge", "cam-a"), "edge/cam-a/status"):  # fmt: skip
        assert server.publish(topic) == NOT_AUTHORIZED, topic
    for name in ("cam-b", "cam-a"):
        assert server.publish(chunk_topic("edge", name, "1-2")) < FAILURE
    eventually(lambda: a.heard and b.heard)
    assert set(a.topics()) == {chunk_topic("edge", "cam-a", "1-2")}
    assert set(b.topics()) == {chunk_topic("edge", "cam-b", "1-2")}


def test_a24_the_stricter_rights_confine_a_board_to_its_groups(site, connect):
    """As the file of rights says how."""
    rights = site.installed / "acl"
    every = "\npattern read edge/group/+/model/desired\n"
    assert rights.read_text().count(every) == 1
    own = "user cam-a\ntopic read edge/group/outdoor/model/desired\n"
    rights.write_text(rights.read_text().replace(every, "\n") + own)
    a, b, operator = connect("cam-a"), connect("cam-b"), connect("operator")
    site.broker.process.send_signal(signal.SIGHUP)
    for board in (a, b):
        board.subscribe("#")
    groups = [f"edge/group/{name}/model/desired" for name in ("outdoor", "indoor")]

    def is_confined():
        a.heard.clear()
        b.heard.clear()
        for topic in (*groups, "edge/cam-a/model/desired", "edge/cam-b/model/desired"):
            assert operator.publish(topic) < FAILURE
        eventually(lambda: "edge/cam-a/model/desired" in a.topics())
        eventually(lambda: "edge/cam-b/model/desired" in b.topics())
        return groups[1] not in a.topics() and not {*groups} & {*b.topics()}

    eventually(is_confined)  # once the broker has read the file again
    assert groups[0] in a.topics()


def test_a24_a_board_hears_its_own_orders_and_nothing_of_another(site, connect):
    a, b, operator = connect("cam-a"), connect("cam-b"), connect("operator")
    # mosquitto 2.0 grants subscriptions and leaves out what may not be read.
    for topic in ("#", "edge/#", "edge/cam-b/#", "edge/cam-b/camera/door/detections"):
        a.subscribe(topic)
    orders = [
        "edge/cam-a/model/desired",
        "edge/cam-a/command/snapshot",
        "edge/group/outdoor/model/desired",
    ]
    assert b.publish("edge/cam-b/camera/door/detections") < FAILURE
    assert b.publish("edge/cam-b/status", retain=True) < FAILURE
    for topic in ("edge/cam-b/model/desired", "edge/cam-b/command/snapshot", *orders):
        assert operator.publish(topic) < FAILURE
    # The last order came after everything else, on the same connection.
    eventually(lambda: orders[-1] in a.topics())
    assert set(a.topics()) == set(orders)
    late = connect("cam-a")
    late.subscribe("edge/cam-b/status")
    late.subscribe("edge/cam-a/check")
    assert late.publish("edge/cam-a/check") < FAILURE
    eventually(lambda: late.heard)
    assert late.topics() == ["edge/cam-a/check"]


def test_a24_the_reader_only_reads_and_the_operator_only_orders(site, connect):
    reader, operator, board = connect("reader"), connect("operator"), connect("cam-a")
    reader.subscribe("edge/#")
    for topic in ("edge/cam-a/model/desired", "edge/cam-a/command/snapshot", "edge/cam-a/status"):
        assert reader.publish(topic) == NOT_AUTHORIZED
    assert operator.publish("edge/cam-a/status") == NOT_AUTHORIZED
    assert board.publish("edge/cam-a/status") < FAILURE
    eventually(lambda: reader.topics() == ["edge/cam-a/status"])


def test_a24_a_client_that_names_a_board_is_still_who_its_certificate_says(site, connect):
    impostor = connect("cam-a", client_id="edge-agent-cam-b")
    assert impostor.publish("edge/cam-b/status") == NOT_AUTHORIZED


def test_a23_without_a_certificate_of_our_authority_there_is_no_connection(site, tmp_path):
    foreign = foreign_certificates(tmp_path)
    ours = {"ca_file": str(site.certificates / "ca.pem")}
    url = f"mqtts://localhost:{site.broker.port}"
    server = {
        "cert_file": str(site.certificates / "server.pem"),
        "key_file": str(site.certificates / "server.key"),
    }
    wrong = {"cert_file": str(foreign.client), "key_file": str(foreign.client_key)}
    for client in ({}, wrong, server):
        with pytest.raises(BrokerError, match="certificate"):
            probe(MqttConfig(url=url, **ours, **client), WITHIN_S)
    # A server of another authority is not talked to either.
    cert, key = site.client("cam-a")
    with pytest.raises(BrokerError, match="ca_file"):
        probe(MqttConfig(url=url, ca_file=str(foreign.ca), cert_file=cert, key_file=key), WITHIN_S)
    with pytest.raises(BrokerError):
        probe(MqttConfig(url=f"mqtt://localhost:{site.broker.port}"), 2.0)


def test_a23_tls_older_than_1_2_is_refused(site):
    context = client_context(site, "cam-a")
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("localhost", site.broker.port), WITHIN_S) as plain,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain, server_hostname="localhost")


def test_the_agents_own_link_and_doctor_work_with_it(site, connect):
    reader = connect("reader")
    reader.subscribe("edge/cam-a/#")
    cert, key = site.client("cam-a")
    settings = MqttConfig(
        url=f"mqtts://localhost:{site.broker.port}",
        ca_file=str(site.certificates / "ca.pem"),
        cert_file=cert,
        key_file=key,
    )
    stream = "edge/cam-a/camera/door/detections"
    outbox = Outbox(max_bytes=1 << 24, folder=None)
    outbox.open()
    link = MqttLink(
        settings,
        client_id="edge-agent-cam-a",
        availability_topic="edge/cam-a/availability",
        outbox=outbox,
        gap_record=lambda note: Record(topic="edge/cam-a/gap", payload=str(note.reason).encode()),
        timing=Timing(connect_timeout_s=5.0, retry_first_s=0.05, retry_max_s=0.2),
    )
    link.start()
    try:
        eventually(lambda: link.connection.connected)
        assert link.connection.protocol == "5"
        assert link.connection.receive_maximum == 20
        assert link.connection.max_packet == 1114112
        link.retain("edge/cam-a/status", b"fine")
        for seq in range(1, 101):
            link.put(Record(topic=stream, payload=b"%d" % seq, stream="door", seq=seq))
        eventually(lambda: reader.topics().count(stream) == 100)
        own = attempts_on("edge/cam-a", ["door"], 10_000)
        check = judge_trip(settings, "5", own, travel(settings, "5", own, WITHIN_S))
        assert check.state == "ok", check.message
        assert "back" in check.message
        other = attempts_on("edge/cam-b", ["door"], 10_000)
        refused = judge_trip(settings, "5", other, travel(settings, "5", other, WITHIN_S))
        assert refused.state == "fail"
    finally:
        assert link.stop(WITHIN_S)
        outbox.close(1.0)
    eventually(lambda: ("edge/cam-a/availability", b"offline") in reader.heard)
    assert [int(payload) for topic, payload in reader.heard if topic == stream] == [*range(1, 101)]


def test_a_payload_over_the_limit_is_refused_by_name_and_the_connection_stays(connect):
    board = connect("cam-a")
    assert board.publish("edge/cam-a/status", bytes(1_048_576)) < FAILURE
    assert board.publish("edge/cam-a/status", bytes(1_048_577)) >= FAILURE
    assert board.publish("edge/cam-a/status") < FAILURE


def test_a_durable_subscriber_gets_what_came_meanwhile_also_after_a_restart(site, connect):
    subscriber = connect("reader", client_id="database", durable=True)
    subscriber.subscribe("edge/cam-a/#")
    subscriber.client.disconnect()
    subscriber.client.loop_stop()
    board = connect("cam-a")
    for number in range(50):
        board.publish("edge/cam-a/telemetry", b"%d" % number)
    board.client.disconnect()
    board.client.loop_stop()
    site.broker.stop()
    site.broker.start()
    back = connect("reader", client_id="database", durable=True)
    eventually(lambda: len(back.heard) == 50)
    assert [int(payload) for _, payload in back.heard] == list(range(50))


def test_a_revoked_board_is_out_after_a_restart_and_others_are_in(site, connect, tmp_path):
    kept = [shutil.copy(file, tmp_path) for file in site.client("cam-b")]
    settings = MqttConfig(
        url=f"mqtts://localhost:{site.broker.port}",
        ca_file=str(site.certificates / "ca.pem"),
        cert_file=kept[0],
        key_file=kept[1],
    )
    assert probe(settings, WITHIN_S) == "5"
    assert make_certificates(site.certificates, "revoke", "cam-b").returncode == 0
    assert not (site.certificates / "devices" / "cam-b.key").exists()
    shutil.copy(site.certificates / "revoked.pem", site.installed)
    site.broker.stop()
    site.broker.start()
    with pytest.raises(BrokerError, match="certificate"):
        probe(settings, WITHIN_S)
    assert connect("cam-a").publish("edge/cam-a/status") < FAILURE
    again = make_certificates(site.certificates, "device", "cam-b")
    assert again.returncode == 0, again.stderr
    assert connect("cam-b").publish("edge/cam-b/status") < FAILURE


def test_a_board_is_locked_out_by_its_name_in_the_rights(site, connect):
    board = connect("cam-b")
    assert board.publish("edge/cam-b/status") < FAILURE
    with (site.installed / "acl").open("a") as rights:
        rights.write("user cam-b\ntopic deny #\n")
    site.broker.process.send_signal(signal.SIGHUP)
    eventually(lambda: board.publish("edge/cam-b/status") == NOT_AUTHORIZED)
    assert connect("cam-a").publish("edge/cam-a/status") < FAILURE


@pytest.mark.parametrize(
    "name", ["group", "operator", "repository", "a/b", "+", "", "ö", "a" * 65, "a b", "-dir "]
)
def test_names_that_are_no_board_get_no_certificate(certificates, name):
    done = make_certificates(certificates, "device", name)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: device: ")


def test_nothing_that_is_there_is_made_again(certificates):
    before = {file: file.read_bytes() for file in certificates.rglob("*.pem")}
    assert make_certificates(certificates, "authority").returncode == 0
    assert "revoke cam-a" in make_certificates(certificates, "device", "cam-a").stderr
    assert {file: file.read_bytes() for file in certificates.rglob("*.pem")} == before


def test_keys_are_their_owners_alone_and_the_list_says_what_ends_when(certificates):
    for key in certificates.rglob("*.key"):
        assert key.stat().st_mode & 0o077 == 0, key
    listed = make_certificates(certificates, "list").stdout.splitlines()
    assert [line.split(": until ")[0].rpartition("/")[2] for line in listed] == [
        "ca.pem", "server.pem", "cam-a.pem", "cam-b.pem", "operator.pem", "reader.pem",
        "repository.pem",
    ]  # fmt: skip


def test_certificates_hold_by_the_strict_rules_and_for_clocks_of_years_ago(certificates):
    """As Python from 3.13 checks them, with a clock that starts in 2021 and with one of 2026."""
    for file, purpose in (("server.pem", "sslserver"), ("devices/cam-a.pem", "sslclient")):
        for when in (1_610_000_000, 1_780_000_000):
            command = ["openssl", "verify", "-x509_strict", "-purpose", purpose]
            command += ["-attime", str(when), "-CAfile", str(certificates / "ca.pem")]
            done = subprocess.run([*command, str(certificates / file)], capture_output=True)
            assert done.returncode == 0, done.stderr
