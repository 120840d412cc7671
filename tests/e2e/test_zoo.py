"""The zoo's reference detections through the running daemon: a folder of pictures as camera."""

import json
import shutil
from importlib.util import find_spec

import pytest
from agreement import problems
from harness import config_text

RUNTIMES = [
    name
    for name, module in (("litert", "ai_edge_litert"), ("tflite-runtime", "tflite_runtime"))
    if find_spec(module)
]
MODELS = [
    "ssd_mobilenet_v1_coco_quant",
    "yolov8n_full_integer_quant_224",
    "yolov8n_full_integer_quant_640",
    "mobilenet_v2_1.0_224_quant",
    "tf2_mobilenet_v2_1.0_224_ptq",
]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", MODELS)
def test_daemon_agrees(zoo, tmp_path, broker, subscriber, run_agent, name, runtime):
    reference = json.loads((zoo / "expected.json").read_text())
    expected = reference["expected"][name]
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for picture in expected:
        shutil.copy(zoo / "images" / picture, pictures)
    run_agent(
        config_text(
            broker.port,
            source=f"images:{pictures}",
            model=f'path = "{zoo / "models" / name}.tflite"\nruntime = "{runtime}"',
        )
    )
    results = subscriber.wait_results(len(expected))
    by_name = dict(zip(sorted(expected), results, strict=True))
    tolerance = reference["tolerance"][
        "same_runtime" if runtime == "litert" else "other_runtime_or_cpu"
    ]
    assert not [
        problem
        for picture, rows in expected.items()
        for problem in problems(picture, rows, by_name[picture], tolerance)
    ]
