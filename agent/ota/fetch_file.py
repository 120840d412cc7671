"""A repository in a folder of this board: a USB stick, a mounted share."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from agent.ota.refusal import RefusalError
from agent.ota.transport import StatusError

# What HTTP would say.
STATUSES = {errno.ENOENT: 404, errno.ENOTDIR: 404, errno.EACCES: 403, errno.ELOOP: 403}


class FileReply:
    """A regular file; see `transport.Reply`."""

    def __init__(self, descriptor: int, name: str, start: int, total: int, tag: str) -> None:
        self.start = start
        self.total: int | None = total
        self.tag: str | None = tag
        self._descriptor = descriptor
        self._name = name
        self._left = total - start
        os.lseek(descriptor, start, os.SEEK_SET)

    def read(self, most: int) -> bytes:
        """See `transport.Reply`."""
        if self._left == 0:
            return b""
        try:
            piece = os.read(self._descriptor, min(most, self._left))
        except OSError as error:  # the stick was pulled out
            raise RefusalError("E_NET", f"{self._name}: {error.strerror}") from error
        if not piece:
            raise RefusalError("E_NET", f"{self._name}: ended {self._left} bytes early")
        self._left -= len(piece)
        return piece

    def close(self) -> None:
        """See `transport.Reply`."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


class FileTransport:
    """See `transport.Transport`; the url is `file:///folder`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise RefusalError("E_NET", f"{url}: a file url has three slashes, file:///media/stick")
        self._folder = Path(unquote(parts.path))
        self.name = url

    def open(self, path: str, *, offset: int = 0, tag: str | None = None) -> FileReply:
        """See `transport.Transport`.

        Only regular files are read: a stick may be formatted so that it has links, pipes and
        devices, and some of those never end.
        """
        name = f"{self.name.rstrip('/')}/{path}"
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor = os.open(self._folder / path, flags)
        except OSError as error:
            status = STATUSES.get(error.errno or 0, 500)
            raise StatusError(status, f"{name}: {error.strerror}") from error
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise StatusError(403, f"{name}: is no regular file")
        # No inode number: a FAT file system makes up others each time it is mounted.
        tag_now = f"{found.st_size}-{found.st_mtime_ns}"
        start = offset if offset <= found.st_size and tag in (None, tag_now) else 0
        return FileReply(descriptor, name, start, found.st_size, tag_now)

    def close(self) -> None:
        """See `transport.Transport`."""
