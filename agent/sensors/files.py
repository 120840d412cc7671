"""The seam to a board's files: everything that sensors read, they read through this.

Values are read with `os.pread` from descriptors that stay open: buffered text files turn EAGAIN
of a gated Jetson sensor into a TypeError, and opening costs more than reading. Every read may fail
by itself (EAGAIN, ENODATA, EACCES, ENXIO, a device that is unplugged): that value is unknown then,
and no exception leaves here.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

# sysfs gives one page at most; what is read here are numbers, names and lists of words.
MOST_BYTES = 4096
_NUMBER = re.compile(r"([0-9]+)")
_WILD = re.compile(r"[*?[]")
# The kernel's numbers fit 64 bits; what does not is no number, and a float could not hold it.
_TOO_MUCH = 1 << 64
# The file has gone, and may come back as another one: look for it anew at the next read.
_GONE = (errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.EBADF)


class Sensor:
    """One file that is read again and again."""

    def __init__(self, file: str, path: str, failing: str | None = None) -> None:
        self._file = file
        self._failing = failing  # with this errno, as it did where the board was recorded
        self._descriptor: int | None = None
        self.path = path  # relative to the board's root
        self.error: str | None = None  # errno of the last read, None if it went well

    def text(self) -> str | None:
        """Return what the file says now, without white space and NULs around; None: unknown."""
        if self._failing is not None:
            self.error = self._failing
            return None
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            raw = _read_whole(self._descriptor)
        except OSError as error:
            self.error = errno.errorcode.get(error.errno or 0, "EIO")
            if error.errno in _GONE:
                self.close()
            return None
        self.error = None
        return raw.decode("utf-8", "replace").strip("\0 \t\r\n")

    def number(self) -> int | None:
        """Return the integer the file begins with, as `32760 ma` does; None: unknown."""
        words = (self.text() or "").split(maxsplit=1)
        try:
            number = int(words[0]) if words else None
        except ValueError:
            return None
        return None if number is None or abs(number) >= _TOO_MUCH else number

    def move(self, file: str, failing: str | None) -> None:
        """Read another file from now on, or let reading it fail."""
        self.close()
        self._file, self._failing = file, failing

    def close(self) -> None:
        """Let go of the file; the next read opens it again."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)


class BoardFiles:
    """The files of one board, below `root`; one thread uses it.

    Of a recorded board, `failing` are the paths that could not be read there, with the errno.
    """

    def __init__(self, root: Path = Path("/"), *, failing: Mapping[str, str] | None = None) -> None:
        self.root = root
        self._root = str(root).rstrip("/")
        self._failing = dict(failing or {})
        self._layer: str | None = None
        self._sensors: dict[str, Sensor] = {}

    def lay(self, layer: Path) -> None:
        """Let this folder's files stand before those of the root: a recording's next moment."""
        self._layer = str(layer)
        for path, sensor in self._sensors.items():
            sensor.move(*self._place(path))

    def find(self, pattern: str) -> list[str]:
        """Return the paths below the root that fit, numbers in their names in numeric order."""
        found = {path for failing in self._failing for path in _fitting(failing, pattern)}
        for folder in (self._root, self._layer):
            if folder is not None:
                found.update(_matching(folder, "", pattern))
        return sorted(found, key=_numeric)

    def has(self, path: str) -> bool:
        """Return whether there is such a file or folder, readable or not."""
        # Not Path.exists, which raises where a folder may not be searched.
        if any(failing == path or failing.startswith(f"{path}/") for failing in self._failing):
            return True
        return os.path.exists(self._place(path)[0])  # noqa: PTH110

    def read(self, path: str) -> str | None:
        """Return a text once, for discovery; None where it cannot be read."""
        sensor = self._open(path)
        try:
            return sensor.text()
        finally:
            sensor.close()

    def raw(self, path: str) -> bytes | None:
        """Return the bytes of a file once, for those that hold several strings."""
        try:
            return self.whole(path)
        except OSError:
            return None

    def whole(self, path: str) -> bytes:
        """Return the bytes of a file once, MOST_BYTES at most.

        Raises:
            OSError: it cannot be read, or could not where it was recorded.
        """
        file, failing = self._place(path)
        if failing is not None:
            raise OSError(getattr(errno, failing, errno.EIO), "failed where it was recorded", path)
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return _read_whole(descriptor)
        finally:
            os.close(descriptor)

    def sensor(self, path: str) -> Sensor:
        """Return the file as one to be read again and again; the same one for the same path."""
        sensor = self._sensors.get(path)
        if sensor is None:
            sensor = self._sensors[path] = self._open(path)
        return sensor

    def forget(self, folder: str) -> None:
        """Let go of all files in a folder that has gone; what they failed with says nothing now."""
        for path in [path for path in self._sensors if path.startswith(f"{folder}/")]:
            self._sensors.pop(path).close()

    def errors(self) -> dict[str, str]:
        """Return the sensors whose last read failed, with why; those that are missing as well."""
        return {
            path: sensor.error for path, sensor in self._sensors.items() if sensor.error is not None
        }

    def forget_gone(self) -> None:
        """Let go of the sensors whose files are there no longer."""
        for path in [path for path in self._sensors if not self.has(path)]:
            self._sensors.pop(path).close()

    def close(self) -> None:
        """Let go of all files."""
        for sensor in self._sensors.values():
            sensor.close()
        self._sensors.clear()

    def _open(self, path: str) -> Sensor:
        file, failing = self._place(path)
        return Sensor(file, path, failing)

    def _place(self, path: str) -> tuple[str, str | None]:
        """Return where a path is read, and the errno with which that fails."""
        if self._layer is not None:
            layered = f"{self._layer}/{path}"
            if os.path.lexists(layered):
                return layered, None
        return f"{self._root}/{path}", self._failing.get(path)


def _read_whole(descriptor: int) -> bytes:
    """Return a file's bytes, MOST_BYTES at most.

    sysfs gives a value in one piece that ends in a line end, and the device tree one that ends in a
    NUL, so a second call is made for what is neither: a piece of a number is another number.
    """
    raw = os.pread(descriptor, MOST_BYTES, 0)
    while raw and raw[-1:] not in (b"\n", b"\0") and len(raw) < MOST_BYTES:
        more = os.pread(descriptor, MOST_BYTES - len(raw), len(raw))
        if not more:
            break
        raw += more
    return raw


def _matching(root: str, folder: str, pattern: str) -> Iterator[str]:
    """Yield the paths in a folder below root that fit; links are followed, as deep as the pattern.

    Not Path.glob: it takes four times as long, and this is done for every kind of device there is.
    """
    name, _, rest = pattern.partition("/")
    is_wild = _WILD.search(name) is not None
    try:
        names = fnmatch.filter(os.listdir(f"{root}/{folder}"), name) if is_wild else [name]  # noqa: PTH208
    except OSError:
        return  # not there, no folder, or gone by now
    for found in names:
        path = f"{folder}/{found}" if folder else found
        if rest:
            yield from _matching(root, path, rest)
        elif is_wild or os.path.lexists(f"{root}/{path}"):
            yield path


def _fitting(path: str, pattern: str) -> list[str]:
    """Return the path, or the folder above it, that fits; none or one."""
    wanted = pattern.split("/")
    parts = path.split("/")[: len(wanted)]
    fits = len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))
    return ["/".join(parts)] if fits else []


def _numeric(path: str) -> list[tuple[int, int | str]]:
    """Return a key by which cooling_device2 comes before cooling_device10."""
    parts = _NUMBER.split(path)  # every second one is a number
    return [(place % 2, int(part) if place % 2 else part) for place, part in enumerate(parts)]
