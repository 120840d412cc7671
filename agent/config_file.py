"""From a configuration file to settings, or to every fault in it at once.

Each fault is one line: the key, its value, what is allowed, the nearest right spelling. They
come in the order of the file, and what contradicts itself inside a section is said along with
what is wrong in another. No line shows a secret: passwords belong in files of their own, but
this is where people first write them.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import Struct

from agent.config import RESERVED, RULES, SECTIONS, CameraConfig, Config, ModelConfig, MqttConfig
from agent.errors import ConfigError
from agent.redaction import HIDDEN, redact

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# A configuration is a page of text; anything larger is not one and is not read.
MAX_CONFIG_BYTES = 1 << 20
# A shown value is there to be recognized; text beyond the second limit is not even looked at.
SHOWN_CHARACTERS = 80
READABLE_CHARACTERS = 2000

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SECRET = re.compile(r"(?i)pass|pwd|secret|token|key(?!_file)")

S = TypeVar("S", bound=Struct)


def load_config(path: Path) -> tuple[Config, list[str]]:
    """Read a TOML file; return the settings and the warnings about reserved keys.

    Raises:
        ConfigError: with every fault in the file, one line each.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror}"], where=str(path)) from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError([f"larger than {MAX_CONFIG_BYTES} bytes"], where=str(path))
    try:
        return parse_config(raw.decode("utf-8"), where=str(path))
    except UnicodeDecodeError as error:
        raise ConfigError([f"not UTF-8 text (byte {error.start})"], where=str(path)) from error


def parse_config(text: str, *, where: str = "configuration") -> tuple[Config, list[str]]:
    """Parse TOML text; see `load_config`."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also of numbers with 5000 digits
        raise ConfigError([f"not valid TOML: {error}"], where=where) from error
    problems: list[str] = []
    warnings: list[str] = []
    values: dict[str, Any] = {}
    for name, content in table.items():
        if name == "camera":
            values["camera"] = _cameras(content, problems)
        elif name in SECTIONS:
            section = _section(SECTIONS[name], content, name, problems, warnings)
            values[name] = section
            problems += _contradictions(section)
        elif name in RESERVED:
            warnings.append(f"[{name}]: accepted, but this version does not act on it yet")
        else:
            known = [*SECTIONS, *RESERVED]
            problems.append(f"{_bare(name)}: unknown section{_nearest(name, known)}")
    if problems:
        raise ConfigError(problems, where=where)
    return Config(**values), warnings


def parse_model(**values: object) -> ModelConfig:
    """Return a [model] section from values given on the command line, held to the same limits."""
    problems: list[str] = []
    section = _section(ModelConfig, values, "model", problems, [])
    problems += _contradictions(section)
    if section is None or problems:
        raise ConfigError(problems, where="command line")
    return section


def _cameras(content: object, problems: list[str]) -> tuple[CameraConfig, ...]:
    if not isinstance(content, list) or not content:
        problems.append("camera: write each camera as a [[camera]] section with double brackets")
        return ()
    found: dict[int, CameraConfig] = {}
    for index, entry in enumerate(content):
        camera = _section(CameraConfig, entry, f"camera[{index}]", problems, [])
        if camera is not None:
            problems += _collisions(index, camera, found)
            found[index] = camera
    return tuple(found.values())


def _section(
    struct: type[S], content: object, path: str, problems: list[str], warnings: list[str]
) -> S | None:
    """Return the section as its struct, or None where anything in it is wrong."""
    if not isinstance(content, dict):
        heading = "[[camera]]" if struct is CameraConfig else f"[{path}]"
        problems.append(f"{_shown(path, content)}: must be a section, {heading}")
        return None
    hints = get_type_hints(struct, include_extras=True)
    reserved = RESERVED.get(path, frozenset())
    values: dict[str, Any] = {}
    before = len(problems)
    for name, value in content.items():
        key = f"{path}.{_bare(name)}"
        if name in reserved:
            warnings.append(f"{key}: accepted, but this version does not act on it yet")
        elif name not in hints:
            problems.append(f"{_shown(key, value)}: unknown key{_nearest(name, list(hints))}")
        else:
            values[name] = _value(key, value, hints[name], problems)
    return struct(**values) if len(problems) == before else None


def _value(key: str, value: object, wanted: object, problems: list[str]) -> object:
    """Return the value as its type; a table's entries are looked at one by one."""
    schema = msgspec.json.schema(wanted)
    if isinstance(value, dict) and schema.get("type") == "object":
        inner = get_args(get_args(wanted)[0])[1]
        return {
            name: _value(f"{key}.{_bare(name)}", one, inner, problems)
            for name, one in value.items()
        }
    try:
        # msgspec compares, and no comparison with NaN is true: it would pass any limit.
        if isinstance(value, float) and math.isnan(value):
            raise msgspec.ValidationError
        converted: object = msgspec.convert(value, wanted)
        if key in RULES:
            RULES[key](str(converted))
        return converted
    except msgspec.ValidationError:
        choices = [choice for choice in schema.get("enum", []) if isinstance(choice, str)]
        hint = _nearest(value, choices) if isinstance(value, str) and choices else ""
        problems.append(f"{_shown(key, value)}: must be {_allowed(schema)}{hint}")
    except ValueError as error:
        problems.append(f"{_shown(key, value)}: {error}")
    return None


def _allowed(schema: dict[str, Any]) -> str:
    """Say in words what a JSON Schema of one key allows."""
    if "anyOf" in schema:
        return " or ".join(_allowed(part) for part in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(_text(choice) for choice in schema["enum"])
    words: dict[str, Callable[[], str]] = {
        "integer": lambda: "a whole number" + _range(schema),
        "number": lambda: "a number" + _range(schema),
        "string": lambda: _allowed_text(schema),
        "array": lambda: f"a list of names ({_allowed(schema['items'])})",
        "object": lambda: f"a table, each value {_allowed(schema['additionalProperties'])}",
        "boolean": lambda: "true or false",
        "null": lambda: "absent",
    }
    return words[schema["type"]]()


def _range(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    return "" if low is None or high is None else f" from {low:g} to {high:g}"


def _allowed_text(schema: dict[str, Any]) -> str:
    """A key whose help lists its forms is best described by them."""
    description = str(schema.get("description", ""))
    if "|" in description or "://" in description:
        return description
    if str(schema.get("pattern")).startswith("^[A-Za-z0-9_-]"):
        return "letters, digits, - and _, at most 64 characters"
    return "text that is not empty" if schema.get("minLength") else "text in quotes"


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else f"; known: {', '.join(known)}"


def _bare(name: str) -> str:
    """Return one part of a key as TOML writes it."""
    return name if _BARE_KEY.fullmatch(name) else _text(name)


def _shown(key: str, value: object) -> str:
    """Return `key = value` as TOML has it, on one line, cut short, without secrets."""
    text = _text(value, key)
    return (
        f"{key} = {text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + '...'}"
    )


def _text(value: object, key: str = "") -> str:
    if _is_secret(key, value):
        return HIDDEN
    if isinstance(value, str):
        return f'"{_readable(value)}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(_text(one, key) for one in value) + "]"
    if isinstance(value, dict):
        entries = ((_bare(name), one) for name, one in value.items())
        return (
            "{"
            + ", ".join(f"{name} = {_text(one, f'{key}.{name}')}" for name, one in entries)
            + "}"
        )
    if isinstance(value, int):
        return f"{value:#x}" if value.bit_length() > 64 else str(value)
    return str(value)  # numbers with a point, dates and times


def _is_secret(key: str, value: object) -> bool:
    """Return whether a value is hidden whole; where that is unclear, it is."""
    if isinstance(value, str) and "PRIVATE KEY" in value:
        return True
    # Labels are words of any kind, such as `keyboard`, and their values are thresholds.
    if not _SECRET.search(key) or key.startswith("model.labels."):
        return False
    # A path is no secret, but people also write the password itself into `password_file`.
    return not (key.endswith("_file") and isinstance(value, str) and value.startswith("/"))


def _readable(text: str) -> str:
    """Return text without passwords and with its control characters spelled out."""
    if len(text) > READABLE_CHARACTERS:
        return f"... {len(text)} characters ..."
    text = redact(text)
    before, at, _ = text.partition("@")
    if at and "://" not in before:
        # Credentials without a scheme, which `redact` leaves alone.
        text = HIDDEN + text[text.rindex("@") :]
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def _contradictions(section: Struct | None) -> list[str]:
    """Return what no single key shows: halves of pairs, files that are not there."""
    if isinstance(section, MqttConfig):
        return _mqtt_contradictions(section)
    if isinstance(section, ModelConfig):
        problems = _unreadable("model.labels_file", section.labels_file)
        if section.only_listed and not section.labels:
            problems.append(
                "model.only_listed = true: needs model.labels, else nothing would be left"
            )
        return problems
    return []


def _mqtt_contradictions(mqtt: MqttConfig) -> list[str]:
    problems = []
    if bool(mqtt.cert_file) != bool(mqtt.key_file):
        problems.append("mqtt.cert_file, mqtt.key_file: a client certificate needs both")
    if mqtt.url.startswith("mqtt://") and (mqtt.ca_file or mqtt.cert_file):
        problems.append(
            f"{_shown('mqtt.url', mqtt.url)}: TLS files are given, so it must be mqtts://"
        )
    if mqtt.password_file and not mqtt.username:
        problems.append("mqtt.password_file: needs mqtt.username as well")
    for key in ("password_file", "ca_file", "cert_file", "key_file"):
        problems += _unreadable(f"mqtt.{key}", getattr(mqtt, key))
    return problems


def _collisions(index: int, camera: CameraConfig, others: dict[int, CameraConfig]) -> list[str]:
    """Return what this camera has that only one camera can have: its name, its device."""
    problems = []
    if camera.name in {other.name for other in others.values()}:
        problems.append(f'camera[{index}].name = "{camera.name}": already used; give each its own')
    device = _device(camera.source)
    for at, other in others.items():
        if device and device == _device(other.source):
            problems.append(
                f"{_shown(f'camera[{index}].source', camera.source)}: cameras"
                f' "{other.name}" (camera[{at}]) and "{camera.name}" (camera[{index}]) would'
                " share one device; give each its own"
            )
            break
    return problems


def _device(source: str) -> str | None:
    """Return the device that a source takes for itself, or None where it can be shared."""
    if source == "auto" or source.startswith("/dev/"):
        return source
    found = re.fullmatch(r"picamera(?::0*(\d+))?", source)
    return f"picamera:{found[1] or 0}" if found else None


def _unreadable(key: str, path: str) -> list[str]:
    if not path:
        return []
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        return [f"{_shown(key, path)}: cannot be read: {reason}"]
    return []
