"""One frame's journey, top to bottom.

    capture ═▶ LatestSlot ═▶ preprocess ═▶ (1) ═▶ inference ═▶ (2) ═▶ postprocess ─▶ emit
    thread     the only      thread               thread owns         thread: decode,
    each       frame drop                         the engine          encode, send

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

from agent.contract.payloads import Classification, Detection
from agent.vision.capture import Capture
from agent.vision.encode import CameraStream, Origin, Timing, classes_of, detections_of
from agent.vision.engines import Tensor
from agent.vision.handoff import Frame, FrameBuffers, LatestSlot, take_oldest
from agent.vision.heads import Boxes
from agent.vision.model import Model
from agent.vision.preprocess import Transform, boxes_to_frame, preprocess

log = logging.getLogger(__name__)

T = TypeVar("T")
WAIT_S = 0.5
OUTPUT_SETS = 2
Emit = Callable[[str, int, int, bytes], None]  # camera, seq, frame_id, payload


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A frame whose tensor is ready; its pixels are already given back."""

    frame: Frame
    dropped: int
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


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraLane:
    """What belongs to one camera."""

    slot: LatestSlot
    buffers: FrameBuffers
    capture: Capture
    stream: CameraStream


class Pipeline:
    """The stages between the slots and the socket, for one model and its cameras."""

    def __init__(
        self,
        *,
        model: Model,
        lanes: dict[str, CameraLane],
        ready: threading.Condition,
        origin: Origin,
        emit: Emit,
        clock_synced: Callable[[], bool | None],
        stopping: threading.Event,
    ) -> None:
        self.model = model
        self.lanes = lanes
        self.ticks: dict[str, int] = {}
        self.failure: BaseException | None = None
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
                    taken = take_oldest(self._slots, self._ready, WAIT_S)
                    if taken is not None:
                        self._prepared.put(self._prepare(*taken, tensor))
                        break
        finally:
            self._prepared.put(None)

    def _prepare(self, frame: Frame, dropped: int, tensor: Tensor) -> Prepared:
        taken_ns = time.monotonic_ns()
        transform = preprocess(frame.pixels, self.model.plan, tensor)
        self.lanes[frame.camera].buffers.give_back(frame.pixels)
        return Prepared(
            frame=frame,
            dropped=dropped,
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
                engine.load_input(prepared.tensor)
                self._free_tensors.put(prepared.tensor)
                engine.invoke()
                engine.read_outputs(outputs)
                timing = Timing(
                    taken_ns=prepared.taken_ns,
                    prepared_ns=prepared.prepared_ns,
                    invoke_started_ns=started_ns,
                    invoked_ns=time.monotonic_ns(),
                )
                self._inferred.put(Inferred(prepared=prepared, outputs=outputs, timing=timing))
        finally:
            self._inferred.put(None)

    def _postprocess(self) -> None:
        """Decode, go back to pixels of the frame, encode, emit."""
        while (inferred := self._take(self._inferred, "postprocess")) is not None:
            frame = inferred.prepared.frame
            stream = self.lanes[frame.camera].stream
            found = self._decode(inferred)
            self._free_outputs.put(inferred.outputs)
            stream.dropped += inferred.prepared.dropped
            stream.processed += 1
            if stream.wants(tuple(sorted(item.class_id for item in found))):
                transform = inferred.prepared.transform
                seq, payload = stream.encode(
                    frame,
                    (transform.frame_width, transform.frame_height),
                    found,
                    inferred.timing,
                    self._origin,
                    clock_synced=self._clock_synced(),
                )
                self._emit(stream.name, seq, frame.frame_id, payload)
            stream.last_frame_id = frame.frame_id  # after it is out: a heartbeat may tell of it

    def _decode(self, inferred: Inferred) -> list[Detection] | list[Classification]:
        decoded = self.model.head.decode(inferred.outputs)
        if isinstance(decoded, Boxes):
            xyxy = boxes_to_frame(decoded.xyxy_norm, inferred.prepared.transform)
            return detections_of(decoded, xyxy, self.model)
        return classes_of(decoded, self.model)

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
