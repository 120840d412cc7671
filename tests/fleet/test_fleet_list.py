"""`edge-agent fleet list` and `watch`, over a real broker."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

from brokers import free_port, make_certificates, mosquitto
from fleet_rig import PROJECT, Rig, eventually
from reliability.proxy import Proxy, Toxic

from agent.cli import main
from agent.contract.updates import Desired


def test_every_board_with_model_latency_power_and_health(rig):
    boards = rig(5)
    rows = boards.as_json("list", state=False)
    assert [row["device"] for row in rows] == [f"board-{number:03}" for number in range(5)]
    first = rows[0]
    assert first["online"]
    assert (first["model"]["name"], first["model"]["version"]) == ("door", "1.0.0")
    assert first["latency_p99_ms"] == 18.5
    assert first["power"] == {"total_w": 4.25, "kind": "measured", "scope": "board_input"}
    assert first["accelerator"] == "cpu:xnnpack"
    assert first["health"] == []
    assert first["reported"]["phase"] == "idle"


def test_filters(rig):
    boards = rig(4)
    boards.fleet.ask("go", "board-001")
    boards.order("edge/board-002/model/desired", Desired(
        deployment_id="x", counter=1, name="door", version="2.0"))  # fmt: skip

    def names(*options):
        rows = boards.as_json("list", "--wait", "0", *options, state=False)
        return [row["device"][-1] for row in rows]

    eventually(lambda: names("--offline") == ["1"])
    eventually(lambda: names("--model", "door@2.0") == ["2"])
    assert names("--model", "door") == ["0", "1", "2", "3"]
    assert names("--group", "porches", "--model", "door@1.0.0") == ["0", "1", "3"]
    assert names("--group", "nobody") == []
    assert names("--wrong") == ["1"]


def test_without_waiting_it_answers_at_once(rig):
    boards = rig(3, telemetry_s=1000.0)
    began = time.monotonic()
    rows = boards.as_json("list", "--wait", "0", state=False)
    assert time.monotonic() - began < 20
    assert [row["latency_p99_ms"] for row in rows] == [None] * 3


def test_on_a_slow_line_no_board_is_missed(rig, broker, capsys):
    """Pauses in what is retained are longer than those that mean that all of it has come."""
    rig(6, telemetry_s=1000.0)
    with Proxy(broker.port) as line:
        line.set(Toxic("bandwidth", "down", 4_000))
        where = ["--broker", f"mqtt://127.0.0.1:{line.port}"]
        assert main(["fleet", "list", "--json", "--wait", "0", *where]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 6
    assert all(row["online"] and row["reported"] and row["groups"] for row in rows)


def test_a_fleet_of_nobody(broker, capsys):
    where = ["--broker", f"mqtt://127.0.0.1:{broker.port}", "--prefix", "other/place"]
    assert main(["fleet", "list", *where]) == 0
    assert "no board below other/place/ ever said a word" in capsys.readouterr().err
    assert main(["fleet", "rollout", "door@1", "--all", *where]) == 69
    assert "no board below other/place/ ever said a word" in capsys.readouterr().err


def test_watch_tells_what_changes(rig):
    boards = rig(3)
    watching = boards.start("watch", "--seconds", "60", state=False)
    assert "3 boards, 3 online" in watching.stderr.readline()
    boards.order("edge/board-001/model/desired", Desired(
        deployment_id="x", counter=1, name="door", version="2.0"))  # fmt: skip
    lines = []
    while not any("committed" in line for line in lines):
        lines.append(watching.stdout.readline())
    assert all(line.startswith("board-001  online  ") for line in lines)
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=30)
    assert watching.returncode == 0


def test_by_tls_and_password_from_a_configuration(tmp_path, capsys):
    tls = make_certificates(tmp_path)
    broker = mosquitto(tmp_path, users={"operator": "secret"}, tls=tls).start()
    try:
        (tmp_path / "password").write_text("secret\n")
        config = tmp_path / "operator.toml"
        config.write_text(
            f'[mqtt]\nurl = "mqtts://localhost:{broker.port}"\nusername = "operator"\n'
            f'password_file = "{tmp_path / "password"}"\nca_file = "{tls.ca}"\n'
        )
        assert main(["fleet", "list", "--json", "--config", str(config)]) == 0
        assert json.loads(capsys.readouterr().out) == []
        (tmp_path / "password").write_text("wrong\n")
        assert main(["fleet", "list", "--config", str(config)]) == 69
        assert "does not authorize this client" in capsys.readouterr().err
    finally:
        broker.stop()


def test_the_shipped_rights_are_enough(tmp_path):
    """systemd/mosquitto/acl: boards by their own names, and the user `operator`."""
    acl = tmp_path / "acl"
    acl.write_bytes((Path(PROJECT) / "systemd" / "mosquitto" / "acl").read_bytes())
    names = ["operator", *(f"board-{number:03}" for number in range(4))]
    broker = mosquitto(
        tmp_path, f"acl_file {acl}", users=dict.fromkeys(names, "secret")
    ).start()  # fmt: skip
    (tmp_path / "password").write_text("secret\n")
    config = tmp_path / "operator.toml"
    config.write_text(f'[mqtt]\nusername = "operator"\npassword_file = "{tmp_path / "password"}"\n')
    boards = Rig(broker, tmp_path, 4, config=config, password="secret")
    try:
        said = boards.rollout("door@2.0", "--groups", "porches")
        assert said["state"] == "finished"
        assert boards.versions() == {"2.0": 4}
        boards.fleet_command("pin", "board-002", state=False)
        eventually(lambda: boards.fleet.brain("board-002").pinned)
    finally:
        boards.close()
        broker.stop()


def test_no_broker_is_said_at_once(capsys):
    assert main(["fleet", "list", "--broker", f"mqtt://127.0.0.1:{free_port()}"]) == 69
    assert "nothing listens" in capsys.readouterr().err


def test_what_the_broker_does_not_let_us_publish_is_said(tmp_path):
    acl = tmp_path / "acl"
    acl.write_text("topic read #\nuser board\ntopic readwrite #\n")
    broker = mosquitto(tmp_path, "allow_anonymous true", f"acl_file {acl}").start()
    boards = None
    try:
        acl.write_text("topic readwrite #\n")
        broker.stop()
        broker.start()
        boards = Rig(broker, tmp_path, 3)
        acl.write_text("topic read #\n")
        broker.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        done = boards.fleet_command("rollout", "door@2.0", "--all", code=69)
        assert "does not authorize this client to publish there" in done.stderr
        assert boards.asked() == 0
    finally:
        if boards is not None:
            boards.close()
        broker.stop()
