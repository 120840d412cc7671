"""Figures are compared point by point, masks pixel by pixel."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.contract.payloads import Keypoint, Pose
from agent.errors import UnavailableError
from agent.evaluate import pose
from agent.evaluate.expected import read_expected
from agent.evaluate.masks import MaskTally, on_frame, read_mask, write_mask
from agent.vision.engines import TensorSpec
from agent.vision.heads import ClassMap
from agent.vision.preprocess import plan_input, preprocess

HEADING = "pose_id,pose_score,keypoint_id,keypoint_score,keypoint_x,keypoint_y\n"
CSV = HEADING + "0,1,0,0.5,0.25,0.5\n0,1,1,0.75,0.5,1.0\n"


def figure(*points, score=1.0):
    return Pose(
        label=None,
        class_id=0,
        score=score,
        box=None,
        points=[Keypoint(label=None, score=s, x=x, y=y) for x, y, s in points],
    )


def test_a_csv_is_about_the_one_picture_given(tmp_path):
    path = tmp_path / "pose.csv"
    path.write_text(CSV)
    expected = read_expected(path, tmp_path / "squat.bmp")
    assert expected.points_are_shares
    (found,) = expected.for_any["squat.bmp"].keypoints
    assert found == figure((0.25, 0.5, 0.5), (0.5, 1.0, 0.75))
    with pytest.raises(UnavailableError, match="does not say which picture"):
        read_expected(path, tmp_path)


def test_a_csv_with_a_column_for_the_picture(tmp_path):
    path = tmp_path / "pose.csv"
    path.write_text("image," + HEADING + "b.png,1,1,0,0.5,0,0\na.png,0,1,0,0.5,0,0\n")
    assert set(read_expected(path, tmp_path).for_any) == {"a.png", "b.png"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("pose_id,x\n", "has no column pose_score, keypoint_id"),
        (HEADING, "has no figure"),
        (HEADING + "0,1,0,much,0,0\n", "line 2: could not convert string to float: 'much'"),
        (HEADING + "0,1,0,0.5,0\n", "line 2: "),
        (HEADING + "0,1,0,0.5,nan,0\n", "line 2: has a number that is not finite"),
        (HEADING + "0,1,0,50,0,0\n", "line 2: scores must be from 0 to 1"),
        (HEADING + "0,1,0,0.5,320,200\n", "line 2: x and y must be shares of the picture"),
        (HEADING + "0,1,3,0.5,0,0\n", "the keypoint_ids of pose 0 are not 0 to 0"),
        (CSV + "0,1,1,0.5,0,0\n", "line 4: keypoint_id 1 was there before"),
        (HEADING + '0,1,0,"0.5', "is not CSV"),
    ],
)
def test_a_wrong_csv_is_named_with_its_line(text, sentence):
    with pytest.raises(UnavailableError) as caught:
        pose.read_points(text.encode(), "pose.csv")
    assert str(caught.value).startswith(f"pose.csv: {sentence}")


def test_distances_are_shares_of_the_picture_in_both_directions():
    found = pose.in_shares([figure((30.0, 10.0, 0.25), (100.0, 20.0, 0.75))], 200, 20)
    figures = pose.compare(figure((0.15, 0.46, 0.5), (0.5, 1.0, 0.75)), found[0])
    assert figures.points == 2
    assert figures.max_distance == pytest.approx(0.04)
    assert figures.mean_distance == pytest.approx(0.02)
    assert figures.mean_score_difference == pytest.approx(0.125)


def test_several_figures_pair_with_their_nearest():
    near, far = figure((0.1, 0.1, 1.0)), figure((0.9, 0.9, 1.0))
    pairs, missing, unexpected = pose.pair([far, near], [figure((0.12, 0.1, 1.0))])
    assert [(at, other) for at, other, _ in pairs] == [(1, 0)]
    assert (missing, unexpected) == ([0], [])
    together = pose.together([figures for _, _, figures in pairs])
    assert together.mean_distance == pytest.approx(0.02)
    assert pose.together([]) is None


def test_figures_of_other_points_cannot_be_compared():
    with pytest.raises(UnavailableError, match="have 1 points, the expected ones 2"):
        pose.compare(figure((0, 0, 1.0), (0, 0, 1.0)), figure((0, 0, 1.0)))


def test_masks_count_by_class_and_leave_out_what_is_unjudged():
    expected = np.array([[0, 0, 1, 1], [0, 2, 1, 255]], np.uint8)
    found = np.array([[0, 1, 1, 1], [0, 0, 0, 0]], np.int16)
    tally = MaskTally()
    assert tally.add(expected, found) == pytest.approx(4 / 7)
    figures = tally.figures()
    assert (figures.pixels, figures.pixel_accuracy) == (7, pytest.approx(4 / 7))
    # Class 0: 2 of 5 in the union, class 1: 2 of 4, class 2: 0 of 1.
    assert figures.mean_iou == pytest.approx((2 / 5 + 2 / 4 + 0) / 3)
    rows = {row.class_id: row for row in tally.classes(lambda number: f"c{number}")}
    assert set(rows) == {0, 1, 2}
    assert (rows[1].expected, rows[1].found, rows[1].matched) == (3, 3, 2)
    assert rows[1].mean_iou == pytest.approx(0.5)


def test_numbers_that_are_no_class_are_wrong_but_no_class_of_their_own():
    tally = MaskTally()
    assert tally.add(np.array([[1, 1]], np.uint8), np.array([[1, -1]], np.int16)) == 0.5
    assert tally.figures().mean_iou == pytest.approx(0.5)


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_a_class_map_comes_back_to_the_frame(resize):
    """A frame twice as wide as high, its left half of class 1, on a square input."""
    spec = TensorSpec(
        index=0, name="image", shape=(1, 64, 64, 3), dtype=np.dtype(np.uint8), scale=0, zero_point=0
    )
    plan = plan_input(spec, resize=resize, color="rgb", mean=None, std=None)
    frame = np.zeros((100, 200, 3), np.uint8)
    frame[:, :100] = 255
    tensor = plan.new_tensor()
    where = preprocess(frame, plan, tensor)
    cells = (tensor[0, ::2, ::2, 0] == 255).astype(np.int16)
    class_map = ClassMap(class_ids=cells, counted=np.ones(2, bool))
    found = on_frame(class_map, where, (50, 100))
    assert found.shape == (50, 100)
    assert (found[:, :48] == 1).all()
    assert (found[:, 52:] == 0).all()


def test_a_mask_is_written_and_read_back(tmp_path):
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_mask(tmp_path / "deep" / "mask.png", mask)
    assert (read_mask(tmp_path / "deep" / "mask.png") == mask).all()


def test_a_colour_picture_a_deep_one_and_a_damaged_one_are_no_masks(tmp_path):
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[0, 0] = (1, 2, 3)
    assert cv2.imwrite(str(tmp_path / "colour.png"), colour)
    assert cv2.imwrite(str(tmp_path / "deep.png"), np.zeros((4, 4), np.uint16))
    (tmp_path / "cut.png").write_bytes((tmp_path / "deep.png").read_bytes()[:40])
    (tmp_path / "text.png").write_text("text")
    for name, sentence in {
        "colour": "is a colour picture",
        "deep": "has uint16 pixels",
        "cut": "is damaged",
        "text": "is not a picture",
        "absent": "cannot be read",
    }.items():
        with pytest.raises(UnavailableError, match=rf"{name}\.png: .*{sentence}"):
            read_mask(tmp_path / f"{name}.png")


def test_grey_in_three_channels_is_a_mask(tmp_path):
    assert cv2.imwrite(str(tmp_path / "mask.png"), np.full((4, 4, 3), 7, np.uint8))
    assert (read_mask(tmp_path / "mask.png") == 7).all()


def test_masks_in_a_folder_go_by_the_pictures_names(tmp_path):
    pictures, masks = tmp_path / "pictures", tmp_path / "masks"
    for folder, names in (
        (pictures, ["a.jpg", "b.jpg", "c.jpg"]),
        (masks, ["a.png", "b_mask.png"]),
    ):
        folder.mkdir()
        for name in names:
            assert cv2.imwrite(str(folder / name), np.zeros((4, 4, 3), np.uint8))
    entries = read_expected(masks, pictures).for_any
    assert {name: Path(entry.mask).name for name, entry in entries.items()} == {
        "a.jpg": "a.png",
        "b.jpg": "b_mask.png",
    }
    with pytest.raises(UnavailableError, match="has no mask for any picture"):
        read_expected(pictures, pictures)
