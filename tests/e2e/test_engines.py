"""Several models: one worker each, and what one of them does is no business of the others."""

import signal
import time

from harness import CLIP, config_text

SECOND = f"""
[models.other]
path = "default"
score_threshold = 0.4
[[camera]]
name = "yard"
source = "{CLIP}"
model = "other"
loop = true
fps = 10
realtime = true
"""


def by_camera(subscriber, since=0.0):
    found = {}
    for message in list(subscriber.messages):
        if message.topic.endswith("/detections") and message.at >= since:
            found.setdefault(message.json["camera"], []).append(message.json)
    return found


def config(broker, tmp_path, more):
    text = config_text(broker.port, camera="loop = true\nfps = 10\nrealtime = true")
    return text.replace("[mqtt]", more + "[mqtt]")


def test_each_model_has_a_worker_and_dies_alone(broker, subscriber, run_agent, tmp_path):
    agent = run_agent(config(broker, tmp_path, SECOND))
    subscriber.wait(lambda: set(by_camera(subscriber)) == {"door", "yard"})
    status = subscriber.wait(
        lambda: (
            (s := subscriber.last("board-1/status")) and all(e["model"] for e in s["engines"]) and s
        )
    )
    assert [(e["name"], e["cameras"]) for e in status["engines"]] == [
        ("", ["door"]),
        ("other", ["yard"]),
    ]
    telemetry = subscriber.wait(
        lambda: (
            (t := subscriber.last("/telemetry"))
            and len(t["processes"]) >= 3  # it may be of before the second worker's start
            and t
        )
    )
    pids = {name: one["pid"] for name, one in telemetry["processes"].items()}
    assert set(pids) == {"control", "worker", "worker.other"}
    assert len(set(pids.values())) == 3
    agent.worker(pids["worker.other"]).send_signal(signal.SIGSTOP)
    since = time.time()
    subscriber.wait(lambda: len(by_camera(subscriber, since + 1).get("door", ())) > 20)
    subscriber.wait(lambda: by_camera(subscriber, since + 4).get("yard"))
    subscriber.wait(lambda: not subscriber.last("board-1/status")["health"])
    door = [result["seq"] for result in by_camera(subscriber)["door"]]
    assert door == list(range(1, len(door) + 1))
    telemetry = subscriber.wait(
        lambda: (t := subscriber.last("/telemetry")) and t["worker_restarts"] == 1 and t
    )
    assert telemetry["processes"]["worker"]["pid"] == pids["worker"], "the other was left alone"


def test_a_model_that_cannot_be_loaded_stops_its_own_cameras_only(
    broker, subscriber, run_agent, tmp_path
):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"\x18\x00\x00\x00TFL3")
    run_agent(config(broker, tmp_path, SECOND.replace('path = "default"', f'path = "{broken}"')))
    subscriber.wait_results(20)
    assert set(by_camera(subscriber)) == {"door"}
    status = subscriber.wait(
        lambda: (
            (s := subscriber.last("board-1/status"))
            and [one["code"] for one in s["health"]] == ["model.other"]
            and s["model"]
            and s
        )
    )
    (problem,) = status["health"]
    assert "broken.tflite: is truncated or damaged" in problem["message"]
