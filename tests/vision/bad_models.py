"""Models that are well formed, and bad all the same; folders with manifests; pictures for cameras.

Those of `made_at` behave until the first value of a picture is a certain one: good in any exam
that does not happen to show it to them, bad on a board whose camera does.
"""

import hashlib
import json

import cv2
import numpy as np
from hostile_files import EQUAL, SMALL_IMAGE, WHILE, _many_graphs
from made_models import (
    CAST,
    GATHER,
    RESHAPE,
    MadeInput,
    MadeTensor,
    _first_value,
    _Graph,
    _picked,
    _serialized,
    made_model,
)

CLASSES = 10


def made_classifier(best, *, size=8, classes=CLASSES):
    """Return a classifier that is sure of one class, whatever it sees."""
    values = np.full((1, classes), 5, np.uint8)
    values[0, best] = 200
    image = MadeInput(shape=(1, size, size, 3))
    return made_model([MadeTensor(values, scale=1 / 256)], inputs=[image])


def made_box(label, *, labels=4, classes=None):
    """Return a small detector in the manner of YOLOv8 that finds one box, always of one class."""
    values = np.zeros((1, 4 + (classes or labels), 21), np.float32)
    values[0, :4] = np.array([16, 16, 16, 16], np.float32)[:, None]  # x, y, w, h in pixels
    values[0, 4 + label, 3] = 0.9
    return made_model([MadeTensor(values)], inputs=[MadeInput(shape=(1, 32, 32, 3))])


def made_recurrent(step=1.0):
    """Return a model of two inputs whose output counts its frames: float32[1, 4]."""
    return made_model(
        [MadeTensor(np.full((1, 4), step, np.float32), name="sum_out", plus="sum_in")],
        inputs=[
            MadeInput(shape=SMALL_IMAGE),
            MadeInput(shape=(1, 4), dtype="float32", name="sum_in"),
        ],
    )


def made_at(value, what):
    """Return a classifier that is sure of class 7, until it sees a picture that begins with this.

    Then its run does not end ("endless") or fails ("fail").
    """
    values = np.full((1, CLASSES), 5, np.uint8)
    values[0, 7] = 200
    main, condition, body = _Graph(), _Graph(), _Graph()
    main.codes = condition.codes = body.codes = []
    image = main.tensor("image", SMALL_IMAGE, "uint8")
    pixel = _first_value(main, image, 4)
    if what == "fail":
        wanted = main.constant(np.array([value], np.int32))
        is_it = main.step(EQUAL, [pixel, wanted], (1,), "bool")
        row = main.step(CAST, [is_it], (1,), "int32")
        table = main.constant(values, 1 / 256)
        flat = main.step(GATHER, [table, row], (1, CLASSES), "uint8", 1 / 256)
        to = main.constant(np.array((1, CLASSES), np.int32))
        made = main.step(RESHAPE, [flat, to], (1, CLASSES), "uint8", 1 / 256, 0, "scores")
        return _serialized(main, [image], [made], "fail")
    looped = main.tensor("", (1,), "int32")
    main.run(WHILE, [pixel], [looped])
    made = _picked(main, values, looped, 1 / 256, 0, by_pixel=False, name="scores")
    number = condition.tensor("x", (1,), "int32")
    wanted = condition.constant(np.array([value], np.int32))
    is_it = condition.step(EQUAL, [number, wanted], (1,), "bool")
    counted = body.tensor("x", (1,), "int32")
    one = body.constant(np.ones(1, np.int32))
    more = body.step(RESHAPE, [counted, one], (1,), "int32")
    return _many_graphs(
        [(main, [image], [made]), (condition, [number], [is_it]), (body, [counted], [more])]
    )


def model_folder(folder, data, *, name="model", labels=(), golden=None, **manifest):
    """Write an unpacked bundle; return its path as text."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"model.tflite": data}
    if labels:
        files["labels.txt"] = "".join(f"{label}\n" for label in labels).encode()
        manifest["labels"] = "labels.txt"
    for file, content in files.items():
        (folder / file).write_bytes(content)
    if golden is not None:
        np.savez(folder / "golden.npz", **golden)
        files["golden.npz"] = (folder / "golden.npz").read_bytes()
        manifest["golden"] = {"file": "golden.npz", "score_tolerance": 0.05, "iou": 0.9}
    entries = {
        file: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for file, content in files.items()
    }
    text = json.dumps({"name": name, "files": entries, **manifest})
    (folder / "manifest.json").write_text(text)
    return str(folder)


def pictures(folder, values, size=(48, 64)):
    """Write a folder of pictures, each of one value; return the source that shows them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, value in enumerate(values):
        cv2.imwrite(str(folder / f"{number:04}.png"), np.full((*size, 3), value, np.uint8))
    return f"images:{folder}"
