"""A clip through the real daemon and a real broker, as a subscriber sees it."""

import json
import signal
import time
from itertools import pairwise

import cv2
import jsonschema
import pytest
from harness import CLIP, DEVICE, Subscriber, config_text
from msgspec.json import schema

from agent.contract.payloads import CameraStatus, Counts, Gap, Result, Status
from agent.contract.telemetry import Telemetry
from agent.contract.updates import Reported


def frames_of(path):
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    count = 0
    while capture.grab():
        count += 1
    return count


def test_every_frame_gives_one_result(broker, subscriber, run_agent):
    run_agent(config_text(broker.port))
    count = frames_of(CLIP)
    results = subscriber.wait_results(count)
    ended = subscriber.wait(
        lambda: (
            (status := subscriber.last("camera/door/status"))
            and status["state"] == "offline"
            and status
        )
    )
    assert "end" in ended["reason"]
    assert ended["fps"] is None
    assert subscriber.last(f"{DEVICE}/status")["health"] == [], "the end of a file is no fault"
    assert [r["frame_id"] for r in results] == list(range(1, count + 1))
    assert [r["seq"] for r in results] == list(range(1, count + 1))
    assert {r["dropped"] for r in results} == {0}
    labels = {d["label"] for r in results for d in r["detections"] if d["score"] >= 0.5}
    assert {"person", "cat", "cup"} <= labels
    assert len({r["boot_id"] for r in results}) == 1
    first = results[0]
    assert first["frame"] == {"width": 1280, "height": 720}
    assert first["accelerator"] == "cpu:xnnpack"
    manifest = json.loads((CLIP.parents[2] / "models/default/manifest.json").read_text())
    assert first["model"]["sha256"] == manifest["files"]["model.tflite"]["sha256"]
    for result in results:
        assert result["stage_ms"]["inference"] > 0
        assert sum(result["stage_ms"].values()) == pytest.approx(result["latency_ms"], abs=0.01)
        for detection in result["detections"]:
            x0, y0, x1, y1 = detection["box"]
            assert 0 <= x0 < x1 <= 1280
            assert 0 <= y0 < y1 <= 720


def test_all_payloads_are_valid_by_the_printed_schemas(broker, subscriber, run_agent):
    agent = run_agent(config_text(broker.port, camera="loop = true"))
    subscriber.wait(lambda: len(subscriber.results()) > 20 and subscriber.last("/telemetry"))
    types = {
        "detections": Result,
        "telemetry": Telemetry,
        "camera/door/status": CameraStatus,
        "/counts": Counts,
        f"{DEVICE}/status": Status,
        "gap": Gap,
        "model/reported": Reported,
    }
    validators = {
        ending: jsonschema.Draft202012Validator(schema(kind)) for ending, kind in types.items()
    }
    seen = set()
    for message in subscriber.messages:
        if message.topic.endswith("/availability"):
            assert message.payload in (b"online", b"offline")
            continue
        ending = next(ending for ending in validators if message.topic.endswith(ending))
        validators[ending].validate(message.json)
        seen.add(ending)
    assert seen >= {"detections", "telemetry", "camera/door/status", f"{DEVICE}/status"}
    assert agent.process.poll() is None


def test_retained_state_waits_for_late_subscribers(broker, subscriber, run_agent):
    run_agent(config_text(broker.port, camera="loop = true"))
    subscriber.wait_results(1)
    subscriber.wait(
        lambda: (s := subscriber.last(f"{DEVICE}/status")) and s["model"] and not s["health"]
    )
    subscriber.wait(lambda: (s := subscriber.last("camera/door/status")) and s["state"] == "online")
    # What comes only after the late one is there is not marked as retained.
    for ending in ("camera/door/counts", "model/reported"):
        subscriber.wait(lambda ending=ending: subscriber.last(ending))
    late = Subscriber(broker.port)
    try:
        late.wait(lambda: len([m for m in late.messages if m.retained]) >= 5)
        retained = {m.topic.removeprefix(f"edge/{DEVICE}/"): m for m in late.messages if m.retained}
    finally:
        late.close()
    assert set(retained) == {
        "availability",
        "status",
        "camera/door/status",
        "camera/door/counts",
        "model/reported",
    }
    assert retained["availability"].payload == b"online"
    assert retained["status"].json["model"]["name"] == "default"
    assert retained["status"].json["health"] == []
    assert retained["camera/door/status"].json["state"] == "online"


def test_clean_stop_says_offline_and_leaves_nothing_behind(broker, subscriber, run_agent):
    agent = run_agent(config_text(broker.port, camera="loop = true"))
    subscriber.wait_results(5)
    worker = agent.worker()
    started = time.monotonic()
    assert agent.stop() == 0
    assert time.monotonic() - started < 10
    subscriber.wait(lambda: subscriber.messages[-1].payload == b"offline")
    assert not worker.is_running() or worker.status() == "zombie"
    seqs = [r["seq"] for r in subscriber.results()]
    assert seqs == list(range(1, len(seqs) + 1))


def test_last_will_speaks_when_the_daemon_cannot(broker, subscriber, run_agent):
    agent = run_agent(config_text(broker.port, camera="loop = true"))
    subscriber.wait_results(5)
    worker = agent.worker()
    agent.process.send_signal(signal.SIGKILL)
    subscriber.wait(lambda: subscriber.messages[-1].payload == b"offline")
    worker.wait(timeout=30)  # it does not outlive its parent


def test_only_changes_are_published_where_that_is_wanted(broker, subscriber, run_agent):
    run_agent(config_text(broker.port, camera='publish = "changes"'))
    count = frames_of(CLIP)
    subscriber.wait(
        lambda: (t := subscriber.last("/telemetry")) and t["cameras"]["door"]["processed"] == count
    )
    results = subscriber.results()
    assert [r["seq"] for r in results] == list(range(1, len(results) + 1))
    assert 0 < len(results) < count
    found = [sorted(d["class_id"] for d in r["detections"]) for r in results]
    assert all(a != b for a, b in pairwise(found))


def test_real_time_clip_keeps_its_rate(broker, subscriber, run_agent):
    run_agent(config_text(broker.port, camera="loop = true\nrealtime = true\nfps = 10"))
    results = subscriber.wait_results(51)
    span = results[50]["captured_at"] - results[0]["captured_at"]
    frames = results[50]["frame_id"] - results[0]["frame_id"]
    assert frames / span == pytest.approx(10, rel=0.15)
    for before, after in pairwise(results):
        assert after["frame_id"] - before["frame_id"] == after["dropped"] + 1
