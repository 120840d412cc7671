"""The vision worker's entry, started by the supervisor with the number of its socket.

It speaks to its parent over one socket and to nobody else. When the parent goes, it goes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2

from agent.choices import Choice
from agent.config import CameraConfig
from agent.contract.payloads import CameraState
from agent.errors import EXIT_FAILURE, ModelError
from agent.link import (
    OPENING,
    Beat,
    CameraChange,
    CameraCounts,
    Failed,
    FromWorker,
    Inbox,
    Learned,
    ResultOut,
    Resume,
    Start,
    Stop,
    ToWorker,
    send,
)
from agent.logs import configure_logging
from agent.sensors.clock import read_clock_synced
from agent.vision.assemble import Assembly
from agent.vision.capture import Capture
from agent.vision.encode import CameraStream
from agent.vision.frame_log import NOTHING_NEW, News, bare
from agent.vision.handoff import FrameBuffers, LatestSlot, U8Image
from agent.vision.orders import Orders, decline
from agent.vision.pipeline import CameraLane, Pipeline

log = logging.getLogger(__name__)

BEAT_EVERY_S = 0.5
# In one heartbeat; 130 bytes each at most, and a message has to fit the socket's buffer, of which
# a kernel's default (net.core.wmem_max) allows twice 208 KiB.
BEAT_FRAMES = 1024
STOP_WITHIN_S = 3.0
LAST_BEAT_WITHIN_S = 1.0
# A thread that wants to go on waits this long for one that computes in Python. The default
# of 5 ms is a whole inference; shorter slices cost nothing measurable with this few threads.
SWITCH_INTERVAL_S = 0.0005
PR_SET_PDEATHSIG = 1  # linux/prctl.h
# proc_pid_oom_score_adj(5), -1000 to 1000: whoever must go for lack of memory, it is a worker and
# not the control process, which replaces it. Its children have the same, or raise theirs further.
OOM_SCORE_ADJ = 500


class Worker:
    """Owns the link, the capture threads and the pipeline of one process."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self._inbox: Inbox[ToWorker] = Inbox(link, ToWorker)
        self.stopping = threading.Event()
        self._lanes: dict[str, CameraLane] = {}
        self._capture_ticks: dict[str, int] = {}
        self._pipeline: Pipeline | None = None
        self._orders: Orders | None = None  # once a model runs
        self._opening_since: int | None = None
        self._ended = threading.Event()  # all stages have

    def run(self) -> int:
        """Serve one start message until told to stop; return the exit code."""
        heart = threading.Thread(target=self._beat_loop, name="agent.heartbeat", daemon=True)
        heart.start()
        start = self._inbox.receive()
        if not isinstance(start, Start):
            return 0
        threading.Thread(target=self._listen, name="agent.link", daemon=True).start()
        try:
            stages = self._build(start)
        except ModelError as error:
            log.error("worker cannot start: %s", error)  # noqa: TRY400 - one sentence, no traceback
            self._say(Failed(code="model", reason=str(error)))
            return error.exit_code
        except Exception as error:
            log.exception("worker cannot start")
            self._say(Failed(code="worker", reason=f"{type(error).__name__}: {error}"))
            return EXIT_FAILURE
        while not self.stopping.wait(1.0):
            pass
        deadline = time.monotonic() + STOP_WITHIN_S
        for stage in stages:
            stage.join(max(0.0, deadline - time.monotonic()))
        self._ended.set()
        heart.join(LAST_BEAT_WITHIN_S)
        if self._pipeline is not None and self._pipeline.failure is not None:
            failure = self._pipeline.failure
            self._say(Failed(code="frame", reason=f"{type(failure).__name__}: {failure}"))
            return EXIT_FAILURE
        return 0

    def _build(self, start: Start) -> list[threading.Thread]:
        """Open the cameras while the model loads, then let the frames flow."""
        ready = threading.Condition()
        for config in start.cameras:
            self._add_camera(config, start, ready)
        assembly = Assembly(start, self._learned, self._note_opening)
        setup = assembly.first()
        self._pipeline = Pipeline(
            setup=setup,
            lanes=self._lanes,
            ready=ready,
            emit=self._emit,
            say=self._say,
            clock_synced=_Remembered(read_clock_synced, for_s=1.0),
            stopping=self.stopping,
        )
        self._orders = Orders(self._pipeline, assembly, self._say)
        gc.collect()
        gc.freeze()  # what is loaded by now stays; later collections need not look at it
        assert setup.ready is not None
        # Ahead of the pipeline, so that no result comes before the status that names its model.
        self._say(setup.ready)
        model = setup.model
        log.info(
            "model ready name=%s sha256=%s runtime=%s accelerator=%s head=%s",
            model.identity.name,
            model.identity.sha256[:12],
            model.engine.runtime,
            model.engine.accelerator,
            model.head.why,
        )
        return self._pipeline.start()

    def _note_opening(self, is_opening: bool) -> None:
        self._opening_since = time.monotonic_ns() if is_opening else None

    def _learned(self, key: str, choice: Choice) -> None:
        self._say(Learned(key=key, choice=choice))

    def _add_camera(self, config: CameraConfig, start: Start, ready: threading.Condition) -> None:
        resume = start.resume.get(config.name, Resume())
        keeps_frames = bool(start.model.then)
        slot = LatestSlot(ready)
        buffers = FrameBuffers(FrameBuffers.COUNT_KEPT if keeps_frames else FrameBuffers.COUNT)
        name = config.name

        def tick() -> None:
            self._capture_ticks[name] = time.monotonic_ns()

        def report(
            state: CameraState,
            reason: str | None = None,
            pixels: U8Image | None = None,
            *,
            is_fault: bool = False,
        ) -> None:
            height, width = pixels.shape[:2] if pixels is not None else (None, None)
            self._say(
                CameraChange(
                    camera=name,
                    state=state,
                    reason=reason,
                    is_fault=is_fault,
                    at=time.time(),
                    width=width,
                    height=height,
                )
            )

        capture = Capture(
            config,
            next_frame_id=resume.next_frame_id,
            skip=resume.skip,
            slot=slot,
            buffers=buffers,
            stopping=self.stopping,
            tick=tick,
            report=report,
        )
        stream = CameraStream(name=name, publish=config.publish, next_seq=resume.next_seq)
        self._lanes[name] = CameraLane(
            slot=slot,
            buffers=buffers,
            capture=capture,
            stream=stream,
            region=config.region,
        )

        def run() -> None:
            try:
                capture.run()
            except Exception as error:
                log.exception("capture failed camera=%s", name)
                self._say(Failed(code="worker", reason=f"capture of {name}: {error!r}"))
                self.stopping.set()
            finally:
                self._capture_ticks.pop(name, None)

        threading.Thread(target=run, name=f"agent.capture.{name}", daemon=True).start()

    def _emit(self, result: ResultOut) -> None:
        try:
            self._say(result)
        except OSError as error:
            size = len(result.payload)
            raise RuntimeError(
                f"a result of {size} bytes is too large to hand on; lower max_detections"
            ) from error

    def _say(self, message: FromWorker, descriptor: int | None = None) -> None:
        try:
            send(self.link, message, descriptor=descriptor)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise  # our own fault
            os._exit(0)  # the parent is gone, and with it every reason to be here

    def _beat_loop(self) -> None:
        self._beat()
        while not self._ended.wait(BEAT_EVERY_S):
            self._beat()
        self._beat()  # of the last frames

    def _beat(self) -> None:
        """Say that this process is alive, and all that it has counted."""
        while True:
            pipeline = self._pipeline
            news = pipeline.frame_log.take(BEAT_FRAMES) if pipeline is not None else NOTHING_NEW
            beat = self._heartbeat(pipeline, news)
            if self._orders is not None:
                self._orders.look_after()
            try:
                self._say(beat)
            except OSError:  # labels of any length: alive all the same
                self._say(bare(beat))
            if len(news.times) < BEAT_FRAMES:
                return

    def _heartbeat(self, pipeline: Pipeline | None, news: News) -> Beat:
        now = time.monotonic_ns()
        ticks = {f"capture.{name}": at for name, at in list(self._capture_ticks.items())}
        if pipeline is not None:
            ticks.update(list(pipeline.ticks.items()))
        opening_since = self._opening_since
        if opening_since is not None:
            ticks[OPENING] = opening_since
        for lane in list(self._lanes.values()):
            lane.capture.note_silence(now / 1e9)
        counts = {
            name: CameraCounts(
                captured=lane.capture.captured,
                dropped=lane.capture.dropped + lane.stream.lost,
                still=lane.capture.still,
                processed=lane.stream.processed,
                last_frame_id=lane.stream.last_frame_id,
                second=lane.stream.second,
                found=news.found.get(name),
            )
            for name, lane in list(self._lanes.items())
        }
        return Beat(
            stage_age_s={stage: (now - at) / 1e9 for stage, at in ticks.items()},
            cameras=counts,
            invoke_p99_s=pipeline.switch.current.invoke_p99_s() if pipeline is not None else None,
            times=news.times,
            times_lost=news.lost,
        )

    def _listen(self) -> None:
        """Wait for the parent's word, or for its end."""
        while True:
            try:
                message = self._inbox.receive()
            except OSError:
                message = None
            if message is None:
                os._exit(0)
            self._obey(message)

    def _obey(self, message: ToWorker) -> None:
        """Do what is asked, without waiting for anything."""
        orders = self._orders
        match message:
            case Stop():
                self.stopping.set()
            case Start():
                pass  # there is but one
            case _ if orders is not None:
                orders.obey(message)
            case _:
                decline(message, self._say)


class _Remembered:
    """A reading that is asked of the kernel at most once in a while."""

    def __init__(self, read: Callable[[], bool | None], *, for_s: float) -> None:
        self._read = read
        self._for_s = for_s
        self._until = 0.0
        self._value: bool | None = None

    def __call__(self) -> bool | None:
        now = time.monotonic()
        if now >= self._until:
            self._value, self._until = self._read(), now + self._for_s
        return self._value


def main() -> int:
    """Run a worker on the socket whose number is the only argument."""
    configure_logging("INFO")
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with contextlib.suppress(OSError):  # lowering it, where it is higher, may be forbidden
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ), encoding="ascii")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    cv2.setNumThreads(1)  # resizing is a fraction of a millisecond; its threads cost inference more
    code = Worker(socket.socket(fileno=int(sys.argv[1]))).run()
    logging.shutdown()
    # Threads inside camera drivers cannot be ended; leaving at once is the one exit that never
    # hangs or crashes in a library's destructor.
    os._exit(code)
