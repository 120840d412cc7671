"""A delegate of our own, compiled once."""

import pytest
from plugins import build_plugin


@pytest.fixture(scope="session")
def plugin(tmp_path_factory):
    """The library's path."""
    return build_plugin(tmp_path_factory.mktemp("delegate"))
