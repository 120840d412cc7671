"""The steps that need a repository, as the control process sees them: see `agent.ota.steps`.

Each is an update process (`agent.ota.process`) whose pipes are looked at when somebody polls;
nothing here waits, knows TUF or speaks HTTP.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

import agent
from agent.contract.updates import Desired, Floors
from agent.ota import steps
from agent.ota.children import kill, see_off
from agent.ota.clock_policy import Time, decide, is_local
from agent.ota.fetch_mqtt import ChunkRelay
from agent.ota.jobs import (
    Downloaded,
    DownloadJob,
    Event,
    Job,
    Limits,
    MetadataJob,
    Need,
    Progress,
    Refused,
    Resolved,
    Target,
    parse_event,
    to_line,
)
from agent.ota.refusal import RefusalError
from agent.ota.state import BundleRef
from agent.sensors.clock import read_clock_synced

MOST_LINE_BYTES = 4 << 20
MOST_COMPLAINT_BYTES = 2000
READ_BYTES = 1 << 16
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIMITS = Limits()
# As `-m agent.ota.process`, but it ends with its parent, and this very package comes first on the
# path, not the current folder with whatever modules lie there.
PROCESS = (
    "import ctypes, os, sys; "
    f"ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, {int(signal.SIGKILL)}, 0, 0, 0); "
    "sys.argv.pop(1) == str(os.getppid()) or os._exit(1); "
    "sys.path[0] = sys.argv.pop(1); from agent.ota.process import main; sys.exit(main())"
)


def process_command(parent: int) -> list[str]:
    """Return the command of an update process."""
    return [sys.executable, "-c", PROCESS, str(parent), str(Path(agent.__file__).parent.parent)]


class UpdateProcess:
    """One job in a process of its own, from its start to its last word; for one thread.

    last: `Resolved`, `Downloaded` or `Refused`, once it has been said
    """

    def __init__(self, job: Job, relay: ChunkRelay | None = None) -> None:
        """Start it; raises OSError where there is no memory or no process left."""
        self.last: Resolved | Downloaded | Refused | None = None
        self._relay = relay
        self._progress = steps.Working()
        self._told = b""
        self._complaint = b""
        self._to_tell = to_line(job)
        # What one that was killed and is not gone yet holds is locked, so that this one says
        # E_SYSTEM and is tried again.
        see_off()
        self._process = subprocess.Popen(
            process_command(os.getpid()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # the terminal's Ctrl-C is for us; we end it
            bufsize=0,
        )
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        self._tell()

    def hand_down(self, message: bytes) -> None:
        """Write to its stdin, as much as goes; the rest with the next poll."""
        self._to_tell += message
        self._tell()

    def poll(self) -> steps.Reply:
        """See `steps.Step`."""
        if self.last is None:
            self._tell()
            has_ended = self._process.poll() is not None  # before the last of its words is read
            self._listen()
            if self.last is None and not has_ended:
                return self._progress
            if self.last is None:
                self.last = self._obituary()
            self.stop()
        return _reply(self.last)

    def stop(self) -> None:
        """See `steps.Step`."""
        kill(self._process)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def _tell(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ValueError):
            while self._to_tell:
                self._to_tell = self._to_tell[os.write(pipe.fileno(), self._to_tell) :]

    def _listen(self) -> None:
        out, err = self._process.stdout, self._process.stderr
        assert out is not None
        assert err is not None
        complaint = self._complaint + _read(err.fileno(), MOST_COMPLAINT_BYTES)
        self._complaint = complaint[-MOST_COMPLAINT_BYTES:]
        self._told += _read(out.fileno(), MOST_LINE_BYTES)
        while self.last is None and b"\n" in self._told:
            line, _, self._told = self._told.partition(b"\n")
            try:
                self._heed(parse_event(line))
            except (msgspec.MsgspecError, RecursionError):
                self.last = _broken("the update process said what nobody understands")
        if len(self._told) > MOST_LINE_BYTES:
            self.last = _broken("the update process said too much")

    def _heed(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._progress = steps.Working(
                progress=event.bytes_done / event.bytes_total,
                bytes_done=event.bytes_done,
                bytes_total=event.bytes_total,
            )
        elif isinstance(event, Need):
            if self._relay is not None:
                self._relay.ask(event, self.hand_down)
        else:
            self.last = event

    def _obituary(self) -> Refused:
        code = self._process.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        lines = self._complaint.decode("utf-8", "replace").strip().splitlines()
        said = f": {lines[-1][:300]}" if lines else ""
        return _broken(f"the update process ended with {how}{said}")


def _read(descriptor: int, most: int) -> bytes:
    """Return what a pipe has now; a chatterer is heard out another time."""
    found = b""
    with contextlib.suppress(BlockingIOError):
        while len(found) < most and (piece := os.read(descriptor, READ_BYTES)):
            found += piece
    return found


def _broken(message: str) -> Refused:
    return Refused(code="E_SYSTEM", message=message, is_final=False)


def _reply(last: Resolved | Downloaded | Refused) -> steps.Reply:
    if isinstance(last, Downloaded):
        return steps.Succeeded()
    if isinstance(last, Refused):
        return steps.Refused(
            code=last.code, message=last.message, is_final=last.is_final, floors=last.floors
        )
    return steps.Succeeded(
        target=None if last.target is None else _target(last.target),
        floors=last.floors,
        clock_trusted=last.clock_trusted,
    )


def _target(target: Target) -> steps.Target:
    custom = target.custom
    ref = BundleRef(
        sha256=target.sha256,
        name=custom.name,
        version=custom.version,
        release_counter=custom.release_counter,
        security_floor=custom.security_floor,
    )
    return steps.Target(
        ref=ref, size=target.length, boards=tuple(custom.boards), min_agent=custom.min_agent
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What the settings and the board say of the repository.

    repository: of each mirror the url, in this order
    root: file of the first root
    metadata_dir: where trusted metadata are kept
    board: BoardIdentity.id
    allow_floor: whether an unset clock will do in the end; None: for repositories near by
    """

    repository: tuple[str, ...]
    root: Path
    metadata_dir: Path
    board: str
    ca_file: str = ""
    allow_floor: bool | None = None
    limits: Limits = LIMITS


class Asking:
    """The step `metadata`: waits for the clock, then asks.

    expires_at: until when the repository's word is good, once it has been believed
    stale_days: since when it is not, if that is why it is refused
    """

    def __init__(
        self, start: Callable[[Time], UpdateProcess], time: Callable[[], Time | None]
    ) -> None:
        self._start = start
        self._time = time
        self._at: Time | None = None
        self._process: UpdateProcess | None = None

    @property
    def expires_at(self) -> float | None:
        """Unix seconds."""
        last = self._process.last if self._process else None
        return last.expires_at if isinstance(last, Resolved) else None

    @property
    def stale_days(self) -> float | None:
        """Days."""
        last = self._process.last if self._process else None
        return last.repo_stale_days if isinstance(last, Refused) else None

    def poll(self) -> steps.Reply:
        """See `steps.Step`."""
        if self._process is None:
            try:
                self._at = self._time()
                if self._at is None:
                    return steps.Working(waits_for="the clock to be set")
                self._process = self._start(self._at)
            except RefusalError as refusal:
                return steps.Refused(
                    code=refusal.code,
                    message=str(refusal),
                    is_final=refusal.is_final,
                    clock_trusted=False,
                )
            except OSError as error:
                message = f"no process for it: {error.strerror or error}"
                return steps.Refused(code="E_SYSTEM", message=message, is_final=False)
        reply = self._process.poll()
        if isinstance(reply, steps.Refused) and self._at is not None:
            return steps.Refused(
                code=reply.code,
                message=reply.message,
                is_final=reply.is_final,
                floors=reply.floors,
                clock_trusted=self._at.is_trusted,
            )
        return reply

    def stop(self) -> None:
        """See `steps.Step`."""
        if self._process is not None:
            self._process.stop()


class Fetching:
    """Begins the steps `metadata` and `download` of `steps.Steps`."""

    def __init__(
        self,
        source: Source,
        relay: ChunkRelay | None = None,
        *,
        read_synced: Callable[[], bool | None] = read_clock_synced,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what to ask; `relay` is needed for `mqtt:`.

        The wall clock is waited for from the board's start: `clock` is the time since then.
        """
        self._source = source
        self._relay = relay
        self._read_synced = read_synced
        self._now = now
        self._clock = clock

    def metadata(self, wanted: Desired, floors: Floors) -> Asking:
        """Ask what a version is, and whether it is for this board."""
        return self._ask(wanted.name, wanted.version, floors)

    def list_all(self, floors: Floors) -> Asking:
        """Ask for all that fits this board; only to learn how fresh the repository is."""
        return self._ask(None, None, floors)

    def download(self, ref: BundleRef, size: int, part: Path) -> UpdateProcess:
        """Bring a bundle into a part file of the store's; raises OSError."""
        source = self._source
        job = DownloadJob(
            repository=list(source.repository),
            name=ref.name,
            version=ref.version,
            sha256=ref.sha256,
            length=size,
            part=str(part),
            ca_file=source.ca_file,
            limits=source.limits,
        )
        return UpdateProcess(job, self._relay)

    def _ask(self, name: str | None, version: str | None, floors: Floors) -> Asking:
        source = self._source

        def start(at: Time) -> UpdateProcess:
            job = MetadataJob(
                repository=list(source.repository),
                metadata_dir=str(source.metadata_dir),
                root=str(source.root),
                floors=floors,
                at=at.at,
                clock_trusted=at.is_trusted,
                board=source.board,
                agent=agent.__version__,
                name=name,
                version=version,
                ca_file=source.ca_file,
                limits=source.limits,
            )
            return UpdateProcess(job, self._relay)

        def time() -> Time | None:
            allow = source.allow_floor
            if allow is None:
                allow = all(is_local(url) for url in source.repository)
            return decide(
                now=self._now(),
                is_synced=self._read_synced(),
                floor=floors.time,
                waited_s=self._clock(),
                allow_floor=allow,
            )

        return Asking(start, time)
