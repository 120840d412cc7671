"""Thousands of bad models, each tried in a fork of this process: `python hostile_farm.py …`.

    hostile_farm.py RUNTIME KIND BASE FIRST COUNT   one JSON line: what became of each seed

The libraries are imported once; a fork then runs the trial's own search, under its limits, and
dies or answers. Importing them anew for each case would take hours.
"""

import json
import logging
import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from hostile_files import flipped, made_boxes, made_classifier, restructured, structure, truncated

from agent.config import ModelConfig
from agent.contract.manifest import Manifest
from agent.errors import ModelError
from agent.trial_words import Measured, TrialRequest
from agent.vision import measure
from agent.vision.engines import Wish, open_engine
from agent.vision.model_files import ModelBytes, ModelFiles

CASE_WITHIN_S = 10.0
AT_ONCE = os.cpu_count() or 1
MEMORY_BYTES = 2 << 30
BASES = {"boxes": made_boxes, "classifier": made_classifier}
DAMAGE = {"truncated": truncated, "flipped": flipped}


def main(runtime, kind, base, first, count):
    """Try `count` cases from seed `first` on; print what became of them."""
    logging.disable(logging.CRITICAL)
    data = BASES[base]() if base in BASES else Path(base).read_bytes()
    places = structure(data) if kind == "restructured" else None
    # Loaded before any fork, so that each finds it there.
    open_engine(data, Wish(runtime=runtime, accelerator="cpu", threads=1))
    measure.MEASURE_S = measure.LONGEST_S = 0.0  # one run each: nobody looks at the time
    began, ends, running = time.monotonic(), {}, {}
    for seed in range(first, first + count):
        case = restructured(data, places, seed) if places else DAMAGE[kind](data, seed)
        if len(running) == AT_ONCE:
            _collect(running, ends)
        answer = os.memfd_create("answer")
        child = os.fork()
        if child == 0:
            _try(case, runtime, answer, "on" if seed % 2 else "off")
        running[child] = seed, answer
    while running:
        _collect(running, ends)
    _report(ends, time.monotonic() - began)


def _try(case, runtime, answer, xnnpack):
    """In the fork: run the trial's search on one case, say how it went, and leave."""
    quiet = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(quiet, number)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        files = ModelFiles(
            plain=ModelBytes(data=case, sha256="", where="case.tflite"),
            manifest=Manifest(name="case"),
            folder=Path("/nonexistent"),
        )
        request = TrialRequest(
            model=ModelConfig(path="case.tflite", xnnpack=xnnpack),
            runtime=runtime,
            run_within_s=CASE_WITHIN_S,
        )
        said = []
        try:
            measure.Search(files, request, said.append).run()
            ran = [reply.candidate for reply in said if isinstance(reply, Measured)]
            end = [
                "loaded",
                "" if any(each.invoke_ms is not None for each in ran) else "nothing ran",
            ]
        except ModelError as error:
            end = ["refused", str(error)]
        except MemoryError:
            end = ["refused", measure.TOO_LARGE]
        except Exception:
            end = ["fault", traceback.format_exc()[-1500:]]
        os.pwrite(answer, json.dumps(end).encode(), 0)
    finally:
        os._exit(0)


def _collect(running, ends):
    """Wait for one fork and note how it ended."""
    child, status = os.wait()
    seed, answer = running.pop(child)
    code = os.waitstatus_to_exitcode(status)
    said = os.pread(answer, 1 << 16, 0)
    os.close(answer)
    if code < 0:
        name = signal.Signals(-code).name
        ends[seed] = ["slow" if name == "SIGALRM" else "crashed", name]
    else:
        ends[seed] = json.loads(said) if said else ["fault", f"exit {code} without a word"]


def _report(ends, seconds):
    kinds = Counter(kind for kind, _ in ends.values())
    print(
        json.dumps(
            {
                "kinds": kinds,
                "signals": Counter(text for kind, text in ends.values() if kind == "crashed"),
                "refusals": Counter(text for kind, text in ends.values() if kind == "refused"),
                "faults": {seed: text for seed, (kind, text) in ends.items() if kind == "fault"},
                "crashed": [seed for seed, (kind, _) in ends.items() if kind == "crashed"],
                "loaded_but": [text for kind, text in ends.values() if kind == "loaded" and text],
                "seconds": round(seconds, 1),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5]))
