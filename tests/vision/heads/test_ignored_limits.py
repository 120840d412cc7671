"""Which limits a family says that it ignores: those that change nothing of what it decodes."""

from dataclasses import fields

import numpy as np
import pytest
from looks import limits, look, tflite_file

from agent.vision.heads import Limits
from agent.vision.heads.choose import recognise

SUPPRESSION = {"iou_threshold", "is_agnostic"}
CELLS = 40 * 40 + 20 * 20 + 10 * 10
IMAGE = (1, 320, 320, 3)
POSE_NOTES = tflite_file(exporter={"task": "pose", "kpt_shape": [17, 3]})
SSD_FILE = tflite_file(outputs=(1, 2, 3, 4), ssd_outputs=(1, 2, 3, 4), ssd_classes=3)
GRID = [(1, 21, 21, n) for n in (17, 34, 32)]
FAMILIES = {
    "classify": ([(1, 10)], {"type": "classify"}, SUPPRESSION | {"max_detections"}),
    "movenet": ([(1, 1, 17, 3)], {"image": IMAGE}, SUPPRESSION | {"max_detections", "top_k"}),
    "movenet of several": ([(1, 6, 56)], {"image": IMAGE}, SUPPRESSION | {"top_k"}),
    "posenet": (GRID, {"image": IMAGE}, SUPPRESSION | {"max_detections", "top_k"}),
    "yolo_pose": ([(1, 56, CELLS)], {"file": POSE_NOTES}, {"top_k"}),
    "yolov8": ([(1, 84, CELLS)], {}, {"top_k"}),
    "yolo_end_to_end": (
        [(1, 300, 6)],
        {"type": "yolo_end_to_end"},
        SUPPRESSION | {"top_k"},
    ),
    "blazeface": (
        [(1, 896, 16), (1, 896, 1)],
        {"image": (1, 128, 128, 3)},
        {"is_agnostic", "top_k"},
    ),
    "ssd": (
        [(1, 10, 4), (1, 10), (1, 10), (1,)],
        {"file": SSD_FILE},
        {"iou_threshold", "top_k"},
    ),
    "segment": ([(1, 320, 320, 5)], {"type": "segment"}, SUPPRESSION | {"max_detections", "top_k"}),
    "raw": ([(2, 84, 7)], {}, {field.name for field in fields(Limits)}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_family_ignores(name):
    shapes, seen, ignored = FAMILIES[name]
    found = recognise(look(shapes, **seen))
    assert found.kind == name.split(" of ")[0]
    assert found.ignores == ignored


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_ignored_changes_nothing(name):
    shapes, seen, ignored = FAMILIES[name]
    found = recognise(look(shapes, **seen))
    rng = np.random.default_rng(3)
    outputs = [rng.uniform(0, 1, shape).astype(np.float32) for shape in shapes]
    usual = {"iou_threshold": 0.5, "max_detections": 50, "top_k": 3}
    changes = {"iou_threshold": 0.01, "max_detections": 1, "top_k": 1, "is_agnostic": True}
    plain = found.bind(limits(found, 0.2, **usual))(outputs)
    for key in ignored & set(changes):
        changed = found.bind(limits(found, 0.2, **{**usual, key: changes[key]}))(outputs)
        for field in fields(plain):
            one, other = getattr(plain, field.name), getattr(changed, field.name)
            np.testing.assert_equal(one, other)
