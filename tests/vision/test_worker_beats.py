"""A real worker on a clip: its heartbeats tell of every frame, to the last before its end."""

import json

import pytest

from agent.bench.session import demo_clip
from agent.config import CameraConfig, ModelConfig
from agent.daemon.workers.worker_run import spawn_worker
from agent.link import (
    Beat,
    FromWorker,
    Inbox,
    ResultOut,
    Start,
    Stop,
    open_link,
    send,
)

WITHIN_S = 60.0
FRAMES = 30


@pytest.fixture(scope="module")
def heard():
    """All that a worker says until it has ended, asked to stop amid the frames."""
    ours, theirs = open_link()
    process = spawn_worker(theirs)
    theirs.close()
    ours.settimeout(WITHIN_S)
    camera = CameraConfig(name="door", source=demo_clip())
    model = ModelConfig(accelerator="cpu", threads=1)
    start = Start(device="d", boot_id="b", model=model, cameras=(camera,), resume={})
    messages = []
    try:
        send(ours, start)
        inbox = Inbox(ours, FromWorker)
        while (message := inbox.receive()) is not None:
            messages.append(message)
            if isinstance(message, ResultOut) and message.seq == FRAMES:
                send(ours, Stop())
        assert process.wait(WITHIN_S) == 0
    finally:
        process.kill()
        process.wait()
        ours.close()
    return messages


def of_kind(messages, kind):
    return [message for message in messages if isinstance(message, kind)]


def test_every_frame_is_told_of(heard):
    beats, results = of_kind(heard, Beat), of_kind(heard, ResultOut)
    times = [one for beat in beats for one in beat.times]
    assert len(times) == beats[-1].cameras["door"].processed == len(results) >= FRAMES
    assert sum(beat.times_lost for beat in beats) == 0


def test_stamps_and_times_are_those_of_the_results(heard):
    times = [one for beat in of_kind(heard, Beat) for one in beat.times]
    for one, result in zip(times, of_kind(heard, ResultOut), strict=True):
        payload = json.loads(result.payload)
        assert one.total == result.encoded_ns - result.captured_ns
        assert round(one.total / 1e6, 3) == payload["latency_ms"]
        stages = payload["stage_ms"]
        assert stages == {name: round(getattr(one, name) / 1e6, 3) for name in stages}
        parts = (one.queue, one.preprocess, one.inference, one.postprocess, one.cascade)
        assert sum(parts) == one.total
        assert 0 <= one.age <= one.queue


def test_found_is_what_the_results_show(heard):
    found = {}
    for beat in of_kind(heard, Beat):
        counts = beat.cameras["door"].found if "door" in beat.cameras else None
        for name, count in (counts or {}).items():  # None: no frame since the one before
            found[name] = max(count, found.get(name, 0))
    shown = {}
    for result in of_kind(heard, ResultOut):
        labels = [one["label"] for one in json.loads(result.payload)["detections"]]
        for label in labels:
            shown[label] = max(labels.count(label), shown.get(label, 0))
    assert found == shown != {}
