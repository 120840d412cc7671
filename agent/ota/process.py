"""The update process: `python -m agent.ota.process`, one job on stdin, answers on stdout.

Short-lived on purpose. Signatures, TLS and JSON of strangers are read here and nowhere else, and
whatever they do to memory ends with the process. It has no credentials of the broker's, never
writes but into the folder or file that its job names, and no file longer than the job allows.
See `agent.ota.jobs` for what is said on both pipes.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent.errors import EXIT_FAILURE, EXIT_OK, EXIT_USAGE
from agent.niceness import stand_behind
from agent.ota import fetch
from agent.ota.compat import require_fit
from agent.ota.download import Download
from agent.ota.fetch_mqtt import Lines
from agent.ota.jobs import (
    MAX_JOB_BYTES,
    Downloaded,
    DownloadJob,
    Event,
    Job,
    MetadataJob,
    Progress,
    Refused,
    Resolved,
    Target,
    parse_job,
    to_line,
)
from agent.ota.refusal import RefusalError, of_disk
from agent.ota.transport import Transport
from agent.ota.worst import worst
from agent.redaction import redact

if TYPE_CHECKING:
    from agent.ota.trust import Repository

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 1.0
# Above the longest file of a repository's metadata, 5 MB.
LEAST_FILE_BYTES = 8 << 20
SLACK_BYTES = 64 << 10
NICE = 10
JOB_WITHIN_S = 30.0
MOST_LISTED = 1000

Connect = Callable[[str], Transport]
Emit = Callable[[Event], None]


class Resolution:
    """A job of `metadata`: one mirror after the other is asked, until one has what is wanted.

    Whatever a mirror has taught before it failed is kept: a root that was believed is believed.
    """

    def __init__(self, job: MetadataJob, connect: Connect) -> None:
        self._job = job
        self._connect = connect
        self._floors = job.floors
        self._at = max(job.at, job.floors.time)
        self._stale_days: float | None = None

    def run(self) -> Resolved | Refused:
        """Return how it went."""
        refusals: list[RefusalError] = []
        try:
            root = Path(self._job.root).read_bytes()
            with _alone(Path(self._job.metadata_dir)):
                for number, url in enumerate(self._job.repository):
                    answer = self._try(number, url, root)
                    if isinstance(answer, Resolved):
                        return answer
                    refusals.append(answer)
        except OSError as error:
            refusals.append(of_disk(error, str(error.filename or self._job.metadata_dir)))
        said = worst(refusals)
        stale_days = self._stale_days if said.code == "E_FREEZE" else None
        return Refused(
            code=said.code,
            message=str(said) if stale_days is None else f"{said} ({stale_days:.1f} days ago)",
            is_final=said.is_final,
            floors=self._floors,
            repo_stale_days=stale_days,
        )

    def _try(self, number: int, url: str, root: bytes) -> Resolved | RefusalError:
        try:
            return self._ask(number, url, root)
        except RefusalError as refusal:
            return refusal
        except OSError:
            raise
        except Exception as error:
            # What one mirror breaks, whatever it is, must not keep the next from being asked.
            logger.exception("mirror=%d", number)
            return RefusalError("E_SYSTEM", f"{redact(url)}: {type(error).__name__}: {error}")

    def _ask(self, number: int, url: str, root: bytes) -> Resolved:
        # Here, so that a job of `download` does without.
        from agent.ota.trust import Repository

        transport = self._connect(url)
        try:
            folder = Path(self._job.metadata_dir)
            repository = Repository(folder, transport, root=root, at=self._at, floors=self._floors)
            try:
                repository.refresh()
                target, targets = self._choose(repository)
            finally:
                is_trusted = self._job.clock_trusted is True
                self._floors = repository.raised(is_clock_trusted=is_trusted)
                self._stale_days = repository.stale_days or self._stale_days
        finally:
            transport.close()
        return Resolved(
            target=target,
            targets=targets,
            floors=self._floors,
            at=self._at,
            clock_trusted=self._job.clock_trusted,
            expires_at=repository.expires_at,
            mirror=number,
        )

    def _choose(self, repository: Repository) -> tuple[Target | None, list[Target]]:
        job = self._job
        if job.name is not None and job.version is not None:
            target = repository.find(job.name, job.version)
            self._require_fit(target)
            if target.length > job.limits.most_bundle_bytes:
                most = job.limits.most_bundle_bytes
                message = f"{job.name}@{job.version} has {target.length} bytes, more than {most}"
                raise RefusalError("E_SIZE", message)
            return target, []
        fitting = []
        for target in repository.bundles():
            if job.name not in (None, target.custom.name):
                continue
            with contextlib.suppress(RefusalError):
                self._require_fit(target)
                fitting.append(target)
            if len(fitting) == MOST_LISTED:
                break
        return None, fitting

    def _require_fit(self, target: Target) -> None:
        job = self._job
        require_fit(target.custom, board=job.board, agent=job.agent, floors=job.floors)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Have the metadata's folder for oneself: python-tuf does not share it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def download(job: DownloadJob, connect: Connect, emit: Emit) -> Downloaded | Refused:
    """Bring a bundle; say about once a second how far it is."""
    said_at = float("-inf")

    def on_progress(done: int, total: int) -> None:
        nonlocal said_at
        now = time.monotonic()
        if now - said_at >= PROGRESS_EVERY_S:
            said_at = now
            emit(Progress(bytes_done=done, bytes_total=total))

    try:
        return Download(job, on_progress=on_progress).run(
            partial(connect, url) for url in job.repository
        )
    except RefusalError as refusal:
        return Refused(code=refusal.code, message=str(refusal), is_final=refusal.is_final)


def run(job: Job, lines: Lines, emit: Emit) -> None:
    """Do a job; the last that is emitted says how it went."""

    def connect(url: str) -> Transport:
        return fetch.connect(url, ca_file=job.ca_file, limits=job.limits, lines=lines, ask=emit)

    if isinstance(job, MetadataJob):
        emit(Resolution(job, connect).run())
    else:
        emit(download(job, connect, emit))


def _confine(job: Job) -> None:
    """Leave the processor to cameras and models, and the disk to what was agreed on."""
    length = job.length if isinstance(job, DownloadJob) else 0
    most = max(length + SLACK_BYTES, LEAST_FILE_BYTES)
    # A write beyond it is an error then, and not a signal.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit, value in ((resource.RLIMIT_FSIZE, most), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):  # a lower one is set already
            resource.setrlimit(limit, (value, value))
    stand_behind(NICE)


def main() -> int:
    """Be the process; exit 0 however the job went, as its last line says that."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    lines = Lines(sys.stdin.fileno())

    def emit(event: Event) -> None:
        sys.stdout.buffer.write(to_line(event))
        sys.stdout.buffer.flush()

    try:
        line = lines.line(MAX_JOB_BYTES, JOB_WITHIN_S)
        job = parse_job(line or b"")
    except (EOFError, msgspec.MsgspecError) as error:
        print(f"edge-agent: no job on stdin ({error})", file=sys.stderr)
        return EXIT_USAGE
    try:
        _confine(job)
        run(job, lines, emit)
    except BrokenPipeError:  # the daemon ended, and nobody waits for this any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
