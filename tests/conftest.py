"""Fixtures for every test."""

import logging
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Machines may be shared, or emulated and a hundred times slower; how long an example takes is
# no property of the code.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def zoo():
    """Real models and images that are not part of the project; absent elsewhere."""
    folder = Path(os.environ.get("EDGE_AGENT_ZOO", PROJECT.parent / "shared" / "zoo"))
    if not (folder / "expected.json").exists():
        pytest.skip("the model zoo is not here; set EDGE_AGENT_ZOO to its folder")
    return folder


@pytest.fixture(autouse=True)
def _own_logging():
    """A command run in this process logs to the stderr of its test, which is gone afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
