"""What a telemetry message and a snapshot for Prometheus say of time that passes for both."""

from __future__ import annotations

import json

import pytest

from agent.config_file import load_config
from agent.daemon import telemetry_report
from agent.daemon.build import build_daemon
from agent.link import Beat, CameraCounts, FrameTimes

MS = 10**6


class Clock:
    """The module's `time`."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def time(self):
        return 1.8e9 + self.now


class Rig:
    """A daemon whose threads do not run, fed as by a worker."""

    def __init__(self, folder, clock):
        path = folder / "agent.toml"
        path.write_text(
            f'[device]\nid = "d"\nstate_dir = "{folder}"\n[[camera]]\nname = "door"\n', "utf-8"
        )
        self.clock = clock
        self.daemon = build_daemon(load_config(path)[0])
        self.report = self.daemon.telemetry
        self.processed = 0

    def live(self, frames, seconds, second=0):
        """Let so many frames be processed, and look once a second."""
        for _ in range(seconds):
            self.processed += frames
            counts = CameraCounts(
                captured=self.processed, dropped=0, still=0, processed=self.processed,
                last_frame_id=self.processed, second=second,
            )  # fmt: skip
            times = [FrameTimes("door", *[MS] * 5, 0, 5 * MS)] * frames
            self.daemon.report.note_beat(
                Beat(stage_age_s={}, cameras={"door": counts}, times=times)
            )
            self.clock.now += 1.0
            self.report.look()

    def publish(self):
        """Return the message."""
        self.report.publish()
        (record,) = [one for _, one in self.daemon.outbox.take(1)]
        return json.loads(record.payload)


@pytest.fixture
def rig(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(telemetry_report, "time", clock)
    rig = Rig(tmp_path, clock)
    yield rig
    rig.daemon.mqtt.stop(0.1)  # closes the doorbell
    rig.daemon.outbox.close(2.0)


@pytest.mark.parametrize("is_served", [False, True])
def test_the_first_message_is_of_its_whole_interval(rig, is_served):
    if is_served:
        rig.report.serve(lambda: None)
    rig.live(frames=10, seconds=6)
    camera = rig.publish()["cameras"]["door"]
    assert camera["fps_out"] == 10.0
    assert camera["latency_ms"]["total"]["count"] == 60
    rig.live(frames=5, seconds=4)
    camera = rig.publish()["cameras"]["door"]
    assert (camera["fps_out"], camera["latency_ms"]["total"]["count"]) == (5.0, 20)
    assert camera["latency_since_start_ms"]["total"]["count"] == 80


def test_rates_are_of_the_interval_whoever_looks_in_between(rig, monkeypatch):
    seen = []
    system = rig.daemon.instruments.vitals.system
    read = system.read
    monkeypatch.setattr(system, "read", lambda now: (seen.append(now), read(now))[1])
    rig.report.serve(lambda: None)
    rig.live(frames=1, seconds=12)
    assert rig.publish()["processes"]["control"]["cpu_percent"] is not None
    rig.live(frames=1, seconds=12)
    rig.publish()
    assert seen == [1001.0, 1012.0, 1024.0], "at the first look, then with each message alone"


def test_a_snapshot_is_of_now_before_and_after_the_first_message(rig):
    rig.report.serve(lambda: None)
    for _ in range(2):
        rig.live(frames=10, seconds=3)
        telemetry = rig.report.metrics.telemetry
        assert telemetry.cameras["door"].processed == rig.processed
        assert telemetry.clock_synced == rig.report.metrics.status.clock_synced
        rig.publish()


def test_runs_on_boxes_are_inferences_too(rig):
    rig.live(frames=10, seconds=1, second=7)
    assert rig.publish()["engines"][0]["inferences"] == 17
    rig.daemon.report.lose_worker(("door",))
    rig.processed = 0
    rig.live(frames=10, seconds=1, second=2)
    told = rig.publish()
    assert told["engines"][0]["inferences"] == 29, "over all workers"
    assert told["cameras"]["door"]["processed"] == 20
