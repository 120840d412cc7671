"""How a model is best run on this board: measured once, remembered by what it depends on.

A record is keyed by the model's hash, the runtimes' versions, the board and the settings that
narrow the choice, so anything that could change the answer asks the question again. Pure
records and one small file; measuring is `agent.vision.trial`'s work.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

log = logging.getLogger(__name__)

CHOICES_FILE = "choices.json"  # in the state directory
# A board runs a handful of models; the rest are of files that are long gone.
MAX_CHOICES = 64
# 64 choices of 64 KiB; one with a dozen candidates is 2 KiB.
MAX_FILE_BYTES = 4 << 20
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
    """Read what was remembered; a file that cannot be used is logged and counts as empty."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
        choices = msgspec.json.decode(data, type=dict[str, Choice])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        reason = error.strerror if isinstance(error, OSError) else error
        log.warning("choices not read path=%s reason=%s; models are measured anew", path, reason)
        return {}
    return _newest({key: choice for key, choice in choices.items() if _KEY.fullmatch(key)})


def write_choices(path: Path, choices: Mapping[str, Choice]) -> None:
    """Replace the file by the newest MAX_CHOICES; whoever reads sees the old one or the new one.

    Raises:
        OSError: the folder or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # One name per process: a command may write while the daemon does.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with unfinished.open("wb") as file:
            file.write(msgspec.json.encode(_newest(choices)))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    # The rename is on disk only once its folder is.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _newest(choices: Mapping[str, Choice]) -> dict[str, Choice]:
    by_age = sorted(choices.items(), key=lambda item: item[1].measured_at, reverse=True)
    return dict(by_age[:MAX_CHOICES])
