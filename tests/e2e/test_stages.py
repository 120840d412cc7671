"""Second stages, recurrent models, filters and the motion gate, as a subscriber sees them."""

import time

import numpy as np
from harness import CLIP, config_text
from made_models import MadeInput, MadeTensor, made_model


def test_a_classifier_looks_at_each_cat(broker, subscriber, run_agent, tmp_path):
    image = MadeInput(shape=(1, 32, 32, 3))
    scores = MadeTensor(np.array([[26, 205, 25]], np.uint8), scale=1 / 256)
    (tmp_path / "breeds.tflite").write_bytes(made_model([scores], inputs=[image]))
    (tmp_path / "breeds.txt").write_text("tabby\nmanx\nsphynx\n")
    more = f"""
[[model.then]]
model = "breeds"
labels = ["cat"]
[models.breeds]
path = "{tmp_path}/breeds.tflite"
labels_file = "{tmp_path}/breeds.txt"
"""
    text = config_text(broker.port, camera="loop = true")
    run_agent(text.replace("[[camera]]", more + "[[camera]]", 1))
    results = subscriber.wait_results(30)
    boxes = [box for result in results for box in result["detections"]]
    cats = [box for box in boxes if box["label"] == "cat"]
    assert cats
    assert {box["classes"][0]["label"] for box in cats} == {"manx"}
    assert {box["classified_by"] for box in cats} == {"breeds"}
    assert not [box for box in boxes if box["label"] != "cat" and "classes" in box]
    for result in results:
        (run,) = result["cascade"]
        seen = sum(box["label"] == "cat" for box in result["detections"])
        assert (run["name"], run["crops"], run["skipped"]) == ("breeds", seen, 0)
        assert run["model"]["name"] == "breeds"
        assert set(result["stage_ms"]) >= {"cascade"}
        assert abs(sum(result["stage_ms"].values()) - result["latency_ms"]) < 0.01
    subscriber.wait(
        lambda: (
            (t := subscriber.last("/telemetry"))
            and t["engines"][0]["inferences"] > 1.1 * t["cameras"]["door"]["processed"] > 0
        )
    )


def test_a_second_stage_that_is_missing_is_left_out(broker, subscriber, run_agent, tmp_path):
    more = f"""
[[model.then]]
model = "breeds"
[models.breeds]
path = "{tmp_path}/none.tflite"
"""
    text = config_text(broker.port, camera="loop = true")
    run_agent(text.replace("[[camera]]", more + "[[camera]]", 1))
    assert subscriber.wait_results(5)[0]["detections"] is not None
    (problem,) = subscriber.wait(
        lambda: (
            (s := subscriber.last("board-1/status"))
            and [one["code"] for one in s["health"]] == ["config"]
            and s["health"]
        )
    )
    assert problem["message"].startswith("[models.breeds]: left out: ")
    assert "none.tflite" in problem["message"]


def test_each_camera_has_its_own_state(broker, subscriber, run_agent, tmp_path):
    """The model adds 1 to its state at each run, and its state is published: frames are counted."""
    model = made_model(
        [
            MadeTensor(np.ones((1, 2), np.float32), name="state_out", plus="state_in"),
            MadeTensor(np.ones((1, 2), np.float32), name="count", plus="state_in"),
        ],
        inputs=[
            MadeInput(shape=(1, 32, 32, 3)),
            MadeInput(shape=(1, 2), dtype="float32", name="state_in"),
        ],
    )
    folder = tmp_path / "counter"
    folder.mkdir()
    (folder / "model.tflite").write_bytes(model)
    (folder / "manifest.json").write_text(
        '{"name": "counter", "head": {"type": "raw", "state": {"state_in": "state_out"}}}'
    )
    more = f'[[camera]]\nname = "yard"\nsource = "{CLIP}"\n'
    text = config_text(broker.port, model=f'path = "{folder}"')
    run_agent(text.replace("[mqtt]", more + "[mqtt]"))

    def of_camera(name):
        return [result for result in subscriber.results() if result["camera"] == name]

    # The one that is opened first may be far ahead of the other.
    subscriber.wait(lambda: min(len(of_camera("door")), len(of_camera("yard"))) > 10)
    for camera in ("door", "yard"):
        mine = of_camera(camera)
        for number, result in enumerate(mine, 1):
            (count,) = result["tensors"]
            assert (count["name"], count["values"]) == ("count", [number, number])
            assert result["frame_id"] == number


def test_still_scenes_are_not_looked_at(broker, subscriber, run_agent):
    camera = "motion = 0.02\nmotion_look_s = 2.0"
    run_agent(config_text(broker.port, camera=camera))
    status = subscriber.wait(
        lambda: (s := subscriber.last("camera/door/status")) and s["state"] == "offline" and s
    )
    ended_at = time.time()
    assert "end" in status["reason"]

    def is_told(telemetry):
        """Return whether it is of after the end, with every frame accounted for and here."""
        camera = telemetry["cameras"]["door"]
        return (
            telemetry["at"] > ended_at
            and camera["captured"] == camera["processed"] + camera["still"] > 0
            and camera["processed"] == len(subscriber.results())
        )

    telemetry = subscriber.wait(lambda: (t := subscriber.last("/telemetry")) and is_told(t) and t)
    results = subscriber.results()
    previous = 0
    for result in results:
        assert result["frame_id"] == previous + result["dropped"] + result["still"] + 1
        previous = result["frame_id"]
    assert telemetry["cameras"]["door"]["processed"] == len(results)
    assert telemetry["cameras"]["door"]["still"] > 20


def test_only_the_zone_counts(broker, subscriber, run_agent):
    """The clip's person stands left and its cat right."""
    zone = "zones = [[[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]]]\nloop = true"
    run_agent(config_text(broker.port, camera=zone))
    results = subscriber.wait_results(40)
    boxes = [box for result in results for box in result["detections"]]
    assert boxes
    assert all((box["box"][0] + box["box"][2]) / 2 <= 640 for box in boxes)
