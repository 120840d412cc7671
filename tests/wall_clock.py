"""A wall clock that a test can set for the processes it starts; see wall_clock.c.

libfaketime 0.9.10, of Debian 12, does not serve: its clock_nanosleep refuses absolute times of
CLOCK_MONOTONIC, with which Python sleeps from 3.11 on.
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_suffix(".c")
TIME_OK, TIME_ERROR = 0, 5  # sys/timex.h


class WallClock:
    """What processes started with `environment` take for the time of day."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            pytest.skip("no C compiler (cc, gcc or clang) to build a settable clock with")
        library = folder / "libwallclock.so"
        flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC"]
        done = subprocess.run(
            [compiler, *flags, "-o", library, SOURCE, "-ldl"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        file = folder / "wall_clock"
        file.write_bytes(bytes(mmap.PAGESIZE))
        with file.open("r+b") as opened:
            self._memory = mmap.mmap(opened.fileno(), mmap.PAGESIZE)
        self.environment = {"LD_PRELOAD": str(library), "TEST_WALL_CLOCK": str(file)}
        self.set(0)

    def set(self, shift_s: int, *, synced: bool = False) -> None:
        """Set the clock to the right time plus this, and what the kernel says of it."""
        # One aligned word each, so that no process reads half of it.
        struct.pack_into("@i", self._memory, 8, TIME_OK if synced else TIME_ERROR)
        struct.pack_into("@q", self._memory, 0, shift_s)

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()
