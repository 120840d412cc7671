"""What a command is about to write, in order: all of it is known before anything is changed.

A static server may serve the folder at any moment. So every file appears whole, under a name that
was never used before, and only then what names it; last of all timestamp.json, the one file that
is replaced. A command that ends half way leaves files that nothing names yet.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.durable import write_durably
from agent.errors import AgentError, UnavailableError

SERVED: Final = 0o644  # whatever the umask: a web server reads it as another user
CHUNK_BYTES: Final = 1 << 20
WAITS_FOR_OTHERS_S: Final = 10.0

OnBytes = Callable[[int], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A file that is copied, and the hash it had when it was examined."""

    source: Path
    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One file to be written; `says` is for people."""

    path: Path
    content: bytes | Copy
    says: str
    mode: int = SERVED

    @property
    def size(self) -> int:
        """Return how long the file becomes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.size


def apply(writes: Sequence[Write], on_bytes: OnBytes = lambda _: None) -> None:
    """Write the files in their order, each durably before the next.

    Raises:
        UnavailableError: the disk does not take one; what came before it stands.
        AgentError: a copied file is not what it was when it was examined.
    """
    for write in writes:
        _write(write, on_bytes)


def _write(write: Write, on_bytes: OnBytes) -> None:
    try:
        _make_folder(write.path.parent, 0o755 if write.mode == SERVED else 0o700)
        if isinstance(write.content, bytes):
            write_durably(write.path, write.content, mode=write.mode)
            on_bytes(write.size)
        else:
            write_durably(write.path, _parts(write.content, on_bytes), mode=write.mode)
    except OSError as error:
        raise UnavailableError(f"{write.path}: cannot be written: {error.strerror}") from error


def _make_folder(folder: Path, mode: int) -> None:
    """Make a folder and those above it, with these rights whatever the umask."""
    if not folder.exists():
        _make_folder(folder.parent, mode)
        folder.mkdir()
        folder.chmod(mode)


def _parts(copy: Copy, on_bytes: OnBytes) -> Iterator[bytes]:
    digest = hashlib.sha256()
    with copy.source.open("rb") as file:
        while part := file.read(CHUNK_BYTES):
            digest.update(part)
            yield part
            on_bytes(len(part))
    if digest.hexdigest() != copy.sha256:
        raise AgentError(f"{copy.source}: was changed while it was read; nothing was published")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other commands out of a repository's folder, such as a refresh by systemd.

    Raises:
        UnavailableError: another one is at work for long, or the folder cannot be written to.
    """
    try:
        # Not to be written to: it may be another user's, who works in the same folder.
        descriptor = os.open(folder / ".lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UnavailableError(f"{folder}: cannot be written to: {error.strerror}") from error
    try:
        deadline = time.monotonic() + WAITS_FOR_OTHERS_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"{folder}: another command is at work there; try again"
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)
