"""What no single key of the configuration shows: halves of pairs, files that are not there.

Each function takes sections whose keys are right one by one, and returns faults, one line each.
"""

from __future__ import annotations

import re
from pathlib import Path

from msgspec import Struct

from agent.config import CameraConfig, ModelConfig, MqttConfig, UpdateConfig, mirrors_of
from agent.config_words import shown


def conflicts(path: str, section: Struct | None) -> list[str]:
    """Return what contradicts itself inside one section, whose heading is `path`."""
    if isinstance(section, MqttConfig):
        return _in_mqtt(section)
    if isinstance(section, ModelConfig):
        return _in_model(path, section)
    if isinstance(section, CameraConfig):
        return _in_camera(path, section)
    return []


def _in_model(path: str, model: ModelConfig) -> list[str]:
    problems = _unreadable(f"{path}.labels_file", model.labels_file)
    if model.only_listed and not model.labels:
        problems.append(
            f"{path}.only_listed = true: needs {path}.labels, else nothing would be left"
        )
    for label in model.deny:
        if label in model.labels:
            problems.append(
                f"{shown(f'{path}.deny', model.deny)}: {path}.labels has a threshold for"
                f' "{label}", which would never be published; take it out of one of them'
            )
    return problems


def _in_camera(path: str, camera: CameraConfig) -> list[str]:
    if camera.min_area <= camera.max_area:
        return []
    return [
        f"{shown(f'{path}.min_area', camera.min_area)}: must be at most {path}.max_area,"
        f" {camera.max_area:g}"
    ]


def _in_mqtt(mqtt: MqttConfig) -> list[str]:
    problems = []
    if bool(mqtt.cert_file) != bool(mqtt.key_file):
        problems.append("mqtt.cert_file, mqtt.key_file: a client certificate needs both")
    if mqtt.url.startswith("mqtt://") and (mqtt.ca_file or mqtt.cert_file):
        problems.append(
            f"{shown('mqtt.url', mqtt.url)}: TLS files are given, so it must be mqtts://"
        )
    if mqtt.password_file and not mqtt.username:
        problems.append("mqtt.password_file: needs mqtt.username as well")
    for key in ("password_file", "ca_file", "cert_file", "key_file"):
        problems += _unreadable(f"mqtt.{key}", getattr(mqtt, key))
    return problems


def collisions(index: int, camera: CameraConfig, others: dict[int, CameraConfig]) -> list[str]:
    """Return what this camera has that only one camera can have: its name, its device."""
    problems = []
    if camera.name in {other.name for other in others.values()}:
        problems.append(f'camera[{index}].name = "{camera.name}": already used; give each its own')
    device = _device(camera.source)
    for at, other in others.items():
        if device and device == _device(other.source):
            problems.append(
                f"{shown(f'camera[{index}].source', camera.source)}: cameras"
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


def doubts(update: UpdateConfig) -> list[str]:
    """Return what keeps models from being updated: no reason not to serve the cameras."""
    mirrors = mirrors_of(update.repository)
    if not update.enabled or not mirrors:
        return []
    problems = _unreadable("update.root", update.root)
    if any(url.startswith("https:") for url in mirrors):
        problems += _unreadable("update.ca_file", update.ca_file)
    return [f"{problem}; no model can be taken over the air until then" for problem in problems]


def _unreadable(key: str, path: str) -> list[str]:
    if not path:
        return []
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        return [f"{shown(key, path)}: cannot be read: {reason}"]
    return []
