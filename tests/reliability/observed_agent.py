"""`edge-agent run`, watched and with switches for faults: `python -m … '{settings}' run …`.

The product's own entry point runs; before it does, `Outbox.put` is made to write the logbook,
and the methods named are wrapped by `faults`. Its workers get the same wrapping.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from agent.daemon import outbox
from agent.daemon.workers import worker_run
from reliability import faults
from reliability.logbook import Logbook

# What `worker_run` starts, with the faults installed before; argv: paths, settings, descriptor.
WORKER = """
import sys
sys.path[:1] = sys.argv.pop(1).split(":")
from reliability.observed_agent import prepare_worker
prepare_worker(sys.argv.pop(1))
from agent.vision.worker import main
main()
"""


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What is watched and wrapped; the folder holds the switches."""

    log: str = ""  # empty: nothing is written
    folder: str
    targets: tuple[str, ...] = ()
    worker_targets: tuple[str, ...] = ()


def prepare_worker(settings: str) -> None:
    """Install the faults of a worker."""
    observation = msgspec.json.decode(settings, type=Observation)
    faults.install(Path(observation.folder), observation.worker_targets)


def watch_puts(path: Path) -> None:
    """Have every numbered record written to the logbook before it is put."""
    logbook = Logbook(path)
    put = outbox.Outbox.put

    def noted_put(self: outbox.Outbox, record: outbox.Record) -> None:
        if record.seq > 0:
            logbook.note(record.stream, record.seq, record.payload)
        put(self, record)

    outbox.Outbox.put = noted_put  # type: ignore[method-assign]


def main() -> int:
    """Run the agent's command line."""
    settings = sys.argv.pop(1)
    observation = msgspec.json.decode(settings, type=Observation)
    if observation.log:
        watch_puts(Path(observation.log))
    faults.install(Path(observation.folder), observation.targets)
    if observation.worker_targets:
        *start, _code, path = worker_run.COMMAND
        paths = f"{path}:{Path(path) / 'tests'}"
        worker_run.COMMAND[:] = [*start, WORKER, paths, settings]
    from agent.cli import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
