"""What SIGHUP means: whether the settings that are on disk now can and must replace ours.

A new configuration takes effect by starting anew in the same process: `re_execute` replaces this
program by itself, under the same process id, so that systemd sees a reload and no restart. A
configuration that cannot be used is refused before anything is stopped.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from agent.config import Config

# A file as stat(2) tells it apart from what lay there before; None where there is none.
FileState = tuple[int, int, int] | None

# A killed child is gone in some 10 ms; one that took only idle processor time may need a second to
# die, and one that a driver holds is not waited for.
CHILDREN_END_WITHIN_S = 2.0
LOOK_S = 0.02


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
    see_off_children(CHILDREN_END_WITHIN_S)
    sys.stdout.flush()
    sys.stderr.flush()
    # orig_argv: with the interpreter's own options; its name may have been looked up on the PATH.
    command = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, command, {**os.environ, **variables})  # noqa: S606


def see_off_children(within_s: float) -> None:
    """Wait for children that were killed: they stay ours, and the next program knows none of them.

    Whoever started one may not ask for it any more.
    """
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            time.sleep(LOOK_S)


def accept_signals() -> None:
    """Take what `re_execute` of the program before us has held back; call it with handlers set."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
