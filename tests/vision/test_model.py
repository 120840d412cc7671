"""Loading models: identity, integrity, labels, thresholds, and which head fits."""

import hashlib
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.config import ModelConfig
from agent.errors import ModelError
from agent.vision.model import load_model
from agent.vision.preprocess import boxes_to_frame, preprocess

DEFAULT = Path(__file__).resolve().parents[2] / "models" / "default"
RUNTIMES = [
    name
    for name, module in (("litert", "ai_edge_litert"), ("tflite-runtime", "tflite_runtime"))
    if find_spec(module)
]


def run_on(model, pixels):
    tensor, outputs = model.plan.new_tensor(), model.new_outputs()
    where = preprocess(pixels, model.plan, tensor)
    model.engine.load_input(tensor)
    model.engine.invoke()
    model.engine.read_outputs(outputs)
    found = model.head.decode(outputs)
    return found, boxes_to_frame(found.xyxy_norm, where)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_default_model_on_its_golden_pictures(runtime):
    model = load_model(ModelConfig(runtime=runtime))
    manifest = json.loads((DEFAULT / "manifest.json").read_text())
    assert model.identity.sha256 == manifest["files"]["model.tflite"]["sha256"]
    assert (model.identity.name, model.identity.version) == ("default", "1.0.0")
    assert model.engine.runtime.startswith(runtime)
    assert model.engine.accelerator == ("cpu:xnnpack" if runtime == "litert" else "cpu")
    golden = np.load(DEFAULT / "golden.npz", allow_pickle=False)
    for number, rgb in enumerate(golden["inputs"]):
        found, boxes = run_on(model, np.ascontiguousarray(rgb[..., ::-1]))
        best = int(golden["classes"][number][0])
        assert int(found.class_ids[0]) == best
        assert abs(float(found.scores[0]) - golden["scores"][number][0]) < 0.15
        y0, x0, y1, x1 = golden["boxes"][number][0] * 300
        np.testing.assert_allclose(boxes[0], np.clip([x0, y0, x1, y1], 0, 300), atol=25)
        assert model.label(best) in ("person", "cat", "cup")


@pytest.fixture
def folder(tmp_path):
    copy = tmp_path / "mine"
    shutil.copytree(DEFAULT, copy)
    return copy


def rewrite(folder, **changes):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            manifest.pop(key, None)
        else:
            manifest[key] = value
    path.write_text(json.dumps(manifest))


def test_bare_file_brings_its_own_labels(folder):
    model = load_model(ModelConfig(path=str(folder / "model.tflite")))
    assert model.labels[0] == "person"
    assert model.head.kind == "ssd"
    assert (
        model.identity.sha256 == hashlib.sha256((folder / "model.tflite").read_bytes()).hexdigest()
    )


def test_changed_bytes_are_refused(folder):
    data = bytearray((folder / "model.tflite").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.tflite").write_bytes(data)
    with pytest.raises(ModelError, match="is not the file its manifest names"):
        load_model(ModelConfig(path=str(folder)))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"version": 3}, "version"),
        ({"letterbx": True}, "letterbx"),
        ({"head": {"type": "sdd"}}, "sdd"),
        ({"input": {"mean": [1.0], "std": [0.0]}}, "std"),
        ({"model": "../model.tflite"}, "model"),
        ({"labels": "absent.txt"}, "absent.txt"),
    ],
)
def test_manifest_errors_name_the_key(folder, changes, sentence):
    rewrite(folder, **changes)
    with pytest.raises(ModelError, match=sentence):
        load_model(ModelConfig(path=str(folder)))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"name": 1}', "\ufeff{}"])
def test_manifest_that_is_none(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ModelError, match=r"manifest\.json"):
        load_model(ModelConfig(path=str(folder)))


def test_paths_that_lead_nowhere(tmp_path):
    with pytest.raises(ModelError, match="shipped models: default"):
        load_model(ModelConfig(path="defualt"))
    with pytest.raises(ModelError, match=r"no manifest\.json"):
        load_model(ModelConfig(path=str(tmp_path)))


def test_per_label_thresholds_and_allow_list():
    pixels = np.ascontiguousarray(
        np.load(DEFAULT / "golden.npz", allow_pickle=False)["inputs"][0][..., ::-1]
    )
    everything, _ = run_on(load_model(ModelConfig(score_threshold=0.2)), pixels)
    best = load_model(ModelConfig()).label(int(everything.class_ids[0]))
    only, _ = run_on(load_model(ModelConfig(labels={best: 0.2}, only_listed=True)), pixels)
    assert set(only.class_ids.tolist()) == {int(everything.class_ids[0])}
    none, _ = run_on(load_model(ModelConfig(labels={best: 1.0})), pixels)
    assert int(everything.class_ids[0]) not in none.class_ids.tolist()
    misspelt = load_model(ModelConfig(labels={"persn": 0.5}))
    assert "did you mean `person`" in misspelt.notes[0]


def test_a_label_map_with_a_line_for_nothing_is_not_off_by_one(tmp_path):
    names = (DEFAULT / "labels.txt").read_text().splitlines()
    path = tmp_path / "labelmap.txt"
    path.write_text("\n".join(["???", *names]))
    assert load_model(ModelConfig(labels_file=str(path))).labels == tuple(names)
    path.write_text("\n".join(names[:-1]))
    with pytest.raises(ModelError, match="has 79 labels, but the model has 80 classes"):
        load_model(ModelConfig(labels_file=str(path)))


def test_labels_that_do_not_fit(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(f"thing {i}" for i in range(80)) + "\n\n")
    assert load_model(ModelConfig(labels_file=str(path))).labels[79] == "thing 79"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="not UTF-8"):
        load_model(ModelConfig(labels_file=str(path)))


@pytest.mark.parametrize(
    ("accelerator", "sentence"),
    [
        ("delegate:/no/such.so", "there is no such file"),
        (f"delegate:{__file__}", "cannot be loaded"),
    ],
)
def test_a_delegate_that_cannot_be_loaded_leaves_the_processor(accelerator, sentence):
    model = load_model(ModelConfig(accelerator=accelerator))
    assert model.is_fallback
    assert sentence in model.reason
    assert model.engine.accelerator.startswith("cpu")


def test_runtime_that_is_not_installed():
    if "tflite-runtime" in RUNTIMES:
        pytest.skip("tflite-runtime is installed here")
    with pytest.raises(ModelError, match="not installed here"):
        load_model(ModelConfig(runtime="tflite-runtime"))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_zoo_agreement_in_process(zoo, runtime):
    """The reference detections on every runtime here; `detect` and the daemon have their own."""
    from agreement import problems

    from agent.contract.payloads import encode
    from agent.vision.encode import findings_of

    reference = json.loads((zoo / "expected.json").read_text())
    which = "same_runtime" if runtime == "litert" else "other_runtime_or_cpu"
    found_problems = []
    for name, rows in reference["expected"].items():
        model = load_model(
            ModelConfig(path=str(zoo / "models" / f"{name}.tflite"), runtime=runtime)
        )
        tensor, outputs = model.plan.new_tensor(), model.new_outputs()
        for picture, expected in rows.items():
            pixels = cv2.imread(str(zoo / "images" / picture))
            where = preprocess(pixels, model.plan, tensor)
            model.engine.load_input(tensor)
            model.engine.invoke()
            model.engine.read_outputs(outputs)
            found = findings_of(model.decode(outputs), where, model)
            plain = json.loads(encode(found))
            found_problems += problems(picture, expected, plain, reference["tolerance"][which])
    assert not found_problems


def test_a_manifest_that_contradicts_itself_about_the_task(folder):
    rewrite(folder, task="pose")
    with pytest.raises(ModelError, match="calls this a pose model, but its head gives detection"):
        load_model(ModelConfig(path=str(folder)))
