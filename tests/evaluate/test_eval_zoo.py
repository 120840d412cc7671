"""`edge-agent eval` on models nobody here made agrees with a reference nobody here tuned."""

import json

import pytest
from commands import edge_agent
from eval_pictures import RUNTIMES, need


def evaluate(zoo, runtime, models, *arguments):
    need(runtime)
    paths = [zoo / "models" / f"{model}.tflite" for model in models]
    done = edge_agent("eval", *paths, "--runtime", runtime, "--json", *arguments)
    return done.returncode, json.loads(done.stdout)["models"], done.stderr


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_all_models_of_the_reference_in_one_go(zoo, runtime):
    names = list(json.loads((zoo / "expected.json").read_text())["expected"])
    code, models, stderr = evaluate(
        zoo, runtime, names, "--images", zoo / "images", "--expected", zoo / "expected.json"
    )
    assert code == 0, [model["outside"] for model in models] + [stderr]
    assert [model["name"] for model in models] == names
    assert all(model["verdict"] == "within" for model in models)
    assert all(model["pictures"] == 9 for model in models)
    wanted = {"same_runtime": 0.85, "other": 0.75}[
        "same_runtime" if runtime == "litert" else "other"
    ]
    assert {model["tolerance"]["iou"] for model in models} == {wanted}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_pose_lies_on_the_reference(zoo, runtime):
    code, (model,), stderr = evaluate(
        zoo, runtime, ["movenet_single_pose_lightning_ptq"],
        "--images", zoo / "images" / "squat.bmp",
        "--expected", zoo / "images" / "squat_movenet_lightning_reference.csv",
    )  # fmt: skip
    assert code == 0, stderr
    assert model["pose"]["points"] == 17
    assert model["pose"]["mean_distance"] < 0.03
    assert model["pose"]["max_distance"] < 0.06


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_segmentation_covers_its_mask(zoo, runtime, tmp_path):
    name = "deeplabv3_mnv2_dm05_pascal_quant"
    saved = tmp_path / "saved.json"
    code, (model,), stderr = evaluate(
        zoo, runtime, [name],
        "--images", zoo / "images", "--expected", zoo / "images", "--save", saved,
        "--labels", zoo / "models" / "pascal_voc_segmentation_labels.txt",
    )  # fmt: skip
    assert code == 0, stderr
    rows = {row["label"]: row for row in model["classes"]}
    assert model["segmentation"]["pixel_accuracy"] > 0.95
    assert rows["background"]["mean_iou"] > 0.95
    assert rows["bird"]["mean_iou"] > 0.8
    # What it found is a mask that it agrees with entirely.
    code, (model,), stderr = evaluate(
        zoo, runtime, [name], "--images", zoo / "images", "--expected", saved
    )
    assert code == 0, stderr
    assert model["segmentation"]["pixel_accuracy"] == 1
    assert model["segmentation"]["mean_iou"] == 1
