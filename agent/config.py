"""Settings: one typed table per TOML section.

The structs below, with RULES for what a type cannot say, are the only list of keys, defaults,
limits and help texts; the example configuration is held against them by a test, and
`config_file` reads and explains a file by them alone. Each section is handed on by value to
whoever needs it; nobody but `cli` and the composition root sees a whole `Config`.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from msgspec import Meta, Struct, field

from agent.address import FORMS, parse_address

REPOSITORY_FORMS = "https://host/path, http://host/path, file:///folder or mqtt:"
DEFAULT_CONFIG_PATH = Path("/etc/edge-agent/agent.toml")
# MQTT 5, 1.5.4 allows a topic 65,535 bytes; the levels behind the prefix are names of at most
# 64 characters, and nobody can read or route topics beyond this.
MAX_PREFIX_BYTES = 200

# Names become MQTT topic levels and Home Assistant object ids, so no `/`, `+`, `#` or spaces.
# (`$` would let a line end pass.)
NAME_PATTERN = r"^[A-Za-z0-9_-]{1,64}\Z"
Repository = Annotated[
    str | Annotated[tuple[str, ...], Meta(min_length=1, max_length=8)],
    Meta(title=f"{REPOSITORY_FORMS}, or a list of up to 8 of these"),
]
Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
NameOrEmpty = Annotated[str, Meta(pattern=NAME_PATTERN.replace("{1,", "{0,"))]
Probability = Annotated[float, Meta(ge=0.0, le=1.0)]
Accelerator = Annotated[
    str, Meta(pattern=r"^(auto|cpu|edgetpu(:(usb|pci):[0-9]+)?|delegate:/.+)\Z")
]
Publish = Literal["all", "detections", "changes"]
Runtime = Literal["auto", "litert", "tflite-runtime"]
Xnnpack = Literal["auto", "on", "off"]
Nms = Literal["per_class", "agnostic"]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
# Titles say in words what a type allows where its parts alone would not.
Corner = Annotated[tuple[Share, Share], Meta(title="a corner [x, y], each from 0 to 1")]
# A closed line; x and y are shares of the frame's width and height.
Polygon = Annotated[
    tuple[Corner, ...],
    Meta(
        min_length=3,
        max_length=64,
        title="a polygon: a list of 3 to 64 corners [x, y], each from 0 to 1",
    ),
]
Region = Annotated[
    tuple[Share, Share, Share, Share],
    Meta(title="a list [x_min, y_min, x_max, y_max], each from 0 to 1"),
]
_UpTo100 = Annotated[int, Meta(ge=1, le=100)]
Confirm = Annotated[
    tuple[_UpTo100, _UpTo100], Meta(title="a list [n, m] of whole numbers from 1 to 100")
]
OptionText = Annotated[str, Meta(title="text in quotes, a whole number, true or false")]


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


class SecondStage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[[model.then]]: another model on the boxes this one finds."""

    model: Annotated[Name, help_text("a name in [models]")]
    labels: Annotated[tuple[str, ...], help_text("boxes it looks at; empty: all")] = ()
    margin: Annotated[Share, help_text("added to each side, as a share of the box's size")] = 0.1
    max_crops: Annotated[
        Annotated[int, Meta(ge=1, le=64)], help_text("per frame, best scores first")
    ] = 4
    budget_ms: Annotated[
        Annotated[float, Meta(gt=0, le=60000.0)],
        help_text("of this stage per frame; no further crop is begun that would exceed it"),
    ] = 100.0


class ModelConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[model] and [models.NAME]: what runs, on what, and which of its findings count."""

    path: Annotated[str, help_text("a name in models/, a .tflite file, or a folder with one")] = (
        "default"
    )
    accelerator: Annotated[
        Accelerator,
        help_text("auto | cpu | edgetpu | edgetpu:usb:0 | edgetpu:pci:0 | delegate:/path/lib.so"),
    ] = "auto"
    delegate_options: Annotated[
        dict[str, OptionText], help_text("handed to the delegate's library as they are")
    ] = field(default_factory=dict)
    runtime: Annotated[Runtime, help_text("auto: measured on this board")] = "auto"
    xnnpack: Annotated[Xnnpack, help_text("auto: measured on this board")] = "auto"
    threads: Annotated[
        Annotated[int, Meta(ge=0, le=64)], help_text("interpreter threads; 0: measured here")
    ] = 0
    labels_file: Annotated[str, help_text("one label per line; empty: the model's own labels")] = ""
    score_threshold: Annotated[
        Probability | None, help_text("absent: what the manifest says, else what suits its kind")
    ] = None
    labels: Annotated[dict[str, Probability], help_text("thresholds for single labels")] = field(
        default_factory=dict
    )
    only_listed: Annotated[bool, help_text("true: `labels` is an allow list as well")] = False
    deny: Annotated[tuple[str, ...], help_text("labels that are never published")] = ()
    max_detections: Annotated[
        Annotated[int, Meta(ge=1, le=1000)] | None, help_text("absent: what the manifest says")
    ] = None
    iou_threshold: Annotated[
        Probability | None, help_text("overlap from which the lower score goes; absent: manifest's")
    ] = None
    nms: Annotated[
        Nms | None, help_text("whether boxes of different classes suppress each other")
    ] = None
    then: Annotated[tuple[SecondStage, ...], help_text("further models on its boxes")] = ()


class CameraConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[[camera]]: one source of frames."""

    name: Annotated[Name, help_text("part of the topic")] = "camera"
    source: Annotated[
        Annotated[str, Meta(min_length=1)],
        help_text(
            "auto | /dev/videoN | /dev/v4l/by-id/… | rtsp://… | http://… | file.mp4 | images:DIR"
            " | picamera | gst:<pipeline> | synthetic"
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
    model: Annotated[NameOrEmpty, help_text("a name in [models]; empty: [model]")] = ""
    region: Annotated[
        Region | None,
        help_text("the part the model sees: x_min, y_min, x_max, y_max as shares of the frame"),
    ] = None
    zones: Annotated[tuple[Polygon, ...], help_text("only what stands in one of these counts")] = ()
    masks: Annotated[tuple[Polygon, ...], help_text("what stands in one of these is ignored")] = ()
    min_area: Annotated[Share, help_text("smallest box, as a share of the frame")] = 0.0
    max_area: Annotated[Share, help_text("largest box, as a share of the frame")] = 1.0
    confirm: Annotated[
        Confirm, help_text("[n, m]: a finding counts once seen in n of the last m frames")
    ] = (1, 1)
    motion: Annotated[
        Share, help_text("share of the picture that must change for a look; 0: every frame")
    ] = 0.0
    deadline_ms: Annotated[
        Annotated[float, Meta(ge=0, le=3600000.0)],
        help_text("from capture to result; later ones are counted as misses; 0: none"),
    ] = 0.0
    motion_look_s: Annotated[
        Annotated[float, Meta(ge=0.1, le=86400.0)], help_text("a look all the same this often")
    ] = 10.0


class MqttConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[mqtt]: the broker."""

    url: Annotated[str, help_text(FORMS)] = "mqtt://localhost:1883"
    prefix: Annotated[str, help_text("first topic level, or several with / between")] = "edge"
    qos: Annotated[Literal[0, 1], help_text("of results and telemetry")] = 1
    username: Annotated[str, help_text("empty: none")] = ""
    password_file: Annotated[str, help_text("file with the password on its first line")] = ""
    ca_file: Annotated[str, help_text("own certificate authority; empty: the system's")] = ""
    cert_file: Annotated[str, help_text("client certificate")] = ""
    key_file: Annotated[str, help_text("its key")] = ""
    outbox_max_mb: Annotated[
        Annotated[float, Meta(ge=0.01, le=4096)],
        help_text(
            "of disk for what waits while the broker is away; then the oldest go, and are named"
        ),
    ] = 256.0
    discovery: Annotated[
        str, help_text("first topic level of Home Assistant's discovery; off: none is published")
    ] = "homeassistant"


def check_listen(text: str) -> tuple[str, int] | None:
    """Return where to listen, None for nowhere; a port alone means this machine only.

    Raises:
        ValueError: with what is allowed.
    """
    if not text:
        return None
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError('must be a port or address:port, such as "127.0.0.1:9464"; "": off')
    return host, int(port)


class TelemetryConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[telemetry]: how often the board speaks of itself."""

    interval_s: Annotated[
        Annotated[float, Meta(ge=1.0, le=86400.0)], help_text("seconds between messages")
    ] = 10.0
    prometheus: Annotated[
        str,
        help_text("address:port of /metrics, /healthz and /readyz; a port alone: this board only"),
    ] = ""


def check_repository(mirrors: str | tuple[str, ...]) -> None:
    """Refuse what no repository can be asked at.

    Raises:
        ValueError: with what is allowed.
    """
    for url in mirrors_of(mirrors):
        parts = urlsplit(url)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_folder = parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path
        if not is_web and not is_folder and url != "mqtt:":
            raise ValueError(f"must be {REPOSITORY_FORMS}, or a list of these")
        if parts.query or parts.fragment:
            raise ValueError("must have no ? and no #, as files are asked for below it")


def mirrors_of(repository: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the urls of `update.repository`, none where there is none."""
    if isinstance(repository, str):
        return (repository,) if repository else ()
    return repository


class UpdateConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[update]: models over the air."""

    enabled: Annotated[bool, help_text("false: orders are refused, and what runs stays")] = True
    repository: Annotated[
        Repository,
        help_text(f"of signed models: {REPOSITORY_FORMS}; a list: mirrors, in this order"),
    ] = ""
    root: Annotated[
        str, help_text("whom this board believes: the root.json of `edge-agent repo init`")
    ] = "/etc/edge-agent/root.json"
    ca_file: Annotated[
        str, help_text("own certificate authority of an https:// one; empty: the system's")
    ] = ""
    probation_s: Annotated[
        Annotated[float, Meta(ge=1.0, le=86400.0)],
        help_text("how long a new model must do well before it stays, in seconds"),
    ] = 600.0


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole configuration file."""

    device: DeviceConfig = DeviceConfig()
    model: ModelConfig = ModelConfig()
    models: dict[Name, ModelConfig] = field(default_factory=dict)
    camera: tuple[CameraConfig, ...] = (CameraConfig(),)
    mqtt: MqttConfig = MqttConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    update: UpdateConfig = UpdateConfig()


# [models.NAME] sections are of the type of [model], and there may be any number of them.
SECTIONS: dict[str, type[Struct]] = {
    "device": DeviceConfig,
    "model": ModelConfig,
    "camera": CameraConfig,
    "mqtt": MqttConfig,
    "telemetry": TelemetryConfig,
    "update": UpdateConfig,
}


def check_prefix(prefix: str) -> None:
    """Hold `mqtt.prefix` against what MQTT 5, 4.7 allows in the name of a topic.

    Raises:
        ValueError: with what is allowed.
    """
    if "" in prefix.split("/"):
        raise ValueError("must have no empty level: no / at either end and no two in a row")
    if prefix.startswith("$"):
        # 4.7.2: brokers keep these topics for themselves, and `#` does not show them.
        raise ValueError("must not begin with $, as brokers hide such topics from `#`")
    # 1.5.4: control characters and non-characters may cost the connection.
    if not prefix.isprintable() or set(prefix) & set(" +#"):
        raise ValueError("must be topic levels without spaces, control characters, + and #")
    if len(prefix.encode()) > MAX_PREFIX_BYTES:
        raise ValueError(f"must be at most {MAX_PREFIX_BYTES} bytes")


def option_text(value: object) -> object:
    """Return a delegate's option as its library is given it.

    The interpreter hands on `str(value)` of whatever it gets (its load_delegate), and libedgetpu
    knows just these words, "True" and "False" (tflite/public/edgetpu.h, Usb.AlwaysDfu).
    """
    return str(value) if isinstance(value, int) else value


# Tables whose values may be written in other types than the settings have.
READINGS: dict[str, Callable[[object], object]] = {"delegate_options": option_text}


def check_region(region: tuple[float, float, float, float] | None) -> None:
    """Refuse a region that holds nothing.

    Raises:
        ValueError: with what is allowed.
    """
    if region is not None and (region[0] >= region[2] or region[1] >= region[3]):
        raise ValueError("holds nothing; x_min must be less than x_max, y_min less than y_max")


def check_confirm(confirm: tuple[int, int]) -> None:
    """Refuse to wait for what cannot happen.

    Raises:
        ValueError: with what is allowed.
    """
    wanted, frames = confirm
    if wanted > frames:
        raise ValueError(
            f"nothing can be seen {wanted} times in {frames} frames; the first number must not be"
            " greater than the second"
        )


def check_id(name: str) -> None:
    """Refuse an id whose topics would be another's.

    Raises:
        ValueError: with what is allowed.
    """
    if name == "group":
        raise ValueError("cannot be `group`, as groups of boards have their topics there")


# What a type cannot say. Each takes the value and raises ValueError with what is allowed.
RULES: dict[str, Callable[[Any], object]] = {
    "device.id": check_id,
    "mqtt.url": parse_address,
    "mqtt.prefix": check_prefix,
    "mqtt.discovery": check_prefix,
    "telemetry.prometheus": check_listen,
    "update.repository": check_repository,
    "camera.region": check_region,
    "camera.confirm": check_confirm,
}


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
