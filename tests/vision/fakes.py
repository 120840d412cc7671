"""A camera and an engine behind the production seams."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agent.contract.payloads import ModelIdentity
from agent.errors import CameraError
from agent.vision.cameras import EndOfStream
from agent.vision.encode import Origin
from agent.vision.engines import TensorSpec
from agent.vision.heads import Boxes, Head
from agent.vision.model import Model
from agent.vision.preprocess import plan_input
from agent.vision.swap import Setup

HELD_FOR_S = 60.0  # by a test that fails


class FakeCamera:
    """Frames whose first pixel holds their number; `script` may raise or return None at a frame.

    Frames that `holds` names come only once their event is set.
    """

    def __init__(
        self,
        frames: int,
        *,
        live: bool = False,
        rate_hz: float | None = None,
        start: int = 0,
        script: dict[int, Exception | None] | None = None,
        holds: dict[int, threading.Event] | None = None,
        shape: tuple[int, int, int] = (24, 32, 3),
    ) -> None:
        self.live = live
        self.rate_hz = rate_hz
        self.silence_hint = "look at the fake"
        self.closed = False
        self._next = start
        self._frames = frames
        self._script = script or {}
        self._holds = holds or {}
        self._shape = shape

    def read(self, buffer: Any) -> Any:
        """Return the next frame in `buffer`."""
        number = self._next
        if number in self._holds:
            assert self._holds[number].wait(HELD_FOR_S)
        if number in self._script:
            self._next += 1
            event = self._script[number]
            if isinstance(event, Exception):
                raise event
            return None
        if number >= self._frames:
            raise EndOfStream("ended")
        self._next += 1
        if buffer is None or buffer.shape != self._shape:
            buffer = np.zeros(self._shape, np.uint8)
        buffer[...] = 0
        buffer[0, 0] = (number % 256, number // 256, 7)
        return buffer

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True


class FakeEngine:
    """Copies pixel (0, 0) of its input to its output; may take its time, block or fail."""

    runtime = "fake 1"
    accelerator = "cpu:fake"
    reason = None
    first_invoke_s = 0.0
    threads = 1
    delegated = None

    def __init__(self, invoke_s: float = 0.0, gate: threading.Event | None = None) -> None:
        self.inputs = (_spec((1, 24, 32, 3), np.uint8),)
        self.outputs = (_spec((3,), np.uint8),)
        self.invoke_s = invoke_s
        self.gate = gate
        self.fail_at: int | None = None
        self.invokes = 0
        self._input = np.zeros((1, 24, 32, 3), np.uint8)
        self._owner: int | None = None

    def load_input(self, tensor: Any, position: int = 0) -> None:
        """Copy in."""
        self._owner = self._owner or threading.get_ident()
        assert self._owner == threading.get_ident(), "an engine belongs to one thread"
        np.copyto(self._input, tensor)

    def invoke(self) -> None:
        """Wait as told."""
        self.invokes += 1
        if self.fail_at == self.invokes:
            raise RuntimeError("invoke failed")
        if self.gate is not None:
            self.gate.wait(HELD_FOR_S)
        if self.invoke_s:
            time.sleep(self.invoke_s)

    def read_outputs(self, into: Sequence[Any]) -> None:
        """Copy out."""
        np.copyto(into[0], self._input[0, 0, 0])


def _spec(shape: tuple[int, ...], dtype: Any) -> TensorSpec:
    return TensorSpec(
        index=0, name="t", shape=shape, dtype=np.dtype(dtype), scale=0.0, zero_point=0
    )


def _decode(outputs: Sequence[Any]) -> Boxes:
    """One box whose class is the frame's number."""
    _, green, blue = (int(value) for value in outputs[0])  # the input is RGB: number is BGR
    return Boxes(
        xyxy_norm=np.array([[0, 0, 1, 1]], np.float32),
        scores=np.array([0.9], np.float32),
        class_ids=np.array([blue + 256 * green], np.intp),
    )


def fake_model(
    engine: FakeEngine,
    decode: Callable[[Sequence[Any]], Any] = _decode,
    task: Any = "detection",
) -> Model:
    """A model around the engine."""
    return Model(
        identity=ModelIdentity(name="fake", version="1", sha256="0" * 64),
        engine=engine,
        plan=plan_input(engine.inputs[0], resize="stretch", color="rgb", mean=None, std=None),
        head=Head(kind="fake", task=task, class_count=None, why="told so", decode=decode),
        labels=(),
        notes=(),
    )


def setup_of(model: Model, **parts: Any) -> Setup:
    """What a pipeline runs, around a model."""
    origin = Origin(device="d", boot_id="b", model=model.identity, accelerator="cpu")
    return Setup(model=model, origin=origin, **parts)


LOST = CameraError("cable pulled")
