"""Hundreds of damaged models, listed by their manifest as they are: `python exam_farm.py …`.

    exam_farm.py COUNT BASE…   one JSON line for each base and kind: what became of COUNT seeds

A signature says whose a model is, not that it is any good: each case is a folder whose hashes are
right, with the golden answers of the model it was made from. It is examined in a fork of this
process, as the libraries are then imported once; what the parent's side makes of a fork's end is
`agent.ota.selftest`'s own word.
"""

import json
import logging
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from bad_models import made_box, made_classifier, model_folder
from hostile_files import flipped, restructured, structure, truncated

from agent.config import ModelConfig
from agent.errors import ModelError
from agent.ota.refusal import RefusalError
from agent.ota.selftest import ExamRequest, _conclude
from agent.vision import examine
from agent.vision.engines import Wish, installed_runtimes, open_engine
from agent.vision.exam import refusal
from agent.vision.golden import read_golden
from agent.vision.model_files import read_model

CASE_WITHIN_S = 20.0
MEMORY_BYTES = 2 << 30
RUNS = 2


def bases():
    """Return name -> (model, golden answers, labels)."""
    pictures = np.random.default_rng(1).integers(0, 256, (2, 1, 8, 8, 3), np.uint8)
    scores = np.full((2, 10), 5 / 256, np.float32)
    scores[:, 3] = 200 / 256
    boxes = {
        "inputs": np.random.default_rng(1).integers(0, 256, (2, 1, 32, 32, 3), np.uint8),
        "boxes": np.full((2, 1, 4), (0.25, 0.25, 0.75, 0.75), np.float32),
        "classes": np.full((2, 1), 2), "scores": np.full((2, 1), 0.9, np.float32),
    }  # fmt: skip
    return {
        "classifier": (made_classifier(3), {"inputs": pictures, "scores": scores}, ()),
        "boxes": (made_box(2), boxes, ["cat", "dog", "owl", "cow"]),
    }


def base_of(name):
    """Return (model, golden answers, labels, manifest) of a made model or of a shipped one."""
    if name in bases():
        return (*bases()[name], {})
    files = read_model(name)
    manifest = json.loads((files.folder / "manifest.json").read_text())
    golden = read_golden(files.manifest.golden, files)
    labels = (files.folder / manifest["labels"]).read_text().splitlines()
    kept = {key: manifest[key] for key in ("task", "head", "input", "custom_ops")}
    return files.plain.data, golden, labels, kept


def main(count, *names):
    """Examine so many cases of each kind made from each base; print what became of them."""
    logging.disable(logging.CRITICAL)
    for name in names:
        data, golden, labels, manifest = base_of(name)
        places = structure(data)
        open_engine(data, Wish(runtime=installed_runtimes()[0], accelerator="cpu", threads=1))
        damage = {
            "truncated": lambda seed, data=data: truncated(data, seed),
            "flipped": lambda seed, data=data: flipped(data, seed),
            "restructured": lambda seed, data=data, at=places: restructured(data, at, seed),
        }
        for kind, damaged in damage.items():
            ends, times = {}, []
            for seed in range(count):
                case = damaged(seed)
                began = time.monotonic()
                with tempfile.TemporaryDirectory() as folder:
                    path = model_folder(
                        Path(folder) / "m", case, labels=labels, golden=golden, **manifest
                    )
                    ends[seed] = _examined(path)
                times.append(time.monotonic() - began)
            said = {
                "base": Path(name).name,
                "kind": kind,
                "codes": Counter(code for code, _ in ends.values()),
                "faults": {at: text for at, (code, text) in ends.items() if code == "E_SELFTEST"},
                "silent": [at for at, (code, text) in ends.items() if code != "ok" and not text],
                "slowest_s": round(max(times), 2),
                "all_s": round(sum(times), 2),
            }
            print(json.dumps(said), flush=True)


def _examined(path):
    """Return the code, "ok" for none, and the sentence."""
    request = ExamRequest(
        model=ModelConfig(path=path, accelerator="cpu", threads=1),
        runs=RUNS, run_within_s=CASE_WITHIN_S / 4,
    )  # fmt: skip
    answer, complaints = os.memfd_create("answer"), os.memfd_create("complaints")
    child = os.fork()
    if child == 0:
        _be_child(request, answer, complaints)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    said = os.pread(answer, 1 << 16, 0)
    text = os.pread(complaints, 1 << 16, 0).decode("utf-8", "replace")
    os.close(answer)
    os.close(complaints)
    if code < 0 or not said:
        report = _conclude(request, "", text, code)
        return report.code, report.message
    return json.loads(said)


def _be_child(request, answer, complaints):
    quiet = os.open(os.devnull, os.O_RDWR)
    os.dup2(quiet, 0)
    os.dup2(quiet, 1)
    os.dup2(complaints, 2)
    examine.LEAST_RUNS, examine.LONGEST_REST_S = RUNS, 0.0
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        try:
            report = examine.examine(request, lambda stage: None)
        except RefusalError as error:
            report = refusal(error)
        except ModelError as error:
            report = refusal(RefusalError("E_COMPAT", str(error)))
        except MemoryError:
            report = refusal(RefusalError("E_MEMORY", "no memory"))
        os.pwrite(answer, json.dumps([report.code or "ok", report.message or ""]).encode(), 0)
    finally:
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
