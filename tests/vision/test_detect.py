"""`edge-agent detect`: what it prints, what it saves, and every kind of input that is none."""

import json
import os
import signal
import struct
import zlib
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from commands import PROJECT, edge_agent
from made_models import MadeInput, MadeTensor, made_model

from agent.cli import main
from agent.config import ModelConfig
from agent.contract.payloads import (
    Classification,
    Detection,
    Keypoint,
    Pose,
    Region,
    TensorStatistics,
)
from agent.errors import ModelError
from agent.vision import child, detect
from agent.vision.draw import draw, save_picture
from agent.vision.encode import Findings

DEFAULT = PROJECT / "models" / "default"
SIZE = (300, 300)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The pictures that came with the default model, as PNG files."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, pixels in enumerate(np.load(DEFAULT / "golden.npz")["inputs"]):
        cv2.imwrite(str(folder / f"{number}.png"), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    return folder


def run_json(capfd, *arguments):
    code = main(["detect", *map(str, arguments), "--json"])
    captured = capfd.readouterr()
    return code, json.loads(captured.out), captured.err


def test_json_has_exactly_these_keys(pictures):
    done = edge_agent("detect", "default", pictures / "0.png", pictures / "1.png", "--json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    manifest = json.loads((DEFAULT / "manifest.json").read_text())
    assert set(report) == {"model", "results"}
    model = report["model"]
    assert set(model) == {"name", "version", "sha256", "task", "runtime", "accelerator"}
    assert model["name"] == "default"
    assert model["sha256"] == manifest["files"]["model.tflite"]["sha256"]
    assert model["task"] == "detection"
    assert model["accelerator"].startswith("cpu")
    assert len(report["results"]) == 2
    for result in report["results"]:
        assert set(result) == {"image", "width", "height", "stage_ms", "detections"}
        assert (result["width"], result["height"]) == SIZE
        assert set(result["stage_ms"]) == {"preprocess", "inference", "postprocess"}
        assert all(value > 0 for value in result["stage_ms"].values())
        assert result["detections"]
        for found in result["detections"]:
            assert set(found) == {"label", "class_id", "score", "box"}
            assert manifest["head"]["score_threshold"] <= found["score"] <= 1
            x_min, y_min, x_max, y_max = found["box"]
            assert 0 <= x_min < x_max <= SIZE[0]
            assert 0 <= y_min < y_max <= SIZE[1]


def test_lines_say_what_json_says(pictures, capfd):
    image = pictures / "0.png"
    _, report, _ = run_json(capfd, "default", image)
    assert main(["detect", "default", str(image)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines == [
        f"{image}: {found['label']} {found['score']:.2f} at {', '.join(map(str, found['box']))}"
        for found in report["results"][0]["detections"]
    ]


def test_nothing_found_is_said(tmp_path, capfd):
    grey = tmp_path / "grey.png"
    cv2.imwrite(str(grey), np.full((64, 64, 3), 127, np.uint8))
    assert main(["detect", "default", str(grey), "--threshold", "1"]) == 0
    assert capfd.readouterr().out == f"{grey}: nothing found\n"


def test_folder_stands_for_its_images_in_order(pictures, tmp_path, capfd):
    for name in ("b.png", "a.png", "c.txt"):
        (tmp_path / name).write_bytes((pictures / "0.png").read_bytes())
    code, report, _ = run_json(capfd, "default", tmp_path)
    assert code == 0
    assert [Path(result["image"]).name for result in report["results"]] == ["a.png", "b.png"]


def png_header(width, height):
    """Return a PNG of a few bytes that promises to become an enormous picture."""

    def chunk(kind, content):
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


BAD_IMAGES = {
    "missing.jpg": (None, "No such file"),
    "empty.jpg": (b"", "not a JPEG"),
    "page.jpg": (b"<!DOCTYPE html><html>404</html>", "not a JPEG"),
    "text.txt": (b"hello", "not a JPEG"),
    "bomb.png": (png_header(60_000, 60_000), "60000x60000"),
    "cut.png": (png_header(64, 64)[:40], "damaged"),
    "jpeg.jpg": (b"\xff\xd8\xff\xe0", "not a JPEG"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_image_is_named_and_the_others_are_processed(pictures, tmp_path, capfd, name):
    content, reason = BAD_IMAGES[name]
    bad = tmp_path / name
    if content is not None:
        bad.write_bytes(content)
    code, report, errors = run_json(capfd, "default", pictures / "0.png", bad, pictures / "1.png")
    assert code == 69
    first, failed, last = report["results"]
    assert first["detections"]
    assert last["detections"]
    assert set(failed) == {"image", "error"}
    assert failed["image"] == str(bad)
    assert reason in failed["error"]
    [sentence] = [line for line in errors.splitlines() if line.startswith("edge-agent: ")]
    assert sentence == f"edge-agent: {bad}: {failed['error']}"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.mkdir(), "a folder without pictures"),
        (os.mkfifo, "not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a file"),
    ],
    ids=["empty folder", "pipe", "endless device"],
)
def test_what_is_no_file_is_not_read(tmp_path, capfd, make, reason):
    make(tmp_path / "strange")
    code, report, _ = run_json(capfd, "default", tmp_path / "strange")
    assert code == 69
    assert report["results"][0]["error"].startswith(reason)


def test_unreadable_file_is_said(pictures, tmp_path, capfd, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(detect, "load_image", refuse)
    monkeypatch.setattr(detect, "may_crash", lambda runtime: False)
    code, report, _ = run_json(capfd, "default", pictures / "0.png")
    assert (code, report["results"][0]["error"]) == (69, "Permission denied")


def test_name_that_is_no_text_is_shown(pictures, tmp_path):
    image = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(image)).write_bytes((pictures / "0.png").read_bytes())
    done = edge_agent("detect", "default", os.fsdecode(image), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"][0]["image"].endswith(
        "caf\N{REPLACEMENT CHARACTER}.png"
    )


def test_saved_pictures_never_replace_anything(pictures, tmp_path, capfd):
    other, out = tmp_path / "other", tmp_path / "out"
    other.mkdir()
    image = other / "0.png"
    image.write_bytes((pictures / "1.png").read_bytes())
    before = image.read_bytes()
    arguments = ["detect", "default", str(pictures / "0.png"), str(image), "--save"]
    assert main([*arguments, str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["0-2.png", "0.png"]
    for name, source in {"0.png": pictures / "0.png", "0-2.png": image}.items():
        drawn, plain = cv2.imread(str(out / name)), cv2.imread(str(source))
        assert drawn.shape == plain.shape
        assert (drawn != plain).any(axis=2).mean() > 0.005
    # Into the folder of the originals: they stay as they are.
    assert main([*arguments, str(other)]) == 0
    assert image.read_bytes() == before
    assert str(other / "0-2.png") in capfd.readouterr().err


def test_folder_that_cannot_be_made_is_said_before_any_work(tmp_path, capfd):
    (tmp_path / "file").touch()
    code = main(["detect", "default", "x.jpg", "--save", str(tmp_path / "file" / "out")])
    captured = capfd.readouterr()
    assert code == 69
    assert "--save" in captured.err
    assert "x.jpg" not in captured.err


@pytest.mark.parametrize("size", [(1, 1), (9, 700), (700, 9), (64, 48), (3000, 2000)])
def test_drawing_fits_any_size(tmp_path, size):
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    label = "Größe 猫 " + "long " * 20
    boxes = [
        Detection(label=label, class_id=0, score=0.5, box=(0, 0, size[0], size[1])),
        Detection(label=None, class_id=7, score=0.9, box=(size[0] - 1, size[1] - 1, *size)),
    ]
    classes = [Classification(label="cat", class_id=number, score=0.1) for number in range(5)]
    corners = [(0, 0), (size[0], 0), size, (0, size[1])]
    points = [
        Keypoint(label=None, score=score, x=x, y=y)
        for (x, y), score in zip(corners * 4 + [(0, 0)], [None, 0.9, 0.1, 1.0] * 5, strict=False)
    ]
    figures = [
        Pose(label=label, class_id=0, score=0.5, box=None, points=points),
        Pose(label=None, class_id=1, score=0.4, box=(0, 0, *size), points=points[:3]),
        Pose(label=None, class_id=0, score=0.4, box=None, points=[]),
    ]
    regions = [
        Region(label=label, class_id=3, area=0.5, polygons=[corners, corners[:3]]),
        Region(label=None, class_id=4, area=0.5, polygons=[]),
    ]
    for found in (
        Findings(detections=boxes),
        Findings(detections=[msgspec.structs.replace(boxes[0], keypoints=points)]),
        Findings(classes=classes),
        Findings(keypoints=figures),
        Findings(regions=regions),
    ):
        drawn = draw(pixels, found)
        assert drawn.any()
        assert drawn.shape[0] * size[0] == drawn.shape[1] * size[1]
        assert not pixels.any()


def test_unknown_suffix_becomes_jpeg_and_too_large_is_refused(tmp_path):
    assert save_picture(np.zeros((8, 8, 3), np.uint8), tmp_path, "snapshot").name == "snapshot.jpg"
    with pytest.raises(ValueError, match="as JPG"):
        save_picture(np.zeros((1, 70_000, 3), np.uint8), tmp_path, "wide.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["snapshot.jpg"]


BAD_MODELS = {
    "missing": (lambda data: None, "no such model"),
    "empty": (lambda data: b"", "is empty"),
    "web page": (lambda data: b"<!DOCTYPE html><html>404</html>", "is a web page"),
    "archive": (lambda data: b"PK\x03\x04" + bytes(64), "not a TFLite model"),
    "cut in half": (lambda data: data[: len(data) // 2], "truncated or damaged"),
    "only a head": (lambda data: data[:8], "truncated or damaged"),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_bad_model_is_one_sentence(tmp_path, pictures, kind):
    make, reason = BAD_MODELS[kind]
    content = make((DEFAULT / "model.tflite").read_bytes())
    path = tmp_path / "m.tflite"
    if content is not None:
        path.write_bytes(content)
    done = edge_agent("detect", path, pictures / "0.png", "--json")
    assert done.returncode == 69
    assert done.stdout == ""
    [sentence] = [line for line in done.stderr.splitlines() if line.startswith("edge-agent: ")]
    assert str(path) in sentence
    assert reason in sentence
    assert "Traceback" not in done.stderr


def test_model_cut_anywhere_runs_or_is_refused(tmp_path, pictures, capfd):
    data = (DEFAULT / "model.tflite").read_bytes()
    path = tmp_path / "m.tflite"
    codes = set()
    for part in range(1, 12):
        path.write_bytes(data[: len(data) * part // 12])
        codes.add(main(["detect", str(path), str(pictures / "0.png")]))
        assert str(path) in capfd.readouterr().err
    assert codes == {69}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("unresolvable_custom_op", "custom operator fake-op-double"),
        ("mobilenet_v1_0.25_128_quant_edgetpu", "compiled for the Edge TPU"),
    ],
)
def test_model_that_cannot_be_used_says_why(zoo, capfd, pictures, name, reason):
    path = zoo / "models" / f"{name}.tflite"
    assert main(["detect", str(path), str(pictures / "0.png")]) == 69
    errors = capfd.readouterr().err
    assert str(path) in errors
    assert reason in errors


@pytest.mark.parametrize(
    ("content", "code", "reason"),
    [
        ("cat\ndog\n", 69, "has 2 labels, but the model has 1001 classes"),
        (b"\xff\xfe", 69, "not UTF-8"),
        (None, 78, "cannot be read"),
    ],
)
def test_wrong_labels_are_refused(zoo, tmp_path, capfd, pictures, content, code, reason):
    labels = tmp_path / "labels.txt"
    if content is not None:
        labels.write_bytes(content.encode() if isinstance(content, str) else content)
    model = zoo / "models" / "mobilenet_v2_1.0_224_quant.tflite"
    image = str(pictures / "0.png")
    assert main(["detect", str(model), image, "--labels", str(labels)]) == code
    errors = capfd.readouterr().err
    assert str(labels)[:40] in errors, "long values are cut short"
    assert reason in errors


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--nonsense"], 2),
        (["--runtime", "torch"], 2),
        (["--threads", "many"], 2),
        (["--threads", "-1"], 78),
        (["--threshold", "1.5"], 78),
        (["--accelerator", "gpu"], 78),
    ],
)
def test_unknown_options_are_refused(capfd, pictures, options, code):
    try:
        found = main(["detect", "default", str(pictures / "0.png"), *options])
    except SystemExit as exit_:
        found = exit_.code
    captured = capfd.readouterr()
    assert found == code
    assert captured.out == ""
    assert options[-1] in captured.err or options[0].strip("-") in captured.err


def test_missing_delegate_is_said_and_the_processor_goes_on(pictures):
    image = pictures / "0.png"
    done = edge_agent("detect", "default", image, "--accelerator", "delegate:/no/such.so")
    assert done.returncode == 0
    assert "/no/such.so cannot be loaded: there is no such file" in done.stderr
    assert done.stdout == edge_agent("detect", "default", image).stdout != ""


def movenet(folder):
    """A made MoveNet that sees one figure on a slanted line, on any picture."""
    steps = np.linspace(0.25, 0.75, 17)
    points = np.stack([steps, steps, np.linspace(0.2, 1, 17)], axis=1).astype(np.float32)
    image = MadeInput(shape=(1, 64, 64, 3), dtype="int32")
    path = folder / "movenet.tflite"
    path.write_bytes(made_model([MadeTensor(points[None, None])], inputs=[image]))
    return path


def test_figures_are_in_pixels_of_the_picture(tmp_path, capfd):
    image = tmp_path / "wide.png"
    cv2.imwrite(str(image), np.full((100, 400, 3), 90, np.uint8))
    code, report, _ = run_json(capfd, movenet(tmp_path), image, "--save", tmp_path / "out")
    assert (code, report["model"]["task"]) == (0, "pose")
    (result,) = report["results"]
    assert set(result) == {"image", "width", "height", "stage_ms", "keypoints"}
    (figure,) = result["keypoints"]
    assert (figure["box"], figure["score"]) == (None, 0.6)
    nose, ankle = figure["points"][0], figure["points"][-1]
    # Letterboxed into a square, the picture is its middle quarter: what lies above is clipped.
    assert nose == {"label": "nose", "score": 0.2, "x": 100.0, "y": 0.0}
    assert ankle == {"label": "right_ankle", "score": 1.0, "x": 300.0, "y": 100.0}
    assert (cv2.imread(str(tmp_path / "out" / "wide.png")) != 90).any()
    assert main(["detect", str(tmp_path / "movenet.tflite"), str(image)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == f"{image}: person 0.60"
    assert lines[1] == f"{image}:   nose 0.20 at 100.0, 0.0"
    assert len(lines) == 18


def test_regions_and_raw_numbers_in_words(tmp_path, capfd):
    ids = np.zeros((1, 32, 32), np.int64)
    ids[0, :16] = 1
    image, size = tmp_path / "grey.png", MadeInput(shape=(1, 64, 64, 3))
    cv2.imwrite(str(image), np.full((60, 80, 3), 90, np.uint8))
    (tmp_path / "labels.txt").write_text("background\nsky\n")
    model = tmp_path / "model.tflite"
    model.write_bytes(made_model([MadeTensor(ids)], inputs=[size]))
    arguments = ["detect", str(model), str(image)]
    assert main([*arguments, "--labels", str(tmp_path / "labels.txt")]) == 0
    sky = "sky 50.0% of the picture, outlines: 1, the largest at"
    assert sky in capfd.readouterr().out
    numbers = np.array([[1.5, np.nan]], np.float32)
    tensors = [MadeTensor(numbers, name="a"), MadeTensor(np.zeros((1, 9, 9), np.int8), name="b")]
    model.write_bytes(made_model(tensors, inputs=[size]))
    assert main(arguments) == 0
    assert capfd.readouterr().out.splitlines() == [
        f"{image}: a float32 [1, 2]: 1.5 to 1.5, mean 1.5, 1 not finite: 1.5, none",
        f"{image}: b int8 [1, 9, 9]: 0 to 0, mean 0",
    ]


def test_points_of_a_box_and_what_a_second_stage_saw():
    point = Keypoint(label="nose", score=None, x=1.0, y=2.0)
    box = Detection(
        label="face",
        class_id=0,
        score=0.5,
        box=(0, 1, 2, 3),
        keypoints=[point],
        classes=[Classification(label="Ann", class_id=1, score=0.75)],
    )
    assert list(detect._lines(Findings(detections=[box]))) == [
        "face 0.50 Ann 0.75 at 0, 1, 2, 3",
        "  nose at 1.0, 2.0",
    ]
    none = TensorStatistics(
        name="t", shape=[0], dtype="float32", min=None, max=None, mean=None, not_finite=0
    )
    lines = list(detect._lines(Findings(tensors=[none])))
    assert lines == ["t float32 [0]: none to none, mean none"]


def test_through_a_child_everything_is_the_same(capfd, pictures, monkeypatch):
    arguments = ["default", pictures / "0.png", "no.png"]
    monkeypatch.setattr(detect, "may_crash", lambda runtime: False)
    code, here, _ = run_json(capfd, *arguments)
    monkeypatch.setattr(detect, "may_crash", lambda runtime: True)
    child_code, there, errors = run_json(capfd, *arguments)
    assert code == child_code == 69
    assert "edge-agent: no.png: No such file or directory" in errors
    for report in (here, there):
        report["results"][0].pop("stage_ms")
    assert here == there


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE])
def test_crash_of_the_runtime_is_a_sentence(tmp_path, monkeypatch, number):
    (tmp_path / "crashing.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    request = msgspec.defstruct("Request", [])()
    with pytest.raises(ModelError, match=rf"^m\.tflite: .*{number.name}.*damaged") as caught:
        child.run_in_child("crashing", request, model="m.tflite")
    assert caught.value.exit_code == 69


def test_only_the_runtime_that_crashes_gets_a_child(monkeypatch):
    assert child.may_crash("tflite-runtime")
    assert not child.may_crash("litert")
    for is_there, expected in ((object(), False), (None, True)):
        monkeypatch.setattr(child.importlib.util, "find_spec", lambda name, at=is_there: at)
        assert child.may_crash("auto") is expected


def test_request_survives_the_way_to_the_child():
    request = detect.Request(
        config=ModelConfig(labels={"cat": 0.3}, score_threshold=None),
        images=["caf\udce9.png"],
        as_json=True,
        save=None,
    )
    sent = json.loads(json.dumps(msgspec.to_builtins(request)))
    assert msgspec.convert(sent, detect.Request) == request
