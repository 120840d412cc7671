"""The child that examines a model: `python -m agent.vision.exam [--shadow FD]`, asked over stdin.

It gives up what it does not need before it imports anything heavy or reads a byte of the model,
and leaves one JSON line for each thing it does, the report last. Whatever the model does ends
here; the parent's side, and what is concluded from an end without a report, is
`agent.ota.selftest`.
"""

from __future__ import annotations

import json
import logging
import os
import sys

import msgspec

from agent.errors import EXIT_OK, ModelError
from agent.ota.refusal import RefusalError
from agent.ota.selftest import MOST_CHARACTERS, ExamReport, ExamRequest, Stage
from agent.redaction import redact
from agent.vision.confine import LAST_NICE, confine_memory, confine_to, stand_back
from agent.vision.sealed import seal

log = logging.getLogger(__name__)

SHADOW = "--shadow"
# A tenth of a processor that one other thread wants as well: sched_prio_to_weight of the kernel.
NICENESS = {"idle": LAST_NICE, "nice": 10, "no": 0}


def main(arguments: list[str] | None = None) -> int:
    """Examine what stdin asks for; the report is on stdout."""
    arguments = sys.argv[1:] if arguments is None else arguments
    frames = int(arguments[1]) if arguments[:1] == [SHADOW] else None
    request = msgspec.convert(json.loads(sys.stdin.buffer.read()), ExamRequest)
    threads = max(request.model.threads, request.most_threads, 1)
    confine_to(
        cpu_s=request.limit_s * threads,
        may_write=request.may_use_accelerator,
        nice=NICENESS[request.stands_back],
    )
    if request.stands_back == "idle":
        stand_back()
    logging.basicConfig(level=logging.ERROR)
    why_not = seal(may_write=request.may_use_accelerator)
    if why_not is not None:
        log.warning("the examined model is not kept from the network: %s", why_not)
    try:
        say(_work(request, frames))
    except RefusalError as error:
        say(refusal(error))
    except MemoryError:
        say(refusal(RefusalError("E_MEMORY", "needs more memory than there is")))
    return EXIT_OK


def _work(request: ExamRequest, frames: int | None) -> ExamReport:
    say(Stage(what="importing the runtime", progress=0.0))
    from agent.vision.examine import examine, import_runtime
    from agent.vision.shadow import compare

    import_runtime(request)
    confine_memory()
    try:
        if frames is None:
            return examine(request, say)
        return compare(request, frames, say)
    except ModelError as error:  # of what is not foreseen to fail
        raise RefusalError("E_COMPAT", str(error)) from error


def refusal(error: RefusalError) -> ExamReport:
    """Return the report of a model that is refused."""
    text = redact(str(error))[:MOST_CHARACTERS]
    return ExamReport(ok=False, code=error.code, message=text, is_final=error.is_final)


def say(word: Stage | ExamReport) -> None:
    """Write a line at once: what follows may be a crash. File names may hold what is no text."""
    text = json.dumps(msgspec.to_builtins(word), ensure_ascii=False)
    os.write(sys.stdout.fileno(), f"\n{text}\n".encode("utf-8", "replace"))


if __name__ == "__main__":
    # Leaving at once cannot hang or crash in a library's destructor.
    os._exit(main())
