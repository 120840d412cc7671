"""Real detectors on real pictures: the plain decoders' boxes, and what is to be seen there."""

import cv2
import numpy as np
import pytest
from plain_decoders import (
    iou,
    plain_blazeface,
    plain_distribution,
    plain_found,
    plain_ssd_raw,
    plain_weighted,
)

from agent.config import ModelConfig
from agent.vision.heads.anchors import tf_ssd_anchors
from agent.vision.heads.quantized import to_real
from agent.vision.model import load_model
from agent.vision.preprocess import boxes_to_frame, preprocess

PICTURES = ("cat.bmp", "grace_hopper.bmp", "kite_and_cold.jpg", "face.jpg")
SCORE = 0.4
PERSON, CAT, TIE = 0, 15, 27  # of COCO's 80


@pytest.fixture(scope="session")
def models(zoo):
    """Models beside the zoo; absent elsewhere."""
    folder = zoo.parent / "default_model"
    if not (folder / "nanodet_g_320_int8.tflite").exists():
        pytest.skip("the detectors are not here; they lie beside the model zoo")
    return folder


class Seen:
    """A model and its outputs for one picture."""

    def __init__(self, path, picture):
        self.model = load_model(ModelConfig(path=str(path), score_threshold=SCORE))
        pixels = cv2.imread(str(picture))
        tensor, self.outputs = self.model.plan.new_tensor(), self.model.new_outputs()
        transform = preprocess(pixels, self.model.plan, tensor)
        self.model.engine.load_input(tensor)
        self.model.engine.invoke()
        self.model.engine.read_outputs(self.outputs)
        self.found = self.model.decode(self.outputs)
        self.boxes = boxes_to_frame(self.found.xyxy_norm, transform)

    def real(self, columns):
        """Rows of the output with so many columns, as Python floats."""
        for spec, output in zip(self.model.engine.outputs, self.outputs, strict=True):
            if spec.shape[-1] == columns:
                return to_real(output[0], spec.scale, spec.zero_point).astype(float).tolist()
        raise AssertionError(f"no output has {columns} columns")

    def agrees(self, rows):
        assert len(rows) == len(self.found.scores)
        for at, row in enumerate(rows):
            assert self.found.class_ids[at] == row[1]
            assert self.found.scores[at] == pytest.approx(min(row[0], 1.0), abs=1e-5)
            np.testing.assert_allclose(self.found.xyxy_norm[at], row[2], atol=1e-5)


@pytest.mark.parametrize("picture", PICTURES)
def test_nanodet_as_the_plain_decoder(zoo, models, picture):
    seen = Seen(models / "nanodet_g_320_int8.tflite", zoo / "images" / picture)
    assert (seen.model.head.kind, seen.model.head.class_count) == ("nanodet", 80)
    rows = plain_distribution(seen.real(80), seen.real(44), SCORE, (320, 320), (8, 16, 32), 0.5)
    seen.agrees(plain_found(rows, 0.6))


@pytest.mark.parametrize("picture", PICTURES)
def test_raw_ssd_as_the_plain_decoder_and_as_its_operator(zoo, models, picture):
    path = zoo / "images" / picture
    seen = Seen(models / "default_ssdlite_mnv2_300_raw_int8.tflite", path)
    assert (seen.model.head.kind, seen.model.head.class_count) == ("ssd_raw", 80)
    rows = plain_ssd_raw(seen.real(4), seen.real(80), tf_ssd_anchors().tolist(), SCORE)
    seen.agrees(plain_found(rows, 0.6))
    # The same weights with the operator, which suppresses across classes at 0.5.
    operator = Seen(models / "default_ssdlite_mnv2_300_pp_int8.tflite", path)
    assert operator.model.head.kind == "ssd"
    plain = plain_found(rows, 0.5, is_agnostic=True)
    assert [row[1] for row in plain] == operator.found.class_ids.tolist()
    np.testing.assert_allclose([row[0] for row in plain], operator.found.scores, atol=1e-4)
    for box, row in zip(operator.found.xyxy_norm.tolist(), plain, strict=True):
        assert iou(box, row[2]) > 0.99


@pytest.mark.parametrize("picture", PICTURES)
def test_blazeface_as_the_plain_decoder(zoo, models, picture):
    seen = Seen(models / "blazeface_front_128_int8.tflite", zoo / "images" / picture)
    assert (seen.model.head.kind, seen.model.plan.resize) == ("blazeface", "letterbox")
    scores = [score for (score,) in seen.real(1)]
    rows = plain_blazeface(seen.real(16), scores, 128, ((16, 2), (8, 6)), SCORE)
    plain = plain_weighted(rows, 0.3)
    seen.agrees(plain)
    for points, row in zip(seen.found.keypoints, plain, strict=True):
        np.testing.assert_allclose(points[:, :2].reshape(-1), row[3], atol=1e-5)


@pytest.mark.parametrize("name", ["nanodet_g_320_int8", "default_ssdlite_mnv2_300_raw_int8"])
def test_what_is_to_be_seen(zoo, models, name):
    """The cat, and the admiral with his tie, where the zoo's reference has them."""
    expected = {
        "cat.bmp": [(CAT, [46.7, 44.6, 362.7, 333.2])],
        "grace_hopper.bmp": [
            (PERSON, [3.9, 30.3, 504.9, 591.4]),
            (TIE, [224.1, 426.0, 288.2, 538.9]),
        ],
    }
    for picture, things in expected.items():
        seen = Seen(models / f"{name}.tflite", zoo / "images" / picture)
        for class_id, box in things:
            boxes = seen.boxes[seen.found.class_ids == class_id]
            assert max(iou(box, one) for one in boxes.tolist()) > 0.6


def test_faces_and_their_eyes(zoo, models):
    path = models / "blazeface_front_128_int8.tflite"
    seen = Seen(path, zoo / "images" / "grace_hopper.bmp")
    assert len(seen.found.scores) == 1
    names = list(seen.model.head.keypoint_names)
    points = dict(zip(names, seen.found.keypoints[0, :, :2].tolist(), strict=True))
    left, top, right, bottom = seen.found.xyxy_norm[0].tolist()
    for name in ("right_eye", "left_eye", "nose_tip", "mouth_center"):
        assert left < points[name][0] < right
        assert top < points[name][1] < bottom
    assert points["right_eye"][0] < points["nose_tip"][0] < points["left_eye"][0]
    assert points["right_eye"][1] < points["nose_tip"][1] < points["mouth_center"][1]
    assert len(Seen(path, zoo / "images" / "face.jpg").found.scores) >= 2
    assert not Seen(path, zoo / "images" / "cat.bmp").found.scores.size
