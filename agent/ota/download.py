"""A bundle's bytes, from whichever mirrors have them, going on where the last transfer was cut.

Nothing here is believed: the file counts when it has the length and the hash that were signed.
What lies in the part file may be of a mirror that lies, so one whole transfer of a single mirror
is what a wrong hash is held against.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.durable import write_durably
from agent.ota.jobs import Downloaded, DownloadJob, file_path, sidecar
from agent.ota.refusal import RefusalError, of_disk
from agent.ota.transport import PIECE_BYTES, RangeError, Reply, Transport
from agent.ota.worst import worst
from agent.sensors.clock import read_kernel_boot_id

# A power cut takes at most this back, and the pages it leaves to write never slow a camera down.
SYNC_EVERY_BYTES = 4 << 20
# Of one mirror, each with new bytes.
MOST_CUTS = 50


class _Origin(Struct):
    """What is known of a part file: a hint, and harmless where it is wrong.

    mirror, tag: whom the bytes came from last, and what that called them
    boot, synced: in another boot of the kernel than this only so many bytes can be relied on
    """

    sha256: str
    mirror: str = ""
    tag: str | None = None
    boot: str | None = None
    synced: int = 0


class Download:
    """One bundle; `fetched` counts bytes that came over the network."""

    def __init__(
        self,
        job: DownloadJob,
        *,
        on_progress: Callable[[int, int], None] | None = None,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        boot: str | None = None,
    ) -> None:
        """Prepare; `on_progress` is given the bytes that are there and those of the whole."""
        self.fetched = 0
        self._job = job
        self._path = Path(job.part)
        self._on_progress = on_progress
        self._pause = pause
        self._clock = clock
        self._boot = boot if boot is not None else read_kernel_boot_id()
        self._descriptor = -1
        self._origin = _Origin(sha256=job.sha256)

    def run(self, mirrors: Iterable[Callable[[], Transport]]) -> Downloaded:
        """Fetch until the file is whole.

        Raises:
            RefusalError: E_SIZE and E_HASH if every mirror lies, E_SLOW, E_NET, E_SPACE.
        """
        job = self._job
        if job.length > job.limits.most_bundle_bytes:
            raise RefusalError("E_SIZE", f"{job.name}@{job.version} has {job.length} bytes")
        try:
            self._begin()
            refusals: list[RefusalError] = []
            is_whole = self._is_whole()
            for connect in () if is_whole else mirrors:
                try:
                    transport = connect()
                    try:
                        self._from(transport)
                    finally:
                        transport.close()
                except RefusalError as refusal:
                    refusals.append(refusal)
                    continue
                is_whole = True
                break
            if not is_whole:
                raise worst(refusals)
            os.fsync(self._descriptor)
        except OSError as error:
            if error.errno == errno.EFBIG:  # see `agent.ota.process`
                raise RefusalError("E_SIZE", f"{self._path}: {error.strerror}") from error
            raise of_disk(error, str(self._path)) from error
        finally:
            self._end()
        return Downloaded(sha256=job.sha256, length=job.length, bytes_fetched=self.fetched)

    def _begin(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self._path, flags, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"{self._path}: another process is fetching it"
            raise RefusalError("E_SYSTEM", message) from error
        try:
            origin = msgspec.json.decode(sidecar(self._path).read_bytes(), type=_Origin)
        except (OSError, msgspec.MsgspecError):
            origin = _Origin(sha256="")
        size = os.fstat(self._descriptor).st_size
        if origin.sha256 != self._job.sha256 or size > self._job.length:
            self._wipe()
            return
        self._origin = origin
        if origin.boot != self._boot or self._boot is None:
            os.ftruncate(self._descriptor, min(size, origin.synced))

    def _end(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def _wipe(self) -> None:
        os.ftruncate(self._descriptor, 0)
        self._origin = _Origin(sha256=self._job.sha256)

    def _is_whole(self) -> bool:
        """Whether the file is what was signed; one that is long enough and is not is wiped."""
        if self._size() != self._job.length:
            return False
        with os.fdopen(os.dup(self._descriptor), "rb", buffering=0) as file:
            file.seek(0)
            digest = hashlib.sha256()
            while piece := file.read(1 << 20):
                digest.update(piece)
        if digest.hexdigest() == self._job.sha256:
            return True
        self._wipe()
        return False

    def _from(self, transport: Transport) -> None:
        """Have one mirror bring what is missing, over as many connections as it takes."""
        is_all_its_own = self._size() == 0
        ends = self._clock() + self._job.limits.deadline_s
        for _ in range(MOST_CUTS):
            if self._clock() > ends:
                raise RefusalError("E_SLOW", f"{transport.name}: too slow, and cut over and over")
            before, size_before = self.fetched, self._size()
            try:
                self._transfer(transport)
            except RangeError:
                if self._size() == 0:
                    raise
                self._wipe()
                is_all_its_own = True
                continue
            except RefusalError as refusal:
                has_moved = self.fetched > before and self._size() > size_before
                if refusal.code != "E_NET" or not has_moved:
                    raise
                self._pause(self._job.limits.pause_s)
                continue
            if self._size() < self._job.length:
                continue  # it may send less than what was asked for: RFC 9110, 15.3.7
            if self._is_whole():
                return
            if is_all_its_own:
                raise RefusalError(
                    "E_HASH", f"{transport.name}: other bytes than were signed", is_final=False
                )
            is_all_its_own = True
        raise RefusalError("E_NET", f"{transport.name}: cut {MOST_CUTS} times")

    def _transfer(self, transport: Transport) -> None:
        """Go on once, to the end of the file or of the connection."""
        job, offset = self._job, self._size()
        tag = self._origin.tag if self._origin.mirror == transport.name else None
        path = file_path(job.name, job.version, job.sha256)
        reply = transport.open(path, offset=offset, tag=tag)
        try:
            if reply.total is not None and reply.total != job.length:
                raise RefusalError(
                    "E_SIZE",
                    f"{transport.name}: has {reply.total} bytes where {job.length} were signed",
                    is_final=False,
                )
            if reply.start != offset:
                self._wipe()
            self._origin.mirror, self._origin.tag = transport.name, reply.tag
            os.fdatasync(self._descriptor)
            self._note(reply.start)
            self._write(reply, transport.name)
        finally:
            reply.close()

    def _write(self, reply: Reply, name: str) -> None:
        done, length = reply.start, self._job.length
        synced = done
        while done < length:
            piece = reply.read(min(PIECE_BYTES, length - done))
            if not piece:
                return
            self.fetched += len(piece)
            _write_all(self._descriptor, piece, done)
            done += len(piece)
            if self._on_progress is not None:
                self._on_progress(done, length)
            if done - synced >= SYNC_EVERY_BYTES:
                os.fdatasync(self._descriptor)
                self._note(done)
                synced = done
        # Where the mirror did not say how much it has, it may have more; one byte tells.
        if reply.total is None and reply.read(1):
            self._wipe()
            raise RefusalError("E_SIZE", f"{name}: sends more than was signed", is_final=False)

    def _note(self, synced: int) -> None:
        """Write down where the bytes come from; in an order that never promises too much."""
        self._origin.boot, self._origin.synced = self._boot, synced
        write_durably(sidecar(self._path), msgspec.json.encode(self._origin))


def _write_all(descriptor: int, piece: bytes, at: int) -> None:
    rest = memoryview(piece)
    while rest:
        count = os.pwrite(descriptor, rest, at)
        rest, at = rest[count:], at + count
