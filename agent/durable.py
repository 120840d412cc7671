"""Small files that are whole at any time, whatever ends the program or the board's power."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path


def write_durably(path: Path, content: bytes | Iterable[bytes], *, mode: int | None = None) -> None:
    """Replace a file so that after a power cut there is the old or the new one, whole.

    The order is that of fsync(2) and rename(2): content, then name, then folder. `mode` is the
    new file's, whatever the umask; from the first byte on nobody has more rights than that.

    Raises:
        OSError: the disk took nothing; until the name is changed the old file is untouched.
    """
    unfinished = path.with_name(f"{path.name}.new")
    try:
        # Of a process that was killed, perhaps another user's. Not written through, but removed.
        unfinished.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(unfinished, flags, 0o666 if mode is None else mode), "wb") as file:
            for part in [content] if isinstance(content, bytes) else content:
                file.write(part)
            file.flush()
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:  # also of what makes the content
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
