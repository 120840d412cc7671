"""The default model's best way of running, as if it had been measured on this machine before.

To measure it takes seconds of all processors; tests of something else need not wait for that.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from agent.choices import CHOICES_FILE, Choice, add_choices, most_threads
from agent.config import ModelConfig


def remember(folder: Path, *, engines: int = 1, threads: int = 0) -> Path:
    """Write the file of choices into a state folder; return its path.

    `engines` and `threads` are those of the configuration that will look there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    way = {"runtime": "litert" if find_spec("ai_edge_litert") else "tflite-runtime"}
    choice = Choice(**way, xnnpack=True, threads=1, invoke_ms=25.0, candidates=(), measured_at=1.0)
    add_choices(folder / CHOICES_FILE, {_key(engines, threads): choice})
    return folder / CHOICES_FILE


@cache
def _key(engines: int, threads: int) -> str:
    from agent.vision.model_files import read_model
    from agent.vision.trial import choice_key

    config = ModelConfig(threads=threads)
    return choice_key(read_model(config.path), config, most_threads(engines))
