"""A file system that forgets: what it keeps after a power cut is what fsync(2) promises, or less.

Written bytes that were not waited for may be there or not, page by page and in any order, with
zeros or another file's old bytes where a file has grown. Names that were not waited for may be
there or not, each by itself: a rename may have happened, or not, or half (both names, or none).
Only that one folder has two names is left out: whatever checks a file system mends that. No real
one is that bad; ext4 with `data=writeback` and XFS come near in different ways.
"""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = 4096
JUNK = b"\xa5old bytes of another file\x5a"


@dataclass(eq=False)
class File:
    durable: bytes = b""
    content: bytearray = field(default_factory=bytearray)
    # After each write that was not waited for: offset, bytes, length of the file by then.
    pending: list[tuple[int, bytes, int]] = field(default_factory=list)


@dataclass(eq=False)
class Folder:
    durable: dict[str, File | Folder] = field(default_factory=dict)
    entries: dict[str, File | Folder] = field(default_factory=dict)
    pending: list[tuple[str, File | Folder | None]] = field(default_factory=list)


class CrashDisk:
    """A `Disk` in memory; `before_op` gets number, name and path of each change of it."""

    def __init__(self, root: Folder | None = None, *, page: int = PAGE) -> None:
        self.root = root or Folder()
        self.page = page
        self.ops = 0
        self.free = 1 << 40
        self.before_op: Callable[[int, str, Path], None] = lambda *_: None

    # What the product asks.

    def names(self, folder: Path) -> list[str]:
        found = self._find(folder)
        if isinstance(found, File):
            raise _error(errno.ENOTDIR, folder)
        return sorted(found.entries) if found else []

    def size(self, path: Path) -> int | None:
        found = self._find(path)
        return len(found.content) if isinstance(found, File) else None

    def is_folder(self, path: Path) -> bool:
        return isinstance(self._find(path), Folder)

    def open(self, path: Path) -> io.BytesIO:
        found = self._find(path)
        if not isinstance(found, File):
            raise _error(errno.ENOENT if found is None else errno.EINVAL, path)
        return io.BytesIO(bytes(found.content))

    def sink(self, path: Path, how: str) -> CrashSink:
        self._op("open", path)
        folder = self._folder(path.parent)
        found = folder.entries.get(path.name)
        if isinstance(found, Folder) or (found is not None and how == "new"):
            raise _error(errno.EEXIST, path)
        if found is None:
            found = File()
            self._set(folder, path.name, found)
        return CrashSink(self, found, path, how)

    def make_folder(self, path: Path) -> None:
        if not self.is_folder(path):
            if path.parent != path:
                self.make_folder(path.parent)
            self._op("mkdir", path)
            self._set(self._folder(path.parent), path.name, Folder())

    def sync_folder(self, path: Path) -> None:
        self._op("fsync folder", path)
        folder = self._folder(path)
        folder.durable = dict(folder.entries)
        folder.pending.clear()

    def rename(self, old: Path, new: Path) -> None:
        self._op("rename", new)
        source, target = self._folder(old.parent), self._folder(new.parent)
        if old.name not in source.entries:
            raise _error(errno.ENOENT, old)
        there = target.entries.get(new.name)
        if isinstance(there, Folder) and there.entries:
            raise _error(errno.ENOTEMPTY, new)
        moved = source.entries[old.name]
        self._set(target, new.name, moved)
        self._set(source, old.name, None)

    def remove(self, path: Path) -> None:
        found = self._find(path)
        if found is None:
            return
        self._op("remove", path)
        if isinstance(found, Folder) and found.entries:
            raise _error(errno.ENOTEMPTY, path)
        self._set(self._folder(path.parent), path.name, None)

    def free_bytes(self, folder: Path) -> int:
        self._folder(folder)
        return self.free

    # What power does.

    def after_power_cuts(self, most: int, chance: random.Random) -> Iterator[CrashDisk]:
        """Yield what may be found after a power cut now, each once; at most about `most`.

        All there are, if there are so few; else nothing kept, all kept, each thing alone kept or
        alone lost, and the rest at random.
        """
        choices = list(self._choices())
        seen = set()
        for picked in _picks([len(options) for _, _, options in choices], most, chance):
            chosen: dict[int, dict[Any, Any]] = {}
            for (node, key, options), at in zip(choices, picked, strict=True):
                chosen.setdefault(id(node), {})[key] = options[at]
            try:
                root = _rebuilt(self.root, chosen, self.page, {})
            except TwoNamesError:
                continue
            left = CrashDisk(root, page=self.page)
            if (print_ := left.fingerprint()) not in seen:
                seen.add(print_)
                yield left

    def fingerprint(self) -> bytes:
        """Return what tells one content of the whole disk from another."""
        digest = hashlib.sha256()

        def add(node: File | Folder) -> None:
            if isinstance(node, File):
                digest.update(b"f%d " % len(node.content) + node.content)
            else:
                for name, below in sorted(node.entries.items()):
                    digest.update(b"d" + name.encode() + b"\0")
                    add(below)
                digest.update(b".")

        add(self.root)
        return digest.digest()

    def snapshot(self) -> CrashDisk:
        """Return a copy, with all that is not waited for."""
        copies: dict[int, File | Folder] = {}
        twin = CrashDisk(_copied(self.root, copies), page=self.page)
        twin.free = self.free
        return twin

    def _choices(self) -> Iterator[tuple[File | Folder, Any, list[Any]]]:
        for node in _reachable(self.root):
            if isinstance(node, Folder):
                for name in dict.fromkeys(name for name, _ in node.pending):
                    later = [entry for at, entry in node.pending if at == name]
                    yield node, name, _distinct([node.durable.get(name), *later])
            else:
                yield from ((node, key, options) for key, options in self._file_choices(node))

    def _file_choices(self, file: File) -> Iterator[tuple[Any, list[Any]]]:
        lengths = _distinct([len(file.durable), *(length for _, _, length in file.pending)])
        if len(lengths) > 1:
            yield "length", lengths
        pages: dict[int, list[bytes]] = {}
        content = bytearray(file.durable)
        for offset, data, _ in file.pending:
            touched = range(offset // self.page, -(-(offset + len(data)) // self.page))
            for number in touched:
                pages.setdefault(number, [_page(content, number, self.page)])
            content.extend(bytes(max(0, offset + len(data) - len(content))))
            content[offset : offset + len(data)] = data
            for number in touched:
                pages[number].append(_page(content, number, self.page))
        for number, versions in pages.items():
            if number * self.page >= len(file.durable):
                versions.insert(1, (JUNK * (self.page // len(JUNK) + 1))[: self.page])
            if len(options := _distinct(versions)) > 1:
                yield number, options

    def _op(self, name: str, path: Path) -> None:
        self.before_op(self.ops, name, path)
        self.ops += 1

    def _find(self, path: Path) -> File | Folder | None:
        node: File | Folder | None = self.root
        for part in path.parts[1:]:
            node = node.entries.get(part) if isinstance(node, Folder) else None
        return node

    def _folder(self, path: Path) -> Folder:
        found = self._find(path)
        if not isinstance(found, Folder):
            raise _error(errno.ENOENT if found is None else errno.ENOTDIR, path)
        return found

    def _set(self, folder: Folder, name: str, entry: File | Folder | None) -> None:
        folder.pending.append((name, entry))
        if entry is None:
            folder.entries.pop(name, None)
        else:
            folder.entries[name] = entry


class CrashSink:
    def __init__(self, disk: CrashDisk, file: File, path: Path, how: str) -> None:
        self._disk, self._file, self._path = disk, file, path
        self._at = len(file.content) if how == "append" else 0

    def write(self, piece: bytes) -> None:
        self._disk._op("write", self._path)
        content, end = self._file.content, self._at + len(piece)
        content.extend(bytes(max(0, end - len(content))))
        content[self._at : end] = piece
        self._file.pending.append((self._at, bytes(piece), len(content)))
        self._at = end

    def sync(self) -> None:
        self._disk._op("fsync", self._path)
        self._file.durable = bytes(self._file.content)
        self._file.pending.clear()

    def close(self) -> None:
        pass


def _picks(counts: list[int], most: int, chance: random.Random) -> Iterator[tuple[int, ...]]:
    total = 1
    for count in counts:
        total *= count
    if total <= most:
        yield from itertools.product(*map(range, counts))
        return
    none, every = (0,) * len(counts), tuple(count - 1 for count in counts)
    yield none
    yield every
    for base in (none, every):
        for at, count in enumerate(counts):
            for option in range(count):
                yield (*base[:at], option, *base[at + 1 :])
    for _ in range(most):
        yield tuple(chance.randrange(count) for count in counts)


class TwoNamesError(Exception):
    """A folder would have two names."""


def _rebuilt(node: Any, chosen: dict[int, dict[Any, Any]], page: int, memo: dict[int, Any]) -> Any:
    """Return a node as it is found after a power cut, with nothing pending."""
    if id(node) in memo:
        if isinstance(node, Folder):
            raise TwoNamesError
        return memo[id(node)]
    here = chosen.get(id(node), {})
    if isinstance(node, Folder):
        memo[id(node)] = made = Folder()
        entries = {**node.durable, **here}
        made.entries = {
            name: _rebuilt(entry, chosen, page, memo)
            for name, entry in entries.items()
            if entry is not None
        }
        made.durable = dict(made.entries)
        return made
    content = bytearray(node.durable)
    if here:
        length = here.get("length", len(node.durable))
        pages = {number: version for number, version in here.items() if number != "length"}
        content.extend(
            bytes(max(0, max([length, *((at + 1) * page for at in pages)]) - len(content)))
        )
        for number, version in pages.items():
            content[number * page : (number + 1) * page] = version
        del content[length:]
    memo[id(node)] = made = File(bytes(content), content)
    return made


def _copied(node: Any, copies: dict[int, Any]) -> Any:
    if node is None:
        return None
    if id(node) not in copies:
        if isinstance(node, File):
            copies[id(node)] = File(node.durable, bytearray(node.content), list(node.pending))
        else:
            copies[id(node)] = made = Folder()
            made.durable = {name: _copied(e, copies) for name, e in node.durable.items()}
            made.entries = {name: _copied(e, copies) for name, e in node.entries.items()}
            made.pending = [(name, _copied(e, copies)) for name, e in node.pending]
    return copies[id(node)]


def _reachable(root: Folder) -> list[File | Folder]:
    found: dict[int, File | Folder] = {}
    waiting: list[File | Folder] = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in found:
            continue
        found[id(node)] = node
        if isinstance(node, Folder):
            waiting += [*node.durable.values(), *node.entries.values()]
            waiting += [entry for _, entry in node.pending if entry is not None]
    return list(found.values())


def _page(content: bytes | bytearray, number: int, page: int) -> bytes:
    return bytes(content[number * page : (number + 1) * page]).ljust(page, b"\0")


def _distinct(values: list[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if not any(
            value is one or (isinstance(value, bytes | int) and value == one) for one in found
        ):
            found.append(value)
    return found


def _error(code: int, path: Path) -> OSError:
    return OSError(code, os.strerror(code), str(path))
