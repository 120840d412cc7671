"""Settings that do nothing are said, so that nobody takes them for a model that finds nothing."""

import pytest
from looks import look

from agent.config import CameraConfig, ModelConfig, SecondStage
from agent.vision.heads.choose import recognise
from agent.vision.model import load_model
from agent.vision.notes import camera_notes, model_notes

LABELS = ("person", "cat", "dog")
ZONE = (((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)),)


def notes(config, shape=(1, 1001), labels=LABELS):
    return model_notes(config, recognise(look([shape])), labels)


def test_what_is_right_needs_no_word():
    assert (
        load_model(ModelConfig(labels={"cat": 0.4}, deny=("dog",), iou_threshold=None)).notes == ()
    )


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            ModelConfig(labels={"cta": 0.5}),
            "model.labels.cta: the model has no such label; did you",
        ),
        (
            ModelConfig(deny=("dgo",)),
            "model.deny.dgo: the model has no such label; did you mean `dog`",
        ),
        (
            ModelConfig(max_detections=5),
            "model.max_detections: has no effect on a model of this kind",
        ),
        (
            ModelConfig(then=(SecondStage(model="breeds"),)),
            "[models.breeds]: left out: a second stage looks at boxes, and the task of this model "
            "is classification",
        ),
        (
            ModelConfig(then=(SecondStage(model="breeds", labels=("cta",)),)),
            "model.then.breeds.cta: the model has no such label; did you mean `cat`?",
        ),
    ],
)
def test_what_has_no_effect(config, sentence):
    assert any(note.startswith(sentence) for note in notes(config))


@pytest.mark.parametrize(
    ("task", "config", "keys"),
    [
        ("detection", CameraConfig(zones=ZONE, min_area=0.1, confirm=(2, 3)), None),
        ("classification", CameraConfig(zones=ZONE, min_area=0.1), "zones, min_area have"),
        ("classification", CameraConfig(confirm=(2, 3)), None),
        ("segmentation", CameraConfig(masks=ZONE, confirm=(2, 3)), "masks, confirm have"),
        ("raw", CameraConfig(max_area=0.5), "max_area has"),
    ],
)
def test_filters_of_a_camera_that_judge_nothing(task, config, keys):
    said = list(camera_notes([config], task))
    assert bool(said) == (keys is not None)
    if keys:
        assert f"camera camera: {keys} no effect: " in said[0]
