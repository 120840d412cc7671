"""What is asked of a process that tries a model, what it answers, and the process itself.

A model may crash, hang or eat memory, so whoever wants to know how it runs has it tried in a
child (`agent.vision.trial`) and reads about it here, without loading an array library. The
question and all that comes back lie in memory files: nothing blocks, whatever the child does.

    start_trial ──▶ Trial.poll() ──▶ None: still at it
                                └──▶ TrialAnswer: passed, or `refused` says why not

The child says what it is about before it does it (`Doing`), so that even its silence or its
death becomes a sentence.
"""

from __future__ import annotations

import contextlib
import json
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
from agent.choices import Candidate, Choice
from agent.config import ModelConfig
from agent.redaction import redact

# A model that takes longer for one run, with all preparation, is of no use to a camera.
RUN_WITHIN_S = 20.0
# The whole child: importing libraries from a slow SD card, and a search that is short of time.
TRIAL_WITHIN_S = 50.0
THOROUGH_WITHIN_S = 150.0
# How long one that measures waits for others to be done, as they would falsify each other's times:
# three searches on a quad-core board. A wrong choice is better than a board that does nothing.
ALONE_WITHIN_S = 30.0
# Two dozen lines are the rule; libraries may add warnings. The child cannot write more.
MAX_ANSWER_BYTES = 1 << 20
PROBE_INVOKES = 20
NO_ANSWER = "gave no answer"
POLL_S = 0.02

RuntimeName = Literal["litert", "tflite-runtime"]
PACKAGES: dict[RuntimeName, str] = {"litert": "ai-edge-litert", "tflite-runtime": "tflite-runtime"}


class TrialRequest(Struct, frozen=True, kw_only=True):
    """What the child is to do: measure the processor, or with `probe` try the accelerator."""

    model: ModelConfig
    runtime: RuntimeName | None = None  # None: as the configuration says
    sha256: str = ""  # of the plain model; empty: whatever lies there, compiled or not
    edgetpu_sha256: str = ""  # of the compiled one beside it; empty: there is none
    most_threads: int = 1
    to_beat_ms: float | None = None  # what another runtime took
    is_thorough: bool = False  # measure all, and for longer
    probe: int = 0  # so many invokes on the wanted accelerator
    run_within_s: float = RUN_WITHIN_S
    limit_s: float = TRIAL_WITHIN_S  # for everything


class Doing(Struct, frozen=True, kw_only=True, tag="doing"):
    """From the child, before it does it: "loading it on litert 2.3.0"."""

    what: str
    candidate: Candidate | None = None  # what is refused if this is the last word


class Measured(Struct, frozen=True, kw_only=True, tag="measured"):
    """From the child: one candidate, measured or refused."""

    candidate: Candidate


class Passed(Struct, frozen=True, kw_only=True, tag="passed"):
    """From the child, last: the model can be used."""

    # Of an accelerator: the choice, and what it is remembered under. That is made of the hashes of
    # what the child has read, so it never speaks for other bytes.
    key: str = ""
    choice: Choice | None = None


class Refused(Struct, frozen=True, kw_only=True, tag="refused"):
    """From the child, last: it cannot."""

    reason: str
    fault: str | None = None  # of a DelegateError


Reply = Doing | Measured | Passed | Refused


class TrialAnswer(Struct, frozen=True, kw_only=True):
    """All that was learned."""

    candidates: tuple[Candidate, ...] = ()
    refused: str | None = None
    fault: str | None = None
    is_crash: bool = False  # `refused` was concluded from how the child ended
    key: str = ""  # with `choice`, see `Passed`
    choice: Choice | None = None


PR_SET_PDEATHSIG = 1  # linux/prctl.h
# As `-m agent.vision.trial`, but this very package comes first on the path, and not the current
# folder with whatever modules lie there. Importing those libraries takes seconds, and a child
# that nobody waits for may hold an accelerator: so before that it is bound to its parent's life,
# and leaves if that has ended already.
TRIAL = (
    "import ctypes, os, sys; "
    f"ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, {int(signal.SIGKILL)}, 0, 0, 0); "
    "sys.argv.pop(1) == str(os.getppid()) or os._exit(1); "
    "sys.path[0] = sys.argv.pop(1); from agent.vision.trial import main; "
    "os._exit(main())"
)


@dataclass(slots=True)
class Trial:
    """One child at work. Whoever starts it polls or waits until it has answered, or ends it.

    The child dies with the thread that started it: PR_SET_PDEATHSIG.
    """

    request: TrialRequest
    process: subprocess.Popen[bytes]
    answers: BinaryIO
    complaints: BinaryIO
    ends_at: float
    heard: list[str] = field(default_factory=list)  # what it was about, as of the last `poll`

    def poll(self) -> TrialAnswer | None:
        """Return the answer, or None while there is none; never blocks for long."""
        code = self.process.poll()  # before reading: what is said last counts
        replies = list(self.replies())
        self.heard = [reply.what for reply in replies if isinstance(reply, Doing)]
        is_late = code is None and time.monotonic() > self.ends_at
        if code is None and not is_late:
            return None
        complaints = _read(self.complaints).decode("utf-8", "replace")
        self.end()
        return _conclude(self.request, replies, complaints, code)

    def wait(self, say: Callable[[str], None] | None = None) -> TrialAnswer:
        """Return the answer when it is there; `say` hears what is being done meanwhile."""
        said = 0
        try:
            while True:
                answer = self.poll()
                if say is not None:
                    for what in self.heard[said:]:
                        say(what)
                said = len(self.heard)
                if answer is not None:
                    return answer
                time.sleep(POLL_S)
        finally:
            self.end()

    def replies(self) -> Iterator[Reply]:
        """Yield what the child has said so far; libraries may print between its lines."""
        for line in _read(self.answers).split(b"\n"):
            if line.startswith(b"{"):
                try:
                    yield msgspec.json.decode(line, type=Reply)
                except msgspec.MsgspecError:
                    continue

    def end(self) -> None:
        """Kill the child if it still runs, and forget what it said."""
        if self.process.poll() is None:
            self.process.kill()
            # Stuck in the kernel, in a driver, it goes when that lets go.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=2.0)
        self.answers.close()
        self.complaints.close()


def start_trial(request: TrialRequest) -> Trial:
    """Start a child that tries a model.

    Raises:
        OSError: no process can be started.
    """
    answers, complaints = _memory_file("answers"), _memory_file("complaints")
    with _memory_file("question") as question:
        # json rather than msgspec: file names that are not UTF-8 are strings with lone surrogates.
        question.write(json.dumps(msgspec.to_builtins(request)).encode())
        question.seek(0)
        process = subprocess.Popen(
            trial_command(os.getpid()), stdin=question, stdout=answers, stderr=complaints
        )
    return Trial(
        request=request,
        process=process,
        answers=answers,
        complaints=complaints,
        ends_at=time.monotonic() + request.limit_s,
    )


def trial_command(parent: int) -> list[str]:
    """Return the command for a trial whose parent has this process id."""
    return [sys.executable, "-c", TRIAL, str(parent), str(Path(agent.__file__).parent.parent)]


def signal_name(number: int) -> str:
    """Return "SIGSEGV", or "signal 40" for one of those that have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def explain_signal(number: int, doing: str = "", suspect: str = "the model") -> str:
    """Say why a process that loads a model was ended by this signal."""
    name, doing = signal_name(number), doing or "loading or running it"
    if number == signal.SIGKILL:  # the kernel's out-of-memory killer sends nothing else
        return f"{doing} was stopped from outside ({name}); is there enough memory?"
    return f"the runtime crashed ({name}) while {doing}; {suspect} is probably damaged"


def _memory_file(name: str) -> BinaryIO:
    return os.fdopen(os.memfd_create(name), "w+b", buffering=0)


def _read(file: BinaryIO) -> bytes:
    """Return what was written so far, without moving the position that the child shares."""
    return os.pread(file.fileno(), MAX_ANSWER_BYTES, 0)


def _conclude(
    request: TrialRequest,
    replies: list[Reply],
    complaints: str,
    code: int | None,
) -> TrialAnswer:
    """Turn the child's words, or their lack, into an answer; `code` None: it was too slow."""
    candidates = tuple(reply.candidate for reply in replies if isinstance(reply, Measured))
    last = replies[-1] if replies else None
    if isinstance(last, Passed):
        return TrialAnswer(candidates=candidates, key=last.key, choice=last.choice)
    if isinstance(last, Refused):
        return TrialAnswer(candidates=candidates, refused=redact(last.reason), fault=last.fault)
    doing = last.what if isinstance(last, Doing) else ""
    reason = redact(_explain_end(request, complaints, code, doing))
    if isinstance(last, Doing) and last.candidate is not None:
        candidates += (msgspec.structs.replace(last.candidate, refused=reason[:1000]),)
    # What was measured before time ran out stands; what crashes once is not used at all.
    is_slow = code is None or -code in (signal.SIGALRM, signal.SIGXCPU)
    is_measured = any(candidate.refused is None for candidate in candidates)
    if is_slow and is_measured:
        return TrialAnswer(candidates=candidates)
    return TrialAnswer(candidates=candidates, refused=reason, is_crash=True)


def _explain_end(request: TrialRequest, complaints: str, code: int | None, doing: str) -> str:
    """Say why a child ended without an answer; `doing` is the last that was heard of it."""
    at = f"; it was {doing}" if doing else ""
    if code is None or -code == signal.SIGXCPU:
        return f"could not be tried within {request.limit_s:g} s{at}"
    if -code == signal.SIGALRM:
        return f"did not finish one run within {request.run_within_s:g} s{at}"
    if code < 0 and "bad_alloc" in complaints:  # what C++ says before it aborts
        return f"the model needs more memory than there is{at}"
    if code < 0:
        suspect = "its library or device" if request.probe else "the model"
        return explain_signal(-code, doing, suspect)
    last = complaints.strip().splitlines()[-1:]
    return f"could not be tried: {''.join(last)[:300] or 'no reason given'}{at}"
