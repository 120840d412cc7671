"""What a folder lies on: the mount that it belongs to, in the kernel's words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# proc_pid_mountinfo(5): space, tab, newline and backslash stand as octal numbers.
_OCTAL = re.compile(r"\\([0-7]{3})")
MEMORY = ("tmpfs", "ramfs")
# sqlite.org/wal.html: all processes that use a WAL database must be on the same host.
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs", "fuse.glusterfs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    point: str
    fstype: str
    source: str
    options: tuple[str, ...]  # of the mount and of the file system

    @property
    def is_read_only(self) -> bool:
        """Return whether it takes no writes, from here or at all."""
        return "ro" in self.options


def find_mount(folder: Path, root: Path = Path("/")) -> Mount | None:
    """Return the mount that an absolute path lies on; None where the kernel does not say."""
    try:
        lines = (root / "proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    path = PurePosixPath(folder)
    fitting = [
        mount
        for mount in map(_parse, lines.splitlines())
        if mount is not None and path.is_relative_to(mount.point)
    ]
    # Later lines lie over earlier ones of the same place.
    return max(
        reversed(fitting), key=lambda mount: len(PurePosixPath(mount.point).parts), default=None
    )


def _parse(line: str) -> Mount | None:
    before, _, after = line.partition(" - ")
    fields, rest = before.split(" "), after.split(" ")
    if len(fields) < 6 or len(rest) < 3:
        return None
    return Mount(
        point=_OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[4]),
        fstype=rest[0],
        source=_OCTAL.sub(lambda found: chr(int(found[1], 8)), rest[1]),
        options=(*fields[5].split(","), *rest[2].split(",")),
    )
