"""Files that fail while they are read, for processes that a test starts; see read_errors.c.

A file system of our own (FUSE) would do as well, and needs rights that few test machines give.
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
# struct fault and its list in the C file.
FAULT = struct.Struct("@i1022s1022s")
MOST_PATHS = 64
HEAD = 4


class ReadErrors:
    """The list that processes started with `environment` heed; made in a folder, or found there."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "read_errors"
        if not self._file.exists():
            self._file.write_bytes(bytes(HEAD + MOST_PATHS * FAULT.size))
        with self._file.open("r+b") as opened:
            self._memory = mmap.mmap(opened.fileno(), 0)
        self._count = 0

    def environment(self, library: Path) -> dict[str, str]:
        """Return what makes a new process heed the list."""
        return {"LD_PRELOAD": str(library), "TEST_READ_ERRORS": str(self._file)}

    def fail(self, path: Path, code: int) -> None:
        """Let reads of a file fail with an errno; below 0: let them give so many bytes each."""
        self._add(path, code, b"")

    def replace(self, path: Path, other: Path) -> None:
        """Let another file be opened in its place."""
        self._add(path, 0, str(other).encode())

    def clear(self) -> None:
        """Let all files be as they are."""
        self._count = 0
        struct.pack_into("@i", self._memory, 0, 0)

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()

    def _add(self, path: Path, code: int, other: bytes) -> None:
        if len(str(path).encode()) > 1021 or len(other) > 1021:
            raise ValueError(f"{path} is too long")
        at = HEAD + self._count * FAULT.size
        FAULT.pack_into(self._memory, at, code, str(path).encode(), other)
        self._count += 1
        struct.pack_into("@i", self._memory, 0, self._count)


def build(folder: Path) -> Path | None:
    """Compile the library; None where there is no C compiler.

    Raises:
        AssertionError: it does not compile.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    library = folder / "libreaderrors.so"
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC"]
    done = subprocess.run(
        [compiler, *flags, "-o", library, SOURCE, "-ldl"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return library
