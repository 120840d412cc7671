"""The version of a runtime: what a worker said, else what is installed."""

from __future__ import annotations

from importlib.metadata import version

from agent.daemon.runtimes import runtime_version


def test_the_version_of_a_runtime():
    assert runtime_version("litert 2.3.0") == "2.3.0"
    assert runtime_version("litert") == version("ai-edge-litert")
    assert runtime_version("no-such-runtime") is None
    assert runtime_version(None) is None
    assert runtime_version("") is None
