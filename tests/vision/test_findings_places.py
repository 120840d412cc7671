"""What is published of boxes outside the frame, and where figures without a box stand."""

from types import SimpleNamespace

import numpy as np
import pytest

from agent.config import CameraConfig
from agent.vision.draw import caption
from agent.vision.encode import findings_of
from agent.vision.engines import TensorSpec
from agent.vision.filter import Filter
from agent.vision.heads import Boxes, Poses
from agent.vision.preprocess import plan_input, preprocess

LEFT_HALF = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))
RIGHT_HALF = ((0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 1.0))


def letterboxed():
    """The place of a 640x320 frame in a square: the upper and lower quarters are border."""
    spec = TensorSpec(
        index=0, name="i", shape=(1, 64, 64, 3), dtype=np.dtype(np.uint8), scale=0.0, zero_point=0
    )
    plan = plan_input(spec, resize="letterbox", color="rgb", mean=None, std=None)
    return preprocess(np.zeros((320, 640, 3), np.uint8), plan, plan.new_tensor())


WHERE = letterboxed()


def model(*labels):
    return SimpleNamespace(
        head=SimpleNamespace(keypoint_names=()),
        label=lambda class_id: labels[class_id] if class_id < len(labels) else None,
    )


def boxes(*rows, points=None):
    xyxy = np.array(rows, np.float32).reshape(-1, 4)
    return Boxes(
        xyxy_norm=xyxy,
        scores=np.linspace(0.9, 0.6, len(xyxy), dtype=np.float32),
        class_ids=np.arange(len(xyxy), dtype=np.intp),
        keypoints=points,
    )


def test_boxes_in_the_border_are_not_published():
    points = np.full((4, 1, 3), 0.5, np.float32)
    found = boxes(
        (0.4, 0.0, 0.6, 0.2),  # in the border above
        (0.4, 0.1, 0.6, 0.5),  # partly
        (0.4, 0.75, 0.6, 0.9),  # below, with an edge on the frame's
        (0.4, 0.6, 0.6, 0.7),
        points=points,
    )
    seen = []

    def keep(decoded, xyxy, where):
        seen.append((decoded.class_ids.tolist(), len(xyxy), len(decoded.keypoints)))
        return np.arange(len(xyxy))

    for one in (None, keep):
        detections = findings_of(found, WHERE, model(), one).detections
        assert [each.class_id for each in detections] == [1, 3]
        assert detections[0].box == (256.0, 0.0, 384.0, 160.0)
        assert all(each.keypoints for each in detections)
    assert seen == [([1, 3], 2, 2)], "the filter never sees the others"


@pytest.mark.parametrize(
    "row", [(0.5, 0.5, 0.5, 0.6), (0.5, 0.5, 0.6, 0.50001), (1.0, 0.5, 1.4, 0.6)]
)
def test_boxes_without_area_are_not_published(row):
    assert findings_of(boxes(row), WHERE, model()).detections == []


def test_figures_are_kept_where_their_box_collapses():
    found = Poses(
        keypoints=np.full((1, 2, 3), 0.5, np.float32),
        scores=np.array([0.8], np.float32),
        xyxy_norm=np.array([[0.4, 0.0, 0.6, 0.2]], np.float32),
    )
    [figure] = findings_of(found, WHERE, model("person")).keypoints
    assert figure.box == (256.0, 0.0, 384.0, 0.0)
    assert (figure.label, figure.class_id) == ("person", 0)


def figure(*points):
    """One figure of x, y, score, 0 to 1 of the input."""
    keypoints = np.array(points, np.float32)[None]
    return Poses(keypoints=keypoints, scores=np.array([0.5], np.float32))


@pytest.mark.parametrize("worst", [0.01, 0.29])
def test_points_nobody_believes_do_not_place_a_figure(worst):
    # On the left but for one point, without which it is narrow and small.
    found = figure((0.1, 0.4, 0.9), (0.2, 0.6, 0.3), (1.0, 0.6, worst))
    for config, is_kept in (
        (CameraConfig(zones=(LEFT_HALF,)), True),
        (CameraConfig(masks=(LEFT_HALF,)), False),
        (CameraConfig(max_area=0.1), True),
        (CameraConfig(zones=(RIGHT_HALF,)), False),
    ):
        kept = findings_of(found, WHERE, model(), Filter(config)).keypoints
        assert bool(kept) == is_kept, config


def test_points_without_scores_place_a_figure():
    found = figure((0.1, 0.4, np.nan), (0.9, 0.6, np.nan))
    assert not findings_of(found, WHERE, model(), Filter(CameraConfig(max_area=0.1))).keypoints


def test_a_figure_without_believed_points_passes_filters_of_place():
    found = figure((0.1, 0.4, 0.2), (0.2, 0.6, 0.1))
    config = CameraConfig(
        zones=(RIGHT_HALF,), masks=(LEFT_HALF,), min_area=0.5, max_area=0.6, confirm=(2, 2)
    )
    keep = Filter(config)
    assert [len(findings_of(found, WHERE, model(), keep).keypoints) for _ in range(3)] == [0, 1, 1]


def test_figures_are_confirmed_class_by_class():
    def of_class(class_id):
        return Poses(
            keypoints=np.full((1, 2, 3), 0.5, np.float32),
            scores=np.ones(1, np.float32),
            xyxy_norm=np.array([[0.4, 0.3, 0.6, 0.7]], np.float32),
            class_ids=np.array([class_id], np.intp),
        )

    keep = Filter(CameraConfig(confirm=(2, 2)))
    shown = [findings_of(of_class(one), WHERE, model("a", "b"), keep) for one in (0, 1, 1)]
    assert [found.class_ids() for found in shown] == [(), (), (1,)]
    [last] = shown[2].keypoints
    assert (last.label, last.class_id) == ("b", 1)
    assert caption(last) == "b 1.00"
    [unnamed] = findings_of(of_class(1), WHERE, model()).keypoints
    assert caption(unnamed) == "class 1 1.00"
