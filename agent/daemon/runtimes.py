"""Which version of a TFLite runtime is at work."""

from __future__ import annotations

import functools

PACKAGES = {"litert": "ai-edge-litert", "tflite-runtime": "tflite-runtime"}


def runtime_version(runtime: str | None) -> str | None:
    """Return the version of a runtime as `Ready.run` names it: `litert 2.3.0`, or `litert` alone.

    What a worker said of itself counts; else what is installed here, without importing it.
    """
    if not runtime:
        return None
    name, _, version = runtime.partition(" ")
    return version.strip() or _installed(PACKAGES.get(name, name))


@functools.cache
def _installed(package: str) -> str | None:
    from importlib import metadata  # a tenth of what the daemon imports, and hardly ever asked

    try:
        return metadata.version(package)
    except (metadata.PackageNotFoundError, OSError, ValueError):
        return None
