"""Puts this folder on the path of tests in the folders below: `made_models`, `fakes`."""

import pytest


@pytest.fixture
def live():
    """Start workers that run a model on made frames; stopped at the end."""
    from live import Live  # the interpreter with it, which most tests do without

    started = []

    def start(*args, **kwargs):
        started.append(Live(*args, **kwargs))
        return started[-1]

    yield start
    for one in started:
        one.stop()
