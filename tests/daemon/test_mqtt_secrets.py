"""A connection's secrets, while the disk they are on fails."""

import threading

import pytest
from brokers import make_certificates, mosquitto
from watching import eventually, record

from agent.daemon.mqtt.secrets import Kept
from agent.errors import BrokerError


def reader(answers):
    def read():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return read


def test_what_never_could_be_read_is_said():
    kept = Kept("it", reader([BrokerError("gone"), "good"]), 10.0)
    with pytest.raises(BrokerError, match="gone"):
        kept.get()
    assert kept.get() == "good"


def test_the_newest_good_one_is_used(caplog):
    answers = ["one", "two", BrokerError("gone"), BrokerError("gone"), "three"]
    kept = Kept("it", reader(answers), 10.0)
    assert [kept.get() for _ in range(5)] == ["one", "two", "two", "two", "three"]
    assert len(caplog.records) == 1
    assert "it is used as it was before: gone" in caplog.text


def test_a_disk_that_hangs_is_not_waited_for(caplog):
    answers, begun = threading.Event(), []

    def read():
        begun.append(1)
        if len(begun) > 1:
            answers.wait(60)
        return len(begun)

    kept = Kept("it", read, 60.0)
    assert kept.get() == 1
    kept._within_s = 0.01
    assert [kept.get() for _ in range(2)] == [1, 1]
    assert len(begun) == 2, "one hangs, and no other is sent after it"
    assert "no answer within 0.01 s" in caplog.text
    answers.set()
    kept._reader.join(60)
    kept._within_s = 60.0
    assert kept.get() == 3


def test_a_password_file_that_is_lost_does_not_end_the_link(
    tmp_path, start_broker, make_link, caplog
):
    secret = tmp_path / "secret"
    secret.write_text("right\n")
    broker = start_broker(mosquitto(tmp_path, users={"board": "right"}))
    settings = {"username": "board", "password_file": str(secret)}
    link = make_link(broker.port, settings=settings)
    eventually(lambda: link.connection.connected)
    secret.unlink()
    broker.stop()
    eventually(lambda: not link.connection.connected)
    broker.start()
    link.put(record(1))
    eventually(lambda: link.outbox.published == 1)
    assert "mqtt.password_file is used as it was before" in caplog.text


def test_certificates_that_are_lost_do_not_end_the_link(tmp_path, start_broker, make_link):
    tls = make_certificates(tmp_path)
    ours = tmp_path / "board.pem"  # mosquitto reads its own when it starts again
    ours.write_bytes(tls.ca.read_bytes())
    broker = start_broker(mosquitto(tmp_path, tls=tls))
    link = make_link(broker.port, host="localhost", scheme="mqtts", settings={"ca_file": str(ours)})
    eventually(lambda: link.connection.connected)
    ours.unlink()
    broker.stop()
    eventually(lambda: not link.connection.connected)
    broker.start()
    link.put(record(1))
    eventually(lambda: link.outbox.published == 1)
