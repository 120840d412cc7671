"""The shipped model bundle and demo clip are whole, documented and do what they claim.

Results are compared by label and box overlap within the manifest's own tolerances: TFLite's
kernels round differently from one CPU to the next, so equal bits are never expected.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

interpreter_module = pytest.importorskip("ai_edge_litert.interpreter")

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "models" / "default"
DEMO = ROOT / "agent" / "demo"

F32 = npt.NDArray[np.float32]
Detection = tuple[int, float, F32]  # class id, score, yxyx_norm float32[4]

MANIFEST_KEYS = {
    "schema",
    "name",
    "version",
    "release_counter",
    "security_floor",
    "task",
    "head",
    "input",
    "labels",
    "custom_ops",
    "files",
    "golden",
    "license",
    "provenance",
}
SSD_OUTPUTS = [
    ("TFLite_Detection_PostProcess", [1, 50, 4]),
    ("TFLite_Detection_PostProcess:1", [1, 50]),
    ("TFLite_Detection_PostProcess:2", [1, 50]),
    ("TFLite_Detection_PostProcess:3", [1]),
]
MAX_GOLDEN_BYTES = 1_000_000
MAX_CLIP_BYTES = 3_000_000
CLIP_FRAMES = 270


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((BUNDLE / "manifest.json").read_text(encoding="utf-8"))
    return document


@pytest.fixture(scope="module")
def labels() -> list[str]:
    return (BUNDLE / "labels.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def golden() -> dict[str, npt.NDArray[Any]]:
    with np.load(BUNDLE / "golden.npz", allow_pickle=False) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def interpreter() -> Any:
    model = (BUNDLE / "model.tflite").read_bytes()
    interpreter = interpreter_module.Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def test_manifest_has_exactly_the_documented_keys(manifest: dict[str, Any]) -> None:
    assert set(manifest) == MANIFEST_KEYS
    assert manifest["schema"] == "edge-agent/manifest/1"
    assert manifest["head"] == {"type": "ssd", "score_threshold": 0.4}
    assert manifest["custom_ops"] == ["TFLite_Detection_PostProcess"]
    assert set(manifest["files"]) == {"model.tflite", "labels.txt", "golden.npz"}


def test_manifest_vouches_for_every_file(manifest: dict[str, Any]) -> None:
    for name, expected in manifest["files"].items():
        data = (BUNDLE / name).read_bytes()
        assert len(data) == expected["size"], name
        assert hashlib.sha256(data).hexdigest() == expected["sha256"], name


def test_licence_and_notice_are_shipped(manifest: dict[str, Any]) -> None:
    assert manifest["license"] == "Apache-2.0"
    licence = (BUNDLE / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    notice = (BUNDLE / "NOTICE").read_text(encoding="utf-8")
    assert "Statement of changes" in notice
    assert manifest["provenance"]["package"].removeprefix("npm:") in notice


def test_labels_are_the_eighty_coco_classes(labels: list[str]) -> None:
    assert len(labels) == len(set(labels)) == 80
    assert labels[0] == "person"
    assert labels[79] == "toothbrush"


def test_model_carries_the_same_labels(labels: list[str]) -> None:
    model = io.BytesIO((BUNDLE / "model.tflite").read_bytes())
    with zipfile.ZipFile(model) as attached:
        assert attached.read("labels.txt").decode().splitlines() == labels


def test_model_has_the_documented_interface(interpreter: Any) -> None:
    (image,) = interpreter.get_input_details()
    assert image["shape"].tolist() == [1, 300, 300, 3]
    assert image["dtype"] is np.uint8
    outputs = interpreter.get_output_details()
    assert [(out["name"], out["shape"].tolist()) for out in outputs] == SSD_OUTPUTS
    assert all(out["dtype"] is np.float32 for out in outputs)


def test_golden_is_small_and_well_formed(golden: dict[str, npt.NDArray[Any]]) -> None:
    assert (BUNDLE / "golden.npz").stat().st_size < MAX_GOLDEN_BYTES
    pictures = len(golden["inputs"])
    assert pictures >= 2
    assert golden["inputs"].dtype == np.uint8
    assert golden["inputs"].shape == (pictures, 300, 300, 3)
    assert golden["boxes"].shape == (pictures, 50, 4)
    assert golden["classes"].shape == golden["scores"].shape == (pictures, 50)
    assert golden["count"].shape == (pictures,)
    assert all(np.isfinite(golden[key]).all() for key in ("boxes", "classes", "scores", "count"))


def test_model_reproduces_the_golden_detections(
    manifest: dict[str, Any], golden: dict[str, npt.NDArray[Any]], interpreter: Any
) -> None:
    tolerance = manifest["golden"]["score_tolerance"]
    # A detection this far above the threshold stays above it on every kernel.
    sure = manifest["head"]["score_threshold"] + tolerance
    for index, picture in enumerate(golden["inputs"]):
        expected = detections(
            *(golden[key][index] for key in ("boxes", "classes", "scores", "count"))
        )
        found = detections(*invoke(interpreter, picture))
        for wanted, others in ((expected, found), (found, expected)):
            for detection in wanted:
                if detection[1] >= sure:
                    assert has_match(detection, others, manifest["golden"]), (index, detection)


def test_golden_holds_a_person_a_cat_and_a_cup(
    golden: dict[str, npt.NDArray[Any]], labels: list[str]
) -> None:
    best = [labels[int(classes[0])] for classes in golden["classes"]]
    assert best == ["person", "cat", "cup"]
    assert golden["scores"][:, 0].min() >= 0.8


def test_demo_clip_decodes_whole_and_is_small() -> None:
    cv2 = pytest.importorskip("cv2")
    clip = DEMO / "clip.mp4"
    assert clip.stat().st_size < MAX_CLIP_BYTES
    capture = cv2.VideoCapture(str(clip))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(30)
    frames = 0
    while True:
        decoded, frame = capture.read()
        if not decoded:
            break
        frames += 1
        assert frame.shape == (720, 1280, 3)
    assert frames == CLIP_FRAMES


def test_demo_clip_names_its_pictures() -> None:
    attribution = (DEMO / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for author in ("NASA", "Stefan van der Walt", "Rachel Michetti"):
        assert author in attribution


def invoke(interpreter: Any, picture: npt.NDArray[np.uint8]) -> list[F32]:
    """Return boxes, classes, scores, count for one uint8[300,300,3] RGB picture."""
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], picture[np.newaxis])
    interpreter.invoke()
    return [interpreter.get_tensor(out["index"])[0] for out in interpreter.get_output_details()]


def detections(boxes: F32, classes: F32, scores: F32, count: F32) -> list[Detection]:
    """Return the valid rows; those from `count` on are unwritten memory."""
    return [(int(classes[row]), float(scores[row]), boxes[row]) for row in range(int(count))]


def has_match(wanted: Detection, others: list[Detection], limits: dict[str, Any]) -> bool:
    class_id, score, box = wanted
    return any(
        class_id == other_id
        and abs(score - other_score) <= limits["score_tolerance"]
        and iou(box, other_box) >= limits["iou"]
        for other_id, other_score, other_box in others
    )


def iou(a: F32, b: F32) -> float:
    """Return the overlap of two yxyx boxes, 0..1."""
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    shared = float(sides.prod())
    areas = float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod())
    return shared / (areas - shared)
