"""`edge-agent detect` finds what the reference decoder found, on models nobody here made."""

import csv
import importlib.util
import json

import cv2
import numpy as np
import pytest
from agreement import problems
from commands import edge_agent

MODELS = [
    "ssd_mobilenet_v1_coco_quant",
    "yolov8n_full_integer_quant_224",
    "yolov8n_full_integer_quant_640",
    "mobilenet_v2_1.0_224_quant",
    "tf2_mobilenet_v2_1.0_224_ptq",
]
CLEAR = 0.5  # a class with this score is the best one, whatever the tolerance
RUNTIMES = {
    "litert": ("ai_edge_litert", "same_runtime"),
    "tflite-runtime": ("tflite_runtime", "other_runtime_or_cpu"),
}


def test_every_model_of_the_reference_is_tried(zoo):
    assert set(MODELS) == set(json.loads((zoo / "expected.json").read_text())["expected"])


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", MODELS)
def test_detect_agrees_with_the_reference(zoo, name, runtime):
    module, tolerance_name = RUNTIMES[runtime]
    if not importlib.util.find_spec(module):
        pytest.skip(f"{runtime} is not installed")
    reference = json.loads((zoo / "expected.json").read_text())
    expected = reference["expected"][name]
    images = [zoo / "images" / image for image in expected]
    done = edge_agent(
        "detect", zoo / "models" / f"{name}.tflite", *images, "--json", "--runtime", runtime
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["model"]["runtime"].startswith(runtime)
    assert [result["image"] for result in report["results"]] == [str(path) for path in images]
    assert not [
        problem
        for (image, rows), found in zip(expected.items(), report["results"], strict=True)
        for problem in problems(image, rows, found, reference["tolerance"][tolerance_name])
    ]
    for (image, rows), found in zip(expected.items(), report["results"], strict=True):
        best = rows.get("classes", [{"score": 0.0}])[0]
        if best["score"] > CLEAR:
            assert found["classes"][0]["class_id"] == best["class_id"], image


def report_of(runtime, *arguments):
    if not importlib.util.find_spec(RUNTIMES[runtime][0]):
        pytest.skip(f"{runtime} is not installed")
    done = edge_agent("detect", *arguments, "--json", "--runtime", runtime)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# Shares of the picture's sides, and the least score on either side of a point that is held
# against the reference: as the test that the reference comes from has it
# (google-coral/libcoral, coral/pose_estimation/test_utils.cc). The reference was made on a
# stretched picture; letterboxed, as MoveNet is trained, its points are scored higher.
POINT_TOLERANCE, POINT_SCORE = 0.04, 0.4


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_pose_agrees_with_the_reference(zoo, runtime):
    with (zoo / "images" / "squat_movenet_lightning_reference.csv").open() as file:
        rows = list(csv.DictReader(file))
    model = zoo / "models" / "movenet_single_pose_lightning_ptq.tflite"
    report = report_of(runtime, model, zoo / "images" / "squat.bmp")
    (result,) = report["results"]
    (figure,) = result["keypoints"]
    assert len(figure["points"]) == len(rows) == 17
    assert figure["score"] > 0.6
    size = np.array([result["width"], result["height"]])
    errors = []
    for row, point in zip(rows, figure["points"], strict=True):
        if min(float(row["keypoint_score"]), point["score"]) > POINT_SCORE:
            expected = float(row["keypoint_x"]), float(row["keypoint_y"])
            errors.append(np.abs(np.array([point["x"], point["y"]]) / size - expected))
    assert len(errors) >= 12
    assert np.max(errors) <= POINT_TOLERANCE
    assert np.mean(errors) <= POINT_TOLERANCE / 3


# The reference mask is a larger network's answer, 513x513 as the model's input, so the share
# of equal pixels is compared, and the bird's overlap; google-coral/pycoral, tests/segment_test.py
# asks for 0.9 of what it calls IoU: equal / (2 * all - equal).
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_segmentation_agrees_with_the_reference(zoo, runtime):
    model = zoo / "models" / "deeplabv3_mnv2_dm05_pascal_quant.tflite"
    labels = zoo / "models" / "pascal_voc_segmentation_labels.txt"
    image = zoo / "images" / "bird_segmentation.bmp"
    report = report_of(runtime, model, image, "--labels", labels)
    (result,) = report["results"]
    mask = cv2.imread(str(zoo / "images" / "bird_segmentation_mask.bmp"), cv2.IMREAD_UNCHANGED)
    painted = np.zeros(mask.shape, np.uint8)
    for region in result["regions"]:
        for polygon in region["polygons"]:
            corners = np.rint(np.array(polygon) - 0.5).astype(np.int32)
            cv2.fillPoly(painted, [corners], region["class_id"])
    bird = result["regions"][0]
    assert (bird["label"], bird["class_id"]) == ("bird", 3)
    assert bird["area"] == pytest.approx((mask == 3).mean(), abs=0.04)
    equal = (painted == mask).sum()
    assert equal / (2 * mask.size - equal) > 0.9
    both = (painted == 3) & (mask == 3)
    assert both.sum() / ((painted == 3) | (mask == 3)).sum() > 0.77


CLASSIFIERS = [
    "mobilenet_v1_0.25_128_quant",
    "mobilenet_v2_1.0_224_quant",
    "tf2_mobilenet_v2_1.0_224_ptq",
]
# Where all three agree; ImageNet has no sunflower.
SEEN = {"bird.bmp": "chickadee", "parrot.jpg": "macaw", "sunflower.bmp": "daisy"}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_knows_what_it_sees(zoo, name, runtime):
    images = [zoo / "images" / image for image in SEEN]
    labels = zoo / "models" / "imagenet_labels.txt"
    model = zoo / "models" / f"{name}.tflite"
    report = report_of(runtime, model, *images, "--labels", labels)
    assert report["model"]["task"] == "classification"
    for result, label in zip(report["results"], SEEN.values(), strict=True):
        assert len(result["classes"]) == 3
        scores = [row["score"] for row in result["classes"]]
        assert scores == sorted(scores, reverse=True)
        assert result["classes"][0]["label"] == label
