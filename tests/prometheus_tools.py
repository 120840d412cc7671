"""Prometheus' own programs: promtool, which checks, and the server itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# `scripts/test` puts them beside the environment's Python, without installing a service.
PLACES = f"{os.environ.get('PATH', '')}:{Path(sys.executable).parent}"


def program(name: str) -> str:
    """Return where a program is; skips without it, but never in continuous integration."""
    found = shutil.which(name, path=PLACES)
    if found is None:
        message = f"{name} is not here; scripts/test fetches it (Debian's package prometheus)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def promtool(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run promtool to its end."""
    return subprocess.run(
        [program("promtool"), *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )
