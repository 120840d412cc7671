"""tflite-runtime 2.14: frozen since 2023, kept for the Edge TPU.

Builds of libedgetpu are known to work with it. It crashes on damaged models where LiteRT mostly
refuses them, so `tflite_file.parse_tflite` and a child's trial come first. Its wheels end at
Python 3.11 and need NumPy 1.
"""

from __future__ import annotations

from importlib.metadata import version

from tflite_runtime.interpreter import Interpreter, OpResolverType

from agent.vision.engines import Engine, Wish
from agent.vision.engines.interpreter import open_interpreter


def open_tflite_runtime(model: bytes, wish: Wish) -> Engine:
    """Load model bytes with tflite-runtime; see `open_engine`."""
    return open_interpreter(
        model,
        wish,
        runtime=f"tflite-runtime {version('tflite-runtime')}",
        interpreter_class=Interpreter,
        without_xnnpack=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
