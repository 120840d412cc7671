"""The exception family: what went wrong, named after what the reader does next.

    AgentError                    exit 1
    ├── UsageError                exit 2   say it otherwise on the command line
    ├── ConfigError               exit 78  change the configuration file
    └── UnavailableError          exit 69  a needed service or device is not there
        ├── ModelError            give another model, or say what this one is
        ├── CameraError           look at the camera, its cable or its permissions
        └── BrokerError           look at the broker, its address or its credentials

Each message is one sentence that says what was wrong, where, and what to do.
Foreign exceptions are wrapped once, in the adapter that met them, with `from`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

# sysexits.h: EX_UNAVAILABLE and EX_CONFIG; systemd and shell scripts know them.
EXIT_OK = 0
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 69
EXIT_CONFIG = 78


class AgentError(Exception):
    """Anything this program refuses or fails at, with a sentence for people."""

    exit_code = EXIT_FAILURE


class ConfigError(AgentError):
    """The configuration cannot be used; `problems` holds every fault found, one line each."""

    exit_code = EXIT_CONFIG

    def __init__(self, problems: list[str], *, where: str = "") -> None:
        self.problems = problems
        head = f"{where}: " if where else ""
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{head}{count}", *(f"  {line}" for line in problems)]))


class UsageError(AgentError):
    """The command line lacks something, or its parts do not go together."""

    exit_code = EXIT_USAGE


class UnavailableError(AgentError):
    """A service, file or device that is needed is not there or does not answer."""

    exit_code = EXIT_UNAVAILABLE


class ModelError(UnavailableError):
    """A model that cannot be loaded or understood."""


class CameraError(UnavailableError):
    """A camera that cannot be opened or gives no frames."""


class BrokerError(UnavailableError):
    """An MQTT broker that cannot be reached or refuses us."""


def exit_code_of(work: Callable[[], int]) -> int:
    """Do a command's work; turn what goes wrong into a sentence on stderr and an exit code."""
    try:
        return work()
    except AgentError as error:
        print(f"edge-agent: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does; keep Python quiet at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
