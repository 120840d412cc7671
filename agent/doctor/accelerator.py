"""Runtimes, delegate libraries and Corals: what is there, without loading any of it.

The `model` check loads them, in a child process. A library or device that is wanted by name
and cannot be used fails, though the daemon would run the model on the processor meanwhile.
"""

from __future__ import annotations

import ctypes.util
import importlib.metadata
from pathlib import Path

from agent.config import ModelConfig
from agent.doctor.check import Check
from agent.sensors.coral import (
    HOW_TO_INSTALL,
    USB2_MBPS,
    Coral,
    edgetpu_package,
    find_corals,
    is_too_old,
    why_unusable,
)


def check_runtime(config: ModelConfig) -> Check:
    """Look for the Python packages."""
    packages = {"litert": "ai-edge-litert", "tflite-runtime": "tflite-runtime"}
    found = {name: _version(package) for name, package in packages.items()}
    there = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    if not there or (config.runtime != "auto" and not found[config.runtime]):
        wanted = "litert" if config.runtime == "auto" else config.runtime
        extra = "edge-agent[tflite]" if wanted == "tflite-runtime" else packages[wanted]
        return Check(
            name="runtime",
            state="fail",
            message=f"{wanted} is not installed; installed: {there or 'none'}",
            remedy=f"pip install '{extra}'",
        )
    return Check(name="runtime", state="ok", message=there)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_accelerator(config: ModelConfig, root: Path = Path("/")) -> Check:
    """Say what is wanted, and whether its library and device are there and may be used."""
    wanted = config.accelerator
    kind, _, library = wanted.partition(":")
    if wanted == "cpu":
        return Check(name="accelerator", state="ok", message="cpu, as configured")
    if kind == "delegate":
        return _check_library(wanted, Path(library))
    corals = find_corals(root)
    if wanted == "auto" and not corals:
        message = "auto: the processor, as no Coral Edge TPU is connected"
        return Check(name="accelerator", state="ok", message=message)
    check = _check_coral("edgetpu" if wanted == "auto" else wanted, corals, root)
    if wanted != "auto":
        return check
    return Check(
        name="accelerator",
        state="ok" if check.state == "ok" else "warn",
        message=f"auto: the Edge TPU for models compiled for it, else the processor; "
        f"{check.message}",
        remedy=check.remedy and f'{check.remedy}; or set model.accelerator = "cpu"',
    )


def _check_library(wanted: str, library: Path) -> Check:
    if library.is_file():
        return Check(name="accelerator", state="ok", message=f"{wanted}: the library is there")
    return Check(
        name="accelerator",
        state="fail",
        message=f"the delegate {library} is not there",
        remedy="correct model.accelerator, or install what brings that file",
    )


def _check_coral(wanted: str, corals: list[Coral], root: Path) -> Check:
    """Look at the library first, then its version, then the device."""
    there = [coral.describe() for coral in corals] or ["no Coral is connected"]
    package = edgetpu_package(root)
    if not ctypes.util.find_library("edgetpu"):
        return Check(
            name="accelerator",
            state="fail",
            message="; ".join(
                ["libedgetpu.so.1, which the Edge TPU needs, is not installed", *there]
            ),
            remedy=HOW_TO_INSTALL,
        )
    if package is not None and is_too_old(package):
        return Check(
            name="accelerator",
            state="fail",
            message=f"{package} was built for a TensorFlow before 2.12, and crashes the runtimes "
            f"of this agent; {'; '.join(there)}",
            remedy=HOW_TO_INSTALL,
        )
    trouble = why_unusable(wanted, root)
    if trouble is not None:
        return Check(
            name="accelerator", state="fail", message=trouble.message, remedy=trouble.remedy
        )
    message = "; ".join([f"{wanted}: {package or 'libedgetpu.so.1'} is installed", *there])
    slow = [coral.name for coral in corals if coral.speed_mbps and coral.speed_mbps <= USB2_MBPS]
    if slow:
        return Check(
            name="accelerator",
            state="warn",
            message=message,
            remedy=f"plug {', '.join(slow)} into a USB 3 port: USB 2 makes it several times slower",
        )
    return Check(name="accelerator", state="ok", message=message)
