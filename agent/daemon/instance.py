"""One agent per state folder: the second would take the cameras and the outbox of the first.

The lock is the kernel's, on an open file (flock(2)): it is free as soon as its holder has ended,
however that came about, and what the file says is only a hint for people. Children do not
inherit it, as Python opens files with O_CLOEXEC (PEP 446): a worker that is stuck in the kernel
keeps no new control process from starting.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from pathlib import Path

from agent.errors import UnavailableError

log = logging.getLogger(__name__)

LOCK_FILE = "lock"
MAX_HINT_BYTES = 32


class Instance:
    """The lock, held until `release` or the end of this process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Let another one start; may be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def acquire(state_dir: Path) -> Instance | None:
    """Be the only one that runs on this state folder, which is made where it is missing.

    Returns None, with a warning in the log, where there can be no lock: better to run without
    it than not at all.

    Raises:
        UnavailableError: another one runs.
    """
    path = state_dir / LOCK_FILE
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        descriptor, may_write = _open(path)
    except OSError as error:
        _warn(path, error)
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        other = _read_hint(descriptor)
        os.close(descriptor)
        if error.errno != errno.EWOULDBLOCK:  # file systems without locks
            _warn(path, error)
            return None
        raise UnavailableError(
            f"another edge-agent{other} runs on {state_dir}; stop that one first, the service with"
            " `sudo systemctl stop edge-agent`, or give this one a state_dir of its own in [device]"
        ) from None
    if may_write:
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
    return Instance(descriptor)


def _open(path: Path) -> tuple[int, bool]:
    """Return a descriptor, and whether it can be written: to lock a file, reading it will do."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644), True
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS):
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), False


def _read_hint(descriptor: int) -> str:
    with contextlib.suppress(OSError, ValueError):
        return f" (process {int(os.pread(descriptor, MAX_HINT_BYTES, 0))})"
    return ""


def _warn(path: Path, error: OSError) -> None:
    log.warning(
        "a second instance would not be noticed, as there is no lock path=%s reason=%s",
        *(path, error.strerror),
    )
