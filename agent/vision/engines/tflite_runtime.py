"""tflite-runtime 2.14: frozen since 2023, kept because stock libedgetpu was built for its ABI.

It crashes on damaged models where LiteRT refuses them, so `tflite_file.parse_tflite` comes
first. Its wheels end at Python 3.11 and need NumPy 1.
"""

from __future__ import annotations

from importlib.metadata import version

from tflite_runtime.interpreter import Interpreter, OpResolverType, load_delegate

from agent.vision.engines import Engine
from agent.vision.engines.interpreter import open_interpreter


def open_tflite_runtime(model: bytes, *, accelerator: str, threads: int) -> Engine:
    """Load model bytes with tflite-runtime; see `open_engine`."""
    return open_interpreter(
        model,
        accelerator=accelerator,
        threads=threads,
        runtime=f"tflite-runtime {version('tflite-runtime')}",
        interpreter_class=Interpreter,
        load_delegate=load_delegate,
        without_xnnpack=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
