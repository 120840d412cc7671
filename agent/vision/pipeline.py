"""One frame's journey, top to bottom.

    capture ═▶ LatestSlot ═▶ preprocess ═▶ (1) ═▶ inference ═▶ (2) ═▶ postprocess ─▶ emit
    thread     the only      thread               thread owns         thread: decode,
    each       frame drop                         the engine          cascade, encode, send

One input tensor and two sets of outputs go round between the stages. That bounds what is
under way without counting: preprocess cannot run ahead of the one tensor, so a frame waits
in its slot, where a newer one replaces it, and not in a queue where it would grow old. The
interpreter's own input is the second buffer: the tensor is free again before `invoke` starts.

Each frame is given a `Setup`, the model and all that goes with it, when it is taken from its slot;
to exchange the model is to give another one to the next frame (`agent.vision.swap`).

Every wait has a time limit and ticks its stage, so being stuck in native code is the only
way to stop ticking. The first exception in a stage ends the worker, its parent starts another;
but for a new model's, as long as the one before is there to go on with.
"""

from __future__ import annotations

import logging
import threading
import time
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
from agent.vision.encode import CameraStream, Findings, Timing, findings_of
from agent.vision.engines import Tensor
from agent.vision.frame_log import FrameLog, counted_ids, times_of
from agent.vision.handoff import Frame, FrameBuffers, LatestSlot, Taken, take_next
from agent.vision.lending import Lender, things_of
from agent.vision.preprocess import Transform, preprocess
from agent.vision.swap import Say, Setup, Switch

log = logging.getLogger(__name__)

T = TypeVar("T")
WAIT_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A frame that a new model failed on; the one behind it accounts for it."""

    setup: Setup
    frame: Frame
    dropped: int
    still: int
    lent: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A frame whose tensor is ready; its pixels are given back unless a second stage needs them."""

    setup: Setup
    frame: Frame
    dropped: int
    still: int
    tensor: Tensor
    transform: Transform
    taken_ns: int
    prepared_ns: int
    lent: int | None  # its number among those that are lent


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


class Pipeline:
    """The stages between the slots and the socket, for the cameras of one model."""

    def __init__(
        self,
        *,
        setup: Setup,
        lanes: dict[str, CameraLane],
        ready: threading.Condition,
        emit: Callable[[ResultOut], None],
        say: Say,
        clock_synced: Callable[[], bool | None],
        stopping: threading.Event,
    ) -> None:
        self.switch = Switch(setup, say)
        self.lanes = lanes
        self.ticks: dict[str, int] = {}
        self.failure: BaseException | None = None
        self.frame_log = FrameLog(setup.model.label)
        self.lender: Lender | None = None
        self._logged = setup  # whose labels the log has; of the postprocess thread
        self._ready = ready
        self._slots: Sequence[LatestSlot] = [lane.slot for lane in lanes.values()]
        self._emit = emit
        self._clock_synced = clock_synced
        self._stopping = stopping
        self._prepared: SimpleQueue[Prepared | Lost | None] = SimpleQueue()
        self._inferred: SimpleQueue[Inferred | Lost | None] = SimpleQueue()

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
                setup = self.switch.current
                tensor = self._take(setup.free_tensors, "preprocess")
                while tensor is not None and not self._stopping.is_set():
                    self.tick("preprocess")
                    if setup is not self.switch.current:
                        setup.free_tensors.put(tensor)  # it may come back
                        break
                    taken = take_next(self._slots, self._ready, WAIT_S)
                    if taken is not None:
                        self._prepared.put(self._prepare(taken, tensor, setup))
                        break
        finally:
            self._prepared.put(None)

    def _prepare(self, taken: Taken, tensor: Tensor, setup: Setup) -> Prepared | Lost:
        taken_ns = time.monotonic_ns()
        frame = taken.frame
        lane = self.lanes[frame.camera]
        lender = self.lender
        lent = None if lender is None else lender.take(frame, lane.region)
        try:
            transform = preprocess(frame.pixels, setup.model.plan, tensor, lane.region)
        except Exception as error:
            return self._lost(setup, frame, taken.dropped, taken.still, lent, error)
        finally:
            if setup.cascade is None:
                lane.buffers.give_back(frame.pixels)
        return Prepared(
            setup=setup,
            frame=frame,
            dropped=taken.dropped,
            still=taken.still,
            tensor=tensor,
            transform=transform,
            taken_ns=taken_ns,
            prepared_ns=time.monotonic_ns(),
            lent=lent,
        )

    def _inference(self) -> None:
        """Own the engines: copy in, invoke, copy out."""
        try:
            while True:
                prepared = self._take(self._prepared, "inference")
                if prepared is None:
                    return
                if isinstance(prepared, Lost):
                    self._inferred.put(prepared)
                    continue
                outputs = self._take(prepared.setup.free_outputs, "inference")
                if outputs is None:
                    return
                self.tick("inference")
                self._inferred.put(self._infer(prepared, outputs))
        finally:
            self._inferred.put(None)

    def _infer(self, prepared: Prepared, outputs: list[Tensor]) -> Inferred | Lost:
        setup = prepared.setup
        try:
            timing = self._run(prepared, outputs)
            if timing is not None:
                setup.invoke_s.append((timing.invoked_ns - timing.invoke_started_ns) / 1e9)
                return Inferred(prepared=prepared, outputs=outputs, timing=timing)
            lost = self._lose(prepared)
        except Exception as error:
            lost = self._lose(prepared, error)
        setup.free_outputs.put(outputs)  # whatever comes: frames behind this one wait for them
        return lost

    def _run(self, prepared: Prepared, outputs: list[Tensor]) -> Timing | None:
        """Run the engine; None: its model is withdrawn."""
        setup = prepared.setup
        engine = setup.model.engine
        started_ns = time.monotonic_ns()
        try:
            if setup.is_withdrawn:
                return None
            engine.load_input(prepared.tensor, setup.model.image_input)
        finally:
            setup.free_tensors.put(prepared.tensor)  # whatever comes: preprocess waits for it
        state = setup.states.get(prepared.frame.camera)
        if state is not None:
            state.feed(engine)
        engine.invoke()
        engine.read_outputs(outputs)
        if state is not None:
            state.keep(outputs)
        return Timing(
            taken_ns=prepared.taken_ns,
            prepared_ns=prepared.prepared_ns,
            invoke_started_ns=started_ns,
            invoked_ns=time.monotonic_ns(),
        )

    def _lose(self, prepared: Prepared, error: Exception | None = None) -> Lost:
        one = prepared
        return self._lost(one.setup, one.frame, one.dropped, one.still, one.lent, error)

    def _lost(
        self,
        setup: Setup,
        frame: Frame,
        dropped: int,
        still: int,
        lent: int | None,
        error: Exception | None,
    ) -> Lost:
        """Go back to the model before; raises the error where there is none."""
        if error is not None and not self.switch.withdraw(setup, error):
            raise error
        return Lost(setup=setup, frame=frame, dropped=dropped, still=still, lent=lent)

    def _postprocess(self) -> None:
        """Decode, go back to pixels of the frame, look closer, publish."""
        while (inferred := self._take(self._inferred, "postprocess")) is not None:
            found = inferred if isinstance(inferred, Lost) else self._find(inferred)
            if isinstance(found, Lost):
                self._account(found)
            else:
                self._publish(*found)

    def _find(self, inferred: Inferred) -> tuple[Prepared, Findings, Timing] | Lost:
        """Decode the outputs, give them back, look closer."""
        prepared, timing = inferred.prepared, inferred.timing
        setup, frame = prepared.setup, prepared.frame
        try:
            try:
                if setup.is_withdrawn:
                    return self._lose(prepared)
                findings = self._decode(inferred)
            finally:
                setup.free_outputs.put(inferred.outputs)
            if setup.cascade is not None:
                findings, timing = self._look_closer(setup.cascade, frame, findings, timing)
                self.lanes[frame.camera].buffers.give_back(frame.pixels)
        except Exception as error:
            return self._lose(prepared, error)
        return prepared, findings, timing

    def _decode(self, inferred: Inferred) -> Findings:
        prepared = inferred.prepared
        setup, transform = prepared.setup, prepared.transform
        decoded = setup.model.decode(inferred.outputs)
        keep = setup.keeps.get(prepared.frame.camera)
        findings = findings_of(decoded, transform, setup.model, keep)
        lender = self.lender
        if lender is not None and prepared.lent is not None:
            everything = findings_of(decoded, transform, setup.model)
            things = things_of(everything, transform.frame_width, transform.frame_height)
            lender.note(prepared.lent, things, setup.model.identity, setup.model.head.task)
        return findings

    def _account(self, lost: Lost) -> None:
        """Count a frame without a result as dropped, and give its pixels back."""
        lane, lender = self.lanes[lost.frame.camera], self.lender
        if lost.setup.cascade is not None:
            lane.buffers.give_back(lost.frame.pixels)
        if lender is not None and lost.lent is not None:
            lender.drop(lost.lent)
        lane.stream.lose(lost.dropped, lost.still)

    def _publish(self, prepared: Prepared, findings: Findings, timing: Timing) -> None:
        """Account for a frame; encode and emit its result if its camera's policy wants one."""
        setup, frame, transform = prepared.setup, prepared.frame, prepared.transform
        self.switch.note_good(setup)
        stream = self.lanes[frame.camera].stream
        stream.dropped += prepared.dropped
        stream.still += prepared.still
        stream.processed += 1
        stream.second += sum(run.crops for run in findings.cascade or ())
        if setup is not self._logged:
            self._begin_log(setup)
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
                setup.origin,
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
        self.switch.note_done(setup, done_ns)

    def _begin_log(self, setup: Setup) -> None:
        """What is noted from now on is of another model: its classes are others."""
        self._logged, self.frame_log.label = setup, setup.model.label
        for lane in self.lanes.values():
            lane.stream.last_labels = None

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
