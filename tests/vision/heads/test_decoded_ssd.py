"""Boxes and scores in two outputs whose boxes are decoded already: UltraFace, DETR and such."""

import numpy as np
import pytest
from looks import limits, look

from agent.errors import ModelError
from agent.vision.heads.choose import recognise

ULTRAFACE = (1, 240, 320, 3)


def corners(count, columns=2):
    """Corners in order, and scores with a background first."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.6, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.01, 0.3, (count, 2))], axis=1)
    scores = rng.uniform(0, 0.02, (count, columns))
    scores[:, 0] = 1 - scores[:, 1:].sum(axis=1)
    return [boxes[None].astype(np.float32), scores[None].astype(np.float32)]


def found_of(first, **wanted):
    return recognise(look([one.shape for one in first], first, image=ULTRAFACE, **wanted))


def test_corners_are_never_taken_for_offsets(tmp_path):
    first = corners(4420)
    for wanted in ({}, {"anchors": "anchors.npy"}):
        np.save(tmp_path / "anchors.npy", np.tile([0.1, 0.2, 0.3, 0.6], (4420, 1)))
        found = found_of(first, folder=tmp_path, **wanted)
        assert found.kind == "raw"
        assert "the boxes are corners already" in found.why
        assert '"box_format": "xyxy"' in found.why
    with pytest.raises(ModelError, match="the boxes are corners already"):
        found_of(first, type="ssd_raw")


@pytest.mark.parametrize("form", ["xyxy", "yxyx", "xywh"])
@pytest.mark.parametrize("unit", [1.0, 100.0])
def test_decoded_boxes_are_read_where_the_manifest_says_how(form, unit):
    first = corners(4420)
    first[0] *= unit
    found = found_of(first, type="ssd_raw", box_format=form)
    assert (found.kind, found.class_count) == ("ssd_raw", 1)
    boxes, scores = (np.zeros_like(one) for one in first)
    boxes[0, 7] = {
        "xyxy": (0.2, 0.1, 0.6, 0.3),
        "yxyx": (0.1, 0.2, 0.3, 0.6),
        "xywh": (0.4, 0.2, 0.4, 0.2),
    }[form]
    if unit > 1:
        boxes *= [240, 320, 240, 320] if form == "yxyx" else [320, 240, 320, 240]
    scores[0, :, 0] = 1.0
    scores[0, 7] = [0.1, 0.9]
    result = found.bind(limits(found))([boxes, scores])
    np.testing.assert_allclose(result.xyxy_norm, [[0.2, 0.1, 0.6, 0.3]], atol=1e-6)
    assert result.scores == pytest.approx([0.9])
    assert result.class_ids.tolist() == [0]


@pytest.mark.parametrize("count", [100, 300])
def test_a_detr_is_no_ssd_without_anchors(count):
    rng = np.random.default_rng(1)
    boxes = rng.uniform(0.05, 0.9, (1, count, 4)).astype(np.float32)  # of the centre
    logits = rng.normal(-6, 1, (1, count, 91)).astype(np.float32)
    found = found_of([boxes, logits])
    assert found.kind == "raw"
    assert "anchors.npy" not in found.why
    assert '"box_format"' in found.why
    told = found_of([boxes, logits], type="ssd_raw", box_format="xywh")
    logits[0, 3, 18] = 4.0
    result = told.bind(limits(told))([boxes, logits])
    x, y, width, height = boxes[0, 3]
    expected = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    np.testing.assert_allclose(result.xyxy_norm, [expected], atol=1e-6)


def test_anchors_beside_decoded_boxes_are_a_contradiction():
    with pytest.raises(ModelError, match='"anchors" are of offsets'):
        found_of(corners(4420), type="ssd_raw", box_format="xyxy", anchors="anchors.npy")


def test_a_box_format_alone_does_not_make_an_ssd():
    found = found_of(corners(4420), box_format="xyxy")
    assert found.kind == "raw"
    assert '"type" is "ssd_raw" as well' in found.why
