"""`edge-agent model inspect`: everything that decides what a model does, or why it does nothing."""

import hashlib
import json

import msgspec
import numpy as np
import pytest
from commands import PROJECT, edge_agent
from made_models import MadeInput, MadeTensor, made_model

from agent.cli import main
from agent.errors import ModelError
from agent.vision import inspect
from agent.vision.manifest import parse_manifest

DEFAULT = PROJECT / "models" / "default"
MODEL = DEFAULT / "model.tflite"


def run_json(capfd, *arguments):
    code = main(["model", "inspect", *map(str, arguments), "--json"])
    return code, json.loads(capfd.readouterr().out)


def test_default_model(capfd):
    code, document = run_json(capfd, "default")
    manifest = json.loads((DEFAULT / "manifest.json").read_text())
    assert code == 0
    model = document["model"]
    assert model["path"] == str(MODEL)
    assert model["size_bytes"] == MODEL.stat().st_size
    assert model["sha256"] == hashlib.sha256(MODEL.read_bytes()).hexdigest()
    for key in ("name", "version", "license", "provenance"):
        assert model[key] == manifest[key]
    assert model["custom_operators"] == ["TFLite_Detection_PostProcess"]
    [image] = model["inputs"]
    assert (image["shape"], image["dtype"]) == ([1, 300, 300, 3], "uint8")
    assert image["scale"] > 0
    assert [spec["dtype"] for spec in model["outputs"]] == ["float32"] * 4
    assert document["accelerator"]["wanted"] == "auto"
    assert document["accelerator"]["used"].startswith("cpu")
    assert document["invoke_ms"] > 0
    assert document["head"]["kind"] == "ssd"
    assert "TFLite_Detection_PostProcess" in document["head"]["why"]
    assert document["class_count"] == document["labels"]["count"] == 80
    assert document["labels"]["source"] == str(DEFAULT / "labels.txt")
    assert document["labels"]["first"][0] == "person"
    assert document["input_handling"]["pixels"] == "uint8 pixels as they are"
    assert document["thresholds"]["score"] == manifest["head"]["score_threshold"]


def test_options_change_what_is_said(capfd):
    _, document = run_json(capfd, "default", "--threshold", "0.7", "--threads", "2")
    assert document["thresholds"]["score"] == 0.7
    assert document["threads"] == 2


def test_bare_file_takes_its_labels_from_itself(capfd):
    _, document = run_json(capfd, MODEL)
    assert document["model"]["name"] == "model"
    assert document["labels"]["count"] == 80
    assert document["labels"]["source"].endswith("inside the model")
    assert document["thresholds"]["score"] == 0.5


def test_example_manifest_works_as_it_is(tmp_path, capfd):
    (tmp_path / "model.tflite").write_bytes(MODEL.read_bytes())
    _, bare = run_json(capfd, tmp_path / "model.tflite")
    example = bare["manifest_example"]
    parse_manifest(msgspec.json.encode(example), where="example")
    (tmp_path / "manifest.json").write_text(json.dumps(example))
    code, folder = run_json(capfd, tmp_path)
    assert code == 0
    for key in ("head", "input_handling", "thresholds", "labels"):
        assert folder[key] == bare[key]


@pytest.mark.parametrize(
    ("name", "kind", "resize", "pixels"),
    [
        ("ssd_mobilenet_v1_coco_quant", "ssd", "stretch", "uint8 pixels as they are"),
        ("yolov8n_full_integer_quant_224", "yolov8", "letterbox", "int8: pixels minus 128"),
        ("tf2_mobilenet_v2_1.0_224_ptq", "classify", "stretch", "uint8 pixels as they are"),
        ("movenet_single_pose_lightning_ptq", "movenet", "letterbox", "uint8 pixels as they are"),
        ("deeplabv3_mnv2_dm05_pascal_quant", "segment", "stretch", "uint8 pixels as they are"),
    ],
)
def test_families(zoo, capfd, name, kind, resize, pixels):
    code, document = run_json(capfd, zoo / "models" / f"{name}.tflite")
    assert code == 0
    assert document["head"]["kind"] == kind
    assert document["input_handling"]["resize"] == resize
    assert document["input_handling"]["pixels"] == pixels
    if document["labels"]["count"]:
        assert document["labels"]["count"] in (document["class_count"], 90)
    example = parse_manifest(msgspec.json.encode(document["manifest_example"]), where="example")
    assert example.head.type == kind
    if kind == "yolov8":
        assert (example.head.box_units, example.head.box_format) == ("normalized", "xywh")


def test_normalization_is_said_in_words(tmp_path, capfd):
    (tmp_path / "model.tflite").write_bytes(MODEL.read_bytes())
    manifest = {"schema": "edge-agent/manifest/1", "name": "m"}
    manifest["input"] = {"mean": [127.5], "std": [127.5], "color": "bgr"}
    manifest["custom_ops"] = ["TFLite_Detection_PostProcess"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    _, document = run_json(capfd, tmp_path)
    assert "mean and std of the manifest" in document["input_handling"]["pixels"]
    assert document["input_handling"]["color"] == "bgr"
    assert document["manifest_example"]["input"]["mean"] == [127.5]


def test_lines_for_people():
    done = edge_agent("model", "inspect", "default")
    assert done.returncode == 0
    for text in ("sha256", "Apache-2.0", "uint8 [1, 300, 300, 3]", "ms per run", "cpu"):
        assert text in done.stdout
    head, _, example = done.stdout.partition("override")
    assert "person; bicycle" in head
    parse_manifest(example[example.index("{") :].encode(), where="example")


def test_refused_model_is_shown_as_far_as_it_is_known(tmp_path, capfd):
    path = tmp_path / "either.tflite"
    path.write_bytes(made_model([MadeTensor(np.zeros((1, 56, 2100), np.float32))]))
    code, document = run_json(capfd, path)
    assert code == 69
    assert set(document) == {"model", "refused"}
    assert '"yolo_pose"' in document["refused"]
    assert document["model"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert document["model"]["outputs"][0]["shape"] == [1, 56, 2100]
    assert main(["model", "inspect", str(path)]) == 69
    captured = capfd.readouterr()
    assert "[1, 56, 2100]" in captured.out
    assert f"edge-agent: refused: {path}: its output" in captured.err


def write(folder, *tensors, **inputs):
    path = folder / "model.tflite"
    path.write_bytes(made_model(list(tensors), inputs=[MadeInput(**inputs)]))
    return path


def test_pose_model_shows_its_points_and_how_to_say_otherwise(tmp_path, capfd):
    path = write(
        tmp_path,
        MadeTensor(np.zeros((1, 1, 17, 3), np.float32)),
        shape=(1, 192, 192, 3),
        dtype="float32",
    )
    code, document = run_json(capfd, path)
    head = document["head"]
    assert (code, head["kind"], head["task"]) == (0, "movenet", "pose")
    assert head["keypoints"][0] == "nose"
    assert set(head["other_types"]) >= {"posenet", "yolo_pose", "segment", "raw"}
    assert "movenet" not in head["other_types"]
    assert document["thresholds"] == {"score": 0.3, "iou": None, "max_detections": 100}
    assert "as its family was trained" in document["input_handling"]["pixels"]
    example = document["manifest_example"]
    assert example["input"] == {"resize": "letterbox", "color": "rgb", "mean": [0], "std": [1]}
    assert main(["model", "inspect", str(path)]) == 0
    shown = capfd.readouterr().out
    assert "task         pose" in shown
    assert "points       17: nose, left_eye" in shown
    assert "yolo_pose, segment, raw" in shown


def test_outputs_nobody_reads_get_a_hint(tmp_path, capfd):
    path = write(tmp_path, MadeTensor(np.zeros((1, 16, 24, 8), np.float32)))
    code, document = run_json(capfd, path)
    assert (code, document["head"]["task"], document["thresholds"]) == (0, "raw", {})
    assert '"type": "segment"' in document["head"]["why"]
    assert main(["model", "inspect", str(path)]) == 0
    assert "thresholds   none" in capfd.readouterr().out


def test_limits_are_those_in_force(tmp_path, capfd):
    path = write(tmp_path, MadeTensor(np.zeros((1, 5), np.float32)))
    manifest = {"schema": "edge-agent/manifest/1", "name": "m"}
    manifest["head"] = {"type": "classify", "top_k": 2, "logits": False}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    _, document = run_json(capfd, tmp_path)
    assert document["thresholds"] == {"score": 0.0, "top_k": 2}
    wanted = {"type": "classify", "top_k": 2, "score_threshold": 0.0, "logits": False}
    assert document["manifest_example"]["head"] == wanted
    assert path.name == document["manifest_example"]["model"]


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("unresolvable_custom_op", "fake-op-double"),
        ("mobilenet_v1_0.25_128_quant_edgetpu", "edgetpu-custom-op"),
    ],
)
def test_refused_operator_is_listed(zoo, capfd, name, operator):
    code, document = run_json(capfd, zoo / "models" / f"{name}.tflite")
    assert code == 69
    assert document["model"]["custom_operators"] == [operator]


BAD_FILES = {
    "missing": (None, "no such model"),
    "empty": (b"", "is empty"),
    "web page": (b"<html>404</html>", "is a web page"),
    "cut": (MODEL.read_bytes()[:100_000], "truncated or damaged"),
    "manifest": (b"{}", "not a TFLite model"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_file_that_is_no_model(tmp_path, capfd, kind):
    content, reason = BAD_FILES[kind]
    path = tmp_path / "m.tflite"
    if content is not None:
        path.write_bytes(content)
    code, document = run_json(capfd, path)
    assert code == 69
    assert str(path) in document["refused"]
    assert reason in document["refused"]
    assert document["model"]["path"] == str(path)
    assert document["model"].get("size_bytes") == (None if content is None else len(content))


def test_changed_file_of_a_bundle_is_refused(tmp_path, capfd):
    (tmp_path / "manifest.json").write_text((DEFAULT / "manifest.json").read_text())
    (tmp_path / "model.tflite").write_bytes(MODEL.read_bytes() + b"\0")
    code, document = run_json(capfd, tmp_path)
    assert code == 69
    assert "is not the file its manifest names" in document["refused"]


@pytest.mark.parametrize("as_json", [True, False])
def test_crash_of_the_runtime_is_a_refusal(capfd, monkeypatch, as_json):
    def crash(module, request, *, model):
        raise ModelError(f"{model}: the runtime crashed (SIGSEGV) while loading or running it")

    monkeypatch.setattr(inspect, "may_crash", lambda runtime: True)
    monkeypatch.setattr(inspect, "run_in_child", crash)
    assert main(["model", "inspect", str(MODEL), *(["--json"] if as_json else [])]) == 69
    captured = capfd.readouterr()
    assert "crashed (SIGSEGV)" in (captured.out if as_json else captured.err)
    assert hashlib.sha256(MODEL.read_bytes()).hexdigest() in captured.out


def test_through_a_child_everything_is_the_same(capfd, monkeypatch):
    documents = []
    for is_child in (False, True):
        monkeypatch.setattr(inspect, "may_crash", lambda runtime, answer=is_child: answer)
        code, document = run_json(capfd, "default")
        assert code == 0
        assert document.pop("invoke_ms") > 0
        documents.append(document)
    assert documents[0] == documents[1]


def test_a_label_of_the_family_is_not_said_to_be_the_exporters(tmp_path, capfd):
    path = write(
        tmp_path,
        MadeTensor(np.zeros((1, 896, 16), np.float32), name="boxes"),
        MadeTensor(np.zeros((1, 896, 1), np.float32), name="scores"),
        shape=(1, 128, 128, 3),
        dtype="float32",
    )
    _, document = run_json(capfd, path)
    assert document["labels"]["first"] == ["face"]
    assert document["labels"]["source"] == "what is known of this family"


@pytest.mark.parametrize(
    ("tensor", "zip_files", "head"),
    [
        (MadeTensor(np.zeros((1, 5), np.float32), through="softmax"), {}, {"logits": False}),
        (MadeTensor(np.zeros((1, 5), np.float32)), {"l.txt": "a\nb\nc\nd\ne"}, {"logits": True}),
        (MadeTensor(np.zeros((1, 16, 16, 1), np.float32), through="logistic"), {},
         {"logits": False}),
        (MadeTensor(np.zeros((1, 16, 16), np.int64)), {}, {}),
    ],
)  # fmt: skip
def test_what_was_inferred_is_in_the_example(tmp_path, capfd, tensor, zip_files, head):
    path = tmp_path / "model.tflite"
    image = MadeInput(shape=(1, 64, 64, 3))
    path.write_bytes(made_model([tensor], inputs=[image], zip_files=zip_files))
    _, bare = run_json(capfd, path)
    example = bare["manifest_example"]
    score = example["head"].pop("score_threshold")
    assert example["head"] == {"type": bare["head"]["kind"], **head}
    example["head"]["score_threshold"] = score
    (tmp_path / "manifest.json").write_text(json.dumps(example))
    _, folder = run_json(capfd, tmp_path)
    for key in ("kind", "task"):
        assert folder["head"][key] == bare["head"][key]
    assert folder["manifest_example"] == example


def test_labels_without_the_background_of_their_list_keep_their_source(tmp_path, capfd):
    path = tmp_path / "model.tflite"
    one = MadeTensor(np.zeros((1, 2), np.float32), through="softmax")
    path.write_bytes(made_model([one], zip_files={"l.txt": "background\na\nb"}))
    _, document = run_json(capfd, path)
    assert document["labels"]["first"] == ["a", "b"]
    assert document["labels"]["source"] == "l.txt inside the model"
