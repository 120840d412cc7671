"""Small files that are whole at any time, whatever ends the program or the board's power."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file so that after a power cut there is the old or the new one, whole.

    The order is that of fsync(2) and rename(2): content, then name, then folder.

    Raises:
        OSError: the disk took nothing; until the name is changed the old file is untouched.
    """
    unfinished = path.with_name(f"{path.name}.new")
    try:
        # Of a process that was killed, perhaps another user's. Not written through, but removed.
        unfinished.unlink(missing_ok=True)
        with unfinished.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
