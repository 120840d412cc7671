"""What a real broker allows and refuses, and that trying it disturbs nobody."""

import time

import paho.mqtt.client as mqtt
import pytest
from brokers import amqtt, free_port, make_certificates

from agent.config import CameraConfig, Config, DeviceConfig, ModelConfig, MqttConfig, device_id
from agent.contract import topics
from agent.contract.topics import Topics
from agent.doctor.broker import Limits, Trip, attempts_on, travel
from agent.doctor.broker_verdict import (
    MANY_BOXES,
    examine_broker,
    judge_limits,
    judge_trip,
    large_result_bytes,
)

WITHIN_S = 60.0
DEVICE = "porch-pi"


def config(port, *, scheme="mqtt", host="127.0.0.1", camera=None, model=None, **settings):
    return Config(
        device=DeviceConfig(id=DEVICE),
        model=model or ModelConfig(),
        camera=camera or (CameraConfig(name="door"),),
        mqtt=MqttConfig(url=f"{scheme}://{host}:{port}", **settings),
    )


def examined(settings, timeout_s=20.0):
    checks = {one.name: one for one in examine_broker(settings, {"detection"}, timeout_s)}
    for check in checks.values():
        assert (check.remedy is None) is (check.state == "ok"), check
    return checks


@pytest.fixture
def rights(tmp_path):
    """Write an access list; only the lines given are allowed."""

    def write(*lines):
        path = tmp_path / "rights"
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o600)
        return f"acl_file {path}"

    return write


def test_broker_that_is_not_there_fails():
    checks = examined(config(free_port()))
    assert checks["broker"].state == "fail"
    assert "refused" in checks["broker"].message
    assert "start the broker" in checks["broker"].remedy
    assert "broker_limits" not in checks


def test_good_broker(start_mosquitto):
    checks = examined(config(start_mosquitto()))
    assert {check.state for check in checks.values()} == {"ok"}
    assert f"edge/{DEVICE}/check came back" in checks["broker"].message
    assert "MQTT 5" in checks["broker"].message
    assert "20 messages in flight" in checks["broker_limits"].message


def test_old_broker_is_spoken_to_in_its_own_version(tmp_path):
    pytest.importorskip("amqtt", reason="amqtt is not installed")
    old = amqtt(tmp_path).start()
    try:
        checks = examined(config(old.port))
    finally:
        old.stop()
    assert checks["broker"].state == "ok", checks["broker"]
    assert "MQTT 3.1.1" in checks["broker"].message


def test_wrong_password_fails_without_saying_it(tmp_path, start_mosquitto):
    port = start_mosquitto(users={"board": "right"})
    word = tmp_path / "word"
    for password, state in (("right", "ok"), ("wr0ng", "fail")):
        word.write_text(f"{password}\n")
        check = examined(config(port, username="board", password_file=str(word)))["broker"]
        assert check.state == state, check.message
        assert password not in check.message


def test_topic_is_the_device_s_own(start_mosquitto):
    settings = Config(
        mqtt=MqttConfig(url=f"mqtt://127.0.0.1:{start_mosquitto()}", prefix="farm/east")
    )
    check = examined(settings)["broker"]
    assert f"farm/east/{device_id(settings.device)}/check" in check.message


@pytest.mark.parametrize(("protocol", "state"), [("5", "fail"), ("3.1.1", "warn")])
def test_topics_that_may_not_be_written(start_mosquitto, rights, protocol, state):
    settings = config(start_mosquitto(rights("topic readwrite other/#"))).mqtt
    attempts = attempts_on(f"edge/{DEVICE}", ["door"], 100)
    check = judge_trip(settings, protocol, attempts, travel(settings, protocol, attempts, 1.0))
    assert check.state == state
    assert f"edge/{DEVICE}/check" in check.message
    assert f"let this user write to edge/{DEVICE}/# in the broker's access" in check.remedy


def test_rights_that_end_above_the_cameras(start_mosquitto, rights):
    check = examined(config(start_mosquitto(rights(f"topic readwrite edge/{DEVICE}/+"))))["broker"]
    assert check.state == "fail"
    assert f"refuses messages to edge/{DEVICE}/camera/door/check" in check.message
    assert f"edge/{DEVICE}/camera/door/#" in check.remedy


def test_the_agent_needs_not_read_what_it_writes(start_mosquitto, rights):
    check = examined(config(start_mosquitto(rights(f"topic write edge/{DEVICE}/#"))))["broker"]
    assert check.state == "ok", check


def test_limits_of_connack(start_mosquitto):
    port = start_mosquitto("max_packet_size 4096", "max_inflight_messages 3", "max_keepalive 12")
    check = examined(config(port))["broker_limits"]
    assert check.state == "warn"
    assert "3 messages in flight" in check.message
    assert "messages up to 4096 bytes" in check.message
    assert "a sign of life every 12 s" in check.message
    assert "will be given up and named in a gap" in check.message
    assert "max_packet_size" in check.remedy
    assert "max_detections" in check.remedy


def test_fewer_boxes_fit(start_mosquitto):
    port = start_mosquitto("max_packet_size 4096")
    few = config(port, model=ModelConfig(max_detections=10))
    assert examined(few)["broker_limits"].state == "ok"


def test_broker_that_takes_small_messages_alone(start_mosquitto):
    """mosquitto says so in PUBACK alone, not in CONNACK."""
    checks = examined(config(start_mosquitto("message_size_limit 2000")))
    assert checks["broker"].state == "warn"
    assert "it refuses messages of" in checks["broker"].message
    assert "message_size_limit" in checks["broker"].remedy


def test_broker_without_retained_messages(start_mosquitto):
    checks = examined(config(start_mosquitto("retain_available false")))
    assert checks["broker_limits"].state == "warn"
    assert "retain_available true" in checks["broker_limits"].remedy
    assert checks["broker"].state == "ok", checks["broker"]


@pytest.mark.parametrize(
    ("limits", "answer_ms", "state", "said", "remedy"),
    [
        (Limits(max_qos=0), 1.0, "fail", "acknowledges nothing", "mqtt.qos = 0"),
        (Limits(receive_maximum=1), 100.0, "warn", "at most 10 of 30 results", "max_inflight"),
        (Limits(receive_maximum=1), 1.0, "ok", "1 messages in flight", None),
        (Limits(), 100.0, "ok", "20 messages in flight", None),
    ],
)
def test_what_limits_mean(limits, answer_ms, state, said, remedy):
    check = judge_limits(config(1), Trip(limits=limits, puback_ms={0: answer_ms}), 1000)
    assert check.state == state
    assert said in check.message
    assert (check.remedy is None) if remedy is None else (remedy in check.remedy)


def test_large_results():
    assert large_result_bytes(config(1), set()) == large_result_bytes(config(1), {"detection"})
    boxes = large_result_bytes(config(1), {"detection"})
    assert 80 * MANY_BOXES < boxes < 200 * MANY_BOXES
    few = config(1, model=ModelConfig(max_detections=5))
    assert large_result_bytes(few, {"detection"}) < 2000
    for task in ("classification", "pose", "segmentation", "raw"):
        assert 400 < large_result_bytes(config(1), {task}) < 100_000
    assert large_result_bytes(config(1), {"raw", "segmentation"}) > boxes


def test_nobody_is_disturbed_and_nothing_is_left(start_mosquitto):
    """Retained states stay what they are, and the topics people listen to stay silent."""
    port = start_mosquitto()
    names = Topics("edge", DEVICE)
    retained = {
        names.name(topics.STATUS): b"status",
        names.name(topics.AVAILABILITY): b"online",
        names.name(topics.CAMERA_STATUS, "door"): b"camera",
    }
    heard = []
    watcher = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    watcher.on_message = lambda _client, _data, message: heard.append(message)
    watcher.connect("127.0.0.1", port)
    watcher.loop_start()
    try:
        for topic, payload in retained.items():
            watcher.publish(topic, payload, qos=1, retain=True).wait_for_publish(WITHIN_S)
        watcher.subscribe("#", qos=1)
        wait_for(lambda: len(heard) == len(retained))
        assert {one.topic: one.payload for one in heard} == retained

        assert examined(config(port))["broker"].state == "ok"
        wait_for(lambda: len(heard) >= len(retained) + 4)
        assert all(one.topic.endswith("/check") for one in heard[len(retained) :])

        heard.clear()
        watcher.unsubscribe("#")
        watcher.subscribe("#", qos=1)
        wait_for(lambda: len(heard) >= len(retained))
        assert {one.topic: one.payload for one in heard} == retained
    finally:
        watcher.disconnect()
        watcher.loop_stop()
        watcher._reset_sockets()  # paho would, whenever it is collected


def wait_for(what, within_s=WITHIN_S):
    ends = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < ends, "it did not come"
        time.sleep(0.01)


def test_certificates_of_a_tls_broker(tmp_path, start_mosquitto):
    made = make_certificates(tmp_path)  # good for two days
    port = start_mosquitto("require_certificate true", tls=made)
    settings = config(
        port,
        scheme="mqtts",
        host="localhost",
        ca_file=str(made.ca),
        cert_file=str(made.client),
        key_file=str(made.client_key),
    )
    checks = examined(settings)
    assert checks["broker"].state == "ok", checks["broker"]
    assert checks["certificates"].state == "warn"
    for what, remedy in (
        (f"the client certificate {made.client}", "sign a new client certificate"),
        (f"the authority in {made.ca}", "authority's next certificate"),
        ("the broker's certificate", "renew the broker's certificate"),
    ):
        assert f"{what} ends in 1 days" in checks["certificates"].message
        assert remedy in checks["certificates"].remedy
