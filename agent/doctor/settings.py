"""The configuration, and the files it names: can they be read, and by whom else?"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.config import DEFAULT_CONFIG_PATH, Config
from agent.config_file import load_config
from agent.doctor.check import Check, State, fail, ok, warn, worst
from agent.errors import ConfigError, UnavailableError
from agent.redaction import redact


def check_config(path: Path | None) -> tuple[Config | None, Check]:
    """Return the settings where they can be used."""
    if path is None and not DEFAULT_CONFIG_PATH.exists():
        message = f"there is no {DEFAULT_CONFIG_PATH}, so all settings are the defaults"
        return Config(), ok("config", message)
    path = path or DEFAULT_CONFIG_PATH
    try:
        config, warnings = load_config(path)
    except (ConfigError, UnavailableError) as error:
        remedy = f"correct {path}; everything else is checked once it can be read"
        return None, fail("config", str(error), remedy)
    if warnings:
        message = "\n".join([f"{path}:", *(f"  {warning}" for warning in warnings)])
        remedy = "the cameras are served as it is; correct what was meant otherwise"
        return config, warn("config", message, remedy)
    return config, ok("config", str(path))


@dataclass(frozen=True, slots=True)
class Named:
    """A file that a key of the configuration names."""

    key: str
    path: Path
    is_secret: bool = False


def named_files(config: Config, config_path: Path | None = None) -> Iterator[Named]:
    """Yield the files that the agent reads because the configuration says so, itself first."""
    if config_path is not None:
        holds_password = any(redact(one.source) != one.source for one in config.camera)
        yield Named("the configuration", config_path, holds_password)
    mqtt = config.mqtt
    for key, text, is_secret in (
        ("mqtt.password_file", mqtt.password_file, True),
        ("mqtt.ca_file", mqtt.ca_file, False),
        ("mqtt.cert_file", mqtt.cert_file, False),
        ("mqtt.key_file", mqtt.key_file, True),
    ):
        if text:
            yield Named(key, Path(text), is_secret)
    for name, model in {"": config.model, **config.models}.items():
        section = f"models.{name}" if name else "model"
        if model.labels_file:
            yield Named(f"{section}.labels_file", Path(model.labels_file))


def check_files(
    config: Config, config_path: Path | None = None, *, uid: int | None = None
) -> Check:
    """Whether these files can be read by this user, and secrets by nobody else.

    Models and clips are opened by the checks of their own.
    """
    files = list(named_files(config, config_path))
    faults = [fault for named in files if (fault := _fault_of(named, uid)) is not None]
    message = f"{len(files)} named in the configuration" if files else "none is named"
    return worst("files", "" if faults else message, faults)


def _fault_of(named: Named, uid: int | None) -> tuple[State, str, str] | None:
    try:
        status = named.path.stat()
        with named.path.open("rb"):
            pass
    except OSError as error:
        remedy = (
            f"correct {named.key}"
            if isinstance(error, FileNotFoundError)
            else f"sudo chgrp edge-agent {named.path}; sudo chmod g+r {named.path} (and let that "
            "group enter its folder)"
        )
        who = os.getuid() if uid is None else uid
        return "fail", f"{named.key}: {named.path}: {error.strerror} (as user {who})", remedy
    others = status.st_mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP)
    if named.is_secret and others:
        mode = stat.S_IMODE(status.st_mode)
        message = f"{named.key}: {named.path} holds a secret and has mode {mode:04o}"
        return "warn", message, f"sudo chmod 0640 {named.path}"
    return None
