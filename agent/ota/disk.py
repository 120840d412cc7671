"""Every file operation of store and state: one seam, so that tests can cut the power at each.

What counts as kept is what fsync(2) promises and nothing else: `sync` for a file's bytes and
length, `sync_folder` for which names a folder has. All paths are below the state folder; none of
the operations follows a link in its last part.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

# new: must not be there; over: from the start, without cutting it off first; append: at the end.
How = Literal["new", "over", "append"]
READ_BYTES = 1 << 20
_FLAGS: dict[How, int] = {
    "new": os.O_CREAT | os.O_EXCL,
    "over": os.O_CREAT,
    "append": os.O_CREAT | os.O_APPEND,
}


class Sink(Protocol):
    """A file being written. Each call may raise OSError; `close` comes last, and once."""

    def write(self, piece: bytes) -> None:
        """Add bytes; they are kept after `sync`, not before."""

    def sync(self) -> None:
        """Wait until the bytes are kept. After an error nobody knows which of them are."""

    def close(self) -> None:
        """Give the file back; says nothing of what is kept."""


class Disk(Protocol):
    """What store and state ask of a file system; each call may raise OSError."""

    def names(self, folder: Path) -> list[str]:
        """Return what a folder holds, sorted; nothing where there is no such folder."""

    def size(self, path: Path) -> int | None:
        """Return a file's length; None: there is none, or it is no plain file."""

    def is_folder(self, path: Path) -> bool:
        """Return whether this is a folder; a link to one is none."""

    def open(self, path: Path) -> BinaryIO:
        """Open a plain file for reading."""

    def sink(self, path: Path, how: How) -> Sink:
        """Open a file for writing."""

    def make_folder(self, path: Path) -> None:
        """Make a folder and those above it; nothing where it is there."""

    def sync_folder(self, path: Path) -> None:
        """Wait until the names in a folder are kept."""

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or folder another name; a file of that name is replaced at once."""

    def remove(self, path: Path) -> None:
        """Remove a file, or a folder that is empty; nothing where there is none."""

    def free_bytes(self, folder: Path) -> int:
        """Return what may still be written, not counting what is kept for root."""


class RealSink:
    """A file of the operating system."""

    def __init__(self, path: Path, how: How) -> None:
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | _FLAGS[how]
        self._number = os.open(path, flags, 0o600)

    def write(self, piece: bytes) -> None:
        """See `Sink`."""
        left = memoryview(piece)
        while left:
            left = left[os.write(self._number, left) :]

    def sync(self) -> None:
        """See `Sink`."""
        os.fsync(self._number)

    def close(self) -> None:
        """See `Sink`."""
        os.close(self._number)


class RealDisk:
    """The file system of the board."""

    def names(self, folder: Path) -> list[str]:
        """See `Disk`."""
        try:
            return sorted(entry.name for entry in folder.iterdir())
        except FileNotFoundError:
            return []

    def size(self, path: Path) -> int | None:
        """See `Disk`."""
        try:
            found = path.lstat()
        except FileNotFoundError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def is_folder(self, path: Path) -> bool:
        """See `Disk`."""
        try:
            return stat.S_ISDIR(path.lstat().st_mode)
        except FileNotFoundError:
            return False

    def open(self, path: Path) -> BinaryIO:
        """See `Disk`."""
        # Not blocking: somebody may have put a pipe there.
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise OSError(errno.EINVAL, "is no plain file", str(path))
        return open(number, "rb")  # noqa: PTH123 - a descriptor

    def sink(self, path: Path, how: How) -> RealSink:
        """See `Disk`."""
        return RealSink(path, how)

    def make_folder(self, path: Path) -> None:
        """See `Disk`."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def sync_folder(self, path: Path) -> None:
        """See `Disk`."""
        number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(number)
        finally:
            os.close(number)

    def rename(self, old: Path, new: Path) -> None:
        """See `Disk`."""
        old.rename(new)

    def remove(self, path: Path) -> None:
        """See `Disk`."""
        if self.is_folder(path):
            path.rmdir()
        else:
            path.unlink(missing_ok=True)

    def free_bytes(self, folder: Path) -> int:
        """See `Disk`."""
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize


def read_bounded(disk: Disk, path: Path, limit: int) -> bytes:
    """Return a whole file.

    Raises:
        OSError: it cannot be read; EFBIG: it has more than `limit` bytes.
    """
    content = bytearray()
    with disk.open(path) as file:
        while piece := file.read(min(READ_BYTES, limit + 1 - len(content))):
            content += piece
            if len(content) > limit:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return bytes(content)


def write_through(disk: Disk, path: Path, content: bytes, how: How) -> None:
    """Write bytes to a file and wait until they are kept; its name is another matter."""
    sink = disk.sink(path, how)
    try:
        sink.write(content)
        sink.sync()
    finally:
        sink.close()


def make_folder_durably(disk: Disk, path: Path) -> None:
    """Make a folder whose own name is kept; the one above it must be there."""
    disk.make_folder(path)
    disk.sync_folder(path.parent)


def remove_tree(disk: Disk, path: Path) -> None:
    """Remove a file, or a folder with all that it holds; nothing where there is none."""
    if disk.is_folder(path):
        for name in disk.names(path):
            remove_tree(disk, path / name)
    disk.remove(path)
