"""One camera's part of the telemetry."""

from __future__ import annotations

from agent.config import CameraConfig
from agent.daemon.camera_facts import CameraFacts, camera_telemetry
from agent.link import CameraCounts, FrameTimes
from agent.telemetry.latency import LatencyBook

MS = 10**6


def test_counts_rates_and_times_of_an_interval():
    facts = CameraFacts(config=CameraConfig(name="door"), topic="t", stream="s", state="online")
    book = LatencyBook({"door": 30.0})
    book.note_frames(
        FrameTimes("door", MS, MS, MS, MS, MS, 0, total * MS) for total in (20, 30, 40)
    )
    facts.now = CameraCounts(captured=10, dropped=5, still=2, processed=3, last_frame_id=10)
    first = camera_telemetry(facts, 2.0, book)
    assert (first.fps_in, first.fps_out, facts.fps) == (5.0, 1.5, 1.5)
    assert (first.deadline_ms, first.deadline_misses) == (30.0, 1)
    assert first.latency_ms == first.latency_since_start_ms
    assert first.latency_ms["total"].max == 40.0
    second = camera_telemetry(facts, 2.0, book)
    assert second.latency_ms["total"].count == 0
    assert second.latency_since_start_ms == first.latency_since_start_ms
    assert (second.fps_in, second.deadline_misses) == (0.0, 1)


def test_without_a_deadline_none_is_missed():
    facts = CameraFacts(config=CameraConfig(name="door"), topic="t", stream="s")
    shown = camera_telemetry(facts, 2.0, LatencyBook({"door": 0.0}))
    assert (shown.deadline_ms, shown.deadline_misses) == (None, None)
