"""Interpreters behind one seam. One file per runtime; nothing outside this room imports TFLite.

An engine is owned by exactly one thread. Its calls come in the order
`load_input`, `invoke`, `read_outputs`, once per frame; none of them allocates.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from agent.config import Runtime
from agent.errors import ModelError

Tensor = npt.NDArray[Any]
InstalledRuntime = Literal["litert", "tflite-runtime"]


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


DelegateFault = Literal[
    "library_missing",
    "device_missing",
    "device_busy",
    "no_permission",
    "not_compiled",  # the model, for the Edge TPU
    "compiler_newer",  # than the runtime
    "refused",  # the delegate took no operator of the model, or would not prepare it
    "failed",  # for reasons of its own
]


class DelegateError(ModelError):
    """An accelerator that cannot run a model now; the same model may run elsewhere."""

    def __init__(self, message: str, *, fault: DelegateFault) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How an engine is to be opened; nothing in it is left open."""

    runtime: InstalledRuntime
    accelerator: str  # "cpu", "edgetpu[:usb:N|:pci:N]" or "delegate:/path/lib.so"
    threads: int
    xnnpack: bool = True  # for what the processor runs
    delegate_options: Mapping[str, str] = field(default_factory=dict)
    # Height and width in pixels for an image input that leaves them open.
    image_size: tuple[int | None, int | None] = (None, None)


class Engine(Protocol):
    """A loaded model on a runtime."""

    runtime: str  # "litert 2.3.0"
    accelerator: str  # what really runs: "cpu:xnnpack", "cpu", "edgetpu[:usb:0]", "delegate:NAME"
    reason: str | None  # why that is not what was wanted
    delegated: tuple[int, int] | None  # operators that the accelerator runs, of all; None: "cpu…"
    threads: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    first_invoke_s: float  # the slowest there should be: it includes all preparation

    def load_input(self, tensor: Tensor, position: int = 0) -> None:
        """Copy a prepared tensor into an input; the caller may reuse it at once."""

    def invoke(self) -> None:
        """Run the network; the interpreter lock is released meanwhile.

        Raises:
            DelegateError: the accelerator stopped working.
        """

    def read_outputs(self, into: Sequence[Tensor]) -> None:
        """Copy every output into arrays shaped like `outputs`."""


def open_engine(model: bytes, wish: Wish) -> Engine:
    """Load verified model bytes on a runtime and accelerator, and run it once.

    Raises:
        DelegateError: the accelerator is not there or does not take this model.
        ModelError: one sentence: runtime not installed, operator unknown, model refused.
    """
    if wish.runtime == "tflite-runtime":
        from agent.vision.engines.tflite_runtime import open_tflite_runtime as open_runtime
    else:
        from agent.vision.engines.litert import open_litert as open_runtime
    return open_runtime(model, wish)


def default_threads() -> int:
    """Return threads for `threads = 0`: all cores but one, which capture and MQTT need; at most 4.

    XNNPACK gains little beyond four threads on the quad-core boards this is for.
    """
    return max(1, min(4, len(os.sched_getaffinity(0)) - 1))


def installed_runtimes(wanted: Runtime = "auto") -> list[InstalledRuntime]:
    """Return the runtimes there are, the usual choice first.

    Raises:
        ModelError: the wanted one, or all of them, are missing.
    """
    modules: dict[InstalledRuntime, str] = {
        "litert": "ai_edge_litert",
        "tflite-runtime": "tflite_runtime",
    }
    order: list[InstalledRuntime] = [*modules] if wanted == "auto" else [wanted]
    found = [name for name in order if importlib.util.find_spec(modules[name])]
    if found:
        return found
    if wanted == "auto":
        raise ModelError("no TFLite runtime is installed: run `pip install ai-edge-litert`")
    hint = {
        "litert": "pip install ai-edge-litert (Python 3.10 and newer, 64-bit)",
        "tflite-runtime": "pip install 'edge-agent[tflite]' (Python 3.11 and older)",
    }
    raise ModelError(f'runtime = "{wanted}": is not installed here: {hint[wanted]}')
