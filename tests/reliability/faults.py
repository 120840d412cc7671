"""Makes named methods of the product raise or hang, from outside and at any moment.

Methods are wrapped once, before anything is built. A file in a folder is the switch: named
after the method, it says `raise` (at the next call, once) or `freeze` (until the file is gone).
The product's own files know nothing of this.
"""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

LOOK_EVERY_S = 0.05
Fault = Literal["raise", "freeze"]


class InjectedError(Exception):
    """Raised by nothing but this module."""


def install(folder: Path, targets: Sequence[str]) -> None:
    """Wrap each of `targets`, "package.module:Class.method" or "package.module:function"."""
    for target in targets:
        module_name, path = target.split(":")
        *classes, name = path.split(".")
        owner: Any = importlib.import_module(module_name)
        for one in classes:
            owner = getattr(owner, one)
        original = getattr(owner, name)
        inner = getattr(original, "__wrapped__", None)
        if inner is not None and module_name.endswith(".mqtt.session"):
            # A callback of paho: the fault belongs inside its guard.
            guard = importlib.import_module(module_name)._guarded
            setattr(owner, name, guard(_wrapped(inner, folder / path)))
        else:
            setattr(owner, name, _wrapped(original, folder / path))


def _wrapped(original: Callable[..., Any], switch: Path) -> Callable[..., Any]:
    path = str(switch)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        fault = _read(path)
        if not fault:
            return original(*args, **kwargs)
        if fault == "freeze":
            Path(path + ".happened").touch()
            while switch.exists():
                time.sleep(LOOK_EVERY_S)
            return original(*args, **kwargs)
        switch.unlink(missing_ok=True)
        Path(path + ".happened").touch()
        raise InjectedError(switch.name)

    return wrapped


def _read(path: str) -> str:
    try:
        # The cheapest look there is: one system call as long as there is no fault.
        with open(path, encoding="ascii") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return ""


def switch_on(folder: Path, target: str, fault: Fault) -> None:
    """Arm a fault; it happens at the next call."""
    path = folder / target.split(":")[1]
    Path(f"{path}.happened").unlink(missing_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(fault, encoding="ascii")
    partial.rename(path)


def switch_off(folder: Path, target: str) -> None:
    """End a freeze, or take back what has not happened yet."""
    (folder / target.split(":")[1]).unlink(missing_ok=True)


def has_happened(folder: Path, target: str) -> bool:
    """Return whether the fault that was armed last has struck."""
    return Path(f"{folder / target.split(':')[1]}.happened").exists()
