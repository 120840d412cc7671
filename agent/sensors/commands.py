"""Questions to the board's own tools, for what the kernel's files do not say."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from typing import TypeAlias

# Of a command's words; None where it is not there or fails.
Ask: TypeAlias = Callable[..., str | None]

# An ordinary user's PATH lacks the folders where Debian puts iw and others.
SYSTEM_FOLDERS = "/usr/sbin:/sbin:/usr/bin:/bin"
MAX_ANSWER = 1 << 16


def ask(*command: str, within_s: float = 5.0) -> str | None:
    """Return what a command prints; None where it is not there, fails, or takes longer."""
    path = f"{os.environ.get('PATH', '')}:{SYSTEM_FOLDERS}"
    program = shutil.which(command[0], path=path)
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=within_s,
            check=False,
            # Words of the answers are compared: no translations.
            env={**os.environ, "LC_ALL": "C", "PATH": path},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    return done.stdout[:MAX_ANSWER].decode("utf-8", "replace").strip()
