"""Which broker: the options of every command that talks to one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from agent.address import parse_address
from agent.config import Config, MqttConfig, check_prefix
from agent.errors import ConfigError

FindConfig = Callable[[Path | None], tuple[Config, list[str]]]


def add_broker(parser: argparse.ArgumentParser, find_config: FindConfig) -> None:
    """Add the options; `find_config` loads the named configuration, else the default one."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="whose [mqtt] is the broker's")
    parser.add_argument("--broker", default="", metavar="URL", help="mqtt://… or mqtts://…")
    parser.add_argument("--prefix", default="", help="first topic level (default edge)")
    parser.set_defaults(find_config=find_config)


def broker_of(arguments: argparse.Namespace) -> MqttConfig:
    """Return a configuration's settings, and what the command line says besides.

    Raises:
        ConfigError: either is wrong.
    """
    settings: MqttConfig = arguments.find_config(arguments.config)[0].mqtt
    for option, check in (("broker", parse_address), ("prefix", check_prefix)):
        value = getattr(arguments, option)
        if value:
            try:
                check(value)
            except ValueError as error:
                raise ConfigError([f"--{option}: {error}"], where="command line") from error
    url, prefix = arguments.broker or settings.url, arguments.prefix or settings.prefix
    return replace(settings, url=url, prefix=prefix)
