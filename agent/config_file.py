"""From a configuration file to settings, or to every fault in it at once.

Each fault is one line: the key, its value, what is allowed, the nearest right spelling. They
come in the order of the file, and what contradicts itself inside a section is said along with
what is wrong in another.
"""

from __future__ import annotations

import errno
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

from agent.config import (
    NAME_PATTERN,
    READINGS,
    RULES,
    SECTIONS,
    CameraConfig,
    Config,
    ModelConfig,
    SecondStage,
)
from agent.config_conflicts import collisions, conflicts, doubts
from agent.config_words import allowed, bare, choices_of, nearest, shown
from agent.errors import ConfigError, UnavailableError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# A configuration is a page of text; anything larger is not one and is not read.
MAX_CONFIG_BYTES = 1 << 20
# open(2): errors that nothing but a change of the file or its rights will mend.
NEEDS_CORRECTION = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR),
    *(errno.ELOOP, errno.ENAMETOOLONG),
}

_INDEX = re.compile(r"\[\d+\]")

S = TypeVar("S", bound=Struct)


def load_config(path: Path) -> tuple[Config, list[str]]:
    """Read a TOML file; return the settings and warnings: keys and sections without effect.

    Raises:
        ConfigError: with every fault in the file, one line each.
        UnavailableError: the disk does not let it be read at this moment.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        if error.errno in NEEDS_CORRECTION:
            raise ConfigError([f"cannot be read: {error.strerror}"], where=str(path)) from error
        # Of the disk or the system, and perhaps gone at the next try: nothing to be corrected.
        raise UnavailableError(f"{path}: cannot be read: {error.strerror}") from error
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
    reader = Reader(table)
    values: dict[str, Any] = {}
    for name, content in table.items():
        if name == "camera":
            values["camera"] = reader.cameras(content)
        elif name == "models":
            values["models"] = reader.models(content)
        elif name in SECTIONS:
            values[name] = reader.section(SECTIONS[name], content, name)
        else:
            known = [*SECTIONS, "models"]
            reader.problems.append(f"{bare(name)}: unknown section{nearest(name, known)}")
    if reader.problems:
        raise ConfigError(reader.problems, where=where)
    config = Config(**values)
    return config, [*reader.unused_models(), *doubts(config.update)]


def parse_model(**values: object) -> ModelConfig:
    """Return a [model] section from values given on the command line, held to the same limits."""
    reader = Reader({})
    section = reader.section(ModelConfig, values, "model")
    if section is None or reader.problems:
        raise ConfigError(reader.problems, where="command line")
    return section


class Reader:
    """Reads the tables of one file and collects what is wrong with them."""

    def __init__(self, table: dict[str, Any]) -> None:
        self.problems: list[str] = []
        self._table = table
        # By name, as they are written: they may stand behind what names them.
        self._models: dict[str, Any] = _table_of(table.get("models"))

    def cameras(self, content: object) -> tuple[CameraConfig, ...]:
        """Return the [[camera]] sections that are right."""
        if not isinstance(content, list) or not content:
            self.problems.append(
                "camera: write each camera as a [[camera]] section with double brackets"
            )
            return ()
        found: dict[int, CameraConfig] = {}
        for index, entry in enumerate(content):
            camera = self.section(CameraConfig, entry, f"camera[{index}]")
            if camera is not None:
                self.problems += collisions(index, camera, found)
                found[index] = camera
        return tuple(found.values())

    def models(self, content: object) -> dict[str, ModelConfig | None]:
        """Return the [models.NAME] sections."""
        if not isinstance(content, dict):
            self.problems.append(f"{shown('models', content)}: write a section [models.NAME]")
            return {}
        for name in content:
            if not re.search(NAME_PATTERN, name):
                self.problems.append(
                    f"models.{bare(name)}: a model's name must be letters, digits, - and _, at"
                    " most 64 characters"
                )
        return {
            name: self.section(ModelConfig, entry, f"models.{bare(name)}")
            for name, entry in content.items()
        }

    def section(self, struct: type[S], content: object, path: str) -> S | None:
        """Return the section as its struct, or None where a key of it is wrong."""
        if not isinstance(content, dict):
            heading = f"[[{path[: path.rindex('[')]}]]" if path.endswith("]") else f"[{path}]"
            self.problems.append(f"{shown(path, content)}: must be a section, {heading}")
            return None
        hints = get_type_hints(struct, include_extras=True)
        values: dict[str, Any] = {}
        before = len(self.problems)
        for name, value in content.items():
            key = f"{path}.{bare(name)}"
            if name not in hints:
                self.problems.append(f"{shown(key, value)}: unknown key{nearest(name, [*hints])}")
            else:
                values[name] = self._key(struct, name, key, value, hints[name])
        for known in msgspec.structs.fields(struct):
            if known.required and known.name not in values:
                meant = allowed(msgspec.json.schema(hints[known.name]))
                self.problems.append(f"{path}.{known.name}: is missing; must be {meant}")
        if len(self.problems) > before:
            return None
        section = struct(**values)
        self.problems += conflicts(path, section)
        return section

    def _key(self, struct: type[Struct], name: str, key: str, value: object, hint: object) -> Any:
        """Return the value of one key of a section."""
        if name in READINGS and isinstance(value, dict):
            value = {option: READINGS[name](one) for option, one in value.items()}
        item = _item_type(hint)
        if isinstance(item, type) and issubclass(item, Struct):
            return self._subsections(item, value, key)
        before = len(self.problems)
        converted = self._value(key, value, hint)
        if name == "model" and converted and len(self.problems) == before:
            self._look_up(key, str(converted), is_second=struct is SecondStage)
        return converted

    def _subsections(self, struct: type[S], content: object, key: str) -> tuple[S | None, ...]:
        if not isinstance(content, list):
            self.problems.append(f"{key}: write each as a [[{key}]] section with double brackets")
            return ()
        return tuple(
            self.section(struct, entry, f"{key}[{index}]") for index, entry in enumerate(content)
        )

    def _look_up(self, key: str, name: str, *, is_second: bool) -> None:
        """Hold the name of a model against those there are."""
        if name not in self._models:
            self.problems.append(
                f"{shown(key, name)}: there is no section [models.{name}]"
                f"{nearest(name, [*self._models])}"
            )
        elif is_second and _table_of(self._models[name]).get("then"):
            self.problems.append(
                f"{shown(key, name)}: [models.{name}] has a second stage of its own, and there"
                " can be no third; name a model without [[models.NAME.then]]"
            )

    def _value(self, key: str, value: object, wanted: object) -> object:
        """Return the value as its type; entries of tables and lists are looked at one by one."""
        schema = msgspec.json.schema(wanted)
        before = len(self.problems)
        if isinstance(value, dict) and schema.get("type") == "object":
            inner = get_args(get_args(wanted)[0])[1]
            return {
                name: self._value(f"{key}.{bare(name)}", one, inner) for name, one in value.items()
            }
        item = _item_type(wanted)
        if isinstance(value, list) and item is not None and _has_shape_of(value, item):
            for index, one in enumerate(value):
                self._value(f"{key}[{index}]", one, item)
        if len(self.problems) > before:
            return None
        try:
            # msgspec compares, and no comparison with NaN is true: it would pass any limit.
            if any(isinstance(number, float) and math.isnan(number) for number in _leaves(value)):
                raise msgspec.ValidationError
            converted: object = msgspec.convert(value, wanted)
            rule = RULES.get(_INDEX.sub("", key))
            if rule is not None:
                rule(converted)
            return converted
        except msgspec.ValidationError:
            choices = choices_of(schema)
            hint = nearest(value, choices) if isinstance(value, str) and choices else ""
            self.problems.append(f"{shown(key, value)}: must be {allowed(schema)}{hint}")
        except ValueError as error:
            self.problems.append(f"{shown(key, value)}: {error}")
        return None

    def unused_models(self) -> list[str]:
        """Return a warning for each [models.NAME] that nothing names."""
        cameras = self._table.get("camera", [])
        first = [_table_of(self._table.get("model")), *map(_table_of, self._models.values())]
        seconds = [stage for model in first for stage in model.get("then", [])]
        used = {_table_of(one).get("model") for one in [*cameras, *seconds]}
        return [
            f"[models.{name}]: no camera and no second stage names it, so it is never loaded"
            for name in self._models
            if name not in used
        ]


def _table_of(content: object) -> dict[str, Any]:
    return content if isinstance(content, dict) else {}


def _item_type(hint: object) -> object:
    """Return the type of the entries of a list of any length, None of any other type."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _item_type(parts[0])
    if origin in (Union, UnionType):
        return next((item for part in parts if (item := _item_type(part)) is not None), None)
    return parts[0] if origin is tuple and parts[-1] is Ellipsis else None


def _has_shape_of(value: list[object], item: object) -> bool:
    """Return whether the entries are lists where they should be; if not, all of it is shown."""
    is_nested = msgspec.json.schema(item).get("type") == "array"
    return not is_nested or all(isinstance(one, list) for one in value)


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, list):
        for one in value:
            yield from _leaves(one)
    else:
        yield value
