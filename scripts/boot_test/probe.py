"""Runs inside the unit's sandbox: tries what must work and what must not.

Each line of the answer is a claim that is printed; true says that the sandbox is as intended.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import grp
import json
import mmap
import os
import resource
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
CLONE_NEWUSER = 0x10000000  # linux/sched.h


def works(act: Callable[[], object]) -> bool:
    """Return whether something does not fail."""
    try:
        act()
    except (OSError, ValueError):
        return False
    return True


def refused(act: Callable[[], object], *codes: int) -> bool:
    """Return whether something fails as a sandbox makes it fail."""
    try:
        act()
    except OSError as error:
        return error.errno in (codes or (errno.EPERM, errno.EACCES))
    return False


def call(name: str, *values: object) -> Callable[[], object]:
    """Return a call of the C library that raises its error."""

    def act() -> None:
        if getattr(LIBC, name)(*values) < 0:
            raise OSError(ctypes.get_errno(), name)

    return act


def read_everything() -> None:
    """Read what sensors, supervision and telemetry read."""
    for path in ("/proc/stat", "/proc/meminfo", "/proc/self/statm", "/proc/devices"):
        Path(path).read_bytes()
    list(Path("/sys/class").iterdir())


def lock_state() -> None:
    """Take the lock of the state folder, as the daemon does."""
    folder = os.open(os.environ["STATE_DIRECTORY"], os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_in(folder: str) -> Callable[[], object]:
    """Return an attempt to write a file there."""
    return lambda: tempfile.TemporaryFile(dir=folder).close()


def wait_for_child() -> None:
    """Start a child that dies with us, steps back and limits itself, as trials do."""
    pid = os.fork()
    if pid == 0:
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)()
        os.nice(5)
        Path("/proc/self/oom_score_adj").write_bytes(b"1000")
        resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))
        resource.setrlimit(resource.RLIMIT_CPU, (60, 65))
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise OSError(errno.ECHILD, "the child failed")


def main() -> None:
    """Print what was found."""
    writable_code = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    found = {
        "no root": os.getuid() != 0 and os.geteuid() != 0,
        "in group video": grp.getgrnam("video").gr_gid in os.getgroups(),
        "own state is written": works(write_in(os.environ["STATE_DIRECTORY"])),
        "own cache is written": works(write_in(os.environ["XDG_CACHE_HOME"])),
        "/tmp is written": works(write_in("/tmp")),
        "/run/edge-agent is written": works(write_in(os.environ["RUNTIME_DIRECTORY"])),
        "/etc is not written": refused(write_in("/etc"), errno.EROFS, errno.EACCES),
        "/opt is not written": refused(write_in("/opt/edge-agent"), errno.EROFS, errno.EACCES),
        "homes are hidden": refused(lambda: list(Path("/root").iterdir())),
        "proc and sys are read": works(read_everything),
        "the state folder is locked": works(lock_state),
        "memory files": works(lambda: os.close(os.memfd_create("probe"))),
        "children confine themselves": works(wait_for_child),
        "cores are counted": bool(os.sched_getaffinity(0)),
        "UDP, TCP and local sockets": all(
            works(lambda kind=kind: socket.socket(*kind).close())
            for kind in (
                (socket.AF_INET, socket.SOCK_STREAM),
                (socket.AF_INET6, socket.SOCK_DGRAM),
                (socket.AF_UNIX, socket.SOCK_SEQPACKET),
            )
        ),
        "names are looked up without netlink": works(lambda: socket.getaddrinfo("localhost", 1883)),
        "no raw packets": refused(
            lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW), errno.EAFNOSUPPORT
        ),
        "/dev/null": works(lambda: Path("/dev/null").write_bytes(b"x")),
        "no device that is not listed": refused(lambda: os.open("/dev/fuse", os.O_RDWR)),
        "no writable code": refused(lambda: mmap.mmap(-1, 4096, prot=writable_code)),
        "no namespaces": refused(call("unshare", CLONE_NEWUSER)),
        "no realtime": refused(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))),
        "no stepping forward": refused(lambda: os.nice(-5)),
        "no clock": refused(call("ntp_adjtime", ctypes.create_string_buffer(512))),
        "no mounting": refused(call("mount", b"none", b"/tmp", b"tmpfs", 0, None)),
        "no keys of others": refused(
            lambda: Path("/proc/1/environ").read_bytes(), errno.ENOENT, errno.EACCES
        ),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
