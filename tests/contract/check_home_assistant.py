"""Hold announcements against Home Assistant's own code; run by a Python that has it installed.

    python tests/contract/check_home_assistant.py < announcements.json

Reads a list of {"payload": the announcement, "messages": {topic: [messages]}}. Each is taken apart
as the integration does, held against its schemas, and every template is rendered by its template
engine with every message of its topic. Prints a JSON summary; anything that Home Assistant would
refuse, warn of or not understand is in its `faults`. Imports nothing of the project.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import sys
import tempfile


class Faults(logging.Handler):
    """Everything that Home Assistant warns of."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.found = []
        self.at = ""

    def emit(self, record):
        self.found.append(f"{self.at}: {record.name}: {record.getMessage()}")


def parts_of(payload, faults):
    """Return (component id, platform, its configuration) as the integration makes them."""
    from homeassistant.components.mqtt import discovery
    from homeassistant.components.mqtt.schemas import DEVICE_DISCOVERY_SCHEMA, SHARED_OPTIONS

    config = discovery.MQTTDiscoveryPayload(json.loads(payload))
    discovery._replace_all_abbreviations(config)
    DEVICE_DISCOVERY_SCHEMA(config)
    unique = set()
    for name, one in config["components"].items():
        platform = one.pop("platform")
        if not one:
            yield name, platform, None
            continue
        for option in SHARED_OPTIONS:
            if option in config and option not in one:
                one[option] = config[option]
        one["device"], one["origin"] = config["device"], config["origin"]
        if (platform, one["unique_id"]) in unique:
            faults.found.append(f"{name}: its unique id is another's")
        unique.add((platform, one["unique_id"]))
        yield name, platform, one


def value_faults(platform, name, value, config):
    """Yield what the platform could not make of a rendered value."""
    if platform == "sensor" and value != "None":
        try:
            float(value)
        except ValueError:
            yield f"{name}: {value!r} is no number"
    if platform == "binary_sensor" and value not in ("ON", "OFF", "None"):
        yield f"{name}: {value!r} is neither on nor off"
    if platform == "update" and value != "{}":
        from homeassistant.components.mqtt.update import MQTT_JSON_UPDATE_SCHEMA

        parsed = MQTT_JSON_UPDATE_SCHEMA(json.loads(value))
        is_update = parsed["installed_version"] != parsed["latest_version"]
        if is_update != parsed.get("in_progress", False):
            yield f"{name}: {value!r} is an update that is not under way, or the other way round"


async def check(announcements):
    from homeassistant import const
    from homeassistant.components.mqtt.models import MqttValueTemplate
    from homeassistant.core import HomeAssistant
    from homeassistant.helpers.template import Template

    faults = Faults()
    logging.getLogger().addHandler(faults)
    hass = HomeAssistant(tempfile.mkdtemp())
    summary = {"version": const.__version__, "components": 0, "rendered": 0, "known": 0}
    values = []
    for number, announcement in enumerate(announcements):
        values.append({})
        for name, platform, config in parts_of(announcement["payload"], faults):
            faults.at = f"{number} {name}"
            summary["components"] += 1
            if config is None:
                continue
            module = importlib.import_module(f"homeassistant.components.mqtt.{platform}")
            module.DISCOVERY_SCHEMA(dict(config))
            for key, topic in (
                ("value_template", "state_topic"),
                ("json_attributes_template", "json_attributes_topic"),
            ):
                if key not in config:
                    continue
                template = MqttValueTemplate(Template(config[key], hass))
                for message in announcement["messages"].get(config[topic], []):
                    value = template.async_render_with_possible_json_value(message)
                    summary["rendered"] += 1
                    summary["known"] += value != "None"
                    if key == "value_template":
                        faults.found += value_faults(platform, name, value, config)
                        values[-1].setdefault(name, []).append(value)
                    elif not isinstance(json.loads(value), dict):
                        faults.found.append(f"{name}: attributes {value!r}")
    await hass.async_stop(force=True)
    return {**summary, "faults": faults.found, "values": values}


if __name__ == "__main__":
    json.dump(asyncio.run(check(json.load(sys.stdin))), sys.stdout, indent=1)
