"""The contract for machines: a JSON Schema of each payload, and one AsyncAPI document of it all.

Both are made from the payload types and the topic table, so they cannot say anything else than
what is sent. A payload's schema stands alone: draft 2020-12 with its parts in `$defs`. AsyncAPI
tools are held to draft 07 and resolve `#/` from the top of the document, so there the same
types are written in that dialect, under `components`.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from agent import __version__
from agent.contract import topics
from agent.contract.payloads import FINDINGS, Result
from agent.contract.topics import TopicRow
from agent.errors import EXIT_USAGE, AgentError

DRAFT = "https://json-schema.org/draft/2020-12/schema"
ASYNCAPI_VERSION = "3.0.0"
# mqtt operation and message bindings: github.com/asyncapi/bindings, mqtt/README.md.
MQTT_BINDING_VERSION = "0.2.0"

Json = dict[str, Any]
PARAMETERS = {
    "prefix": "`mqtt.prefix` of the configuration; may have several levels",
    "device": "`device.id` of the configuration, or the id made from the machine's",
    "camera": "`name` of a camera in the configuration",
    "group": "one of `device.groups` of the configuration",
}


class UnknownSchemaError(AgentError):
    """A document was asked for that does not exist."""

    exit_code = EXIT_USAGE


def print_schema(name: str) -> None:
    """Print the named document as JSON; `all` prints every one.

    Raises:
        UnknownSchemaError: with the names there are.
    """
    json.dump(document(name), sys.stdout, indent=2)
    print()


def document(name: str) -> Json:
    """Return the named document; see `print_schema`."""
    schemas = payload_schemas()
    names = ["all", "asyncapi", *schemas]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean `{close[0]}`? " if close else ""
        raise UnknownSchemaError(f"schema {name}: unknown; {hint}known: {', '.join(names)}")
    if name == "all":
        return {"schemas": schemas, "asyncapi": asyncapi()}
    return asyncapi() if name == "asyncapi" else schemas[name]


def payload_schemas() -> dict[str, Json]:
    """Return a self-contained schema for each JSON payload of the topic table, by short name."""
    schemas = {}
    for row in topics.TABLE:
        if isinstance(row.payload, str):  # plain text has no JSON Schema
            continue
        schema = msgspec.json.schema(row.payload)
        for definition in schema["$defs"].values():
            _finish(definition, is_heard=row.is_heard)
        root = schema["$defs"][row.payload.__name__]
        if row.payload is Result:
            root.update(_one_kind_of_finding())
        identifier = _schema_id(row.payload)
        schemas[identifier.split("/")[1]] = {
            "$schema": DRAFT,
            "$id": "urn:" + identifier.replace("/", ":"),
            "title": identifier,
            "description": f"{root['description']}\n\nTopic: {_places(row)}",
            **schema,
        }
    return schemas


def _places(row: TopicRow) -> str:
    return ", ".join(one.pattern for one in topics.TABLE if one.payload is row.payload)


def _schema_id(payload: type[Struct]) -> str:
    """Return what a payload writes into its own `schema` field, such as edge-agent/status/1."""
    identifier: str = next(
        field.default for field in msgspec.structs.fields(payload) if field.name == "schema"
    )
    return identifier


def _finish(definition: Json, *, is_heard: bool) -> None:
    """Say what the types mean but msgspec does not: we write a field with a default always."""
    if "description" in definition:
        definition["description"] = inspect.cleandoc(definition["description"])
    for pattern in _patterns(definition):
        # Python's end of a text; ECMA 262, which JSON Schema's patterns are of, has no other.
        pattern["pattern"] = pattern["pattern"].replace(r"\Z", "$")
    if is_heard:
        return
    properties: Json = definition.get("properties", {})
    required = definition.get("required", [])
    definition["required"] = [
        name for name, value in properties.items() if name in required or "default" in value
    ]


def _patterns(schema: object) -> Iterator[Json]:
    """Yield the parts of a schema that have a pattern."""
    parts = schema if isinstance(schema, list) else []
    if isinstance(schema, dict):
        parts = list(schema.values())
        if isinstance(schema.get("pattern"), str):
            yield schema
    for part in parts:
        yield from _patterns(part)


def _one_kind_of_finding() -> Json:
    """Return what the type of a result cannot say: it has the list of one task, never two."""
    return {"oneOf": [{"required": [name]} for name in FINDINGS.values()]}


def asyncapi() -> Json:
    """Return the AsyncAPI document: where each payload is found and how it is sent."""
    return {
        "asyncapi": ASYNCAPI_VERSION,
        "info": {
            "title": "edge-agent",
            "version": __version__,
            "description": "What a board publishes and hears over MQTT. Units are in the names, "
            "times are Unix seconds, unknown is null.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {_key(row): _channel(row) for row in topics.TABLE},
        "operations": {f"{_action(row)}-{_key(row)}": _operation(row) for row in topics.TABLE},
        "components": {
            "messages": {_key(row): _message(row) for row in topics.TABLE},
            "schemas": _components(),
        },
    }


def _key(row: TopicRow) -> str:
    """Return the short name of a row: of its payload, or of its topic where that is text."""
    if isinstance(row.payload, str):
        return row.pattern.rsplit("/", 1)[-1]
    name = _schema_id(row.payload).split("/")[1]
    return f"group-{name}" if "<g>" in row.pattern else name


def _action(row: TopicRow) -> str:
    return "receive" if row.is_heard else "send"


def _channel(row: TopicRow) -> Json:
    address = row.pattern
    for name in PARAMETERS:
        address = address.replace(f"<{name[0]}>", f"{{{name}}}")
    return {
        "address": address,
        "description": row.says,
        "parameters": {
            name: {"description": PARAMETERS[name]} for name in re.findall(r"{(\w+)}", address)
        },
        "messages": {_key(row): {"$ref": f"#/components/messages/{_key(row)}"}},
    }


def _operation(row: TopicRow) -> Json:
    is_configurable = row in (topics.DETECTIONS, topics.TELEMETRY)
    how = "QoS as `mqtt.qos` says, 1 unless configured" if is_configurable else "always QoS 1"
    if row.is_heard:
        how = "subscribed to with QoS 1"
    return {
        "action": _action(row),
        "channel": {"$ref": f"#/channels/{_key(row)}"},
        "summary": row.says,
        "description": f"{'Retained' if row.retained else 'Not retained'}; {how}.",
        "bindings": {
            "mqtt": {"qos": 1, "retain": row.retained, "bindingVersion": MQTT_BINDING_VERSION}
        },
        "messages": [{"$ref": f"#/channels/{_key(row)}/messages/{_key(row)}"}],
    }


def _message(row: TopicRow) -> Json:
    if isinstance(row.payload, str):
        choices = row.payload.split(" | ")
        return {
            "name": _key(row),
            "contentType": "text/plain",
            "payload": {"type": "string", "enum": choices},
        }
    return {
        "name": _key(row),
        "title": _schema_id(row.payload),
        "contentType": "application/json",
        "payload": {"$ref": f"#/components/schemas/{row.payload.__name__}"},
    }


def _components() -> Json:
    payloads = [row.payload for row in topics.TABLE if not isinstance(row.payload, str)]
    heard = {
        row.payload.__name__
        for row in topics.TABLE
        if row.is_heard and not isinstance(row.payload, str)
    }
    _, components = msgspec.json.schema_components(
        payloads, ref_template="#/components/schemas/{name}"
    )
    for name, definition in components.items():
        _finish(definition, is_heard=name in heard)
    components[Result.__name__].update(_one_kind_of_finding())
    return {name: _as_draft_07(definition) for name, definition in components.items()}


def _as_draft_07(schema: Json) -> Json:
    """Return the schema with tuples written as before draft 2020-12."""
    written = {key: _inside(value) for key, value in schema.items()}
    if "prefixItems" in written:
        # The number of items is fixed by minItems and maxItems, so nothing is lost.
        written["items"] = written.pop("prefixItems")
    return written


def _inside(value: object) -> object:
    if isinstance(value, dict):
        return _as_draft_07(value)
    return [_inside(part) for part in value] if isinstance(value, list) else value
