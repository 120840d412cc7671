"""How a model is best run on this board: measured once, remembered by what it depends on.

A record is keyed by the model's hash, the runtimes' versions, the board and the settings that
narrow the choice, so anything that could change the answer asks the question again. Pure
records and one small file; measuring is `agent.vision.trial`'s work.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from agent.durable import write_durably

log = logging.getLogger(__name__)

CHOICES_FILE = "choices.json"  # in the state directory
# A board runs a handful of models; the rest are of files that are long gone.
MAX_CHOICES = 64
# 64 choices of 64 KiB; one with a dozen candidates is 2 KiB.
MAX_FILE_BYTES = 4 << 20
# A clock that was set right since may have been this far ahead; a date beyond is damage.
AHEAD_S = 86_400.0
# Writing takes milliseconds, seconds on a worn SD card. The daemon's main loop waits, so not long.
LOCK_WITHIN_S, LOCK_POLL_S = 1.0, 0.01
# XNNPACK gains little beyond four threads on the quad-core boards this is for.
MOST_THREADS = 4
_KEY = re.compile(r"[0-9a-f]{64}")

Count = Annotated[int, Meta(ge=1, le=64)]
Milliseconds = Annotated[float, Meta(ge=0)]
Text = Annotated[str, Meta(max_length=1000)]


class Candidate(Struct, frozen=True, kw_only=True):
    """One way to run a model, and how it went."""

    runtime: Text  # "litert 2.3.0"
    xnnpack: bool
    threads: Count
    invoke_ms: Milliseconds | None  # median without warm-up; None: refused
    refused: Text | None = None

    def way(self) -> str:
        """Return "litert 2.3.0, XNNPACK, 2 threads"."""
        return f"{self.runtime}, {self._kernels()}, {_threads(self.threads)}"

    def beside(self, chosen: Candidate) -> str:
        """Say what sets this one apart from the chosen one, and how it went."""
        differs = []
        if self.runtime != chosen.runtime:
            differs.append(self.runtime)
        if self.xnnpack != chosen.xnnpack:
            differs.append(self._kernels())
        if self.threads != chosen.threads or not differs:
            differs.append(_threads(self.threads))
        went = f"{self.invoke_ms:g} ms" if self.refused is None else self.refused
        return f"{', '.join(differs)}: {went}"

    def _kernels(self) -> str:
        return "XNNPACK" if self.xnnpack else "without XNNPACK"


class Choice(Struct, frozen=True, kw_only=True):
    """The way that was chosen, and all that was tried."""

    runtime: Literal["litert", "tflite-runtime"]
    xnnpack: bool
    threads: Count
    invoke_ms: Milliseconds | None
    candidates: Annotated[tuple[Candidate, ...], Meta(max_length=100)]
    measured_at: float

    def describe(self) -> str:
        """Return "litert 2.3.0, XNNPACK, 2 threads: 12.5 ms (tried: 1 thread: 24.6 ms; …)"."""
        chosen = self.chosen()
        others = [each.beside(chosen) for each in self.candidates if each != chosen]
        tried = f" (tried: {'; '.join(others)})" if others else ""
        took = f": {self.invoke_ms:g} ms" if self.invoke_ms is not None else ""
        return f"{chosen.way()}{took}{tried}"

    def chosen(self) -> Candidate:
        """Return the candidate that was chosen."""
        for each in self.candidates:
            name = each.runtime.split(" ")[0]
            is_so = (name, each.xnnpack, each.threads) == (self.runtime, self.xnnpack, self.threads)
            if is_so and each.refused is None:
                return each
        return Candidate(
            runtime=self.runtime,
            xnnpack=self.xnnpack,
            threads=self.threads,
            invoke_ms=self.invoke_ms,
        )


def most_threads(engines: int = 1) -> int:
    """Return how many threads one of so many models side by side may use."""
    return max(1, min(MOST_THREADS, len(os.sched_getaffinity(0))) // max(1, engines))


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


def read_choices(path: Path) -> dict[str, Choice]:
    """Read what was remembered.

    A file that cannot be used is logged and counts as empty; so is a record, but for the others.
    """
    try:
        records = msgspec.json.decode(_read_file(path), type=dict[str, msgspec.Raw])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        reason = error.strerror if isinstance(error, OSError) else error
        log.warning("choices not read path=%s reason=%s; models are measured anew", path, reason)
        return {}
    decoded = {key: _decode(key, record) for key, record in records.items()}
    choices = {key: one for key, one in decoded.items() if isinstance(one, Choice)}
    reasons = [one for one in decoded.values() if isinstance(one, Exception)]
    if reasons:
        text = "choices dropped path=%s number=%d of=%d reason=%s; these are measured anew"
        log.warning(text, path, len(reasons), len(records), reasons[0])
    return newest(choices)


def _read_file(path: Path) -> bytes:
    """Return a bounded file's content; a pipe in its place does not block, but is refused."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no regular file")
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
    return data


def _decode(key: str, record: msgspec.Raw) -> Choice | Exception:
    """Return one record, or why not; a date to come is no date, or it would outlive all others."""
    if not _KEY.fullmatch(key):
        return ValueError("a key is no hash")
    try:
        choice = msgspec.json.decode(record, type=Choice)
    except (ValueError, RecursionError) as error:
        return error
    if choice.measured_at > time.time() + AHEAD_S:
        return msgspec.structs.replace(choice, measured_at=0.0)
    return choice


def add_choices(path: Path, choices: Mapping[str, Choice]) -> dict[str, Choice]:
    """Write choices beside those in the file, the newest MAX_CHOICES of all; return these.

    Several processes may do so at once, and each may be killed at any time: none takes away what
    another has added, and whoever reads sees a whole file.

    Raises:
        OSError: the folder or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(folder)
        kept = newest(read_choices(path), choices)
        write_durably(path, msgspec.json.encode(kept))
    finally:
        os.close(folder)  # and unlocked
    return kept


def _lock(folder: int) -> None:
    """Wait for the folder's flock(2), which the kernel takes from a process that ends."""
    deadline = time.monotonic() + LOCK_WITHIN_S
    while not _try_lock(folder):
        if time.monotonic() > deadline:
            raise OSError(errno.EAGAIN, "another process has it locked")
        time.sleep(LOCK_POLL_S)


def _try_lock(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def newest(*several: Mapping[str, Choice]) -> dict[str, Choice]:
    """Return the newest MAX_CHOICES of all, and of each key the newest; the later at a tie."""
    merged: dict[str, Choice] = {}
    for choices in several:
        for key, choice in choices.items():
            if key not in merged or choice.measured_at >= merged[key].measured_at:
                merged[key] = choice
    by_age = sorted(merged.items(), key=lambda item: item[1].measured_at, reverse=True)
    return dict(by_age[:MAX_CHOICES])
