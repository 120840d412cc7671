"""A model is examined in a process of its own before it serves cameras; this is the parent's side.

    start_exam ──▶ Exam.poll() ──▶ None: still at it
                              └──▶ ExamReport: ok, or a code and a sentence

The process is `python -m agent.vision.exam`: limits on memory, processor time and files, no
network, no other programs, and processor time that nobody else wants. What it is asked and all
that it says lie in memory files, so nothing here blocks. It says what it is about before it does
it, so that its silence or its death becomes a sentence as well.

With `start_shadow` it looks at frames that this board's worker has lent; they are mapped by the
child, and never by us.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
from msgspec import Struct

import agent
from agent.choices import Choice
from agent.config import ModelConfig
from agent.ota.children import kill, see_off
from agent.ota.refusal import Code
from agent.ota.steps import Refused, Reply, Succeeded, Working
from agent.redaction import redact
from agent.sensors.waits import waits_ns
from agent.trial_words import signal_name

log = logging.getLogger(__name__)

RUNS = 50
# A model that takes longer for one run is of no use to a camera.
RUN_WITHIN_S = 20.0
# The whole child, from its start: libraries from a slow SD card, and a busy board.
EXAM_WITHIN_S = 60.0
# A child that waited for so much of its time was kept from working; others come first, but not for
# ever.
STARVED_SHARE = 0.5
MOST_WAIT_S = 240.0
# One that stands back behind everything has waited long enough then; so does most of a busy board's
# exam, which takes a few seconds where there is time.
IDLE_WAITS_S = 10.0
MAX_ANSWER_BYTES = 1 << 20
MOST_CHARACTERS = 1000

NotComparable = Literal["accelerator"]


class ExamRequest(Struct, frozen=True, kw_only=True):
    """What the child is to do."""

    model: ModelConfig  # as the worker would be told it, with the candidate's folder for a path
    manifest_sha256: str = ""  # of an installed bundle, see agent.vision.model_files
    # What the bundle may take on this board, of one run and of the process; None: it does not say.
    p95_ms: float | None = None
    rss_mib: float | None = None
    task: str | None = None  # that it must have; None: any
    runs: int = RUNS
    most_threads: int = 4
    # How it is to be run on the processor; None: as usual. Nothing is measured beside models that
    # work, as that would find too few threads best.
    way: Choice | None = None
    # An accelerator serves one process at a time, and the worker has it: without this the plain
    # model is examined on the processor, and its times say nothing.
    may_use_accelerator: bool = False
    # idle: it uses only what processor time nobody else wants; where that is not enough, it is
    # begun anew as `nice`, which takes about a tenth of a busy board. no: nothing could suffer.
    stands_back: Literal["idle", "nice", "no"] = "idle"
    run_within_s: float = RUN_WITHIN_S  # of processor time, of each thread
    limit_s: float = EXAM_WITHIN_S  # without the time it waits for others


class Stage(Struct, frozen=True, kw_only=True, tag="stage"):
    """From the child, before it does it: "running it"; `progress` of all that is to be done."""

    what: str
    progress: float


class ExamReport(Struct, frozen=True, kw_only=True, tag="report"):
    """From the child, last; or what is concluded from how it ended."""

    ok: bool
    code: Code | None = None  # why it is refused
    message: str | None = None
    is_final: bool = True  # False: says nothing of the model, and may go well another time
    task: str | None = None
    runtime: str | None = None
    accelerator: str | None = None
    threads: int | None = None
    runs: int = 0  # timed ones, or frames that were looked at
    # Of one run, without the time it waited for processors that others used; in shadow, from a
    # frame's pixels to what is found in it.
    p50_ms: float | None = None
    p95_ms: float | None = None
    wall_p95_ms: float | None = None  # with that time
    rss_mib: float | None = None  # at most, of the whole process
    # Why the times are not held against the budget; None: they are.
    not_comparable: NotComparable | None = None
    golden: int | None = None  # pictures whose answers are as promised; None: none are promised
    # Shadow: 0 to 1, None where tasks cannot be compared or nothing was seen by either.
    agreement: float | None = None
    # What it counts: findings, of classified frames those, of segmented ones areas.
    both: float = 0.0
    only_active: float = 0.0
    only_candidate: float = 0.0
    # How it was run on the processor, and what that is looked up under: with these choices a worker
    # loads it at once, without having it tried again.
    choice_key: str = ""
    choice: Choice | None = None


PR_SET_PDEATHSIG = 1  # linux/prctl.h
# As `-m agent.vision.exam`, but bound to its parent's life before anything else is imported, and
# with this very package first on the path; see `agent.trial_words`.
EXAM = (
    "import ctypes, os, sys; "
    f"ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, {int(signal.SIGKILL)}, 0, 0, 0); "
    "sys.argv.pop(1) == str(os.getppid()) or os._exit(1); "
    "sys.path[0] = sys.argv.pop(1); from agent.vision.exam import main; "
    "os._exit(main())"
)


def exam_command(parent: int, frames: int | None = None) -> list[str]:
    """Return the command for an exam, or for a shadow run on the frames of this descriptor."""
    package = str(Path(agent.__file__).parent.parent)
    command = [sys.executable, "-c", EXAM, str(parent), package]
    return command if frames is None else [*command, "--shadow", str(frames)]


@dataclass(slots=True)
class Exam:
    """One child at work; it dies with the thread that started it (PR_SET_PDEATHSIG)."""

    request: ExamRequest
    frames: int | None  # our own copy of the descriptor
    process: subprocess.Popen[bytes] = field(init=False)
    doing: str = ""  # as of the last `poll`
    progress: float | None = None
    report: ExamReport | None = None
    _answers: BinaryIO = field(init=False)
    _complaints: BinaryIO = field(init=False)
    _ends_at: float = 0.0

    def __post_init__(self) -> None:
        self._answers, self._complaints = _memory_file("answers"), _memory_file("complaints")
        try:
            self._launch()
        except OSError:
            self._close()
            raise

    def _launch(self) -> None:
        see_off()
        for file in (self._answers, self._complaints):
            file.truncate(0)
            file.seek(0)
        with _memory_file("question") as question:
            # json rather than msgspec: file names that are not UTF-8 have lone surrogates.
            question.write(json.dumps(msgspec.to_builtins(self.request)).encode())
            question.seek(0)
            self.process = subprocess.Popen(
                exam_command(os.getpid(), self.frames),
                stdin=question,
                stdout=self._answers,
                stderr=self._complaints,
                pass_fds=() if self.frames is None else (self.frames,),
                start_new_session=True,  # see agent.vision.confine.stand_back
            )
        self._ends_at = time.monotonic() + self.request.limit_s

    def poll(self) -> ExamReport | None:
        """Return the report, or None while there is none; never blocks."""
        if self.report is not None:
            return self.report
        code = self.process.poll()  # before reading: what is said last counts
        said: ExamReport | None = None
        for word in self._words():
            if isinstance(word, Stage):
                self.doing, self.progress = word.what, word.progress
            else:
                said = word
        if code is None:  # what has reported leaves at once
            if time.monotonic() <= self._ends_at and not self._is_starved():
                return None
            said = said or self._when_late()
            if said is None:
                return None
        complaints = _read(self._complaints).decode("utf-8", "replace")
        self.report = said or _conclude(self.request, self.doing, complaints, code)
        self.stop()
        return self.report

    def _is_starved(self) -> bool:
        """Return whether a child that takes only what nobody else wants gets next to nothing."""
        return self.request.stands_back == "idle" and self._waited_s() > IDLE_WAITS_S

    def _waited_s(self) -> float:
        return max(waits_ns(self.process.pid).values(), default=0) / 1e9

    def _when_late(self) -> ExamReport | None:
        """Return what to report of a child whose time is up; None: it is given more.

        What it waited for processors that others used says nothing of the model.
        """
        waited_s = self._waited_s()
        late_s = time.monotonic() - self._ends_at
        if not self._is_starved() and waited_s < STARVED_SHARE * self.request.limit_s:
            return _conclude(self.request, self.doing, "", None)
        if self.request.stands_back == "idle":
            log.info("examined model gets no processor time; begun anew with more of it")
            kill(self.process)
            self.request = msgspec.structs.replace(self.request, stands_back="nice")
            try:
                self._launch()
            except OSError as error:
                return _no_fault(f"no process can be started: {error.strerror}")
            return None
        if late_s <= min(waited_s, MOST_WAIT_S):
            return None
        return _no_fault("could not be examined, as the board has no processor time left for it")

    def _words(self) -> Iterator[Stage | ExamReport]:
        for line in _read(self._answers).split(b"\n"):
            if line.startswith(b"{"):  # libraries may print between the lines
                with contextlib.suppress(msgspec.MsgspecError):
                    yield msgspec.json.decode(line, type=Stage | ExamReport)

    def stop(self) -> None:
        """Kill the child if it still runs, and forget what it said; waits no more than a moment."""
        kill(self.process)
        self._close()

    def _close(self) -> None:
        self._answers.close()
        self._complaints.close()
        if self.frames is not None:
            os.close(self.frames)
            self.frames = None


def start_exam(request: ExamRequest) -> Exam:
    """Start a child that examines a model.

    Raises:
        OSError: no process can be started.
    """
    return Exam(request, None)


def start_shadow(request: ExamRequest, frames: int) -> Exam:
    """Start a child that compares a model with what an active one found in lent frames.

    frames: their descriptor, which stays the caller's to close

    Raises:
        OSError: no process can be started.
    """
    return Exam(request, os.dup(frames))


@dataclass(slots=True)
class ExamStep:
    """An exam as a step of the updater; `learn` hears what the child found out."""

    exam: Exam
    learn: Callable[[ExamReport], None]
    _is_told: bool = False

    def poll(self) -> Reply:
        """Return how it fares."""
        report = self.exam.poll()
        if report is None:
            return Working(progress=self.exam.progress)
        if not self._is_told:
            self._is_told = True
            self.learn(report)
        return reply_of(report)

    def stop(self) -> None:
        """Give it up."""
        self.exam.stop()


def reply_of(report: ExamReport) -> Reply:
    """Return a report in the updater's words."""
    if report.ok:
        return Succeeded(p95_ms=report.p95_ms, rss_mib=report.rss_mib, agreement=report.agreement)
    return Refused(
        code=report.code or "E_SELFTEST", message=report.message or "", is_final=report.is_final
    )


def _memory_file(name: str) -> BinaryIO:
    return os.fdopen(os.memfd_create(name), "w+b", buffering=0)


def _read(file: BinaryIO) -> bytes:
    """Return what was written so far, without moving the position that the child shares."""
    return os.pread(file.fileno(), MAX_ANSWER_BYTES, 0)


def _conclude(request: ExamRequest, doing: str, complaints: str, code: int | None) -> ExamReport:
    """Say why a child ended without a report; `code` None: it was too slow."""
    failure, message, is_final = _why(request, complaints, code)
    at = f"; it was {doing}" if doing else ""
    text = redact(f"{message}{at}")[:MOST_CHARACTERS]
    return ExamReport(ok=False, code=failure, message=text, is_final=is_final)


def _no_fault(message: str) -> ExamReport:
    return ExamReport(ok=False, code="E_SELFTEST", message=message, is_final=False)


def _why(request: ExamRequest, complaints: str, code: int | None) -> tuple[Code, str, bool]:
    if code is None or -code == signal.SIGXCPU:
        return "E_HANG", f"was not done within {request.limit_s:g} s", True
    if -code == signal.SIGPROF:
        return "E_HANG", f"did not finish one run within {request.run_within_s:g} s", True
    if code < 0 and "bad_alloc" in complaints:  # what C++ says before it aborts
        return "E_MEMORY", "needs more memory than there is", True
    if -code == signal.SIGKILL:  # whom we kill has a report already; the kernel sends nothing else
        return "E_MEMORY", "was stopped from outside (SIGKILL); is there enough memory?", True
    if code < 0:
        return "E_CRASH", f"the runtime crashed ({signal_name(-code)})", True
    last = complaints.strip().splitlines()[-1:]
    # Our own fault, or the board's: the child ends in order whatever a model does.
    reason = f"could not be examined: {''.join(last)[:300] or 'no reason given'}"
    return "E_SELFTEST", reason, False
