"""Whether a model gives the answers its manifest promises."""

import hashlib
import io
import json
import os
import pickle
import zipfile
from importlib.util import find_spec

import numpy as np
import pytest
from hostile_files import made_classifier
from made_models import MadeInput, MadeTensor, made_model

from agent.config import ModelConfig
from agent.errors import ModelError
from agent.vision import golden
from agent.vision.golden import check_golden
from agent.vision.model import build_model
from agent.vision.model_files import read_model
from agent.vision.trial import try_model

RUNTIMES = [
    name
    for name, module in (("litert", "ai_edge_litert"), ("tflite-runtime", "tflite_runtime"))
    if find_spec(module)
]


def bundle(tmp_path, data, arrays, *, tolerance=0.05, raw=None, **manifest):
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "model.tflite").write_bytes(data)
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    content = stream.getvalue() if raw is None else raw
    (folder / "golden.npz").write_bytes(content)
    document = {
        "name": "made",
        "golden": {"file": "golden.npz", "score_tolerance": tolerance, "iou": 0.8},
        **manifest,
    }
    (folder / "manifest.json").write_text(json.dumps(document))
    return str(folder)


def checked(path):
    files = read_model(path)
    model = build_model(files, ModelConfig(path=path, accelerator="cpu"))
    check_golden(model, files)


PICTURES = np.zeros((2, 320, 320, 3), np.uint8)


def test_default_model_keeps_its_promise():
    checked("default")


SCORES = np.array([[0, 0.25, 0.75]])


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"scores": [[0.0, 0.26, 0.72]] * 2}, None),
        ({"scores": [[0.0, 0.25, 0.50]] * 2}, "class 2 has score 0.75 instead of 0.50"),
        ({"scores": [[0.75, 0.25, 0.0]] * 2}, "promises: picture 1: class 2 has score 0.75"),
        ({"scores": [[0.0, 0.25, 0.75]] * 2, "inputs": PICTURES[:, :2]}, "the model takes"),
        ({"scores": [[0.0, 0.25]] * 2}, "does not fit the model"),
        ({"scores": [[0.0, 0.25, 0.75]]}, "does not fit the model"),  # of one picture
        ({"output_0": [[[0.0, 0.25, 0.75]]] * 2}, None),
        ({"output_0": [[[0.0, 0.35, 0.75]]] * 2}, 'output "output" differs'),
        ({"output_0": [[[0.0, 0.25, np.nan]]] * 2}, "differs"),
        ({"depth": [1, 2]}, "says nothing of a model for classification"),
        ({"inputs": np.zeros((0, 320, 320, 3), np.uint8)}, "has no array `inputs`"),
    ],
)
def test_classifier_against_its_promise(tmp_path, arrays, reason):
    data = made_model([MadeTensor(np.uint8([[0, 64, 192]]), scale=1 / 256)])
    path = bundle(tmp_path, data, {"inputs": PICTURES, **arrays})
    if reason is None:
        checked(path)
        return
    with pytest.raises(ModelError, match=r"golden|promises") as caught:
        checked(path)
    assert reason in str(caught.value)


def detector():
    """A YOLOv8 for 32x32: one box of class 1 at the centre, score 0.9."""
    values = np.zeros((1, 6, 21), np.float32)
    values[0, :, 0] = [0.5, 0.5, 0.4, 0.4, 0.0, 0.9]
    return made_model([MadeTensor(values)], inputs=[MadeInput(shape=(1, 32, 32, 3))])


BOX = [0.3, 0.3, 0.7, 0.7]


@pytest.mark.parametrize(
    ("boxes", "classes", "scores", "reason"),
    [
        ([BOX], [1], [0.9], None),
        ([BOX], [1], [0.86], None),
        ([[0.31, 0.3, 0.7, 0.7]], [1.0], [0.9], None),
        ([BOX], [0], [0.9], "a box of class 0 with score 0.90 is missing"),
        ([BOX], [1], [0.7], "a box of class 1 with score 0.70 is missing"),
        ([[0.0, 0.0, 0.2, 0.2]], [1], [0.9], "is missing"),
        ([BOX, BOX], [1, 0], [0.9, 0.52], None),  # too close to the threshold to be sure
        ([BOX], [1], [0.1], "a box of class 1 with score 0.90 is new"),
    ],
)
def test_detector_against_its_promise(tmp_path, boxes, classes, scores, reason):
    arrays = {"inputs": PICTURES[:, :32, :32], "boxes": [boxes] * 2, "classes": [classes] * 2}
    path = bundle(
        tmp_path,
        detector(),
        {**arrays, "scores": [scores] * 2, "count": [len(boxes)] * 2},
        head={"type": "yolov8"},
    )
    if reason is None:
        checked(path)
        return
    with pytest.raises(ModelError) as caught:
        checked(path)
    assert reason in str(caught.value)


def npz(**files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def npy(shape, data=b"", kind="|u1"):
    stream = io.BytesIO()
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + data


class Evil:
    def __reduce__(self):
        return os.abort, ()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "is not an archive of arrays"),
        (b"PK\x03\x04" + bytes(100), "is not an archive of arrays"),
        (npz(inputs=b"no array"), "holds what is no array"),
        (npz(inputs=npy((1 << 40,))), "not of the size it says"),
        (npz(inputs=npy((2, 2), b"abc")), "not of the size it says"),
        (npz(inputs=npy((1,), pickle.dumps(Evil()), kind="|O")), "is not of numbers"),
        # Takes a second to make, so not before it is wanted.
        (lambda: npz(inputs=bytes(golden.MAX_ARRAYS_BYTES + 1)), "holds more than"),
        (npz(**{f"a{number}": b"" for number in range(golden.MAX_ARRAYS + 1)}), "holds more than"),
    ],
    ids=["empty", "torn", "text", "giant", "short", "pickle", "bomb", "many"],
)
def test_hostile_golden_file_is_a_sentence(tmp_path, raw, reason):
    path = bundle(tmp_path, made_classifier(), {}, raw=raw() if callable(raw) else raw)
    with pytest.raises(ModelError) as caught:
        checked(path)
    assert reason in str(caught.value)
    assert "golden.npz" in str(caught.value)


def test_golden_file_is_the_one_the_manifest_names(tmp_path):
    entry = {"golden.npz": {"sha256": hashlib.sha256(b"other").hexdigest(), "size": 5}}
    path = bundle(tmp_path, made_classifier(), {"inputs": PICTURES}, files=entry)
    with pytest.raises(ModelError, match="is not the file its manifest names"):
        checked(path)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_broken_promise_refuses_the_model(tmp_path, runtime):
    data = made_model([MadeTensor(np.uint8([[0, 64, 192]]), scale=1 / 256)])
    path = bundle(tmp_path, data, {"inputs": PICTURES, "scores": [[0.75, 0.25, 0.0]] * 2})
    # Thresholds of the configuration must not hide what differs.
    config = ModelConfig(path=path, runtime=runtime, score_threshold=1.0)
    with pytest.raises(ModelError, match="gives other answers than its manifest promises"):
        try_model(read_model(path), config, most_threads=1)
