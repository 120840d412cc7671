"""What SIGHUP means: whether the settings that are on disk now can and must replace ours.

A new configuration takes effect by starting anew in the same process: `re_execute` replaces this
program by itself, under the same process id, so that systemd sees a reload and no restart. A
configuration that cannot be used is refused before anything is stopped.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from agent.config import Config

# A file as stat(2) tells it apart from what lay there before; None where there is none.
FileState = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration, and which version of the broker's secrets it was read with.

    Certificates are renewed and passwords changed under the same names.
    """

    config: Config
    files: tuple[FileState, ...]


def settings_of(config: Config) -> Settings:
    """Return a configuration together with the state of the files that [mqtt] names."""
    mqtt = config.mqtt
    paths = (mqtt.password_file, mqtt.ca_file, mqtt.cert_file, mqtt.key_file)
    return Settings(config=config, files=tuple(_state_of(path) for path in paths))


def _state_of(path: str) -> FileState:
    if not path:
        return None
    try:
        status = os.stat(path)  # noqa: PTH116 - follows links, as renewed certificates are
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def must_restart(running: Settings, load: Callable[[], tuple[Config, list[str]]]) -> bool:
    """Return whether the settings that are there now are others than those that run.

    Raises:
        ConfigError: they cannot be used; those that run go on.
    """
    config, _ = load()
    return settings_of(config) != running


def re_execute(variables: Mapping[str, str]) -> NoReturn:
    """Start this program anew in this process, as it was started.

    Call it with all work ended: every thread is gone afterwards and every socket closed. SIGHUP is
    held back until the new program has called `accept_signals`, as it would end it before.

    Args:
        variables: of the environment, on top of ours: `Notifier.variables`.

    Raises:
        OSError: the interpreter is not there any more.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    sys.stdout.flush()
    sys.stderr.flush()
    # orig_argv: with the interpreter's own options; its name may have been looked up on the PATH.
    command = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, command, {**os.environ, **variables})  # noqa: S606


def accept_signals() -> None:
    """Take what `re_execute` of the program before us has held back; call it with handlers set."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
