"""What both runtimes share: the `Interpreter` class of TFLite, wrapped as an `Engine`."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import ModelError
from agent.vision.engines import Tensor, TensorSpec
from agent.vision.tflite_file import EDGETPU_CUSTOM_OP

EDGETPU_LIBRARY = "libedgetpu.so.1"


class InterpreterEngine:
    """An allocated interpreter that has run once, so that all its shapes are known."""

    def __init__(
        self, interpreter: Any, *, runtime: str, accelerator: str, reason: str | None
    ) -> None:
        self._interpreter = interpreter
        self.runtime = runtime
        self.accelerator = accelerator
        self.reason = reason
        self.inputs = tuple(_spec(detail) for detail in interpreter.get_input_details())
        started = time.monotonic()
        interpreter.invoke()  # outputs of custom operators have no shape before the first run
        self.first_invoke_s = time.monotonic() - started
        self.outputs = tuple(_spec(detail) for detail in interpreter.get_output_details())
        self._input_index = self.inputs[0].index if self.inputs else -1
        self._output_indices = tuple(spec.index for spec in self.outputs)

    def load_input(self, tensor: Tensor) -> None:
        """Copy into input 0. The view must not outlive the call: `invoke` refuses to run then."""
        np.copyto(self._interpreter.tensor(self._input_index)(), tensor)

    def invoke(self) -> None:
        """Run the network."""
        self._interpreter.invoke()

    def read_outputs(self, into: Sequence[Tensor]) -> None:
        """Copy all outputs out."""
        for array, index in zip(into, self._output_indices, strict=True):
            np.copyto(array, self._interpreter.tensor(index)())


def _spec(detail: dict[str, Any]) -> TensorSpec:
    scale, zero_point = detail["quantization"]
    return TensorSpec(
        index=int(detail["index"]),
        name=str(detail["name"]),
        shape=tuple(int(size) for size in detail["shape"]),
        dtype=np.dtype(detail["dtype"]),
        scale=float(scale),
        zero_point=int(zero_point),
        is_dynamic=any(int(size) < 0 for size in detail.get("shape_signature", ())[1:]),
    )


def open_interpreter(
    model: bytes,
    *,
    accelerator: str,
    threads: int,
    runtime: str,
    interpreter_class: Callable[..., Any],
    load_delegate: Callable[..., Any],
    without_xnnpack: object,
) -> InterpreterEngine:
    """Build an interpreter with the wanted delegate; see `open_engine`."""

    def build(**options: Any) -> Any:
        interpreter = interpreter_class(model_content=model, num_threads=threads, **options)
        interpreter.allocate_tensors()
        return interpreter

    reason = None
    try:
        if accelerator in ("auto", "cpu"):
            try:
                interpreter = build()
            except RuntimeError as error:
                if "xnnpack" not in str(error).lower():
                    raise
                # Seen with a quantized pad of -inf: plain kernels run what XNNPACK cannot prepare.
                interpreter = build(experimental_op_resolver_type=without_xnnpack)
                reason = f"XNNPACK cannot prepare this model ({_first_line(error)})"
            name = "cpu:xnnpack" if _is_delegated(interpreter) else "cpu"
        else:
            library, options = _delegate_of(accelerator)
            delegate = _load(load_delegate, library, options, accelerator)
            interpreter = build(
                experimental_delegates=[delegate], experimental_op_resolver_type=without_xnnpack
            )
            name = accelerator
            if not _is_delegated(interpreter):
                name, reason = "cpu", f"{library} took no operator of this model"
        return InterpreterEngine(interpreter, runtime=runtime, accelerator=name, reason=reason)
    except (RuntimeError, ValueError, MemoryError, OverflowError) as error:
        raise ModelError(_explain(str(error), runtime)) from error


def _is_delegated(interpreter: Any) -> bool:
    """Return whether a delegate took any operator; asked of the graph, never assumed.

    tflite-runtime 2.14 leaves quantized graphs to plain kernels though it has XNNPACK.
    """
    details: list[dict[str, Any]] = getattr(interpreter, "_get_ops_details", list)()
    return any(operator.get("op_name") == "DELEGATE" for operator in details)


def _delegate_of(accelerator: str) -> tuple[str, dict[str, str]]:
    """Return (library, options) of "edgetpu[:usb:N|:pci:N]" or "delegate:/path/lib.so"."""
    kind, _, rest = accelerator.partition(":")
    if kind == "delegate":
        return rest, {}
    # Device names as libedgetpu takes them: "usb", "usb:0", "pci:1".
    return EDGETPU_LIBRARY, {"device": rest} if rest else {}


def _load(
    load_delegate: Callable[..., Any], library: str, options: dict[str, str], accelerator: str
) -> Any:
    try:
        ctypes.CDLL(library)  # first, because a Delegate that fails on this complains again later
        return load_delegate(library, options)
    except OSError as error:
        hint = (
            "install Google's libedgetpu1-std"
            if library == EDGETPU_LIBRARY
            else "check the path and its dependencies with `ldd`"
            if Path(library).exists()
            else "there is no such file"
        )
        raise ModelError(
            f'accelerator = "{accelerator}": {library} cannot be loaded: {hint}'
        ) from error
    except ValueError as error:
        raise ModelError(
            f'accelerator = "{accelerator}": {library} refused to start: {_first_line(error)}; '
            "is the device plugged in and free?"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _explain(error: str, runtime: str) -> str:
    first = (error.strip().splitlines() or ["no reason given"])[0]
    if EDGETPU_CUSTOM_OP in error:
        return (
            "the model is compiled for the Edge TPU: use the uncompiled model, or a Coral with "
            'accelerator = "edgetpu"'
        )
    marker = "unresolved custom op: "
    if marker in error:
        name = error.split(marker, 1)[1].split(maxsplit=1)[0].rstrip(".")
        return (
            f"the model needs the custom operator {name}, which {runtime} does not have: export "
            "it with built-in operators only"
        )
    if "allocat" in error.lower() and "memory" in error.lower():
        return f"the model needs more memory than there is ({first[:200]})"
    return f"{runtime} refused the model: {first[:300]}"
