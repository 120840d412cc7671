"""From `repo publish` to a board's own update process: what is made here is what boards take."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from made_repository import TODAY, make_bundle

from agent.contract.updates import Floors
from agent.operator import repo_commands
from agent.ota.jobs import (
    Downloaded,
    DownloadJob,
    Limits,
    MetadataJob,
    Refused,
    Resolved,
    parse_event,
    to_line,
)

QUICK = Limits(window_s=2.0, connect_s=5.0, deadline_s=20.0, pause_s=0.0)


@dataclass
class OurBoard:
    """Asks as the control process does, and keeps the floors that it is told."""

    folder: Path
    root: Path
    floors: Floors = field(default_factory=Floors)
    at: float = TODAY.timestamp()

    def ask(self, url, version="1.0.0", **more):
        job = MetadataJob(
            repository=[url],
            metadata_dir=str(self.folder / "metadata"),
            root=str(self.root),
            floors=self.floors,
            at=self.at,
            clock_trusted=True,
            board=more.pop("board", "rpi-5"),
            agent="0.3.0",
            name="door",
            version=version,
            limits=QUICK,
            **more,
        )
        return self._run(job)

    def download(self, url, target):
        part = self.folder / "part"
        job = DownloadJob(
            repository=[url],
            name=target.custom.name,
            version=target.custom.version,
            sha256=target.sha256,
            length=target.length,
            part=str(part),
            limits=QUICK,
        )
        assert isinstance(self._run(job), Downloaded)
        return part.read_bytes()

    def _run(self, job):
        self.folder.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "agent.ota.process"],
            input=to_line(job), capture_output=True, timeout=60,
            cwd=Path(__file__).resolve().parent.parent.parent,
        )  # fmt: skip
        last = parse_event(done.stdout.splitlines()[-1])
        if getattr(last, "floors", None) is not None:
            self.floors = last.floors
        return last


@pytest.fixture
def our_board(tmp_path, site):
    def make():
        root = tmp_path / "root.json"
        root.write_bytes((site.folder / "metadata" / "1.root.json").read_bytes())
        return OurBoard(tmp_path / "ours", root)

    return make


def test_published_here_and_fetched_there(site, url, our_board):
    site.init()
    board = our_board()
    assert isinstance(board.ask(url), Refused)
    bundle = site.publish()
    found = board.ask(url)
    assert isinstance(found, Resolved), found
    assert found.target.sha256 == hashlib.sha256(bundle.read_bytes()).hexdigest()
    assert board.download(url, found.target) == bundle.read_bytes()
    assert (board.floors.targets_version, board.floors.root_version) == (2, 1)


def test_a_folder_on_a_stick_will_do(site, our_board, tmp_path):
    site.init()
    bundle = site.publish()
    stick = tmp_path / "stick"
    site.folder.rename(stick)
    board = OurBoard(tmp_path / "ours", stick / "metadata" / "1.root.json")
    found = board.ask(stick.as_uri())
    assert isinstance(found, Resolved), found
    assert board.download(stick.as_uri(), found.target) == bundle.read_bytes()


def test_it_follows_new_keys_of_every_role(site, url, our_board):
    site.init()
    site.publish()
    board = our_board()
    for role in ("root", "targets", "online"):
        site.rotate(role)
        assert isinstance(board.ask(url), Resolved)
    assert board.floors.root_version == 4


def test_a_lost_timestamp_is_overcome_by_a_new_online_key(site, url, our_board):
    site.init()
    site.publish()
    site.refresh()
    board = our_board()
    assert isinstance(board.ask(url), Resolved)
    assert board.floors.timestamp_version == 3
    (site.folder / "metadata" / "timestamp.json").unlink()
    site.rotate("online")
    assert isinstance(board.ask(url), Resolved)
    assert (board.floors.timestamp_version, board.floors.root_version) == (1, 2)


def test_what_was_asked_before_and_is_old_is_refused(site, url, our_board, tmp_path):
    site.init(days=-40)
    site.publish(days=-40)
    board = our_board()
    refused = board.ask(url)
    assert (refused.code, round(refused.repo_stale_days)) == ("E_FREEZE", 10)
    site.refresh()
    assert isinstance(board.ask(url), Resolved)


def test_what_is_for_other_boards_is_refused_before_it_is_fetched(site, url, our_board):
    site.init()
    bundle = make_bundle(site.home, boards=("jetson-*",), min_agent="0.2")
    repo_commands.run_publish(site.call(), bundle, channel=None)
    board = our_board()
    assert board.ask(url).code == "E_COMPAT"
    assert isinstance(board.ask(url, board="jetson-orin-nano"), Resolved)
