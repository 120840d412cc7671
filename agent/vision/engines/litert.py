"""LiteRT (`ai-edge-litert`): the default runtime for the CPU.

Only `Interpreter` is used: `CompiledModel.from_file` of 2.3 crashed on 89 of 101 truncated
files where `Interpreter` crashed on none.
"""

from __future__ import annotations

from importlib.metadata import version

from ai_edge_litert.interpreter import Interpreter, OpResolverType

from agent.vision.engines import Engine, Wish
from agent.vision.engines.interpreter import open_interpreter


def open_litert(model: bytes, wish: Wish) -> Engine:
    """Load model bytes with LiteRT; see `open_engine`."""
    return open_interpreter(
        model,
        wish,
        runtime=f"litert {version('ai-edge-litert')}",
        interpreter_class=Interpreter,
        without_xnnpack=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
