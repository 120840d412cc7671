"""`edge-agent bench recording`: what latency figures cost per frame, in both processes.

The same calls as in the daemon, over and over, less an empty loop's time: in the worker the
record of a frame is made and put aside (`HOT`, the only work on a frame's way), and the heartbeat
takes it away and encodes it; the control process decodes it and counts it. Processor time of the
thread, medians over batches; caches are warm, and nobody else wants the interpreter's lock here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from agent.bench.bench import write_json
from agent.bench.heads import percentile_99
from agent.errors import EXIT_FAILURE, EXIT_OK, AgentError
from agent.link import Beat, FromWorker
from agent.telemetry.latency import LatencyBook
from agent.vision.encode import Findings, Timing
from agent.vision.frame_log import FrameLog, counted_ids, times_of
from agent.vision.handoff import Frame

CAMERA = "front-door"
LIMIT_US = 5.0  # of what is promised for a frame in the worker
BATCH = 500
FEWEST_BATCHES = 20
HOT = "worker, on each frame's way"
CLASS_IDS = (0, 0, 0, 1, 2)
MS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Microseconds of processor time per call, an empty loop's taken off."""

    what: str
    median_us: float
    p99_us: float  # of batches


def run_recording(*, seconds: float, json_file: Path | None) -> int:
    """Measure, print a table, and write the figures; 1 where the worker takes too long."""
    if not 0 < seconds <= 600:
        raise AgentError(f"--seconds {seconds:g}: must be above 0, up to 600")
    costs = measure(seconds)
    width = max(len(cost.what) for cost in costs)
    print(f"{'µs':<{width}}  median     p99")
    for cost in costs:
        print(f"{cost.what:<{width}}  {cost.median_us:6.2f}  {cost.p99_us:6.2f}")
    if json_file is not None:
        rows = [msgspec.to_builtins(cost) for cost in costs]
        write_json(json_file, {"seconds": seconds, "limit_us": LIMIT_US, "costs": rows})
    hot = next(cost.median_us for cost in costs if cost.what == HOT)
    return EXIT_OK if hot <= LIMIT_US else EXIT_FAILURE


def measure(seconds: float) -> list[Cost]:
    """Return what each part costs, the parts measured for as long together."""
    parts = {
        HOT: _worker(),
        "worker's heartbeat, per frame": _heartbeat(),
        "control process, per frame": _control(),
        "control process, per result": _delivery(),
    }
    share_s = seconds / (len(parts) + 1)
    empty_us, _ = _batches(_nothing, share_s)
    costs = []
    for what, batch in parts.items():
        median_us, p99_us = _batches(batch, share_s)
        costs.append(Cost(what=what, median_us=median_us - empty_us, p99_us=p99_us - empty_us))
    return costs


def _batches(batch: Callable[[], int], seconds: float) -> tuple[float, float]:
    """Return the median and 99th percentile of batches, in microseconds for each of `BATCH`."""
    batch()
    times_us: list[float] = []
    until = time.perf_counter() + seconds
    while len(times_us) < FEWEST_BATCHES or time.perf_counter() < until:
        times_us.append(batch() / BATCH / 1e3)
    return statistics.median(times_us), percentile_99(times_us)


def _nothing() -> int:
    """Return how long an empty loop takes, nanoseconds."""
    started = time.thread_time_ns()
    for _ in range(BATCH):
        pass
    return time.thread_time_ns() - started


def _worker() -> Callable[[], int]:
    log, frame, timing, done_ns = FrameLog(str), *_one_frame()
    findings, class_ids = Findings(detections=[]), CLASS_IDS

    def batch() -> int:
        started = time.thread_time_ns()
        for _ in range(BATCH):
            log.note(times_of(frame, timing, done_ns), counted_ids(findings, class_ids))
        elapsed = time.thread_time_ns() - started
        log.take(BATCH)
        return elapsed

    return batch


def _heartbeat() -> Callable[[], int]:
    """No two frames with the same boxes."""
    log, frame, timing, done_ns = FrameLog(str), *_one_frame()
    encode = msgspec.msgpack.Encoder().encode

    def batch() -> int:
        for at in range(BATCH):
            log.note(times_of(frame, timing, done_ns), (*CLASS_IDS, at))
        started = time.thread_time_ns()
        news = log.take(BATCH)
        encode(Beat(stage_age_s={}, cameras={}, times=news.times, times_lost=news.lost))
        return time.thread_time_ns() - started

    return batch


def _control() -> Callable[[], int]:
    """Times spread as a frame's are, so that the bins it falls into are not always the same."""
    frame, timing, _ = _one_frame()
    spread = np.random.default_rng(1).lognormal(np.log(20 * MS), 0.3, BATCH)
    times = [times_of(frame, timing, timing.invoked_ns + int(ns)) for ns in spread]
    message = msgspec.msgpack.encode(Beat(stage_age_s={}, cameras={}, times=times))
    decode = msgspec.msgpack.Decoder(FromWorker).decode
    book = LatencyBook({CAMERA: 33.0})

    def batch() -> int:
        started = time.thread_time_ns()
        beat: Beat = decode(message)
        book.note_frames(beat.times)
        return time.thread_time_ns() - started

    return batch


def _delivery() -> Callable[[], int]:
    book = LatencyBook({CAMERA: 33.0})
    spread = np.random.default_rng(2).lognormal(np.log(3 * MS), 0.5, BATCH).astype(int).tolist()

    def batch() -> int:
        started = time.thread_time_ns()
        for ns in spread:
            book.note_delivered(CAMERA, MS, 20 * MS, 21 * MS, 21 * MS + ns)
        book.catch_up()
        return time.thread_time_ns() - started

    return batch


def _one_frame() -> tuple[Frame, Timing, int]:
    """Return a frame with stamps as large as those of a board that has been up for a week."""
    up_ns = 7 * 86_400 * 10**9
    frame = Frame(
        camera=CAMERA,
        frame_id=1,
        pixels=np.zeros((1, 1, 3), np.uint8),
        captured_ns=up_ns,
        captured_at=0.0,
    )
    timing = Timing(
        taken_ns=up_ns + 3 * MS,
        prepared_ns=up_ns + 5 * MS,
        invoke_started_ns=up_ns + 6 * MS,
        invoked_ns=up_ns + 26 * MS,
    )
    return frame, timing, up_ns + 27 * MS
