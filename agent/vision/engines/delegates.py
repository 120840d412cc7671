"""Delegate libraries: loading them, handing them to an interpreter, and saying why they refuse.

The runtimes' own `load_delegate` is not used. Where a library cannot be loaded, its object
complains again when it is collected; where a delegate cannot be created, it destroys the one
that never was; and it holds the interpreter lock all the while, so that a device that hangs
would stop this process's heartbeat as well. Interface of a library:
tensorflow/lite/delegates/external/external_delegate_interface.h.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from pathlib import Path

from agent.sensors.coral import HOW_TO_INSTALL
from agent.vision.engines import DelegateError
from agent.vision.engines.edgetpu import (
    EDGETPU_LIBRARY,
    not_compiled,
    why_not_opened,
    why_not_prepared,
)

MAX_TEXT = 300
# What the interpreter adds to a message: "…Node number 3 (EdgeTpuDelegateForCustomOp) failed to
# prepare.", tensorflow/lite/core/subgraph.cc.
NODE_FAILED = re.compile(r"\s*Node number \d+ \([^)]*\) failed to \w+\.?")
ReportError = ctypes.CFUNCTYPE(None, ctypes.c_char_p)


class Delegate:
    """A delegate in its library. It must outlive the interpreter that uses it."""

    def __init__(self, accelerator: str, options: Mapping[str, str]) -> None:
        """Create the delegate for "edgetpu[:usb:N|:pci:N]" or "delegate:/path/lib.so".

        Raises:
            DelegateError: the library is not there or is none, or it created no delegate.
        """
        self._pointer: int | None = None
        self.accelerator = accelerator
        self.library, own_options = _library_of(accelerator)
        create, self._destroy = _load(self.library, accelerator)
        texts: list[str] = []
        # Kept: a library may report through it as long as it lives.
        self._report = ReportError(lambda text: texts.append(text.decode("utf-8", "replace")))
        given = {**own_options, **options}
        keys = (ctypes.c_char_p * len(given))(*(key.encode() for key in given))
        values = (ctypes.c_char_p * len(given))(*(value.encode() for value in given.values()))
        self._pointer = create(keys, values, len(given), self._report)
        if self._pointer is None:
            raise _not_created(accelerator, self.library, first_line("".join(texts)))

    @property
    def name(self) -> str:
        """Return what results call it: "edgetpu:usb:0", or "delegate:" and the file's name."""
        if self.library == EDGETPU_LIBRARY:
            return self.accelerator
        return f"delegate:{Path(self.library).name}"

    def __del__(self) -> None:
        """Give the device back."""
        if self._pointer is not None:
            self._destroy(self._pointer)
            self._pointer = None

    def _get_native_delegate_pointer(self) -> int | None:
        """Return the `TfLiteDelegate*`; `Interpreter` of both runtimes asks for it by this name."""
        return self._pointer


def _library_of(accelerator: str) -> tuple[str, dict[str, str]]:
    """Return the library and the options that the setting stands for."""
    kind, _, rest = accelerator.partition(":")
    if kind == "delegate":
        return rest, {}
    # Device names as libedgetpu takes them: "usb:0", "pci:1"; without one, any device.
    return EDGETPU_LIBRARY, {"device": rest} if rest else {}


def _load(library: str, accelerator: str) -> tuple[ctypes._NamedFuncPointer, ...]:
    """Return the library's functions to create and destroy a delegate."""
    try:
        loaded = ctypes.CDLL(library)
        create = loaded.tflite_plugin_create_delegate
        destroy = loaded.tflite_plugin_destroy_delegate
    except OSError as error:
        raise DelegateError(
            f'accelerator = "{accelerator}": {library} cannot be loaded: '
            f"{_why_not_loaded(library, str(error))}",
            fault="library_missing",
        ) from error
    except AttributeError as error:
        raise DelegateError(
            f'accelerator = "{accelerator}": {library} is no TFLite delegate: it has no function '
            "tflite_plugin_create_delegate; give the path of one that has",
            fault="library_missing",
        ) from error
    text_list = ctypes.POINTER(ctypes.c_char_p)
    create.argtypes = [text_list, text_list, ctypes.c_size_t, ReportError]
    create.restype = ctypes.c_void_p
    destroy.argtypes = [ctypes.c_void_p]
    destroy.restype = None
    return create, destroy


def _why_not_loaded(library: str, error: str) -> str:
    """Say what is wrong and what to do, by the loader's words (glibc, elf/dl-load.c)."""
    missing, _, _ = error.partition(": cannot open shared object file")
    if missing not in (error, library):
        return f"it needs {missing}, which is not installed"
    if library == EDGETPU_LIBRARY and missing != error:
        return f"it is not installed; {HOW_TO_INSTALL}"
    if not Path(library).exists() and missing != error:
        return "there is no such file; correct the path"
    if "wrong ELF class" in error or "wrong architecture" in error:
        return "it was built for another processor; install the build for this board"
    if "file too short" in error or "invalid ELF header" in error:
        return "it is no shared library, or damaged; copy it again"
    return f"{error[-MAX_TEXT:]}; see `ldd {library}`"


def _not_created(accelerator: str, library: str, text: str) -> DelegateError:
    if library == EDGETPU_LIBRARY:
        return why_not_opened(accelerator, text)
    said = f"it says: {text}" if text else "it gave no reason; see its documentation for options"
    return DelegateError(
        f'accelerator = "{accelerator}": {library} created no delegate: {said}', fault="failed"
    )


def refused_model(delegate: Delegate, text: str) -> DelegateError:
    """Explain that an interpreter failed with this delegate on it."""
    line = first_line(text) or "it gave no reason"
    if delegate.library == EDGETPU_LIBRARY:
        return why_not_prepared(delegate.accelerator, line)
    return DelegateError(
        f'accelerator = "{delegate.accelerator}": the delegate refused the model: {line}; see '
        "its documentation for what it can run",
        fault="refused",
    )


def took_nothing(delegate: Delegate) -> DelegateError:
    """Explain that the delegate left the whole graph to the processor."""
    if delegate.library == EDGETPU_LIBRARY:
        return not_compiled(delegate.accelerator)
    return DelegateError(
        f'accelerator = "{delegate.accelerator}": the delegate took no operator of this model: '
        "it has none that the delegate knows, or not in a type that it knows; see its "
        "documentation",
        fault="refused",
    )


def first_line(text: str) -> str:
    """Return the first line of a runtime's message, without what the interpreter adds to it."""
    [line, *_] = text.strip().splitlines() or [""]
    return (NODE_FAILED.sub("", line) or line)[:MAX_TEXT].rstrip(" .")
