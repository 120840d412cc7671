"""Interpreters behind one seam. One file per runtime; nothing outside this room imports TFLite.

An engine is owned by exactly one thread. Its calls come in the order
`load_input`, `invoke`, `read_outputs`, once per frame; none of them allocates.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from agent.config import Runtime
from agent.errors import ModelError

Tensor = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output; real = (stored - zero_point) * scale where scale is not 0."""

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scale: float
    zero_point: int
    is_dynamic: bool = False  # a size beside the batch is left open; `shape` then says nothing


class Engine(Protocol):
    """A loaded model on a runtime."""

    runtime: str  # "litert 2.3.0"
    accelerator: str  # what really runs: "cpu:xnnpack", "cpu", "edgetpu:usb:0", "delegate:NAME"
    reason: str | None  # why that is not what was wanted
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    first_invoke_s: float  # the slowest there should be: it includes all preparation

    def load_input(self, tensor: Tensor) -> None:
        """Copy the prepared tensor in; the caller may reuse it at once."""

    def invoke(self) -> None:
        """Run the network; the interpreter lock is released meanwhile."""

    def read_outputs(self, into: Sequence[Tensor]) -> None:
        """Copy every output into arrays shaped like `outputs`."""


def open_engine(model: bytes, *, runtime: Runtime, accelerator: str, threads: int) -> Engine:
    """Load verified model bytes on a runtime and accelerator, and run it once.

    Raises:
        ModelError: one sentence: runtime not installed, operator unknown, model refused.
    """
    chosen = _choose_runtime(runtime)
    if chosen == "tflite-runtime":
        from agent.vision.engines.tflite_runtime import open_tflite_runtime as open_runtime
    else:
        from agent.vision.engines.litert import open_litert as open_runtime
    return open_runtime(model, accelerator=accelerator, threads=threads or default_threads())


def default_threads() -> int:
    """Return threads for `threads = 0`: all cores but one, which capture and MQTT need; at most 4.

    XNNPACK gains little beyond four threads on the quad-core boards this is for.
    """
    return max(1, min(4, len(os.sched_getaffinity(0)) - 1))


def _choose_runtime(wanted: Runtime) -> str:
    modules = {"litert": "ai_edge_litert", "tflite-runtime": "tflite_runtime"}
    order = [wanted] if wanted != "auto" else ["litert", "tflite-runtime"]
    for name in order:
        if importlib.util.find_spec(modules[name]):
            return name
    if wanted == "auto":
        raise ModelError("no TFLite runtime is installed: run `pip install ai-edge-litert`")
    hint = {
        "litert": "pip install ai-edge-litert (Python 3.10 and newer, 64-bit)",
        "tflite-runtime": "pip install 'edge-agent[tflite]' (Python 3.11 and older)",
    }
    raise ModelError(f'runtime = "{wanted}": is not installed here: {hint[wanted]}')
