"""Fixtures for every test."""

import gc
import logging
import os
from pathlib import Path

import pytest
from brokers import MOSQUITTO, mosquitto
from hypothesis import HealthCheck, settings
from repeats import EXAMPLES

# Machines may be shared, or emulated and a hundred times slower; how long an example takes is
# no property of the code.
settings.register_profile(
    "any machine",
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("any machine")

PROJECT = Path(__file__).resolve().parent.parent


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes many seconds, so it is begun first")


@pytest.hookimpl(trylast=True)  # after they were shuffled
def pytest_collection_modifyitems(items):
    """Begin with what takes longest, or one of several workers ends long after the others."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish():
    """Spare the garbage collector what was imported and collected: it stays to the end."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture
def start_mosquitto(tmp_path):
    """Start a mosquitto with more lines of configuration; return its port."""
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    started = []

    def start(*lines, **more):
        started.append(mosquitto(tmp_path, *lines, **more).start())
        return started[-1].port

    yield start
    for broker in started:
        broker.stop()
