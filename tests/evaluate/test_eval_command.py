"""`edge-agent eval` as people run it: on the shipped model and its golden pictures."""

import json

import pytest
from commands import edge_agent
from eval_pictures import (
    BUNDLE,
    RUNTIMES,
    any_runtime,
    as_coco,
    as_expected,
    need,
    write_golden,
    write_json,
)

from agent.config import ModelConfig
from agent.errors import UnavailableError
from agent.evaluate import average_precision, run
from agent.evaluate.evaluate import run_eval


@pytest.fixture
def golden(tmp_path):
    return write_golden(tmp_path / "pictures")


def evaluate(tmp_path, document, *arguments, models=("default",), runtime=None):
    """Run the command on the golden pictures; return (exit code, the document, stderr)."""
    expected = write_json(tmp_path / "expected.json", document)
    done = edge_agent(
        "eval", *models, "--images", tmp_path / "pictures", "--expected", expected,
        "--runtime", runtime or any_runtime(), "--json", *arguments,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_shipped_model_finds_what_its_golden_pictures_show(tmp_path, golden, runtime):
    need(runtime)
    code, report, stderr = evaluate(tmp_path, as_expected(golden), runtime=runtime)
    (model,) = report["models"]
    assert (code, report["agrees"], model["verdict"]) == (0, True, "within"), model["outside"]
    assert model["model"]["runtime"].startswith(runtime)
    assert model["pictures"] == len(golden)
    assert model["expected"] == sum(map(len, golden.values()))
    assert model["matched"] == model["expected"] - model["missing"]
    assert model["matched"] >= len(golden)
    assert model["mean_iou"] > 0.85
    assert {row["label"] for row in model["classes"]} >= {"person", "cat", "cup"}
    assert not stderr.startswith("Traceback")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_coco_annotations_give_average_precision(tmp_path, golden, runtime):
    need(runtime)
    pytest.importorskip("pycocotools")
    code, report, _ = evaluate(tmp_path, as_coco(golden), runtime=runtime)
    (model,) = report["models"]
    assert (code, model["verdict"]) == (0, "none")
    figures = model["average_precision"]
    assert figures["ap50"] > 0.8
    assert 0 < figures["map"] <= figures["ap50"]
    best = {row["label"]: row for row in model["classes"]}
    assert all(best[label]["ap50"] > 0.8 for label in ("person", "cat", "cup"))
    # Precision and recall are at the model's own threshold, whatever average precision needs.
    assert model["threshold"] == 0.4
    assert model["found"] <= sum(map(len, golden.values())) + 3
    assert model["mean_score_difference"] is None


def test_a_wrong_reference_fails_and_every_case_is_named(tmp_path, golden):
    first = golden["golden0.png"][0]
    first["box"] = [0.0, 0.0, 20.0, 20.0]
    golden["golden1.png"][0]["label"] = "unicorn"
    code, report, _ = evaluate(tmp_path, as_expected(golden))
    (model,) = report["models"]
    assert (code, report["agrees"], model["verdict"]) == (1, False, "outside")
    cases = "\n".join(model["outside"])
    assert f"golden0.png: {first['label']}" in cases
    assert "golden1.png: unicorn" in cases
    assert "golden2.png" not in cases
    assert 'the model has no label "unicorn"' in " ".join(model["notes"])


def test_tables_for_people_with_a_row_over_all(tmp_path, golden):
    pictures = {name: {"detections": rows} for name, rows in golden.items()}
    expected = write_json(tmp_path / "expected.json", pictures)
    copy = tmp_path / "copy.tflite"
    copy.write_bytes((BUNDLE / "model.tflite").read_bytes())
    done = edge_agent(
        "eval", "default", copy, "--images", tmp_path / "pictures", "--expected", expected,
        "--runtime", any_runtime(), "--threshold", "0.4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows[:4]] == ["model", "default", "copy", "all"]
    assert rows[1][1:-2] == rows[2][1:-2]
    assert rows[3][1] == str(2 * len(golden))
    assert rows[3][-5:] == ["2", "of", "2", "within", "tolerance"]


def test_what_is_missing_or_damaged_is_named_and_the_rest_evaluated(tmp_path, golden):
    (tmp_path / "pictures" / "golden1.png").write_bytes(b"nothing")
    document = as_expected(golden)
    document["expected"]["default"]["absent.png"] = {"detections": []}
    code, report, stderr = evaluate(tmp_path, document)
    (model,) = report["models"]
    assert (code, report["agrees"], model["pictures"]) == (69, False, len(golden) - 1)
    assert "absent.png: is not in" in stderr
    assert "golden1.png: not a JPEG, PNG, BMP or WebP picture" in stderr
    assert sorted(reason.split(":")[0] for reason in model["not_evaluated"]) == [
        "absent.png",
        "golden1.png",
    ]


def test_a_model_the_file_does_not_know_costs_its_own_row_only(tmp_path, golden):
    other = tmp_path / "other.tflite"
    other.write_bytes((BUNDLE / "model.tflite").read_bytes())
    code, report, stderr = evaluate(tmp_path, as_expected(golden), models=("default", str(other)))
    assert code == 69
    first, second = report["models"]
    assert first["error"] is None
    assert first["matched"] > 0
    assert 'no entry for the model "other"' in second["error"]
    assert second["error"] in stderr


def test_one_broken_model_costs_its_own_row_only(tmp_path, golden):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"TFL3" * 100)
    document = {name: {"detections": rows} for name, rows in golden.items()}
    code, report, stderr = evaluate(tmp_path, document, models=(broken, "default"))
    assert code == 69
    assert [bool(model["error"]) for model in report["models"]] == [True, False]
    assert "broken.tflite" in stderr
    assert report["models"][1]["verdict"] == "within"


def test_what_is_saved_is_what_a_later_run_expects(tmp_path, golden):
    saved = tmp_path / "saved.json"
    arguments = ("eval", "default", "--images", tmp_path / "pictures", "--runtime", any_runtime())
    done = edge_agent(*arguments, "--save", saved)
    assert done.returncode == 0, done.stderr
    assert f"{len(golden)} pictures saved as" in done.stderr
    done = edge_agent(*arguments, "--expected", saved, "--json")
    (model,) = json.loads(done.stdout)["models"]
    assert (done.returncode, model["verdict"]) == (0, "within")
    assert (model["missing"], model["unexpected"], model["mean_score_difference"]) == (0, 0, 0)
    assert model["mean_iou"] == pytest.approx(1)


def call(tmp_path, expected, images=None, **changes):
    options = {
        "least_iou": 0.5, "tolerance": "", "as_json": True, "save": None, **changes,
    }  # fmt: skip
    config = ModelConfig(path="default", runtime=any_runtime())
    return run_eval([config], images=images or tmp_path / "pictures", expected=expected, **options)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"golden0.png": {"classes": [{"label": "cat"}]}}, "classes are expected, but the model"),
        ({"golden0.png": {"keypoints": []}}, "figures are expected, but the model"),
        ({"golden0.png": {"mask": "m.png"}}, "a mask is expected, but the model"),
        (
            {"golden0.png": {"detections": []}, "golden1.png": {"classes": [{"class_id": 1}]}},
            "golden1.png: expects classes where the pictures before expect detections",
        ),
        ({"absent.png": {"detections": []}}, "not one of 1 pictures"),
        (
            {
                "images": [{"id": 1, "file_name": "golden0.png"}],
                "annotations": [],
                "categories": [{"id": 1, "name": "unicorn"}],
            },
            "none of its 1 categories",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, golden, capfd, document, reason):
    assert call(tmp_path, write_json(tmp_path / "expected.json", document)) == 69
    printed = capfd.readouterr()
    assert [line for line in printed.err.splitlines() if line.startswith("edge-agent: ")]
    assert reason in printed.err
    assert reason in json.loads(printed.out)["models"][0]["error"]


def test_nothing_to_compare_with_and_nowhere_to_look(tmp_path, golden):
    with pytest.raises(UnavailableError, match="--expected FILE, or write down"):
        call(tmp_path, None)
    with pytest.raises(UnavailableError, match="no such folder or picture"):
        call(tmp_path, tmp_path / "e.json", images=tmp_path / "nowhere")
    with pytest.raises(UnavailableError, match="there is no such folder; make it first"):
        call(tmp_path, None, save=tmp_path / "nowhere" / "saved.json")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UnavailableError, match="no picture in it"):
        call(tmp_path, None, images=empty, save=tmp_path / "saved.json")


def test_annotations_without_any_object_are_said(tmp_path, golden, capfd):
    document = {**as_coco(golden), "annotations": []}
    assert call(tmp_path, write_json(tmp_path / "coco.json", document)) == 0
    (model,) = json.loads(capfd.readouterr().out)["models"]
    assert any("annotates no object" in note for note in model["notes"])
    assert (model["expected"], model["recall"]) == (0, None)


def test_a_picture_whose_name_no_json_can_hold(tmp_path, golden):
    picture = tmp_path / "pictures" / "golden0.png"
    picture.rename(picture.with_name("bad\udcff.png"))
    with pytest.raises(UnavailableError, match=r"bad\?\.png: the name is not UTF-8"):
        call(tmp_path, None, save=tmp_path / "saved.json", as_json=False)


def test_one_picture_is_enough(tmp_path, golden, capfd):
    expected = write_json(tmp_path / "expected.json", as_expected(golden))
    assert call(tmp_path, expected, images=tmp_path / "pictures" / "golden2.png") == 0
    (model,) = json.loads(capfd.readouterr().out)["models"]
    assert (model["pictures"], model["expected"]) == (1, len(golden["golden2.png"]))


def test_without_pycocotools_the_rest_is_still_counted(tmp_path, golden, capfd, monkeypatch):
    if any_runtime() != "litert":
        pytest.skip("the model runs in a process of its own, where nothing can be replaced")
    monkeypatch.setattr(run, "is_installed", lambda: False)
    assert call(tmp_path, write_json(tmp_path / "coco.json", as_coco(golden))) == 0
    (model,) = json.loads(capfd.readouterr().out)["models"]
    assert model["average_precision"] is None
    assert average_precision.INSTALL in model["notes"]
    assert model["precision"] > 0.8
    assert model["recall"] > 0.8


def test_usage_errors_are_usage_errors():
    done = edge_agent("eval", "default", "--images", "x", "--iou", "1.5")
    assert done.returncode == 2
    assert "not from 0 to 1" in done.stderr
