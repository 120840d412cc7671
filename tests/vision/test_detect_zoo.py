"""`edge-agent detect` finds what the reference decoder found, on models nobody here made."""

import importlib.util
import json

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
