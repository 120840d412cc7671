"""Label lists: which line belongs to which class, however the list is written."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_models import MadeInput, MadeTensor, made_model

from agent.config import ModelConfig
from agent.contract.manifest import Manifest
from agent.errors import ModelError
from agent.vision.labels import label_counts, read_labels
from agent.vision.model import load_model
from agent.vision.model_files import ModelBytes, ModelFiles
from agent.vision.tflite_file import parse_tflite

RUNTIMES = [
    name
    for name, module in (("litert", "ai_edge_litert"), ("tflite-runtime", "tflite_runtime"))
    if find_spec(module)
]
PLAIN = made_model([MadeTensor(np.zeros((1, 5), np.float32))])
FILES = ModelFiles(
    plain=ModelBytes(data=PLAIN, sha256="", where="m"), manifest=Manifest(name="m"), folder=Path()
)
FILE = parse_tflite(PLAIN, where="m")


@pytest.fixture
def lists(tmp_path):
    """Return what makes a label file of a text."""

    def write(text):
        path = tmp_path / "labels.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def read(path, class_count):
    return read_labels(path, FILES, FILE, class_count)


@pytest.mark.parametrize(
    ("text", "classes", "labels"),
    [
        ("0  cat\n1  dog\n", 2, ("cat", "dog")),
        ("0 cat\n1 big dog\n", 2, ("cat", "big dog")),
        ("1: dog\n0: cat\n", 2, ("cat", "dog")),
        ("0  person\n\n2  car\n4  bus\n", 5, ("person", "", "car", "", "bus")),
        ("16  cat\n17  dog\n", 18, ("",) * 16 + ("cat", "dog")),
        ("1 cat\n2 dog\n3 owl\n", 3, ("cat", "dog", "owl")),
        ("0 background\n1 cat\n2 dog\n", 2, ("cat", "dog")),
        ("0 cat\n3 dog\n", None, ("cat", "", "", "dog")),
        # Names, which begin with a number or are one.
        ("5 euro\n10 euro\n20 euro\n", 3, ("5 euro", "10 euro", "20 euro")),
        ("90210 a\n90211 b\n", 2, ("90210 a", "90211 b")),
        ("0\n1\n2\n", 3, ("0", "1", "2")),
        ("0 cat\ndog\n", 2, ("0 cat", "dog")),
        ("3D printer\n2D printer", 2, ("3D printer", "2D printer")),
        ("\ufeffcat\ndog", 2, ("cat", "dog")),
        ("a\n" + "\n" * 300_000, 1, ("a",)),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_lists_with_and_without_numbers(lists, text, classes, labels):
    path = lists(text)
    assert read(path, classes) == labels
    assert classes is None or classes in label_counts(path, FILES, FILE)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("3 cat\n3 dog\n4 owl", "numbers two lines 3, `cat` and `dog`; give each class one line"),
        ("0 cat\n7 dog", "has 8 labels, but the model has 2 classes"),
        ("0 cat", "has 1 labels, but the model has 2 classes"),
    ],
)
def test_lists_of_other_models(lists, text, reason):
    path = lists(text)
    with pytest.raises(ModelError, match=reason):
        read(path, 2)


@given(st.text(), st.none() | st.integers(0, 40))
def test_any_text(tmp_path_factory, text, class_count):
    path = tmp_path_factory.mktemp("any") / "labels.txt"
    path.write_text(text, "utf-8", "surrogatepass")
    try:
        labels = read(str(path), class_count)
    except ModelError as error:
        assert str(error).startswith(str(path))
        return
    assert class_count in (None, len(labels))
    assert class_count in (None, *label_counts(str(path), FILES, FILE), 0)


SCORES = np.log(np.array([[0.001, 0.996, 0.001, 0.001, 0.001]], np.float32))


def made(folder, *outputs, **zip_files):
    path = folder / "model.tflite"
    files = {name.replace("_txt", ".txt"): text for name, text in zip_files.items()}
    path.write_bytes(
        made_model(list(outputs), inputs=[MadeInput(shape=(1, 32, 32, 3))], zip_files=files)
    )
    return str(path)


def classified(model):
    outputs = model.new_outputs()
    model.engine.load_input(model.plan.new_tensor())
    model.engine.invoke()
    model.engine.read_outputs(outputs)
    found = model.decode(outputs)
    return model.label(int(found.class_ids[0])), float(found.scores[0])


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("through", ["softmax", "logistic"])
@pytest.mark.parametrize(
    "after", [(), ("quantize",), ("quantize", "dequantize"), ("quantize", "dequantize", "flatten")]
)
def test_probabilities_of_a_quantized_export_are_published_as_they_are(
    tmp_path, runtime, through, after
):
    logits = SCORES if through == "softmax" else np.float32([[-9, 5.5, -9, -9, -9]])
    path = made(tmp_path, MadeTensor(logits, through=through, after=after))
    model = load_model(ModelConfig(path=path, runtime=runtime))
    assert model.head.kind == "classify"
    assert classified(model)[1] == pytest.approx(0.996, abs=0.005)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_labels_say_that_a_vector_is_scores(tmp_path, lists, runtime):
    vector = MadeTensor(SCORES)
    path = made(tmp_path, vector)
    assert load_model(ModelConfig(path=path, runtime=runtime)).head.kind == "raw"
    five = lists("0 ant\n1 bee\n2 cat\n3 dog\n4 eel\n")
    told = load_model(ModelConfig(path=path, runtime=runtime, labels_file=five))
    assert classified(told) == ("bee", pytest.approx(0.996, abs=0.001))
    noted = made(tmp_path, vector, meta_txt="{'names': ['ant', 'bee', 'cat', 'dog', 'eel']}")
    model = load_model(ModelConfig(path=noted, runtime=runtime))
    assert (model.head.kind, model.labels) == ("classify", told.labels)
    Path(path).with_name("manifest.json").write_text(
        '{"schema": "edge-agent/manifest/1", "name": "m", "labels": "labels.txt"}'
    )
    folder = load_model(ModelConfig(path=str(tmp_path), runtime=runtime))
    assert (folder.head.kind, folder.labels) == ("classify", told.labels)
