"""`edge-agent repo serve-mqtt` as people run it: by TLS and a password, with the shipped rights."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import sys
import time

import pytest
from brokers import make_certificates, mosquitto
from commands import PROJECT, edge_agent
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from agent.ota.chunks import chunk_topic, request_topic, unpack

TIMESTAMP = "metadata/timestamp.json"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A repository, and a broker with the rights of systemd/mosquitto."""
    folder = tmp_path_factory.mktemp("serving")
    said = edge_agent("repo", "init", folder / "models", "--keys", folder / "keys")
    assert said.returncode == 0
    (folder / "acl").write_bytes((PROJECT / "systemd" / "mosquitto" / "acl").read_bytes())
    (folder / "word").write_text("secret\n")
    return folder


@pytest.fixture
def secured(place):
    tls = make_certificates(place)
    running = mosquitto(
        place, f"acl_file {place / 'acl'}", tls=tls, users={"repository": "secret", "porch": "p"}
    ).start()
    config = place / "operator.toml"
    config.write_text(
        f'[mqtt]\nurl = "mqtts://localhost:{running.port}"\nusername = "repository"\n'
        f'password_file = "{place / "word"}"\nca_file = "{tls.ca}"\n'
    )
    yield running, config, tls
    running.stop()


class Board:
    """Asks for pieces as a board does."""

    def __init__(self, port, tls):
        self.answers = []
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.username_pw_set("porch", "p")
        self.client.tls_set(str(tls.ca), tls_version=ssl.PROTOCOL_TLS_CLIENT)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = lambda client, *_: client.subscribe(
            chunk_topic("edge", "porch", "+")
        )
        self.client.on_message = lambda _client, _data, message: self.answers.append(
            unpack(message.payload)
        )
        self.client.connect("localhost", port)
        self.client.loop_start()

    def ask(self, within_s=30.0):
        """Ask until there is an answer."""
        before, deadline = len(self.answers), time.monotonic() + within_s
        while len(self.answers) == before:
            assert time.monotonic() < deadline, "nobody answers"
            self.send()
            time.sleep(0.1)
        return self.answers[-1]

    def send(self, path=TIMESTAMP):
        asked = {"id": "a-1", "path": path, "offset": 0, "length": 60_000}
        self.client.publish(request_topic("edge", "porch"), json.dumps(asked))

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


def serving(place, config, *options):
    process = subprocess.Popen(
        [sys.executable, "-m", "agent", "repo", "serve-mqtt", place / "models", "--config", config,
         *options],
        cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    first = process.stdout.readline()
    assert "answering edge/+/repo/get" in first, process.communicate()
    return process


def test_it_answers_over_tls_with_the_shipped_rights_and_outlives_its_broker(place, secured):
    broker, config, tls = secured
    process, board = serving(place, config), None
    try:
        board = Board(broker.port, tls)
        content = (place / "models" / TIMESTAMP).read_bytes()
        assert board.ask().piece == content
        broker.stop()
        assert process.stdout.readline() == "the broker is away\n"
        broker.start()
        assert process.stdout.readline() == "the broker is back\n"
        assert board.ask().piece == content
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert (process.returncode, said) == (0, "")
    finally:
        process.kill()
        process.communicate()
        if board is not None:
            board.close()


def test_one_board_gets_no_more_than_its_share(place, secured):
    broker, config, tls = secured
    process, board = serving(place, config, "--most", "4"), None  # a board: 1 kB a second
    try:
        board = Board(broker.port, tls)
        assert board.ask().status == 200
        for _ in range(40):
            board.send()
        deadline = time.monotonic() + 30
        while 429 not in [answer.status for answer in board.answers]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
        if board is not None:
            board.close()


def test_what_cannot_be_served_is_said(place, secured):
    _, config, _ = secured
    done = edge_agent("repo", "serve-mqtt", place / "keys", "--config", config)
    assert (done.returncode, "make a repository with" in done.stderr) == (69, True)
    (place / "word").write_text("wrong\n")
    done = edge_agent("repo", "serve-mqtt", place / "models", "--config", config)
    (place / "word").write_text("secret\n")
    assert (done.returncode, "mqtt.password_file" in done.stderr) == (69, True)
