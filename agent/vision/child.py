"""A command's work done in a child process, so that a crash of the runtime becomes a sentence.

Only for tflite-runtime: it crashed on 417 of 2,000 damaged models, most of them truncated
files, where LiteRT's `Interpreter` crashed on none of 17,000, and on 1 of 1,000 whose structure
was changed on purpose (tests/vision/test_hostile_models.py). With LiteRT a command runs in the
process it was started in, and no second interpreter start is paid for. The daemon tries every
model in a child first: `agent.vision.trial`.

The child is the command's own module, `python -m MODULE`. The request goes over stdin, as
arguments have a length limit; what the child prints goes where ours would have gone.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import TypeVar

import msgspec

from agent.config import Runtime
from agent.errors import EXIT_INTERRUPTED, ModelError, exit_code_of
from agent.logs import configure_logging
from agent.trial_words import explain_signal

T = TypeVar("T", bound=msgspec.Struct)


def may_crash(runtime: Runtime) -> bool:
    """Return whether the runtime that will be chosen is the one that crashes."""
    if runtime == "auto":
        return importlib.util.find_spec("ai_edge_litert") is None
    return runtime == "tflite-runtime"


def run_in_child(module: str, request: msgspec.Struct, *, model: str) -> int:
    """Run `python -m module` on a request; return its exit code.

    Raises:
        ModelError: the child was ended by a signal.
    """
    message = [logging.getLogger().level, msgspec.to_builtins(request)]
    # json rather than msgspec: file names that are not UTF-8 are strings with lone surrogates.
    child = subprocess.run(
        [sys.executable, "-m", module], input=json.dumps(message).encode(), check=False
    )
    if child.returncode == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if child.returncode < 0:
        raise ModelError(f"{model}: {explain_signal(-child.returncode)}")
    return child.returncode


def serve(request_type: type[T], work: Callable[[T], int]) -> int:
    """Be the child: do the work that stdin asks for; return its exit code."""
    level, request = json.loads(sys.stdin.buffer.read())
    configure_logging(level)
    return exit_code_of(lambda: work(msgspec.convert(request, request_type)))
