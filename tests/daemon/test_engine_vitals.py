"""Heartbeats, and what a probation makes of them."""

from agent.daemon.engine_vitals import ENOUGH_RUNS, EngineVitals
from agent.link import Beat, CameraCounts, FrameTimes


def beat(captured, processed, *, still=0, inference_ms=(), cameras=1):
    times = [FrameTimes("c", 0, 0, 0, int(ms * 1e6), 0, 0, int(ms * 1e6)) for ms in inference_ms]
    counts = CameraCounts(
        captured=captured, dropped=0, still=still, processed=processed, last_frame_id=captured
    )
    return Beat(stage_age_s={}, cameras={f"c{n}": counts for n in range(cameras)}, times=times)


def read(vitals, now):
    return vitals.read(now, acknowledged=7, is_connected=True, is_throttled=None)


def test_nothing_is_known_before_a_heartbeat():
    found = read(EngineVitals(), 0.0)
    assert (found.frames, found.p95_ms, found.is_fed) == (0, None, False)
    assert (found.acknowledged, found.is_connected, found.is_throttled) == (7, True, None)


def test_frames_go_on_over_restarts():
    vitals = EngineVitals()
    vitals.note_beat(beat(100, 90, cameras=2), 1.0)
    vitals.note_end()
    assert read(vitals, 1.0).frames == 180
    vitals.note_beat(beat(3, 2), 2.0)
    assert read(vitals, 2.0).frames == 182


def test_fed_is_what_the_model_should_have_seen():
    vitals = EngineVitals()
    vitals.note_beat(beat(10, 10), 1.0)
    assert read(vitals, 5.0).is_fed
    assert not read(vitals, 7.0).is_fed
    vitals.note_beat(beat(40, 10), 8.0)  # they come, and it does nothing with them
    assert read(vitals, 8.0).is_fed
    vitals.note_beat(beat(70, 10, still=30), 16.0)  # nothing moves
    assert not read(vitals, 16.0).is_fed
    vitals.note_beat(beat(99, 40, still=30), 17.0)
    vitals.note_end()
    assert not read(vitals, 17.0).is_fed


def test_percentiles_are_of_the_last_seconds_and_of_this_model():
    vitals = EngineVitals()
    vitals.note_beat(beat(1, 1, inference_ms=[80.0] * (ENOUGH_RUNS - 1)), 1.0)
    assert read(vitals, 1.0).p95_ms is None
    vitals.note_beat(beat(2, 2, inference_ms=[80.0]), 1.0)
    assert read(vitals, 1.0).p95_ms == 80.0
    vitals.note_beat(beat(3, 3, inference_ms=[10.0] * 99 + [50.0]), 9.0)
    assert read(vitals, 10.0).p95_ms == 80.0
    assert read(vitals, 12.0).p95_ms == 10.0
    vitals.note_swap()
    assert read(vitals, 12.0).p95_ms is None
    vitals.note_beat(beat(9, 9, inference_ms=[80.0] * 20), 12.5)  # some are of the model before
    assert read(vitals, 12.5).p95_ms is None
    vitals.note_beat(beat(12, 12, inference_ms=[8.0] * 20), 13.0)
    assert read(vitals, 13.0).p95_ms == 8.0
