"""Settings: one typed table per TOML section, and a loader that reports every fault at once.

The structs below are the only list of keys, defaults, limits and help texts; the example
configuration, the README's table and `edge-agent check` are held against them by tests.
Each section is handed on by value to whoever needs it; nobody but `cli` and the
composition root sees a whole `Config`.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta, Struct, field

from agent.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_CONFIG_PATH = Path("/etc/edge-agent/agent.toml")
# A configuration is a page of text; anything larger is not one and is not read.
MAX_CONFIG_BYTES = 1 << 20

# Names become MQTT topic levels and Home Assistant object ids, so no `/`, `+`, `#` or spaces.
NAME_PATTERN = "^[A-Za-z0-9_-]{1,64}$"
Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
NameOrEmpty = Annotated[str, Meta(pattern=NAME_PATTERN.replace("{1,", "{0,"))]
Probability = Annotated[float, Meta(ge=0.0, le=1.0)]
Accelerator = Annotated[str, Meta(pattern=r"^(auto|cpu|edgetpu(:(usb|pci):[0-9]+)?|delegate:/.+)$")]
Publish = Literal["all", "detections", "changes"]
Runtime = Literal["auto", "litert", "tflite-runtime"]


def help_text(text: str) -> Meta:
    """Return the annotation that documents a key."""
    return Meta(description=text)


class DeviceConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[device]: who this board is."""

    id: Annotated[NameOrEmpty, help_text("empty: a stable id from /etc/machine-id")] = ""
    groups: Annotated[tuple[Name, ...], help_text("groups of boards this one belongs to")] = ()
    state_dir: Annotated[str, help_text("where the agent keeps its own state")] = (
        "/var/lib/edge-agent"
    )


class ModelConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[model]: what runs, on what, and which of its findings count."""

    path: Annotated[str, help_text("a name in models/, a .tflite file, or a folder with one")] = (
        "default"
    )
    accelerator: Annotated[
        Accelerator,
        help_text("auto | cpu | edgetpu | edgetpu:usb:0 | edgetpu:pci:0 | delegate:/path/lib.so"),
    ] = "auto"
    runtime: Annotated[Runtime, help_text("auto takes litert where it is installed")] = "auto"
    threads: Annotated[
        Annotated[int, Meta(ge=0, le=64)], help_text("interpreter threads; 0: chosen by cores")
    ] = 0
    labels_file: Annotated[str, help_text("one label per line; empty: the model's own labels")] = ""
    score_threshold: Annotated[
        Probability | None, help_text("absent: what the model's manifest says, else 0.5")
    ] = None
    labels: Annotated[dict[str, Probability], help_text("thresholds for single labels")] = field(
        default_factory=dict
    )
    only_listed: Annotated[bool, help_text("true: `labels` is an allow list as well")] = False


class CameraConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[[camera]]: one source of frames."""

    name: Annotated[Name, help_text("part of the topic")] = "camera"
    source: Annotated[
        Annotated[str, Meta(min_length=1)],
        help_text(
            "auto | /dev/videoN | rtsp://… | http://… | file.mp4 | images:DIR | picamera"
            " | gst:<pipeline> | synthetic"
        ),
    ] = "auto"
    width: Annotated[
        Annotated[int, Meta(ge=0, le=16384)], help_text("asked of the camera; 0: its own choice")
    ] = 0
    height: Annotated[
        Annotated[int, Meta(ge=0, le=16384)], help_text("asked of the camera; 0: its own choice")
    ] = 0
    fps: Annotated[
        Annotated[float, Meta(ge=0.0, le=1000.0)],
        help_text("highest rate; 0: as fast as it comes"),
    ] = 0.0
    realtime: Annotated[
        bool, help_text("files only: play at the clip's own rate and drop like a live camera")
    ] = False
    loop: Annotated[bool, help_text("files only: start again at the end")] = False
    publish: Annotated[
        Publish, help_text("every frame, frames with detections, or frames where they changed")
    ] = "all"


class MqttConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[mqtt]: the broker."""

    url: Annotated[
        Annotated[str, Meta(pattern=r"^mqtts?://[^/@\s]+/?$")],
        help_text("mqtt://host:port, or mqtts:// for TLS"),
    ] = "mqtt://localhost:1883"
    prefix: Annotated[
        Annotated[str, Meta(pattern=r"^[^+#\s/]+(/[^+#\s/]+)*$")], help_text("first topic level")
    ] = "edge"
    qos: Annotated[Literal[0, 1], help_text("of results and telemetry")] = 1
    username: Annotated[str, help_text("empty: none")] = ""
    password_file: Annotated[str, help_text("file with the password on its first line")] = ""
    ca_file: Annotated[str, help_text("own certificate authority; empty: the system's")] = ""
    cert_file: Annotated[str, help_text("client certificate")] = ""
    key_file: Annotated[str, help_text("its key")] = ""
    outbox_max_mb: Annotated[
        Annotated[float, Meta(gt=0, le=4096)],
        help_text("results kept (in memory) while the broker is away; the oldest go first"),
    ] = 16.0


class TelemetryConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[telemetry]: how often the board speaks of itself."""

    interval_s: Annotated[
        Annotated[float, Meta(ge=1.0, le=86400.0)], help_text("seconds between messages")
    ] = 10.0


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole configuration file."""

    device: DeviceConfig = DeviceConfig()
    model: ModelConfig = ModelConfig()
    camera: tuple[CameraConfig, ...] = (CameraConfig(),)
    mqtt: MqttConfig = MqttConfig()
    telemetry: TelemetryConfig = TelemetryConfig()


# Keys of the design that this version reads but does not act on yet; each is said in a warning.
RESERVED: dict[str, frozenset[str]] = {
    "mqtt": frozenset({"discovery"}),
    "telemetry": frozenset({"prometheus"}),
    "update": frozenset({"enabled", "repository", "root", "probation_s"}),
}

SECTIONS: dict[str, type[Struct]] = {
    "device": DeviceConfig,
    "model": ModelConfig,
    "camera": CameraConfig,
    "mqtt": MqttConfig,
    "telemetry": TelemetryConfig,
}


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
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError([f"not valid TOML: {error}"], where=where) from error
    problems: list[str] = []
    warnings: list[str] = []
    values: dict[str, Any] = {}
    for name, content in table.items():
        if name == "camera":
            values["camera"] = _cameras(content, problems)
        elif name in SECTIONS:
            section = _section(SECTIONS[name], content, name, problems, warnings)
            if section is not None:
                values[name] = section
        elif name in RESERVED:
            warnings.append(f"[{name}]: accepted, but this version does not act on it yet")
        else:
            problems.append(f"{name}: unknown section{_nearest(name, [*SECTIONS, *RESERVED])}")
    if not problems:
        config = Config(**values)
        problems = _contradictions(config)
        if not problems:
            return config, warnings
    raise ConfigError(problems, where=where)


def parse_model(**values: Any) -> ModelConfig:
    """Return a [model] section from values given on the command line, held to the same limits."""
    problems: list[str] = []
    section = _section(ModelConfig, values, "model", problems, [])
    if section is None:
        raise ConfigError(problems, where="command line")
    problems += _unreadable("model.labels_file", section.labels_file)
    if problems:
        raise ConfigError(problems, where="command line")
    return section  # type: ignore[no-any-return]


def _cameras(content: object, problems: list[str]) -> tuple[Any, ...]:
    if not isinstance(content, list) or not content:
        problems.append("camera: write each camera as a [[camera]] section with double brackets")
        return ()
    found = [
        _section(CameraConfig, entry, f"camera[{index}]", problems, [])
        for index, entry in enumerate(content)
    ]
    return tuple(camera for camera in found if camera is not None)


def _section(
    struct: type[Struct], content: object, path: str, problems: list[str], warnings: list[str]
) -> Any:
    """Return the section as its struct, or None where anything in it is wrong."""
    if not isinstance(content, dict):
        problems.append(f"{path} = {_shown(content)}: must be a section, [{path}]")
        return None
    hints = get_type_hints(struct, include_extras=True)
    reserved = RESERVED.get(path, frozenset())
    values: dict[str, Any] = {}
    before = len(problems)
    for key, value in content.items():
        if key in reserved:
            warnings.append(f"{path}.{key}: accepted, but this version does not act on it yet")
        elif key not in hints:
            problems.append(
                f"{path}.{key} = {_shown(value)}: unknown key{_nearest(key, list(hints))}"
            )
        else:
            values[key] = _value(f"{path}.{key}", value, hints[key], problems)
    return struct(**values) if len(problems) == before else None


def _value(key: str, value: object, wanted: Any, problems: list[str]) -> Any:
    """Return the value as its type; a table's entries are looked at one by one."""
    schema = msgspec.json.schema(wanted)
    if isinstance(value, dict) and schema.get("type") == "object":
        inner = get_args(get_args(wanted)[0])[1]
        return {name: _value(f"{key}.{name}", one, inner, problems) for name, one in value.items()}
    try:
        # msgspec compares, and no comparison with NaN is true: it would pass any limit.
        if isinstance(value, float) and math.isnan(value):
            raise msgspec.ValidationError
        return msgspec.convert(value, wanted)
    except msgspec.ValidationError:
        choices = [choice for choice in schema.get("enum", []) if isinstance(choice, str)]
        hint = _nearest(value, choices) if isinstance(value, str) and choices else ""
        problems.append(f"{key} = {_shown(value)}: must be {_allowed(schema)}{hint}")
        return None


def _allowed(schema: dict[str, Any]) -> str:
    """Say in words what a JSON Schema of one key allows."""
    if "anyOf" in schema:
        return " or ".join(_allowed(part) for part in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(_shown(choice) for choice in schema["enum"])
    words: dict[str, Callable[[], str]] = {
        "integer": lambda: "a whole number" + _range(schema),
        "number": lambda: "a number" + _range(schema),
        "string": lambda: _text(schema),
        "array": lambda: f"a list, each {_allowed(schema.get('items', {}))}",
        "object": lambda: f"a table, each value {_allowed(schema['additionalProperties'])}",
        "boolean": lambda: "true or false",
        "null": lambda: "absent",
    }
    return words[schema["type"]]()


def _range(schema: dict[str, Any]) -> str:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum")
    if low is None or high is None:
        return ""
    return f" {'above' if 'exclusiveMinimum' in schema else 'from'} {low:g} to {high:g}"


def _text(schema: dict[str, Any]) -> str:
    """A key whose help lists its forms is best described by them."""
    description = str(schema.get("description", ""))
    if "|" in description or "://" in description:
        return description
    if str(schema.get("pattern")).startswith("^[A-Za-z0-9_-]"):
        return "letters, digits, - and _, at most 64"
    return "text that is not empty" if schema.get("minLength") else "text in quotes"


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else f"; known: {', '.join(known)}"


def _shown(value: object) -> str:
    text = msgspec.json.encode(value).decode() if not isinstance(value, str) else f'"{value}"'
    return text if len(text) <= 80 else text[:77] + "..."


def _contradictions(config: Config) -> list[str]:
    """Return what no single key shows: duplicates, halves of pairs, files that are not there."""
    problems = []
    names = [camera.name for camera in config.camera]
    for index, name in enumerate(names):
        if name in names[:index]:
            problems.append(f'camera[{index}].name = "{name}": already used; give each its own')
    mqtt = config.mqtt
    if bool(mqtt.cert_file) != bool(mqtt.key_file):
        problems.append("mqtt.cert_file, mqtt.key_file: a client certificate needs both")
    if mqtt.url.startswith("mqtt://") and (mqtt.ca_file or mqtt.cert_file):
        problems.append(f'mqtt.url = "{mqtt.url}": TLS files are given, so it must be mqtts://')
    if mqtt.password_file and not mqtt.username:
        problems.append("mqtt.password_file: needs mqtt.username as well")
    for key in ("password_file", "ca_file", "cert_file", "key_file"):
        problems += _unreadable(f"mqtt.{key}", getattr(mqtt, key))
    problems += _unreadable("model.labels_file", config.model.labels_file)
    if config.model.only_listed and not config.model.labels:
        problems.append("model.only_listed = true: needs model.labels, else nothing would be left")
    return problems


def _unreadable(key: str, path: str) -> list[str]:
    if not path:
        return []
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as error:
        return [f'{key} = "{path}": cannot be read: {error.strerror}']
    return []


def device_id(config: DeviceConfig) -> str:
    """Return the configured id, or one derived from /etc/machine-id (never the raw id itself).

    machine-id(5) asks programs not to publish it, so a hash of it is used.
    """
    if config.id:
        return config.id
    try:
        machine = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        machine = ""
    seed = machine or socket.gethostname()
    return "edge-" + hashlib.sha256(f"edge-agent:{seed}".encode()).hexdigest()[:12]
