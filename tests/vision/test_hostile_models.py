"""Damaged and malicious models by the hundred (repeats.py): refused with a sentence, or they work.

Whatever a runtime does with them, it does in a child. Every case has a seed: a failure names it,
and `hostile_farm.py RUNTIME KIND BASE SEED 1` repeats it.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import PROJECT
from hostile_files import (
    flipped,
    made_boxes,
    made_classifier,
    made_half_nan,
    restructured,
    structure,
    truncated,
    with_archive,
    with_lying_archive,
)
from repeats import repeats

from agent.config import ModelConfig
from agent.errors import ModelError
from agent.trial_words import TrialRequest, start_trial
from agent.vision.model_files import read_model
from agent.vision.tflite_file import MAX_ASSOCIATED_FILE_BYTES, parse_tflite
from agent.vision.trial import try_model

HERE = Path(__file__).resolve().parent
DEFAULT = PROJECT / "models" / "default" / "model.tflite"
RUNTIMES = [
    name
    for name, module in (("litert", "ai_edge_litert"), ("tflite-runtime", "tflite_runtime"))
    if find_spec(module)
]
runtimes = pytest.mark.parametrize("runtime", RUNTIMES)


def farmed(runtime, kind, base, first, count):
    """Return what became of `count` cases, each tried in a process of its own."""
    done = subprocess.run(
        [
            sys.executable,
            HERE / "hostile_farm.py",
            runtime,
            kind,
            str(base),
            str(first),
            str(count),
        ],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        env={
            **os.environ,
            "PYTHONPATH": f"{PROJECT}:{HERE}:{HERE.parent}",
            "OPENBLAS_NUM_THREADS": "1",  # or each fork inherits threads that are not there
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    kinds = report["kinds"]
    name = Path(base).name
    print(f"{runtime}, {kind} {name}: {kinds} {report['signals']} in {report['seconds']} s")
    assert report["faults"] == {}
    assert sum(kinds.values()) == count
    for sentence in report["refusals"]:
        assert sentence.strip()
        assert "\n" not in sentence
        assert "Traceback" not in sentence
    assert report["loaded_but"] == []
    return report


@runtimes
@pytest.mark.parametrize(
    ("kind", "base", "first", "count"),
    [
        ("truncated", "boxes", 0, repeats(40, 200)),
        ("truncated", "classifier", 1000, repeats(40, 200)),
        ("truncated", DEFAULT, 2000, repeats(10, 100)),
        ("restructured", "boxes", 3000, repeats(120, 480)),
        ("restructured", "classifier", 4000, repeats(120, 480)),
        ("restructured", DEFAULT, 5000, repeats(10, 40)),
        ("flipped", "boxes", 6000, repeats(60, 240)),
        ("flipped", "classifier", 7000, repeats(60, 240)),
        ("flipped", DEFAULT, 8000, repeats(5, 20)),
    ],
    ids=lambda value: Path(value).name if isinstance(value, (str, Path)) else str(value),
)
def test_damaged_models(runtime, kind, base, first, count):
    report = farmed(runtime, kind, base, first, count)
    if kind == "truncated":  # the archive of labels at its end may be cut off
        assert report["kinds"].get("loaded", 0) <= (0 if base != DEFAULT else 2)
        assert "crashed" not in report["kinds"]


@runtimes
@pytest.mark.parametrize("kind", ["truncated", "restructured", "flipped"])
def test_damaged_real_model(zoo, runtime, kind):
    model = zoo / "models" / "mobilenet_v1_0.25_128_quant.tflite"
    farmed(runtime, kind, model, 9000, repeats(20, 60))


def sample():
    """Some cases of each kind, and a few of which a runtime is known to crash."""
    boxes, classifier = made_boxes(), made_classifier()
    for seed in range(2):
        yield f"truncated {seed}", truncated(boxes, seed)
        yield f"flipped {seed}", flipped(classifier, seed)
    for seed in (0, 1, 2, 13, 25, 30, 61, 120):
        yield f"restructured {seed}", restructured(boxes, structure(boxes), seed)


@runtimes
@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in sample()])
def test_damaged_models_in_the_real_child(tmp_path, runtime, data):
    path = tmp_path / "m.tflite"
    path.write_bytes(data)
    request = TrialRequest(model=ModelConfig(path=str(path)), runtime=runtime, run_within_s=5.0)
    answer = start_trial(request).wait()
    if answer.refused is None:
        assert any(each.refused is None for each in answer.candidates)
    else:
        assert answer.refused.strip()
        assert "\n" not in answer.refused
        assert not answer.refused.startswith("could not be tried")


NAMES = b'{"names": {"99999999999": "a", "-1": "b", "1e5": "c", "0": 1, "1": null}}'
# Made when they are wanted: some take a second.
HOSTILE_ARCHIVES = {
    "deep notes": lambda boxes: with_archive(boxes, {"metadata.json": b"[" * 500_000}),
    "deep literal": lambda boxes: with_archive(boxes, {"temp_meta.txt": b"(" * 50_000}),
    "code": lambda boxes: with_archive(boxes, {"temp_meta.txt": b"__import__('os').abort()"}),
    "bomb": lambda boxes: with_archive(boxes, {"labels.txt": b"a\n" * (64 << 20)}),
    "lying bomb": with_lying_archive,
    "many files": lambda boxes: with_archive(
        boxes, {f"{number}.txt": b"label\n" for number in range(3000)}
    ),
    "path": lambda boxes: with_archive(boxes, {"../../../etc/passwd": b"a\nb\n"}),
    "torn": lambda boxes: with_archive(boxes, {"labels.txt": b"a\n" * 1000})[:-30],
    "names": lambda boxes: with_archive(boxes, {"metadata.json": NAMES}),
}


@runtimes
@pytest.mark.parametrize("kind", HOSTILE_ARCHIVES)
def test_hostile_archive_changes_nothing_of_the_model(tmp_path, runtime, kind):
    data = HOSTILE_ARCHIVES[kind](made_boxes())
    path = tmp_path / "m.tflite"
    path.write_bytes(data)
    for lines in parse_tflite(data, where="m").label_files.values():
        assert sum(map(len, lines)) <= MAX_ASSOCIATED_FILE_BYTES
    config = ModelConfig(path=str(path), runtime=runtime)
    assert try_model(read_model(str(path)), config, most_threads=1).invoke_ms is not None


@runtimes
def test_numbers_that_are_none_among_others_are_left_out(tmp_path, runtime):
    path = tmp_path / "m.tflite"
    path.write_bytes(made_half_nan())
    config = ModelConfig(path=str(path), runtime=runtime, score_threshold=0.0)
    assert try_model(read_model(str(path)), config, most_threads=1).invoke_ms is not None


@runtimes
@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (b"a\n" * (1 << 20), "larger than 1 MiB"),
        (b"a\n" * 500, "has 500 labels, but the model has 80 classes"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"a" * 1_000_000, "has 1 labels"),
    ],
    ids=["huge", "many", "binary", "one line"],
)
def test_hostile_labels_are_a_sentence(tmp_path, runtime, labels, reason):
    path = tmp_path / "m.tflite"
    path.write_bytes(made_boxes())
    (tmp_path / "labels.txt").write_bytes(labels)
    config = ModelConfig(path=str(path), runtime=runtime, labels_file=str(tmp_path / "labels.txt"))
    with pytest.raises(ModelError) as caught:
        try_model(read_model(str(path)), config, most_threads=1)
    assert reason in str(caught.value)
