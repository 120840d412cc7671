"""One frame's journey, top to bottom.

    capture ═▶ LatestSlot ═▶ preprocess ═▶ (1) ═▶ inference ═▶ (2) ═▶ postprocess ─▶ emit
    thread     the only      thread               thread owns         thread: decode,
    each       frame drop                         the engine          cascade, encode, send

One input tensor and two sets of outputs go round between the stages. That bounds what is
under way without counting: preprocess cannot run ahead of the one tensor, so a frame waits
in its slot, where a newer one replaces it, and not in a queue where it would grow old. The
interpreter's own input is the second buffer: the tensor is free again before `invoke` starts.

Every wait has a time limit and ticks its stage, so being stuck in native code is the only
way to stop ticking. The first exception in a stage ends the worker; its parent starts another.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import TypeVar

import msgspec

from agent.config import Region
from agent.link import ResultOut
from agent.sensors.clock import judge_capture
from agent.vision.capture import Capture
from agent.vision.cascade import Cascade
from agent.vision.encode import CameraStream, Findings, Keep, Origin, Timing, findings_of
from agent.vision.engines import Tensor
from agent.vision.frame_log import FrameLog, counted_ids, times_of
from agent.vision.handoff import Frame, FrameBuffers, LatestSlot, Taken, take_next
from agent.vision.model import Model
from agent.vision.preprocess import Transform, preprocess
from agent.vision.recurrent import State

log = logging.getLogger(__name__)

T = TypeVar("T")
WAIT_S = 0.5
OUTPUT_SETS = 2
INVOKES_KEPT, INVOKES_ENOUGH = 512, 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A frame whose tensor is ready; its pixels are given back unless a second stage needs them."""

    frame: Frame
    dropped: int
    still: int
    tensor: Tensor
    transform: Transform
    taken_ns: int
    prepared_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inferred:
    """A frame whose outputs are copied out of the interpreter."""

    prepared: Prepared
    outputs: list[Tensor]
    timing: Timing


@dataclass(slots=True, kw_only=True)
class CameraLane:
    """What belongs to one camera."""

    slot: LatestSlot
    buffers: FrameBuffers
    capture: Capture
    stream: CameraStream
    region: Region | None = None  # the part of the frame that the model sees
    keep: Keep | None = None  # which findings count for this camera
    state: State | None = None  # of a recurrent model; each camera has its own


class Pipeline:
    """The stages between the slots and the socket, for one model and its cameras."""

    def __init__(
        self,
        *,
        model: Model,
        cascade: Cascade | None = None,
        lanes: dict[str, CameraLane],
        ready: threading.Condition,
        origin: Origin,
        emit: Callable[[ResultOut], None],
        clock_synced: Callable[[], bool | None],
        stopping: threading.Event,
    ) -> None:
        self.model = model
        self._cascade = cascade
        self.lanes = lanes
        self.ticks: dict[str, int] = {}
        self.failure: BaseException | None = None
        self.invoke_s: deque[float] = deque(maxlen=INVOKES_KEPT)
        self.frame_log = FrameLog(model.label)
        self._ready = ready
        self._slots: Sequence[LatestSlot] = [lane.slot for lane in lanes.values()]
        self._origin = origin
        self._emit = emit
        self._clock_synced = clock_synced
        self._stopping = stopping
        self._free_tensors: SimpleQueue[Tensor] = SimpleQueue()
        self._prepared: SimpleQueue[Prepared | None] = SimpleQueue()
        self._free_outputs: SimpleQueue[list[Tensor]] = SimpleQueue()
        self._inferred: SimpleQueue[Inferred | None] = SimpleQueue()
        self._free_tensors.put(model.plan.new_tensor())
        for _ in range(OUTPUT_SETS):
            self._free_outputs.put(model.new_outputs())

    def start(self) -> list[threading.Thread]:
        """Start the stages; they end in order after `stopping` is set."""
        stages = {
            "preprocess": self._preprocess,
            "inference": self._inference,
            "postprocess": self._postprocess,
        }
        return [start_stage(name, work, self) for name, work in stages.items()]

    def tick(self, stage: str) -> None:
        """Note that a stage is alive."""
        self.ticks[stage] = time.monotonic_ns()

    def fail(self, error: BaseException) -> None:
        """Keep the first error and stop everything."""
        self.failure = self.failure or error
        self._stopping.set()

    def _preprocess(self) -> None:
        """Take a free tensor first and the newest frame after: waiting must not age a frame."""
        try:
            while not self._stopping.is_set():
                tensor = self._take(self._free_tensors, "preprocess")
                while tensor is not None and not self._stopping.is_set():
                    self.tick("preprocess")
                    taken = take_next(self._slots, self._ready, WAIT_S)
                    if taken is not None:
                        self._prepared.put(self._prepare(taken, tensor))
                        break
        finally:
            self._prepared.put(None)

    def _prepare(self, taken: Taken, tensor: Tensor) -> Prepared:
        taken_ns = time.monotonic_ns()
        frame = taken.frame
        lane = self.lanes[frame.camera]
        transform = preprocess(frame.pixels, self.model.plan, tensor, lane.region)
        if self._cascade is None:
            lane.buffers.give_back(frame.pixels)
        return Prepared(
            frame=frame,
            dropped=taken.dropped,
            still=taken.still,
            tensor=tensor,
            transform=transform,
            taken_ns=taken_ns,
            prepared_ns=time.monotonic_ns(),
        )

    def _inference(self) -> None:
        """Own the engine: copy in, invoke, copy out."""
        engine = self.model.engine
        try:
            while True:
                prepared = self._take(self._prepared, "inference")
                if prepared is None:
                    return
                outputs = self._take(self._free_outputs, "inference")
                if outputs is None:
                    return
                self.tick("inference")
                started_ns = time.monotonic_ns()
                engine.load_input(prepared.tensor, self.model.image_input)
                self._free_tensors.put(prepared.tensor)
                state = self.lanes[prepared.frame.camera].state
                if state is not None:
                    state.feed(engine)
                engine.invoke()
                engine.read_outputs(outputs)
                if state is not None:
                    state.keep(outputs)
                timing = Timing(
                    taken_ns=prepared.taken_ns,
                    prepared_ns=prepared.prepared_ns,
                    invoke_started_ns=started_ns,
                    invoked_ns=time.monotonic_ns(),
                )
                self.invoke_s.append((timing.invoked_ns - started_ns) / 1e9)
                self._inferred.put(Inferred(prepared=prepared, outputs=outputs, timing=timing))
        finally:
            self._inferred.put(None)

    def _postprocess(self) -> None:
        """Decode, go back to pixels of the frame, look closer, publish."""
        while (inferred := self._take(self._inferred, "postprocess")) is not None:
            frame = inferred.prepared.frame
            lane = self.lanes[frame.camera]
            decoded = self.model.decode(inferred.outputs)
            transform = inferred.prepared.transform
            findings = findings_of(decoded, transform, self.model, lane.keep)
            self._free_outputs.put(inferred.outputs)
            timing = inferred.timing
            if self._cascade is not None:
                findings, timing = self._look_closer(self._cascade, frame, findings, timing)
                lane.buffers.give_back(frame.pixels)
            self._publish(lane.stream, inferred.prepared, findings, timing)

    def _publish(
        self, stream: CameraStream, prepared: Prepared, findings: Findings, timing: Timing
    ) -> None:
        """Account for a frame; encode and emit its result if its camera's policy wants one."""
        frame, transform = prepared.frame, prepared.transform
        stream.dropped += prepared.dropped
        stream.still += prepared.still
        stream.processed += 1
        stream.second += sum(run.crops for run in findings.cascade or ())
        class_ids = findings.class_ids()
        is_wanted = stream.wants(class_ids)
        done_ns = time.monotonic_ns()
        times = times_of(frame, timing, done_ns)
        self.frame_log.note(times, counted_ids(findings, class_ids))
        if is_wanted:
            is_synced, offset_s = judge_capture(
                self._clock_synced(), frame.captured_at, frame.captured_ns
            )
            seq, payload = stream.encode(
                frame,
                (transform.frame_width, transform.frame_height),
                findings,
                times,
                self._origin,
                clock_synced=is_synced,
            )
            self._emit(
                ResultOut(
                    camera=stream.name,
                    seq=seq,
                    frame_id=frame.frame_id,
                    payload=payload,
                    clock_offset_s=offset_s,
                    captured_ns=frame.captured_ns,
                    encoded_ns=done_ns,  # so that what follows it adds up with the stages
                )
            )
        stream.last_frame_id = frame.frame_id  # after it is out: a heartbeat may tell of it

    def _look_closer(
        self, cascade: Cascade, frame: Frame, findings: Findings, timing: Timing
    ) -> tuple[Findings, Timing]:
        """Let the second stages see the boxes."""
        started_ns = time.monotonic_ns()
        detections, runs = cascade.look(
            frame.pixels, findings.detections or [], lambda: self.tick("postprocess")
        )
        cascade_ns = time.monotonic_ns() - started_ns
        seen = msgspec.structs.replace(findings, detections=detections, cascade=runs)
        return seen, replace(timing, cascade_ns=cascade_ns)

    def invoke_p99_s(self) -> float | None:
        """Return the 99th percentile of the last invokes, None before there are enough."""
        times = sorted(self.invoke_s.copy())
        return times[int(len(times) * 0.99)] if len(times) >= INVOKES_ENOUGH else None

    def _take(self, queue: SimpleQueue[T], stage: str) -> T | None:
        """Wait for the next item, ticking; None when another stage has failed."""
        while True:
            self.tick(stage)
            try:
                return queue.get(timeout=WAIT_S)
            except Empty:
                if self._stopping.is_set() and self.failure is not None:
                    return None


def start_stage(name: str, work: Callable[[], None], pipeline: Pipeline) -> threading.Thread:
    """Run a stage in a named thread; its first error becomes the pipeline's."""

    def run() -> None:
        try:
            pipeline.tick(name)
            work()
        except BaseException as error:
            log.exception("stage failed stage=%s", name)
            pipeline.fail(error)
        finally:
            pipeline.ticks.pop(name, None)  # a stage that has ended is not one that hangs

    thread = threading.Thread(target=run, name=f"agent.{name}", daemon=True)
    thread.start()
    return thread
