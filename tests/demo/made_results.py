"""Results made up for tests of the demo's figures and texts."""

from __future__ import annotations

from agent.contract.payloads import Detection, FrameSize, ModelIdentity, Result, StageTimes
from agent.demo.figures import Figures


def detection(label, score):
    return Detection(label=label, class_id=3, score=score, box=(0.0, 0.0, 1.0, 1.0))


def result(seq, *, captured_at=None, dropped=0, frame_id=None, detections=()):
    return Result(
        device="demo",
        camera="demo",
        boot_id="b",
        seq=seq,
        frame_id=frame_id or seq,
        captured_at=seq / 30 if captured_at is None else captured_at,
        clock_synced=True,
        latency_ms=5.0,
        dropped=dropped,
        frame=FrameSize(width=1280, height=720),
        model=ModelIdentity(name="default", version="1.0.0", sha256="0" * 64),
        accelerator="cpu:xnnpack",
        stage_ms=StageTimes(queue=0.1, preprocess=0.5, inference=float(seq), postprocess=0.2),
        detections=list(detections),
    )


def fed(*results):
    figures = Figures()
    for item in results:
        figures.add(item, at=item.seq / 30, latency_ms=float(item.seq))
    return figures
