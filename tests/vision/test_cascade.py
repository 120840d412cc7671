"""Second stages: which boxes they see, in which order, at what cost, and what is left out."""

import numpy as np
import pytest
from fakes import FakeEngine, fake_model
from hypothesis import given
from hypothesis import strategies as st

from agent.config import SecondStage
from agent.contract.payloads import Detection
from agent.errors import ModelError
from agent.vision.cascade import SMALLEST_CROP_PX, Cascade, Stage, crop_of
from agent.vision.heads import Scores


class Clock:
    """Each crop costs as much as it is told."""

    def __init__(self, crop_s):
        self.now = 0.0
        self.crop_s = crop_s

    def __call__(self):
        return self.now


def mean_class(outputs):
    """The class is the first byte of the crop's blue channel."""
    return Scores(
        scores=np.array([0.75], np.float32), class_ids=np.array([int(outputs[0][2])], np.intp)
    )


def stage(clock=None, **config):
    engine = FakeEngine()
    model = fake_model(engine, mean_class, task="classification")
    if clock is not None:
        invoke = engine.invoke

        def invoke_and_pass():
            invoke()
            clock.now += clock.crop_s

        engine.invoke = invoke_and_pass
    return Stage(SecondStage(**{"model": "breeds", "margin": 0.0, **config}), model)


def detection(label, x, score=0.9, size=20):
    return Detection(label=label, class_id=0, score=score, box=(x, 10.0, x + size, 30.0))


def picture():
    """Columns of 100 px whose blue channel counts up."""
    pixels = np.zeros((60, 1000, 3), np.uint8)
    pixels[:, :, 0] = np.arange(1000) // 100
    return pixels


def look(cascade, detections):
    ticks = []
    found, runs = cascade.look(picture(), detections, lambda: ticks.append(1))
    assert len(ticks) == sum(run.crops for run in runs)
    return found, runs


def test_each_box_is_seen_by_itself():
    found, (run,) = look(
        Cascade([stage(labels=("cat",))]),
        [detection("cat", 310.0), detection("dog", 510.0), detection("cat", 710.0)],
    )
    assert [one.classes[0].class_id if one.classes else None for one in found] == [3, None, 7]
    assert [one.classified_by or None for one in found] == ["breeds", None, "breeds"]
    assert (run.name, run.crops, run.skipped) == ("breeds", 2, 0)
    assert run.model.name == "fake"


def test_the_first_stage_that_wants_a_box_has_it():
    stages = [stage(labels=("cat",)), stage(model="any")]
    found, runs = look(Cascade(stages), [detection("cat", 10.0), detection("dog", 110.0)])
    assert [one.classified_by for one in found] == ["breeds", "any"]
    assert [run.crops for run in runs] == [1, 1]


def test_no_more_crops_than_allowed_best_first():
    boxes = [detection("cat", 100.0 * at + 10, score=0.9 - at / 10) for at in range(5)]
    found, (run,) = look(Cascade([stage(max_crops=2)]), boxes)
    assert [bool(one.classes) for one in found] == [True, True, False, False, False]
    assert (run.crops, run.skipped) == (2, 3)


@pytest.mark.parametrize(("crop_ms", "crops"), [(10, 4), (30, 3), (60, 1), (500, 1)])
def test_no_crop_is_begun_that_would_exceed_the_budget(crop_ms, crops):
    clock = Clock(crop_ms / 1e3)
    cascade = Cascade([stage(clock, budget_ms=100.0, max_crops=4)], clock=clock)
    boxes = [detection("cat", 100.0 * at + 10) for at in range(5)]
    _, (run,) = look(cascade, boxes)
    assert (run.crops, run.skipped) == (crops, 5 - crops)


def test_a_box_too_thin_to_see_does_not_hide_the_others():
    boxes = [detection("cat", 10.0, size=SMALLEST_CROP_PX - 2), detection("cat", 210.0)]
    found, (run,) = look(Cascade([stage()]), boxes)
    assert [bool(one.classes) for one in found] == [False, True]
    assert (run.crops, run.skipped) == (1, 1)


def test_only_classifiers_can_follow():
    with pytest.raises(ModelError, match=r"\[models.breeds\] is a detection model"):
        Stage(SecondStage(model="breeds"), fake_model(FakeEngine()))


coordinate = st.floats(-50, 200)


@given(coordinate, coordinate, coordinate, coordinate, st.floats(0, 1))
def test_a_crop_lies_in_the_frame(x, y, width, height, margin):
    pixels = np.zeros((60, 100, 3), np.uint8)
    crop = crop_of(pixels, (x, y, x + abs(width), y + abs(height)), margin)
    if crop is not None:
        assert SMALLEST_CROP_PX <= crop.shape[0] <= 60
        assert SMALLEST_CROP_PX <= crop.shape[1] <= 100
        assert crop.base is not None, "no pixel is copied"


def test_a_margin_widens_each_side():
    pixels = np.zeros((100, 100, 3), np.uint8)
    crop = crop_of(pixels, (40.0, 40.0, 60.0, 50.0), 0.5)
    assert crop.shape[:2] == (20, 40)
