"""What both runtimes share: the `Interpreter` class of TFLite, wrapped as an `Engine`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agent.errors import ModelError
from agent.vision.engines import DelegateError, Tensor, TensorSpec, Wish
from agent.vision.engines.delegates import Delegate, first_line, refused_model, took_nothing
from agent.vision.tflite_file import EDGETPU_CUSTOM_OP


class InterpreterEngine:
    """An allocated interpreter that has run once, so that all its shapes are known."""

    def __init__(
        self,
        interpreter: Any,
        *,
        runtime: str,
        accelerator: str,
        reason: str | None,
        threads: int,
        delegated: tuple[int, int] | None = None,
        sized: frozenset[int] = frozenset(),
    ) -> None:
        """Run it once; `sized` are the inputs by tensor number whose open sizes were given."""
        self._interpreter = interpreter
        self.threads = threads
        self.runtime = runtime
        self.accelerator = accelerator
        self.reason = reason
        self.delegated = delegated
        self.inputs = tuple(_spec(detail, sized) for detail in interpreter.get_input_details())
        self._input_indices = tuple(spec.index for spec in self.inputs)
        self._fill_inputs()
        started = time.monotonic()
        interpreter.invoke()  # outputs of custom operators have no shape before the first run
        self.first_invoke_s = time.monotonic() - started
        self.outputs = tuple(_spec(detail) for detail in interpreter.get_output_details())
        self._output_indices = tuple(spec.index for spec in self.outputs)

    def _fill_inputs(self) -> None:
        """Write real zeros: what lies there differs from run to run, and may be NaN."""
        for spec in self.inputs:
            if spec.dtype.kind in "iuf":
                np.copyto(self._interpreter.tensor(spec.index)(), spec.dtype.type(spec.zero_point))

    def load_input(self, tensor: Tensor, position: int = 0) -> None:
        """Copy into an input. The view must not outlive the call: `invoke` refuses to run then."""
        np.copyto(self._interpreter.tensor(self._input_indices[position])(), tensor)

    def invoke(self) -> None:
        """Run the network."""
        try:
            self._interpreter.invoke()
        except RuntimeError as error:
            if self.delegated is None:
                raise
            raise DelegateError(
                f"{self.accelerator} failed at work: {first_line(str(error))}", fault="failed"
            ) from error

    def read_outputs(self, into: Sequence[Tensor]) -> None:
        """Copy all outputs out."""
        for array, index in zip(into, self._output_indices, strict=True):
            np.copyto(array, self._interpreter.tensor(index)())


def _spec(detail: dict[str, Any], sized: frozenset[int] = frozenset()) -> TensorSpec:
    scale, zero_point = detail["quantization"]
    is_open = any(int(size) < 0 for size in detail.get("shape_signature", ())[1:])
    return TensorSpec(
        index=int(detail["index"]),
        name=str(detail["name"]),
        shape=tuple(int(size) for size in detail["shape"]),
        dtype=np.dtype(detail["dtype"]),
        scale=float(scale),
        zero_point=int(zero_point),
        is_dynamic=is_open and int(detail["index"]) not in sized,
    )


def open_interpreter(
    model: bytes,
    wish: Wish,
    *,
    runtime: str,
    interpreter_class: Callable[..., Any],
    without_xnnpack: object,
) -> InterpreterEngine:
    """Build an interpreter with the wanted delegate; see `open_engine`."""

    def build(*, xnnpack: bool, delegate: Delegate | None) -> Any:
        options: dict[str, Any] = {}
        if not xnnpack:
            options["experimental_op_resolver_type"] = without_xnnpack
        if delegate is not None:
            options["experimental_delegates"] = [delegate]
        return interpreter_class(model_content=model, num_threads=wish.threads, **options)

    open_on = _open_on_processor if wish.accelerator == "cpu" else _open_on_delegate
    try:
        return open_on(build, wish, runtime)
    except MemoryError as error:  # without a text
        raise ModelError("the model needs more memory than there is") from error
    except (RuntimeError, ValueError, OverflowError) as error:
        raise ModelError(_explain(str(error), runtime)) from error


def _open_on_processor(build: Callable[..., Any], wish: Wish, runtime: str) -> InterpreterEngine:
    interpreter, (taken, _), sized, reason = _allocate(build, wish)
    return InterpreterEngine(
        interpreter,
        runtime=runtime,
        accelerator="cpu:xnnpack" if taken else "cpu",
        reason=reason,
        threads=wish.threads,
        sized=sized,
    )


def _open_on_delegate(build: Callable[..., Any], wish: Wish, runtime: str) -> InterpreterEngine:
    """Give the delegate what it takes, and the rest of the graph to the processor.

    Raises:
        DelegateError: whatever goes wrong with the delegate; the model may be well.
    """
    delegate = Delegate(wish.accelerator, wish.delegate_options)
    try:
        interpreter, taken, sized, reason = _allocate(build, wish, delegate)
        if not taken[0]:
            raise took_nothing(delegate)
        return InterpreterEngine(
            interpreter,
            runtime=runtime,
            accelerator=delegate.name,
            reason=reason,
            threads=wish.threads,
            delegated=taken,
            sized=sized,
        )
    except RuntimeError as error:
        raise refused_model(delegate, str(error)) from error


def _allocate(
    build: Callable[..., Any], wish: Wish, delegate: Delegate | None = None
) -> tuple[Any, tuple[int, int], frozenset[int], str | None]:
    """Return an allocated interpreter, what `delegate` (else XNNPACK) took, and more.

    That is the inputs that got their size here, and a reason where XNNPACK was left out:
    plain kernels run what it cannot prepare; seen with a quantized pad of -inf.
    """

    def allocate(*, xnnpack: bool) -> tuple[Any, tuple[int, int], frozenset[int]]:
        interpreter = build(xnnpack=xnnpack, delegate=delegate)
        sized = _size_images(interpreter, wish.image_size)
        taken = _operators_taken(interpreter)  # XNNPACK takes its part in `allocate_tensors`
        interpreter.allocate_tensors()
        return interpreter, _operators_taken(interpreter) if delegate is None else taken, sized

    reason = None
    if wish.xnnpack:
        try:
            return *allocate(xnnpack=True), None
        except RuntimeError as error:
            if not _is_about_xnnpack(error):
                raise
            reason = f"XNNPACK cannot prepare this model ({first_line(str(error))})"
    return *allocate(xnnpack=False), reason


def _size_images(interpreter: Any, size: tuple[int | None, int | None]) -> frozenset[int]:
    """Give image inputs the height and width that the model leaves open; return which got them.

    Raises:
        ModelError: they are not known.
    """
    sized = set()
    for detail in interpreter.get_input_details():
        signature = [int(side) for side in detail.get("shape_signature", ())]
        if len(signature) != 4 or signature[3] not in (1, 3) or min(signature[1:3]) > 0:
            continue
        height, width = (
            side if side > 0 else given for side, given in zip(signature[1:3], size, strict=True)
        )
        if height is None or width is None:
            raise ModelError(
                f'input "{detail["name"]}" has a size left open, {signature}: give the one that '
                'the model is meant for in a manifest.json beside it ("input": {"width": 256, '
                '"height": 256}); MoveNet MultiPose takes multiples of 32, mostly 256'
            )
        index = int(detail["index"])
        interpreter.resize_tensor_input(index, [1, height, width, signature[3]], strict=True)
        sized.add(index)
    return frozenset(sized)


def _is_about_xnnpack(error: RuntimeError) -> bool:
    """Return whether XNNPACK is to blame; tflite-runtime calls it the default delegate."""
    text = str(error).lower()
    return "xnnpack" in text or "default tensorflow lite delegate" in text


def _operators_taken(interpreter: Any) -> tuple[int, int]:
    """Return how many of the model's operators delegates run, and how many there are.

    Asked of the graph, never assumed: tflite-runtime 2.14 leaves quantized graphs to plain
    kernels though it has XNNPACK. Delegates append nodes of their own to the model's, and
    run all that lies between such a node's outputs and its inputs.
    """
    nodes: list[dict[str, Any]] = getattr(interpreter, "_get_ops_details", list)()
    own = [node for node in nodes if node["op_name"] != "DELEGATE"]
    makers = {int(made): at for at, node in enumerate(own) for made in node["outputs"]}
    taken: set[int] = set()
    for node in nodes:
        if node["op_name"] != "DELEGATE":
            continue
        ends = {int(tensor) for tensor in node["inputs"]}
        open_ends = [int(tensor) for tensor in node["outputs"]]
        while open_ends:
            tensor = open_ends.pop()
            maker = makers.get(tensor)
            if tensor in ends or maker is None or maker in taken:
                continue
            taken.add(maker)
            open_ends += [int(read) for read in own[maker]["inputs"]]
    return len(taken), len(own)


def _explain(error: str, runtime: str) -> str:
    first = (
        error.strip().splitlines() or ["it gave no reason, as for tensors larger than memory"]
    )[0]
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
