"""Whether orders for models pass a real broker, and a repository behind it answers."""

import json
import re
import threading
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from commands import PROJECT

from agent.config import CameraConfig, Config, DeviceConfig, MqttConfig, UpdateConfig
from agent.doctor import broker
from agent.doctor.broker import Trip, attempts_on, travel
from agent.doctor.broker_orders import judge_orders, orders_of
from agent.doctor.broker_verdict import examine_broker
from agent.operator.exchange import Exchange
from agent.operator.serve_mqtt import ChunkServer, serve

WITHIN_S = 60.0
DEVICE = "porch-pi"
ACL = PROJECT / "systemd" / "mosquitto" / "acl"
OWN = "edge/porch-pi/model/desired"
GROUP = "edge/group/outdoor/model/desired"
CHUNKS = "edge/porch-pi/repo/chunk/+"
GET = "edge/porch-pi/repo/get"
DYNAMIC_SECURITY = "mosquitto_dynamic_security.so"


def config(port, *repository, user="", folder=None, **update):
    login = {}
    if user:
        (folder / user).write_text("word\n")
        login = {"username": user, "password_file": str(folder / user)}
    return Config(
        device=DeviceConfig(id=DEVICE, groups=("outdoor",)),
        camera=(CameraConfig(name="door"),),
        mqtt=MqttConfig(url=f"mqtt://127.0.0.1:{port}", **login),
        update=UpdateConfig(repository=repository or "https://h/", **update),
    )


def examined(settings):
    return {one.name: one for one in examine_broker(settings, {"detection"}, 20.0)}


@pytest.fixture
def shipped(tmp_path, start_mosquitto):
    """Start a mosquitto with the shipped rights, or some of them, held against names of users."""

    def run(*without):
        rights = tmp_path / "rights"
        lines = [line for line in ACL.read_text().splitlines() if line not in without]
        assert len(lines) == len(ACL.read_text().splitlines()) - len(without)
        rights.write_text("\n".join(lines) + "\n")
        rights.chmod(0o600)
        users = {DEVICE: "word", "repository": "word"}
        return start_mosquitto(f"acl_file {rights}", users=users)

    return run


@pytest.mark.parametrize("update", [{"enabled": False}, {"repository": ""}], ids=repr)
def test_nothing_is_tried_where_no_order_can_be_carried_out(update):
    made = Config(device=DeviceConfig(id=DEVICE), update=UpdateConfig(**update))
    assert orders_of(made) is None


def test_orders_of_the_board_and_its_groups():
    assert orders_of(config(1)).filters == {OWN: 1, GROUP: 1}
    asked = orders_of(config(1, "https://h/", "mqtt:"))
    assert asked.filters == {OWN: 1, GROUP: 1, CHUNKS: 0}
    assert asked.request.topic == GET


def test_a_broker_that_refuses_subscriptions(tmp_path, start_mosquitto):
    """mosquitto's dynamic security says so in SUBACK, in both versions of the protocol."""
    found = list(Path("/usr/lib").glob(f"*/{DYNAMIC_SECURITY}"))
    if not found:
        pytest.skip(f"{DYNAMIC_SECURITY} is not installed")
    allowed = [f"edge/{DEVICE}/check", f"edge/{DEVICE}/camera/+/check", GROUP]
    rules = [{"acltype": "subscribePattern", "topic": one, "allow": True} for one in allowed]
    defaults = {"publishClientSend": True, "publishClientReceive": True, "subscribe": False}
    document = {
        "defaultACLAccess": defaults | {"unsubscribe": True},
        "anonymousGroup": "boards",
        "clients": [],
        "groups": [{"groupname": "boards", "roles": [{"rolename": "board"}]}],
        "roles": [{"rolename": "board", "acls": rules}],
    }
    file = tmp_path / "rules.json"
    file.write_text(json.dumps(document))
    port = start_mosquitto(f"plugin {found[0]}", f"plugin_opt_config_file {file}")
    settings = config(port)
    checks = examined(settings)
    assert checks["broker"].state == "ok", checks["broker"]
    check = checks["broker_orders"]
    assert check.state == "warn"
    assert f"it refuses a subscription to {OWN} (reason code 0x87), so orders" in check.message
    assert GROUP not in check.message
    assert f"let this user read {OWN}" in check.remedy
    assert "`pattern read edge/%u/model/desired`" in check.remedy

    orders, attempts = orders_of(settings), attempts_on(f"edge/{DEVICE}", ["door"], 100)
    old = judge_orders(settings, orders, travel(settings.mqtt, "3.1.1", attempts, 20.0, orders))
    assert f"it refuses a subscription to {OWN} (reason code 0x80)" in old.message


def test_a_repository_behind_the_broker(tmp_path, shipped):
    """With the shipped rights; who serves it may do nothing else."""
    metadata = tmp_path / "models" / "metadata"
    metadata.mkdir(parents=True)
    (metadata / "timestamp.json").write_text("{}")
    port = shipped()
    server = ChunkServer(tmp_path / "models", prefix="edge")
    is_over = threading.Event()
    own = config(port, user="repository", folder=tmp_path).mqtt
    with Exchange(own, [server.topic_filter]) as exchange:
        serving = threading.Thread(
            target=serve,
            args=(server, exchange),
            kwargs={"say": print, "is_over": is_over.is_set},
        )
        serving.start()
        settings = config(port, "mqtt:", user=DEVICE, folder=tmp_path)
        try:
            good = examined(settings)
            (metadata / "timestamp.json").unlink()
            gone = examined(settings)
        finally:
            is_over.set()
            serving.join()
    assert {check.state for check in good.values()} == {"ok"}, good
    assert f"subscribed to {OWN}, {GROUP}, {CHUNKS}" in good["broker_orders"].message
    assert "a repository behind the broker answered after" in good["broker_orders"].message
    assert f"whoever answers {GET} says 404" in gone["broker_orders"].message
    assert "look at the folder" in gone["broker_orders"].remedy


def test_nobody_serves_a_repository(tmp_path, shipped):
    check = examined(config(shipped(), "mqtt:", user=DEVICE, folder=tmp_path))["broker_orders"]
    assert check.state == "warn"
    assert f"nobody listens to {GET}" in check.message
    assert "run `edge-agent repo serve-mqtt`" in check.remedy


def test_rights_from_before_there_were_repositories(tmp_path, shipped):
    line = "pattern write edge/%u/repo/get"
    checks = examined(config(shipped(line), "mqtt:", user=DEVICE, folder=tmp_path))
    assert checks["broker"].state == "ok"
    assert checks["broker_orders"].state == "warn"
    refused = f"it refuses messages to {GET} (reason code 0x87)"
    assert refused in checks["broker_orders"].message
    assert f"`{line}`" in checks["broker_orders"].remedy


def test_nobody_answers_and_nobody_is_disturbed(start_mosquitto, monkeypatch):
    """Who listens to all sees what is tried and no more, and orders stay what they are."""
    monkeypatch.setattr(broker, "ANSWERS_WITHIN_S", 0.1)
    port = start_mosquitto()
    heard, arrived = [], threading.Event()
    reported = "edge/porch-pi/model/reported"
    retained = {OWN: b"an order", reported: b"what runs"}

    def on_message(_client, _data, message):
        heard.append(message)
        if len(heard) == len(retained):
            arrived.set()

    watcher = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    watcher.on_message = on_message
    watcher.connect("127.0.0.1", port)
    watcher.loop_start()
    try:
        for topic, payload in retained.items():
            watcher.publish(topic, payload, qos=1, retain=True).wait_for_publish(WITHIN_S)
        watcher.subscribe("#", qos=1)
        assert arrived.wait(WITHIN_S)
        heard.clear()
        arrived.clear()
        check = examined(config(port, "mqtt:"))["broker_orders"]
        assert "nobody answered a request" in check.message
        assert CHUNKS in check.remedy
        seen = {message.topic for message in list(heard)}
        assert not {topic for topic in seen if not topic.endswith("/check")} - {GET}
        heard.clear()
        arrived.clear()
        watcher.unsubscribe("#")
        watcher.subscribe("#", qos=1)
        assert arrived.wait(WITHIN_S)
        assert {message.topic: message.payload for message in heard} == retained
    finally:
        watcher.disconnect()
        watcher.loop_stop()
        watcher._reset_sockets()  # paho would, whenever it is collected


@pytest.mark.parametrize(
    ("trip", "said"),
    [
        (Trip(), f"hung up on a subscription to {OWN}"),
        (Trip(heard={OWN: 1}), f"hung up on a subscription to {GROUP}"),
        (Trip(heard={OWN: 1, GROUP: 1, CHUNKS: 0x80}), "pieces of files do not come"),
        (Trip(heard={OWN: 1, GROUP: 1, CHUNKS: 0}), "did not acknowledge a request"),
        (Trip(heard={OWN: 1, GROUP: 1, CHUNKS: 0}, request_code=0), "nobody answered"),
        (Trip(heard={OWN: 1, GROUP: 1, CHUNKS: 0}, request_code=0x87), "refuses messages"),
    ],
    ids=["own", "group", "chunks", "request", "answer", "get"],
)
def test_hints_are_lines_of_the_shipped_rights(trip, said):
    settings = config(1, "mqtt:")
    check = judge_orders(settings, orders_of(settings), trip)
    assert check.state == "warn"
    assert said in check.message
    lines = re.findall(r"`(pattern [^`]+)`", check.remedy)
    assert lines
    assert set(lines) <= set(ACL.read_text().splitlines())


def test_a_repository_with_too_much_to_do_is_there():
    settings = config(1, "mqtt:")
    trip = Trip(heard={OWN: 1, GROUP: 1, CHUNKS: 0}, request_code=0)
    trip.answer_status, trip.answer_ms = 429, 12.0
    assert judge_orders(settings, orders_of(settings), trip).state == "ok"
