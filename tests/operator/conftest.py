"""Fixtures: a repository, and a board that trusts its first root."""

import pytest
from made_repository import Board, Site, served


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


@pytest.fixture
def url(site):
    site.folder.mkdir()
    with served(site.folder) as address:
        yield address


@pytest.fixture
def board(tmp_path, site):
    """Return how to make a board that was installed now, with the first root of the site."""

    def make(name="board"):
        return Board(tmp_path / name, (site.folder / "metadata" / "1.root.json").read_bytes())

    return make
