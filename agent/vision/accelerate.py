"""Which engine a model gets: the accelerator that was asked for, else the processor, and why.

A bundle may hold the same network twice, plain and compiled for the Edge TPU. Whatever keeps
an accelerator from running it is a reason to run the plain one on the processor, never a
reason to stop.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Protocol

from agent.choices import Choice
from agent.config import ModelConfig
from agent.errors import ModelError
from agent.vision.engines import (
    DelegateError,
    DelegateFault,
    Engine,
    InstalledRuntime,
    Wish,
    default_threads,
    installed_runtimes,
    open_engine,
)
from agent.vision.engines.edgetpu import explain_crash, not_compiled
from agent.vision.model_files import ModelBytes, ModelFiles
from agent.vision.tflite_file import EDGETPU_CUSTOM_OP, parse_tflite

COMPILED = "the model is compiled for the Edge TPU"


class Chooser(Protocol):
    """Asked before a model is opened for the first time; knows what was tried here before."""

    most_threads: int  # what this process may use of the board's cores

    def on_processor(self, files: ModelFiles, config: ModelConfig) -> Choice | None:
        """Return how the processor runs the plain model best; None: as usual.

        Raises:
            ModelError: it must not be loaded in this process.
        """

    def on_accelerator(self, files: ModelFiles, config: ModelConfig) -> None:
        """Let the wanted accelerator be tried where it can hurt nobody.

        Raises:
            DelegateError: it must not be used.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An engine, the bytes it runs, and why it is not the accelerator that was wanted."""

    engine: Engine
    used: ModelBytes
    reason: str | None  # None: it is what was asked for
    is_fallback: bool  # an accelerator would do it, and may come back


def open_wanted(
    files: ModelFiles,
    config: ModelConfig,
    *,
    choice: Choice | None = None,
    chooser: Chooser | None = None,
    avoid: str = "",
) -> Opened:
    """Open the wanted accelerator, else the processor.

    `choice` is how the processor runs this model best, measured; without it `chooser` is asked,
    and before an accelerator is opened as well. `avoid` says why none is to be tried now.

    Raises:
        DelegateError: the accelerator cannot be used, and the model runs nowhere else.
        ModelError: the processor cannot run it either.
    """

    def open_plain() -> Engine:
        measured = choice
        if measured is None and chooser is not None:
            measured = chooser.on_processor(files, config)
        return open_engine(files.plain.data, _on_processor(files, config, measured))

    accelerator, compiled = _accelerated(files, config)
    if accelerator == "cpu":
        engine = open_plain()
        return Opened(engine=engine, used=files.plain, reason=engine.reason, is_fallback=False)
    try:
        if accelerator.startswith("edgetpu") and not _is_compiled(compiled):
            raise not_compiled(accelerator)  # no device needs to be there to say so
        if avoid and not _is_compiled(files.plain):  # one that runs nowhere else is tried again
            raise DelegateError(avoid, fault="failed")
        _try_first(files, config, chooser)
        engine = open_engine(
            compiled.data,
            Wish(
                runtime=_runtime_beside(config, accelerator, choice),
                accelerator=accelerator,
                threads=config.threads or min(default_threads(), _most_threads(chooser)),
                xnnpack=config.xnnpack != "off",
                delegate_options=config.delegate_options,
                image_size=_image_size(files),
            ),
        )
        return Opened(engine=engine, used=compiled, reason=engine.reason, is_fallback=False)
    except DelegateError as error:
        reason = str(error)
        if accelerator.startswith("edgetpu"):
            reason = explain_crash(reason)
        if _is_compiled(files.plain):
            raise _without_twin(reason, error.fault) from error
        engine = open_plain()
        return Opened(
            engine=engine,
            used=files.plain,
            reason=reason,
            is_fallback=error.fault != "not_compiled",  # the model stays what it is
        )


def _try_first(files: ModelFiles, config: ModelConfig, chooser: Chooser | None) -> None:
    """Let the accelerator be tried elsewhere, and the processor that may have to stand in for it.

    The day the accelerator fails every second counts, and none of them is for measuring.
    """
    if chooser is None:
        return
    if not _is_compiled(files.plain):
        with contextlib.suppress(ModelError):  # a reason to have no twin, not to stop here
            chooser.on_processor(files, config)
    chooser.on_accelerator(files, config)


def _most_threads(chooser: Chooser | None) -> int:
    """Return how many threads this process may use beside those of other engines."""
    return chooser.most_threads if chooser is not None else default_threads()


def _without_twin(reason: str, fault: DelegateFault) -> DelegateError:
    """Explain that there is nothing that the processor could run."""
    if COMPILED not in reason:  # a child that tried it may have said so already
        reason = f"{COMPILED}, which cannot be used: {reason}; or use the uncompiled model"
    return DelegateError(reason, fault=fault)


def _accelerated(files: ModelFiles, config: ModelConfig) -> tuple[str, ModelBytes]:
    """Return what to try first, and the bytes for it."""
    wanted = config.accelerator
    if wanted == "auto":
        if files.edgetpu is not None:
            return "edgetpu", files.edgetpu
        return ("edgetpu" if _is_compiled(files.plain) else "cpu"), files.plain
    if wanted.startswith("edgetpu") and files.edgetpu is not None:
        return wanted, files.edgetpu
    return wanted, files.plain


def _is_compiled(model: ModelBytes) -> bool:
    return EDGETPU_CUSTOM_OP in parse_tflite(model.data, where=model.where).custom_ops


def _image_size(files: ModelFiles) -> tuple[int | None, int | None]:
    wanted = files.manifest.input
    return wanted.height, wanted.width


def _on_processor(files: ModelFiles, config: ModelConfig, choice: Choice | None) -> Wish:
    """Return the settings where they are given, else what was measured, else the usual."""
    runtime = installed_runtimes(config.runtime)[0]
    if config.runtime == "auto" and choice is not None and choice.runtime in installed_runtimes():
        runtime = choice.runtime
    is_xnnpack = choice.xnnpack if choice is not None else True
    return Wish(
        runtime=runtime,
        accelerator="cpu",
        threads=config.threads or (choice.threads if choice else default_threads()),
        xnnpack=is_xnnpack if config.xnnpack == "auto" else config.xnnpack == "on",
        image_size=_image_size(files),
    )


def _runtime_beside(
    config: ModelConfig, accelerator: str, choice: Choice | None
) -> InstalledRuntime:
    """Return the runtime for a delegate.

    libedgetpu is built for one TensorFlow and known to work with its neighbours; those who
    build it test with tflite-runtime 2.13 to 2.15 (google-coral/edgetpu, issue 812).
    """
    installed = installed_runtimes(config.runtime)
    if accelerator.startswith("edgetpu") and "tflite-runtime" in installed:
        return "tflite-runtime"
    if config.runtime == "auto" and choice is not None and choice.runtime in installed:
        return choice.runtime
    return installed[0]


def explain(error: ModelError, files: ModelFiles) -> ModelError:
    """Return the error with the file's name in it."""
    text = str(error)
    if files.where in text:
        return error
    text = f"{files.where}: {text}"
    if isinstance(error, DelegateError):
        return DelegateError(text, fault=error.fault)
    return ModelError(text)
