"""What Home Assistant is told, so that a board and its cameras appear there by themselves.

One message per device (Home Assistant's "device discovery payload", from 2024.12 on), in the short
names of its MQTT integration (mqtt/abbreviations.py), as it is sent on every connection. Entities
read the topics that the agent publishes anyway. A template gives `None` for what is unknown, which
Home Assistant takes for just that (PAYLOAD_NONE in mqtt/const.py), and none of them fails over
a part that is missing or null.

An entity is known by its unique id for ever: the device's id and the component's. Names and entity
ids are only what they are called at first; people change them. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from agent.contract import topics
from agent.contract.home_assistant_board import BoardFacts, board_components
from agent.contract.home_assistant_words import (
    FINDING,
    Component,
    component,
    identifier,
    occupancy_template,
    path,
    printable,
    slug,
    value_template,
)
from agent.contract.topics import Topics

# A device sends each message when its interval is over; this many may be lost before its values
# are too old to be shown. With a very short interval a moment of network trouble is no loss.
INTERVALS = 3
LEAST_EXPIRY_S = 30
MANUFACTURERS = {"raspberry-pi": "Raspberry Pi", "jetson": "NVIDIA", "coral": "Google"}
# Of `reported`: what is under way, how far its phase is in percent, and why the last one ended.
UNDER_WAY = (
    "{% set c = value_json.candidate|default('',true) %}"
    "{% set l = c.split('@')[-1] if c.startswith(m.name|default('') ~ '@') else c %}"
    "{% set r = value_json.progress|default(none) %}"
    "{% set p = (r * 100)|round|int if c != '' and r is number else none %}"
    "{% set s = [value_json.phase|default('',true), value_json.code|default('',true),"
    " value_json.message|default('',true)]|select|join(' ') %}"
)
Payload = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraEntities:
    """A camera and the labels that are counted there."""

    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """Everything that is announced."""

    names: Topics
    version: str
    interval_s: float
    board: BoardFacts
    cameras: tuple[CameraEntities, ...]
    engines: tuple[str, ...]  # names in [models]; empty for [model]


def discovery_topic(prefix: str, device: str) -> str:
    """Return where Home Assistant looks for a device."""
    return f"{prefix}/device/{device}/config"


def discovery(said: Announcement, removed: Mapping[str, str]) -> bytes:
    """Return the message that announces a device and everything of it.

    `removed` are components by their platform that Home Assistant is to forget.
    """
    known = components(said)
    gone = {name: {"p": platform} for name, platform in removed.items() if name not in known}
    payload: Payload = {
        "dev": _device(said),
        "o": {"name": "edge-agent", "sw": said.version},
        "avty_t": said.names.name(topics.AVAILABILITY),
        "cmps": {**{name: _finished(said, name, one) for name, one in known.items()}, **gone},
    }
    return msgspec.json.encode(payload)


def components(said: Announcement) -> dict[str, Component]:
    """Return every component by its id, which has no other's letters: `[A-Za-z0-9_.-]`."""
    names = said.names
    expiry_s = max(LEAST_EXPIRY_S, math.ceil(INTERVALS * said.interval_s))
    found: dict[str, Component] = {}
    for camera in said.cameras:
        found.update(_camera_components(names, camera, expiry_s))
    found.update(board_components(names.name(topics.TELEMETRY), said.board, expiry_s))
    status = names.name(topics.STATUS)
    found["health"] = component(
        "binary_sensor", "Problem", status,
        "{{ 'ON' if value_json.health|default([],true) else 'OFF' }}",
        dev_cla="problem", ent_cat="diagnostic", json_attr_t=status,
        json_attr_tpl="{{ {'problems': value_json.health|default([],true)"
        "|map(attribute='message')|list}|tojson }}",
    )  # fmt: skip
    for engine in said.engines:
        found[f"model.{engine}" if engine else "model"] = _model(names, engine, said.engines)
    return found


def _camera_components(
    names: Topics, camera: CameraEntities, expiry_s: int
) -> dict[str, Component]:
    name, at = camera.name, f"camera.{camera.name}"
    status = names.name(topics.CAMERA_STATUS, name)
    telemetry, counts = names.name(topics.TELEMETRY), names.name(topics.COUNTS, name)
    found = {
        f"{at}.connected": component(
            "binary_sensor", f"{name} camera", status,
            "{% set s = value_json.state|default('') %}{{ 'ON' if s == 'online' else 'OFF' if s in"
            " ('offline', 'frozen') else none }}",
            dev_cla="connectivity", ent_cat="diagnostic", json_attr_t=status,
            json_attr_tpl="{{ {'camera_state': value_json.state|default(none), 'reason': "
            "value_json.reason|default(none)}|tojson }}",
        ),
        f"{at}.fps": component(
            "sensor", f"{name} frames per second", telemetry,
            value_template("cameras", name, "fps_out"), unit_of_meas="fps",
            stat_cla="measurement", ent_cat="diagnostic", sug_dsp_prc=1, exp_aft=expiry_s,
            ic="mdi:filmstrip",
        ),
        f"{at}.latency_p99": component(
            "sensor", f"{name} latency p99", telemetry,
            value_template("cameras", name, "latency_ms", "total", "p99"), dev_cla="duration",
            unit_of_meas="ms", stat_cla="measurement", ent_cat="diagnostic", sug_dsp_prc=1,
            exp_aft=expiry_s,
        ),
        f"{at}.count": component(
            "sensor", f"{name} count", counts, value_template("total"),
            stat_cla="measurement", ic="mdi:counter",
        ),
        f"{at}.occupancy": component(
            "binary_sensor", f"{name} occupancy", counts, occupancy_template(path("total")),
            dev_cla="occupancy",
        ),
    }  # fmt: skip
    for label in camera.labels:
        shown, end = printable(label), identifier(label)
        found[f"{at}.count.{end}"] = component(
            "sensor", f"{name} {shown} count", counts, value_template("counts", label),
            stat_cla="measurement", ic="mdi:counter",
        )  # fmt: skip
        found[f"{at}.occupancy.{end}"] = component(
            "binary_sensor", f"{name} {shown}", counts,
            occupancy_template(path("counts", label)), dev_cla="occupancy",
        )  # fmt: skip
    return found


def _model(names: Topics, engine: str, engines: tuple[str, ...]) -> Component:
    """Return the model that runs, as something that is updated: by the operator, not from here.

    What is reported is the last order's, so of several engines it tells only one's; those are shown
    as in the status.
    """
    shown = "{% set v = m.version|default(none)|default((m.sha256|default(''))[:12], true) %}"
    if len(engines) > 1:
        topic = names.name(topics.STATUS)
        template = (
            FINDING.format(engine=engine) + shown + "{{ {'installed_version': v,"
            " 'latest_version': v, 'title': m.name|default('')}|tojson if v else '{}' }}"
        )
    else:
        topic = names.name(topics.MODEL_REPORTED)
        template = (
            "{% set m = value_json.model|default({},true) %}" + shown + UNDER_WAY
            + "{{ {'installed_version': v, 'latest_version': l or v,"
            " 'title': m.name|default(''), 'in_progress': c != '', 'update_percentage': p,"
            " 'release_summary': s[:255]}|tojson if v else '{}' }}"
        )  # fmt: skip
    return component("update", f"Model {engine}".strip(), topic, template, ent_cat="diagnostic")


def _device(said: Announcement) -> Payload:
    board = said.board
    known = {
        "ids": [f"edge-agent.{said.names.device}"],
        "name": said.names.device,
        "mf": MANUFACTURERS.get(board.family),
        "mdl": printable(board.model or "") or None,
        "mdl_id": board.id or None,
        "sw": said.version,
    }
    return {key: value for key, value in known.items() if value is not None}


def _finished(said: Announcement, name: str, one: Component) -> Payload:
    device = said.names.device
    called = slug(f"{device} {one['name']}")
    return {
        **one,
        "uniq_id": f"edge-agent.{device}.{name}",
        "def_ent_id": f"{one['p']}.{called}",
    }
