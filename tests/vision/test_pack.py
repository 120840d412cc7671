"""`edge-agent model pack`, `verify` and `inspect`: from a model to a bundle that boards take."""

import dataclasses
import hashlib
import io
import json

import cv2
import numpy as np
import pytest
from made_models import MadeInput, MadeSsd, MadeTensor, made_model

from agent.cli import main
from agent.config import ModelConfig
from agent.contract.manifest import Budget, Golden
from agent.errors import ModelError
from agent.ota import manifest as bundle_manifest
from agent.ota.bundle import describe, examine, unpack_into, write_bundle
from agent.ota.manifest import BundleManifest
from agent.ota.selftest import ExamReport
from agent.vision import golden_recording
from agent.vision.detect import StillModel
from agent.vision.golden import check_golden
from agent.vision.golden_recording import usual_pictures
from agent.vision.model import KNOWN_CUSTOM_OPS, load_model
from agent.vision.model_files import read_model

SMALL = MadeInput(shape=(1, 32, 32, 3))
# One box of class 1 at the centre, score 0.9.
YOLO = np.zeros((1, 6, 21), np.float32)
YOLO[0, :, 0] = [0.5, 0.5, 0.4, 0.4, 0.0, 0.9]
SCORES = np.array([[0, 64, 192]], np.uint8)
FIXED = ("--release-counter", "7", "--budget", "*=60000,100000")


def classifier():
    return made_model([MadeTensor(SCORES, scale=1 / 256)], inputs=[SMALL])


@pytest.fixture
def unexamined(monkeypatch):
    """Spare the self-test's process, where what it says is not what is looked at."""
    monkeypatch.setattr("agent.vision.pack.examine", lambda *_: ExamReport(ok=True))


def write(tmp_path, data, name="made.tflite"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def pack(capfd, model, out, *arguments):
    code = main(["model", "pack", str(model), "-o", str(out), "--json", *map(str, arguments)])
    said = capfd.readouterr()
    return code, json.loads(said.out) if code == 0 else said.err


def verify(capfd, bundle, *arguments):
    code = main(["model", "verify", str(bundle), "--json", *arguments])
    return code, json.loads(capfd.readouterr().out)


def unpacked(tmp_path, bundle):
    folder = tmp_path / "unpacked"
    folder.mkdir()
    unpack_into(bundle, folder)
    return folder


def checked(folder):
    """Load what was unpacked as a model folder; its golden pictures must hold."""
    config = ModelConfig(path=str(folder), accelerator="cpu")
    model = load_model(config)
    check_golden(model, read_model(str(folder)))
    return model


def found_in(model):
    stills = StillModel(model)
    return [stills.find(pixels)[0] for _, pixels in usual_pictures()]


def test_default_model_there_and_back(tmp_path, capfd):
    out = tmp_path / "default.tar"
    code, said = pack(capfd, "default", out, "--release-counter", "7")
    assert code == 0
    bundle = examine(out)
    assert said["bundle"] == {"path": str(out), "sha256": bundle.sha256, "size_bytes": bundle.size}
    manifest, own = bundle.manifest, read_model("default").manifest
    for key in ("name", "version", "task", "head", "input", "labels", "custom_ops", "golden"):
        assert getattr(manifest, key) == getattr(own, key)
    assert manifest.license == "Apache-2.0"
    assert (manifest.release_counter, manifest.security_floor) == (7, own.security_floor)
    assert manifest.files == own.files
    assert manifest.tensors.inputs[0].shape == (1, 300, 300, 3)
    told = manifest.provenance
    assert told["package"] == own.provenance["package"]
    assert told["source_sha256"] == own.files["model.tflite"].sha256
    assert told["packed_by"].startswith("edge-agent ")
    # What it took here, twice: that of one board, and this one.
    [[board, budget]] = manifest.budget.items()
    assert "*" not in board
    assert budget.p95_ms >= 0.1
    assert budget.rss_mib > 10
    model = checked(unpacked(tmp_path, out))
    assert found_in(model) == found_in(load_model(ModelConfig(path="default", accelerator="cpu")))
    assert model.labels == load_model(ModelConfig(path="default", accelerator="cpu")).labels


@pytest.mark.usefixtures("unexamined")
def test_same_model_is_the_same_bundle(tmp_path, capfd):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    first = write(tmp_path, classifier())
    second = write(elsewhere, classifier())
    second.chmod(0o600)
    options = ("--version", "1.0", *FIXED, "--provenance", "b=1", "a=2")
    for path in (first, second):
        assert pack(capfd, path, path.with_suffix(".tar"), *options)[0] == 0
    assert first.with_suffix(".tar").read_bytes() == second.with_suffix(".tar").read_bytes()


def test_what_is_said_counts(tmp_path, capfd):
    out = tmp_path / "a.tar"
    code, _ = pack(
        capfd, write(tmp_path, classifier()), out,
        "--name", "cats", "--version", "2.1.0", "--release-counter", "9", "--security-floor", "4",
        "--boards", "rpi-*", "jetson-*", "--min-agent", "0.1", "--licence", "MIT",
        "--budget", "rpi-5=40,200", "rpi-*=90,200.5", "--provenance", "dataset=cats 2026",
        "--threshold", "0.25",
    )  # fmt: skip
    manifest = examine(out).manifest
    assert code == 0
    assert (manifest.name, manifest.version) == ("cats", "2.1.0")
    assert (manifest.release_counter, manifest.security_floor) == (9, 4)
    assert (manifest.boards, manifest.min_agent) == (("rpi-*", "jetson-*"), "0.1")
    assert manifest.license == "MIT"
    assert manifest.provenance["dataset"] == "cats 2026"
    assert manifest.budget == {
        "rpi-5": Budget(p95_ms=40, rss_mib=200),
        "rpi-*": Budget(p95_ms=90, rss_mib=200.5),
    }
    assert manifest.head.score_threshold == 0.25
    code, said = verify(capfd, out, "--board", "rpi-4b")
    assert (code, said["refused"]) == (0, None)
    assert said["bundle"]["name"] == "cats"
    assert said["exam"]["golden"] == 5
    assert said["exam"]["p95_ms"] > 0
    code, said = verify(capfd, out, "--board", "x86")
    assert (code, said["refused"]["code"]) == (1, "E_COMPAT")
    assert said["bundle"]["boards"] == ["rpi-*", "jetson-*"]


@pytest.mark.usefixtures("unexamined")
def test_counter_grows_by_itself(tmp_path, capfd, monkeypatch):
    path = write(tmp_path, classifier())
    counters = []
    for now in (1_800_000_000.9, 1_800_000_002.0):
        monkeypatch.setattr("agent.vision.pack.time.time", lambda now=now: now)
        assert pack(capfd, path, tmp_path / "a.tar", "--version", "1", *FIXED[2:])[0] == 0
        counters.append(examine(tmp_path / "a.tar").manifest.release_counter)
    assert counters == [1_800_000_000, 1_800_000_002]


def test_version_has_to_come_from_somewhere(tmp_path, capfd):
    code, said = pack(capfd, write(tmp_path, classifier()), tmp_path / "a.tar")
    assert code == 2
    assert "--version" in said
    assert not (tmp_path / "a.tar").exists()


MADE = {
    "classifier": ([MadeTensor(SCORES, scale=1 / 256)], {}, {"inputs", "scores"}),
    "logits": (
        [MadeTensor(np.float32([[-3, 0, 5]]), through="softmax")], {}, {"inputs", "scores"}
    ),
    "detector": (
        [MadeTensor(YOLO)], {"type": "yolov8"}, {"inputs", "boxes", "classes", "scores", "count"}
    ),
    "nothing found": (
        [MadeTensor(0 * YOLO)], {"type": "yolov8"},
        {"inputs", "boxes", "classes", "scores", "count"},
    ),
    "pose": (
        [MadeTensor(np.float32(np.linspace(0.1, 0.9, 51)).reshape(1, 1, 17, 3))],
        {"type": "movenet"}, {"inputs", "output_0", "tolerances"},
    ),
    "segmentation": (
        [MadeTensor(np.arange(1024, dtype=np.int64).reshape(1, 32, 32) % 3)],
        {"type": "segment"}, {"inputs", "output_0", "tolerances"},
    ),
    "raw": (
        [MadeTensor(np.float32([[1e6, -3, 2]]), name="a"),
         MadeTensor(np.int8([[1, 2]]), scale=0.5, name="b")],
        {"type": "raw"}, {"inputs", "output_0", "output_1", "tolerances"},
    ),
}  # fmt: skip


@pytest.mark.usefixtures("unexamined")
@pytest.mark.parametrize(("outputs", "head", "arrays"), MADE.values(), ids=MADE)
def test_every_task_keeps_what_is_recorded(tmp_path, capfd, outputs, head, arrays):
    folder = tmp_path / "source"
    folder.mkdir()
    write(folder, made_model(outputs, inputs=[SMALL]), "model.tflite")
    manifest = {"name": "a.b", "version": "1", **({"head": head} if head else {})}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    out = tmp_path / "a.tar"
    code, said = pack(capfd, folder, out, *FIXED)
    assert code == 0
    assert examine(out).manifest.name == "a-b"
    unpacked_folder = unpacked(tmp_path, out)
    with np.load(unpacked_folder / "golden.npz", allow_pickle=False) as archive:
        assert {*archive.files} == arrays
        assert len(archive["inputs"]) == 5  # the shipped model's and two patterns
    model = checked(unpacked_folder)
    assert found_in(model) == found_in(load_model(ModelConfig(path=str(folder), accelerator="cpu")))
    proves_little = any("proves little" in note for note in said["notes"])
    assert proves_little == (outputs is MADE["nothing found"][0])
    # And what is recorded is told from another model's answers.
    turn = (lambda values: np.roll(values, 1, 1)) if "boxes" in arrays else np.flip
    others = [dataclasses.replace(each, values=turn(each.values)) for each in outputs]
    if proves_little:
        return
    data = made_model(others, inputs=[SMALL])
    document = json.loads((unpacked_folder / "manifest.json").read_text())
    document["files"].pop("model.tflite")
    (unpacked_folder / "manifest.json").write_text(json.dumps(document))
    (unpacked_folder / "model.tflite").write_bytes(data)
    with pytest.raises(ModelError, match="other answers than its manifest promises"):
        checked(unpacked_folder)


@pytest.mark.usefixtures("unexamined")
def test_files_of_a_folder_get_the_names_of_a_bundle(tmp_path, capfd):
    folder = tmp_path / "source"
    folder.mkdir()
    anchors = np.array([[0.5, 0.5, 0.5, 0.5]] * 4, np.float32)
    ssd = MadeSsd(
        boxes=np.zeros((1, 4, 4)), scores=np.float32([[[0, 0.9]] + [[0, 0]] * 3]), anchors=anchors
    )
    write(folder, made_model([ssd], inputs=[SMALL]), "m.tflite")
    (folder / "names.txt").write_bytes(b"\xef\xbb\xbfcat\r\n\r\n")
    (folder / "manifest.json").write_text(
        json.dumps({"name": "s", "version": "1", "model": "m.tflite", "labels": "names.txt"})
    )
    out = tmp_path / "a.tar"
    assert pack(capfd, folder, out, *FIXED)[0] == 0
    manifest = examine(out).manifest
    assert (manifest.model, manifest.labels) == ("model.tflite", "labels.txt")
    assert manifest.custom_ops == ("TFLite_Detection_PostProcess",)
    unpacked_folder = unpacked(tmp_path, out)
    # Byte by byte, so that it is read as it was read before.
    assert (unpacked_folder / "labels.txt").read_bytes() == (folder / "names.txt").read_bytes()
    assert checked(unpacked_folder).labels == ("cat",)


@pytest.mark.usefixtures("unexamined")
def test_raw_ssd_takes_its_anchors_along(tmp_path, capfd):
    folder = tmp_path / "source"
    folder.mkdir()
    outputs = [
        MadeTensor(np.zeros((1, 4, 4), np.float32), name="boxes"),
        MadeTensor(np.float32([[[0, 0.9], [0, 0], [0, 0], [0, 0]]]), name="scores"),
    ]
    write(folder, made_model(outputs, inputs=[SMALL]), "model.tflite")
    np.save(folder / "priors.npy", np.float32([[0.2, 0.2, 0.6, 0.6]] * 4))
    manifest = {"name": "s", "version": "1", "head": {"type": "ssd_raw", "anchors": "priors.npy"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    out = tmp_path / "a.tar"
    assert pack(capfd, folder, out, *FIXED)[0] == 0
    assert examine(out).manifest.head.anchors == "anchors.npy"
    was = load_model(ModelConfig(path=str(folder), accelerator="cpu"))
    assert found_in(checked(unpacked(tmp_path, out))) == found_in(was)
    assert any(each.detections for each in found_in(was))


@pytest.mark.usefixtures("unexamined")
def test_chosen_pictures_are_what_is_promised(tmp_path, capfd):
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[10:30, 20:40] = (0, 0, 255)
    assert cv2.imwrite(str(tmp_path / "red.png"), picture)
    path = write(tmp_path, classifier())
    out = tmp_path / "a.tar"
    golden = ("--golden", tmp_path / "red.png")
    code, said = pack(capfd, path, out, "--version", "1", *FIXED, *golden)
    assert code == 0
    assert "red.png" in said["golden"]
    with np.load(unpacked(tmp_path, out) / "golden.npz") as archive:
        [tensor] = archive["inputs"]
    assert tensor.shape == (32, 32, 3)
    assert tensor[16, 16].tolist() == [255, 0, 0]  # RGB
    for bad in (tmp_path / "none.png", path):
        before = out.read_bytes()
        code, said = pack(capfd, path, out, "--version", "2", *FIXED, "--golden", bad)
        assert (code, bad.name in said) == (69, True)
        assert out.read_bytes() == before


def test_model_that_breaks_its_own_promise_is_not_packed(tmp_path, capfd):
    folder = tmp_path / "source"
    folder.mkdir()
    write(folder, classifier(), "model.tflite")
    stream = io.BytesIO()
    np.savez(stream, inputs=np.zeros((1, 32, 32, 3), np.uint8), scores=[[0.75, 0.25, 0.0]])
    (folder / "golden.npz").write_bytes(stream.getvalue())
    golden = {"file": "golden.npz", "score_tolerance": 0.05, "iou": 0.8}
    manifest = {"name": "s", "version": "1", "golden": golden}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    code, said = pack(capfd, folder, tmp_path / "a.tar", *FIXED)
    assert code == 1
    assert "other answers than its manifest promises" in said
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.usefixtures("unexamined")
def test_pictures_on_which_kernels_differ_are_left_out(tmp_path, capfd, monkeypatch):
    path = write(tmp_path, classifier())
    real = golden_recording.differences

    def differing(model, golden, arrays, threshold):
        for number, said in enumerate(real(model, golden, arrays, threshold)):
            is_other = number == 1 or (number == 2 and golden.score_tolerance < 0.1)
            yield said or ("differs" if is_other else "")

    monkeypatch.setattr(golden_recording, "differences", differing)
    out = tmp_path / "a.tar"
    _, said = pack(capfd, path, out, "--version", "1", *FIXED)
    assert "left out" in "".join(said["notes"])
    assert said["golden"].startswith("3 pictures")
    assert examine(out).manifest.golden.score_tolerance == 0.08
    chosen = [tmp_path / f"{number}.png" for number in range(5)]
    for picture in chosen:
        assert cv2.imwrite(str(picture), np.zeros((32, 32, 3), np.uint8))
    _, said = pack(capfd, path, out, "--version", "1", *FIXED, "--golden", *chosen)
    assert "1.png is left out" in "".join(said["notes"])
    assert said["golden"].startswith("4 pictures")
    # As narrow as what is kept allows, and no wider for what is left out anyway.
    assert examine(out).manifest.golden.score_tolerance == 0.15
    monkeypatch.setattr(golden_recording, "differences", lambda *_: ["differs"] * 5)
    code, said = pack(capfd, path, out, "--version", "1", *FIXED)
    assert code == 69
    assert "--golden" in said


def sound(folder, data, **more):
    """Write a bundle of a model without a golden file; `more` is what the manifest says of it."""
    members = {"model.tflite": data, **more.pop("members", {})}
    manifest = BundleManifest(
        schema="edge-agent/manifest/1", name="m", version="1", release_counter=1,
        files=describe(members), **more,
    )  # fmt: skip
    write_bundle(members, manifest, folder / "made.tar")
    return folder / "made.tar"


def golden_of(scores):
    stream = io.BytesIO()
    np.savez(stream, inputs=np.zeros((1, 32, 32, 3), np.uint8), scores=scores)
    golden = Golden(file="golden.npz", score_tolerance=0.05, iou=0.8)
    return {"golden": golden, "members": {"golden.npz": stream.getvalue()}}


def budget(**numbers):
    return {"budget": {"*": Budget(**numbers)}}


SSD = MadeSsd(
    boxes=np.zeros((1, 4, 4)), scores=np.zeros((1, 4, 2), np.float32), anchors=np.ones((4, 4))
)
LIARS = {
    "golden of another model": (classifier, lambda: golden_of([[0.75, 0.25, 0.0]]), "E_GOLDEN"),
    "another task": (classifier, lambda: {"task": "detection"}, "E_COMPAT"),
    "an operator it does not list": (lambda: made_model([SSD], inputs=[SMALL]), dict, "E_BUNDLE"),
    "half of a model": (lambda: classifier()[:700], dict, "E_COMPAT"),
    "too slow": (classifier, lambda: budget(p95_ms=1e-6, rss_mib=1e5), "E_BUDGET"),
    "too large": (classifier, lambda: budget(p95_ms=6e4, rss_mib=1), "E_BUDGET"),
    "for later": (classifier, lambda: {"min_agent": "99"}, "E_COMPAT"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "more", "code"), LIARS.values(), ids=LIARS)
def test_sound_file_with_an_unsound_model_is_refused(tmp_path, capfd, data, more, code):
    exit_code, said = verify(capfd, sound(tmp_path, data(), **more()))
    assert (exit_code, said["refused"]["code"]) == (1, code), said
    assert said["bundle"]["name"] == "m"
    assert "exam" not in said


def test_verify_in_words(tmp_path, capfd):
    path = sound(tmp_path, classifier(), **golden_of([[0.0, 0.25, 0.75]]))
    assert main(["model", "verify", str(path)]) == 0
    said = capfd.readouterr().out
    for part in ("m@1", hashlib.sha256(path.read_bytes()).hexdigest(), "1 pictures", "published"):
        assert part in said
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["model", "verify", str(path)]) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert f"edge-agent: {path}: refused: E_BUNDLE: " in said.err
    assert main(["model", "verify", str(tmp_path / "none.tar")]) == 69
    assert main(["model", "verify", str(tmp_path)]) == 69


def test_inspect_shows_the_bundle_and_its_model(tmp_path, capfd):
    path = sound(tmp_path, classifier(), boards=("rpi-*",), license="MIT")
    assert main(["model", "inspect", str(path), "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["bundle"]["boards"] == ["rpi-*"]
    assert said["bundle"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert said["model"]["path"] == f"{path}/model.tflite"
    assert said["head"]["task"] == "classification"
    assert main(["model", "inspect", str(path)]) == 0
    words = capfd.readouterr().out
    assert "boards       rpi-*" in words
    assert "task         classification" in words
    assert "edge-agent-bundle-" not in words + json.dumps(said)
    broken = sound(tmp_path, b"<html>")
    assert main(["model", "inspect", str(broken), "--json"]) == 69
    said = json.loads(capfd.readouterr().out)
    assert said["refused"].startswith(f"{broken}/model.tflite: is a web page")
    broken.write_bytes(broken.read_bytes() + b"x")
    assert main(["model", "inspect", str(broken)]) == 1
    assert f"edge-agent: {broken}: refused: E_BUNDLE: " in capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--name", "a/b"],
        ["--version", "../1"],
        ["--release-counter", "-1"],
        ["--release-counter", "1.5"],
        ["--release-counter", "9" * 30],
        ["--boards", "rpi-[45]"],
        ["--budget", "rpi-5=40"],
        ["--budget", "rpi-5=0,10"],
        ["--budget", "=1,1"],
        ["--margin", "0.5"],
        ["--provenance", "dataset"],
    ],
)
def test_wrong_words_are_told_at_once(arguments, capfd):
    with pytest.raises(SystemExit) as caught:
        main(["model", "pack", "default", "-o", "never.tar", *arguments])
    assert caught.value.code == 2
    assert arguments[0] in capfd.readouterr().err


def test_operators_of_bundles_are_those_of_the_runtimes():
    assert bundle_manifest.CUSTOM_OPS == KNOWN_CUSTOM_OPS
