"""A disk whose every operation is told first to somebody who may count it, or make it fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from agent.ota.disk import Disk, Sink

CHANGES = ("open", "write", "fsync", "mkdir", "fsync folder", "rename", "remove")
LOOKS = ("read", "names", "size", "free")
# Called with the operation's name, its path, and what carries out a part of it.
Before = Callable[[str, Path, Callable[[], None]], None]


def nothing() -> None:
    """Carry out no part of an operation."""


class WatchedDisk:
    """Another disk, watched."""

    def __init__(self, inner: Disk, before: Before) -> None:
        self._inner, self._before = inner, before

    def names(self, folder: Path) -> list[str]:
        self._before("names", folder, nothing)
        return self._inner.names(folder)

    def size(self, path: Path) -> int | None:
        self._before("size", path, nothing)
        return self._inner.size(path)

    def is_folder(self, path: Path) -> bool:
        self._before("size", path, nothing)
        return self._inner.is_folder(path)

    def open(self, path: Path) -> BinaryIO:
        self._before("read", path, nothing)
        return self._inner.open(path)

    def sink(self, path: Path, how: str) -> Sink:
        self._before("open", path, nothing)
        return WatchedSink(self._inner.sink(path, how), path, self._before)

    def make_folder(self, path: Path) -> None:
        self._before("mkdir", path, nothing)
        self._inner.make_folder(path)

    def sync_folder(self, path: Path) -> None:
        self._before("fsync folder", path, nothing)
        self._inner.sync_folder(path)

    def rename(self, old: Path, new: Path) -> None:
        self._before("rename", new, nothing)
        self._inner.rename(old, new)

    def remove(self, path: Path) -> None:
        self._before("remove", path, nothing)
        self._inner.remove(path)

    def free_bytes(self, folder: Path) -> int:
        self._before("free", folder, nothing)
        return self._inner.free_bytes(folder)


class WatchedSink:
    """A file of it that is being written."""

    def __init__(self, inner: Sink, path: Path, before: Before) -> None:
        self._inner, self._path, self._before = inner, path, before

    def write(self, piece: bytes) -> None:
        self._before("write", self._path, lambda: self._inner.write(piece[: len(piece) // 2]))
        self._inner.write(piece)

    def sync(self) -> None:
        self._before("fsync", self._path, nothing)
        self._inner.sync()

    def close(self) -> None:
        self._inner.close()
