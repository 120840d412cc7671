"""The producer's log: one line per record, written before the record is put.

A line goes to the kernel in one write, so that a process killed at any moment leaves whole
lines; the log outlives it, and the runs after it append to the same file.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from reliability.checker import Put


def digest_of(payload: bytes) -> str:
    """Return what stands for a payload in both logs."""
    return hashlib.blake2b(payload, digest_size=8).hexdigest()


class Logbook:
    """Appends to the log; any thread."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, stream: str, seq: int, payload: bytes) -> None:
        """Write that this record is about to be put."""
        line = f"{stream} {seq} {digest_of(payload)} {time.monotonic():.6f}\n"
        os.write(self._file, line.encode())


def read_logbook(path: Path) -> list[Put]:
    """Return all whole lines; a missing log is an empty one."""
    if not path.exists():
        return []
    puts = []
    for line in path.read_text().splitlines():
        stream, seq, digest, at = line.split(" ")
        puts.append(Put(stream, int(seq), digest, float(at)))
    return puts
