"""MoveNet and YOLO pose: which outputs they are, and figures that come out where they were put."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from looks import limits, look, spec, tflite_file
from made_models import MadeInput, MadeTensor, made_model

from agent.config import ModelConfig
from agent.errors import ModelError
from agent.vision.detect import StillModel
from agent.vision.heads.choose import recognise
from agent.vision.heads.pose import COCO_POINTS
from agent.vision.model import load_model

CELLS_320 = 40 * 40 + 20 * 20 + 10 * 10
ANY_FLOAT = st.floats(width=32) | st.sampled_from([0.0, 0.5, 1.0, np.nan, np.inf, 1e38])


def figure(score=0.8, shift=0.0):
    """float32[17, 3] y, x, score: points on a slanted line."""
    steps = np.linspace(0.2, 0.7, 17)
    return np.stack([steps, steps / 2 + shift, np.full(17, score)], axis=1).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 1, 17, 3), (1, 17, 3), (17, 3)])
def test_movenet_gives_its_one_figure(shape):
    found = recognise(look([shape], image=(1, 192, 192, 3)))
    assert (found.kind, found.task, found.class_count) == ("movenet", "pose", 1)
    assert (found.resize, found.normalization) == ("letterbox", (0.0, 1.0))
    assert found.keypoint_names == COCO_POINTS
    poses = found.bind(limits(found, 0.3))([figure().reshape(shape)])
    assert poses.scores == pytest.approx([0.8])
    assert poses.xyxy_norm is None
    np.testing.assert_allclose(poses.keypoints[0], figure()[:, [1, 0, 2]])
    assert not found.bind(limits(found, 0.9))([figure().reshape(shape)]).scores.size


def test_quantized_movenet():
    stored = np.rint(figure() * 256).astype(np.uint8)[None, None]
    found = recognise(look([spec((1, 1, 17, 3), np.uint8, 1 / 256)]))
    poses = found.bind(limits(found, 0.3))([stored])
    np.testing.assert_allclose(poses.keypoints[0], figure()[:, [1, 0, 2]], atol=0.002)
    with pytest.raises(ModelError, match="a movenet head does not fit"):
        recognise(look([spec((1, 1, 17, 3), np.uint8)], type="movenet"))


def test_multipose_gives_figures_with_boxes_best_first():
    rows = np.zeros((1, 6, 56), np.float32)
    for row, score, shift in ((1, 0.6, 0.0), (4, 0.9, 0.2), (5, 0.2, 0.1)):
        rows[0, row, :51] = figure(shift=shift).reshape(-1)
        rows[0, row, 51:] = [0.1, 0.2, 0.8, 0.6, score]
    found = recognise(look([(1, 6, 56)], image=(1, 256, 256, 3)))
    poses = found.bind(limits(found, 0.3))([rows])
    assert found.kind == "movenet"
    assert poses.scores == pytest.approx([0.9, 0.6])
    np.testing.assert_allclose(poses.keypoints[0], figure(shift=0.2)[:, [1, 0, 2]])
    np.testing.assert_allclose(poses.xyxy_norm, [[0.2, 0.1, 0.6, 0.8]] * 2)
    assert found.bind(limits(found, 0.3, max_detections=1))([rows]).scores.size == 1


@given(st.data())
def test_movenet_of_any_numbers(data):
    shape = data.draw(st.sampled_from([(1, 1, 17, 3), (1, 6, 56)]))
    values = data.draw(st.lists(ANY_FLOAT, min_size=1, max_size=40))
    output = np.resize(np.array(values, np.float32), shape)
    found = recognise(look([shape]))
    sound(found.bind(limits(found, 0.3))([output]))


def sound(poses):
    assert len(poses.keypoints) == len(poses.scores)
    assert ((poses.scores >= 0) & (poses.scores <= 1)).all()
    assert (np.diff(poses.scores) <= 0).all()
    assert np.isfinite(poses.keypoints[:, :, :2]).all()
    assert poses.xyxy_norm is None or np.isfinite(poses.xyxy_norm).all()


def notes(**more):
    return tflite_file(exporter={"task": "pose", "kpt_shape": [17, 3], **more})


def candidates(unit=1.0, classes=1, points=17, dims=3):
    """Two figures apart and a worse copy of the first: [channels, CELLS_320]."""
    output = np.zeros((4 + classes + points * dims, CELLS_320), np.float32)
    for cell, centre, score in ((7, 0.3, 0.9), (8, 0.31, 0.7), (900, 0.7, 0.8)):
        output[:4, cell] = np.array([centre, 0.5, 0.2, 0.4]) * unit
        output[3 + classes, cell] = score
        line = np.zeros((points, dims), np.float32)
        line[:, 0] = (centre + np.linspace(-0.05, 0.05, points)) * unit
        line[:, 1] = np.linspace(0.4, 0.6, points) * unit
        if dims == 3:
            line[:, 2] = np.linspace(0, 1, points)
        output[4 + classes :, cell] = line.reshape(-1)
    return output[None]


@pytest.mark.parametrize("unit", [1.0, 320.0])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_yolo_pose_keeps_one_figure_of_each(unit, is_transposed):
    output = candidates(unit)
    # Over all candidates the centres span the input in any picture.
    first = output.copy()
    first[0, :2] = np.linspace(0, 0.99 * unit, CELLS_320)
    if is_transposed:
        output, first = output.swapaxes(1, 2), first.swapaxes(1, 2)
    found = recognise(look([output.shape], [first], file=notes()))
    assert (found.kind, found.task, found.resize) == ("yolo_pose", "pose", "letterbox")
    assert found.keypoint_names == COCO_POINTS
    poses = found.bind(limits(found))([output])
    assert poses.scores == pytest.approx([0.9, 0.8])
    np.testing.assert_allclose(poses.xyxy_norm[0], [0.2, 0.3, 0.4, 0.7], atol=1e-6)
    np.testing.assert_allclose(poses.keypoints[1, 0], [0.65, 0.4, 0.0], atol=1e-6)
    np.testing.assert_allclose(poses.keypoints[1, -1], [0.75, 0.6, 1.0], atol=1e-6)


def test_yolo_pose_of_other_figures():
    file = notes(kpt_shape=[4, 2])
    output = candidates(classes=2, points=4, dims=2)
    found = recognise(look([output.shape], file=file))
    assert (found.class_count, found.keypoint_names) == (2, ())
    poses = found.bind(limits(found))([output])
    assert poses.keypoints.shape == (2, 4, 3)
    assert np.isnan(poses.keypoints[:, :, 2]).all()
    assert poses.class_ids.tolist() == [1, 1]
    assert found.labels == ()
    # The second class alone has scores: left out, there is nothing.
    thresholds = np.array([0.5, 2.0], np.float32)
    assert not found.bind(limits(found, thresholds=thresholds))([output]).scores.size


def test_an_input_that_is_no_multiple_of_32():
    """A convolution of stride 2 rounds up: 300x300 has 38, 19 and 10 cells per side."""
    output = np.zeros((1, 56, 38 * 38 + 19 * 19 + 10 * 10), np.float32)
    assert output.shape[2] == 1905
    found = recognise(look([output.shape], image=(1, 300, 300, 3), file=notes()))
    assert (found.kind, found.labels) == ("yolo_pose", ("person",))


@pytest.mark.parametrize(
    ("shape", "image"),
    [((1, 1, 17, 3), (1, 192, 192, 3)), ((1, 6, 56), (1, 256, 256, 3))],
)
def test_movenets_figures_are_persons(shape, image):
    assert recognise(look([shape], image=image)).labels == ("person",)


def test_quantized_yolo_pose():
    stored = np.clip(np.rint(candidates() * 256) - 128, -128, 127).astype(np.int8)
    found = recognise(look([spec(stored.shape, np.int8, 1 / 256, -128)], [stored], file=notes()))
    poses = found.bind(limits(found))([stored])
    assert poses.scores == pytest.approx([0.9, 0.8], abs=0.005)
    np.testing.assert_allclose(poses.keypoints[0, 8], [0.3, 0.5, 0.5], atol=0.005)


def test_56_channels_without_notes_are_refused_until_the_manifest_says_which():
    output = candidates()
    with pytest.raises(ModelError, match=r'"yolov8" or .*"yolo_pose"|"yolo_pose" or .*"yolov8"'):
        recognise(look([output.shape]))
    assert recognise(look([output.shape], type="yolo_pose")).kind == "yolo_pose"
    assert recognise(look([output.shape], type="yolov8")).class_count == 52


def test_exported_file_gives_figures_in_pixels_of_the_frame(tmp_path):
    path = tmp_path / "yolo-pose.tflite"
    output = candidates()
    output[0, :2, 2000:] = 0.99  # candidates without scores still lie somewhere
    names = '{"task": "pose", "kpt_shape": [17, 3], "names": {"0": "person"}}'
    path.write_bytes(
        made_model(
            [MadeTensor(output)],
            inputs=[MadeInput(shape=(1, 320, 320, 3), dtype="float32")],
            zip_files={"metadata.json": names},
        )
    )
    model = load_model(ModelConfig(path=str(path)))
    assert (model.head.kind, model.labels) == ("yolo_pose", ("person",))
    findings, _ = StillModel(model).find(np.zeros((100, 200, 3), np.uint8))
    first, second = findings.keypoints
    assert (first.label, first.class_id) == ("person", 0)
    # Letterboxed, the frame is the middle half of the square in height.
    assert first.box == pytest.approx((40.0, 10.0, 80.0, 90.0), abs=0.1)
    nose, ankle = second.points[0], second.points[-1]
    assert (nose.label, nose.x, nose.y, nose.score) == ("nose", 130.0, 30.0, 0.0)
    assert (ankle.label, ankle.x, ankle.y, ankle.score) == ("right_ankle", 150.0, 70.0, 1.0)


@given(st.lists(ANY_FLOAT, min_size=1, max_size=60), st.integers(0, 2))
def test_yolo_pose_of_any_numbers(values, channel):
    output = candidates()
    output[0, channel:, : len(values)] = values
    found = recognise(look([output.shape], file=notes()))
    sound(found.bind(limits(found))([output]))
