"""One worker's life as its parent sees it: a process, our end of its link, its last words."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import agent
from agent.daemon.workers.restart_reasons import RestartReason
from agent.link import Failed, FromWorker, Inbox, ToWorker, open_link, send
from agent.trial_words import signal_name

# As `-m agent.vision.worker`, but this very package comes first on the path, and not the current
# folder with whatever modules lie there.
WORKER = "import sys; sys.path[0] = sys.argv.pop(1); from agent.vision.worker import main; main()"
# A process closes its link a moment before it can be told how it ended; most do so within
# milliseconds, and one that is dumped or stuck in a driver may never.
AT_ONCE_S = 0.05
ENDS_WITHIN_S = 1.0
COMMAND = [sys.executable, "-c", WORKER, str(Path(agent.__file__).parent.parent)]


def spawn_worker(worker_end: socket.socket) -> subprocess.Popen[bytes]:
    """Start a worker process on its end of a link."""
    descriptor = worker_end.fileno()
    return subprocess.Popen(
        [*COMMAND, str(descriptor)],
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # the terminal's Ctrl-C is for us; we end the worker
    )


@dataclass(slots=True)
class WorkerRun:
    """One worker, from its start to its end."""

    process: subprocess.Popen[bytes]
    link: socket.socket
    inbox: Inbox[FromWorker]
    started_at: float
    heard_at: float
    failure: Failed | None = None
    has_progressed: bool = False
    ready_at: float | None = None
    cameras_seen: set[str] = field(default_factory=set)  # that have come online
    replaced_by: float | None = None  # when it is killed if it has not ended as asked
    replaced_for: RestartReason = "accelerator_back"
    link_ended_at: float | None = None  # when its end was read

    def ask(self, message: ToWorker) -> bool:
        """Tell the worker something; False: it cannot be told."""
        try:
            send(self.link, message)
        except OSError:
            return False
        return True

    def obituary(self, now: float, *, is_starting: bool) -> tuple[RestartReason, str] | None:
        """Say why a worker that closed its link has ended, in short and so that people can act.

        None: it is ending.
        """
        try:
            code = self.process.wait(timeout=AT_ONCE_S)  # engines beside this one wait as long
        except subprocess.TimeoutExpired:
            if self.link_ended_at is not None and now - self.link_ended_at < ENDS_WITHIN_S:
                return None
            return "crashed", "worker closed its link but did not end; killed"
        if self.failure is not None:
            return "model" if self.failure.code == "model" else "crashed", self.failure.reason
        if code >= 0:
            return "crashed", f"worker ended with exit code {code}"
        name = signal_name(-code)
        if is_starting and -code in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS):
            return "model", f"the runtime crashed ({name}) while loading the model"
        return "crashed", f"worker died of {name}"


def launch(spawn: Callable[[socket.socket], subprocess.Popen[bytes]], now: float) -> WorkerRun:
    """Start a worker on a link of its own.

    Raises:
        OSError: no process can be started.
    """
    ours, theirs = open_link()
    try:
        process = spawn(theirs)
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    ours.setblocking(False)
    inbox: Inbox[FromWorker] = Inbox(ours, FromWorker)
    return WorkerRun(process=process, link=ours, inbox=inbox, started_at=now, heard_at=now)
