"""What Home Assistant is told: held against its own code where that is installed."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from announced_boards import (
    ANNOUNCEMENT,
    BOARD,
    FULL,
    IDENTITY,
    NAMES,
    NASTY_LABELS,
    NO_POWER,
    REPORTED,
    counts,
    message,
    messages,
    reported,
)
from hypothesis import given
from hypothesis import strategies as st

from agent.contract import reading, topics
from agent.contract.home_assistant import (
    CameraEntities,
    components,
    discovery,
    discovery_topic,
)
from agent.contract.home_assistant_board import MAX_TEMPS, BoardFacts, learn
from agent.contract.home_assistant_words import identifier, path, quoted, slug, value_template
from agent.contract.payloads import encode

jinja2 = pytest.importorskip("jinja2")
# Undefined values raise wherever Home Assistant would warn of them.
JINJA = jinja2.Environment(undefined=jinja2.StrictUndefined)
PLAIN = replace(ANNOUNCEMENT, board=BoardFacts(), cameras=(), engines=("",))
CHECK = Path(__file__).parent / "check_home_assistant.py"


def said(announcement=ANNOUNCEMENT, removed=()):
    return json.loads(discovery(announcement, dict(removed)))


def render(template, text):
    return JINJA.from_string(template).render(value_json=json.loads(text))


def home_assistant():
    """Return a Python that has Home Assistant; `EDGE_AGENT_HOME_ASSISTANT` may name one."""
    python = os.environ.get("EDGE_AGENT_HOME_ASSISTANT", sys.executable)
    probe = subprocess.run([python, "-c", "import homeassistant"], capture_output=True)
    if probe.returncode:
        pytest.skip("Home Assistant is not installed; EDGE_AGENT_HOME_ASSISTANT names a Python")
    return python


def test_home_assistant_itself_accepts_and_understands_everything():
    python = home_assistant()
    announcements = [
        {"payload": discovery(one, removed).decode(), "messages": messages()}
        for one, removed in ((ANNOUNCEMENT, {"camera.old.fps": "sensor"}), (PLAIN, {}))
    ]
    done = subprocess.run(
        [python, str(CHECK)], input=json.dumps(announcements), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["faults"] == []
    assert summary["rendered"] > 500
    values = summary["values"][0]
    for at, label in enumerate(NASTY_LABELS):
        assert values[f"camera.door.count.{identifier(label)}"][:2] == [str(at), "None"]


def test_one_message_says_what_the_device_is():
    payload = said()
    assert payload["dev"] == {
        "ids": ["edge-agent.porch-pi"], "name": "porch-pi", "mf": "Raspberry Pi",
        "mdl": "Raspberry Pi 5 Model B", "mdl_id": "rpi-5", "sw": "0.0.1",
    }  # fmt: skip
    assert payload["o"] == {"name": "edge-agent", "sw": "0.0.1"}
    assert payload["avty_t"] == "edge/porch-pi/availability"
    assert discovery_topic("homeassistant", "porch-pi") == "homeassistant/device/porch-pi/config"


def test_a_board_of_which_nothing_is_known_yet_has_no_sensors_of_its_own():
    payload = said(PLAIN)
    assert payload["dev"] == {
        "ids": ["edge-agent.porch-pi"], "name": "porch-pi", "sw": "0.0.1"
    }  # fmt: skip
    assert sorted(payload["cmps"]) == [
        "cpu", "disk_free", "health", "memory_available", "model", "outbox", "worker_restarts"
    ]  # fmt: skip


def test_every_component_reads_a_topic_of_the_table_and_is_known_by_one_id():
    known = {NAMES.name(row, camera) for row in topics.TABLE for camera in ("door", "back-yard_2")}
    found = said()["cmps"]
    for one in found.values():
        assert one["stat_t"] in known
        assert "object_id" not in one
        assert re.fullmatch(rf"{one['p']}\.[a-z0-9_]+", one["def_ent_id"])
    assert len({(one["p"], one["uniq_id"]) for one in found.values()}) == len(found)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in found)
    on_telemetry = [one for one in found.values() if one["stat_t"].endswith("/telemetry")]
    assert {one["exp_aft"] for one in on_telemetry} == {30}
    assert all("exp_aft" not in one for one in found.values() if one not in on_telemetry)


@pytest.mark.parametrize(("interval_s", "expiry_s"), [(1.0, 30), (10.0, 30), (33.4, 101)])
def test_values_expire_after_three_intervals(interval_s, expiry_s):
    found = said(replace(ANNOUNCEMENT, interval_s=interval_s))["cmps"]
    assert found["camera.door.fps"]["exp_aft"] == expiry_s


def test_a_component_that_is_gone_is_its_platform_alone():
    gone = {"camera.old.fps": "sensor", "cpu": "sensor", "camera.old.occupancy": "binary_sensor"}
    found = said(removed=gone)["cmps"]
    assert found["camera.old.fps"] == {"p": "sensor"}
    assert found["camera.old.occupancy"] == {"p": "binary_sensor"}
    assert found["cpu"]["name"] == "CPU"


@pytest.mark.parametrize("name", sorted(components(ANNOUNCEMENT)))
def test_no_template_fails_whatever_is_missing(name):
    one = components(ANNOUNCEMENT)[name]
    numbers = r"-?\d+(\.\d+)?|None"
    shapes = {"sensor": numbers, "binary_sensor": "ON|OFF|None", "update": r"\{.*\}"}
    for text in messages()[one["stat_t"]]:
        assert re.fullmatch(shapes[one["p"]], render(one["val_tpl"], text))
        if "json_attr_tpl" in one:
            assert isinstance(json.loads(render(one["json_attr_tpl"], text)), dict)


def test_an_update_is_shown_while_it_is_under_way():
    template = components(PLAIN)["model"]["val_tpl"]
    done, downloading, other, back, refused = (
        json.loads(render(template, encode(one))) for one in REPORTED
    )
    assert done == {
        "installed_version": "1.0.0", "latest_version": "1.0.0", "title": "default",
        "in_progress": False, "update_percentage": None, "release_summary": "committed",
    }  # fmt: skip
    assert (downloading["latest_version"], downloading["update_percentage"]) == ("1.1.0", 26)
    assert (other["latest_version"], other["in_progress"]) == ("cats@1.0.0", True)
    assert (back["latest_version"], back["in_progress"]) == ("factory", True)
    assert refused == {}, "no model, no version"
    failed = encode(reported(phase="refused", code="E_SIG", message="not signed " * 40))
    summary = json.loads(render(template, failed))["release_summary"]
    assert summary.startswith("refused E_SIG not signed")
    assert len(summary) == 255


def test_templates_show_what_the_message_says():
    found = components(ANNOUNCEMENT)

    def shown(name, struct):
        return render(found[name]["val_tpl"], encode(struct))

    assert shown("camera.door.fps", FULL) == "29.5"
    assert shown("camera.door.latency_p99", FULL) == "9.1"
    assert shown("camera.back-yard_2.latency_p99", FULL) == "None"
    assert [shown(name, FULL) for name in ("power", "power_estimated", "energy", "fan")] == [
        "4.25", "3.1", "1234.5", "2100"
    ]  # fmt: skip
    assert [shown(name, FULL) for name in ("throttled", "under_voltage")] == ["OFF", "ON"]
    alarm = reading.Throttle(throttled_now=None, hwmon_under_voltage_alarm=False)
    assert shown("under_voltage", message(throttle=alarm)) == "OFF"
    assert shown("throttled", message(throttle=alarm)) == "None"
    assert shown("power", message()) == "None"  # never 0 W without a sensor
    for number, label in enumerate(NASTY_LABELS):
        seen = counts("door", {label: number, f"{label}!": 99})
        assert shown(f"camera.door.count.{identifier(label)}", seen) == str(number)
        occupied = shown(f"camera.door.occupancy.{identifier(label)}", seen)
        assert occupied == ("ON" if number else "OFF")


@given(keys=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_any_text_may_be_a_key_and_any_part_may_be_missing(keys):
    value = 42
    for key in reversed(keys):
        value = {key: value}
    template = JINJA.from_string(value_template(*keys))
    assert template.render(value_json=value) == "42"
    for missing in ({}, {keys[0]: None}, {keys[0]: []}, None):
        if len(keys) > 1 or missing != {keys[0]: []}:
            assert template.render(value_json=missing) == "None"
    assert "{" not in quoted(keys[0])
    assert path(keys[0]).startswith("value_json[")


labels = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@given(one=labels, other=labels)
def test_two_labels_never_share_an_id(one, other):
    assert re.fullmatch(r"[a-z0-9_.-]{1,64}", identifier(one))
    assert (identifier(one) == identifier(other)) == (one == other)


@given(text=st.text())
def test_an_entity_id_has_the_letters_of_one(text):
    assert re.fullmatch(r"([a-z0-9]+(_[a-z0-9]+)*)?", slug(text))


@given(cameras=st.lists(st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True), unique=True))
def test_no_two_cameras_share_a_component(cameras):
    entities = tuple(CameraEntities(name=name, labels=("person", "a-b", "a_b")) for name in cameras)
    found = components(replace(PLAIN, cameras=entities, engines=()))
    assert len(found) == len(components(replace(PLAIN, engines=()))) + 11 * len(cameras)


def test_what_was_there_once_stays_announced():
    assert learn(BOARD, message(), IDENTITY) == BOARD
    assert learn(BOARD, message(), None) == BOARD


def test_another_board_begins_anew():
    other = msgspec.structs.replace(IDENTITY, id="rpi-4b", model="Raspberry Pi 4 Model B")
    known = learn(BOARD, message(temps_c={"cpu-thermal": 50.0}), other)
    assert known == BoardFacts(
        id="rpi-4b", family="raspberry-pi", model="Raspberry Pi 4 Model B", temps=("cpu-thermal",)
    )


def test_sensors_without_a_value_are_not_announced():
    nothing = message(
        throttle=reading.Throttle(throttled_now=None, hwmon_under_voltage_alarm=None),
        fan=reading.Fan(rpm=None),
        accel=reading.Accel(kind="gpu", load_ratio=0.5, freq_hz=None),
    )
    assert learn(BoardFacts(), nothing, None) == BoardFacts()
    estimated = msgspec.structs.replace(NO_POWER, kind="estimated")
    assert learn(BoardFacts(), message(power=estimated), None) == BoardFacts()


def test_zones_are_bounded():
    many = message(temps_c={f"zone{at:03}": 1.0 for at in range(100)})
    assert len(learn(BOARD, many, None).temps) == MAX_TEMPS


@pytest.mark.parametrize(("labels_each", "most_bytes"), [(0, 40_000), (16, 150_000)])
def test_the_message_stays_small_enough_for_a_broker(labels_each, most_bytes):
    labels = tuple(f"label {at}" for at in range(labels_each))
    cameras = tuple(CameraEntities(name=f"camera-number-{at}", labels=labels) for at in range(8))
    assert len(discovery(replace(ANNOUNCEMENT, cameras=cameras), {})) < most_bytes


def test_the_power_says_what_it_covers():
    power = msgspec.structs.replace(FULL.power, scope="cpu_package")
    board = learn(BoardFacts(), message(power=power), None)
    assert components(replace(ANNOUNCEMENT, board=board))["power"]["name"] == (
        "Power of the processor"
    )


def test_the_telemetry_has_every_field_that_is_read():
    """A field that is renamed must not leave an entity that is unknown for ever."""
    door = FULL.cameras["door"]
    full = msgspec.structs.replace(FULL, cameras={"door": door, "back-yard_2": door})
    text = encode(full)
    reads = [
        (name, one["val_tpl"]) for name, one in components(ANNOUNCEMENT).items()
        if one["stat_t"] == NAMES.name(topics.TELEMETRY)
    ]  # fmt: skip
    assert len(reads) > 15
    assert [name for name, template in reads if render(template, text) == "None"] == []
