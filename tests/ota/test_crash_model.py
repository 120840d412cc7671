"""Power cuts at every instant of five orders, on a file system that keeps only what it must."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ota.crash_disk import CrashDisk, CrashSink
from ota.power_cuts import LONGEST_WALK, explore, prepared, problems, walk
from ota.update_run import Board
from repeats import repeats

from agent.ota import slots


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.CRITICAL)


def test_a_power_cut_at_any_instant_leaves_the_state_before_or_after():
    found = explore(most=1, carry_on_one_in=40, one_in=repeats(3, 1))
    print(found)
    assert found.bad == []
    assert found.instants > 100
    assert found.states > 600
    assert found.carried_on > 15


def test_so_it_does_where_a_state_of_many_pages_is_torn():
    found = explore(most=1, carry_on_one_in=40, one_in=repeats(9, 1), page=512, is_fat=True)
    print(found)
    assert found.bad == []
    assert found.states > 300


def test_a_kill_at_any_instant_is_carried_on_from():
    """What the kernel has in memory stays; so there is one outcome, and each is carried on."""
    disk, promises = prepared(CrashDisk(), is_fat=False)
    bad, instants = [], 0

    def kill(number, name, path):
        nonlocal instants
        instants += 1
        left = disk.snapshot()
        found = problems(Board(left.snapshot()), promises)
        if number % repeats(12, 1) == 0:
            board = Board(left)
            board.run()
            found += problems(Board(left), board.promises, is_finished=True)
        bad.extend(f"before {number}, {name} {path}: {one}" for one in found)

    disk.before_op = kill
    Board(disk, promises=promises).run()
    assert instants > 300
    assert bad == []


@settings(max_examples=repeats(15, 200))
@given(
    st.lists(
        st.tuples(st.integers(0, LONGEST_WALK), st.integers(0, 1 << 30), st.booleans()),
        min_size=1,
        max_size=6,
    )
)
def test_cut_after_cut_and_kills_between_them(cuts):
    assert walk(cuts).bad == []


# That the model finds what it is there to find.


class Forgetful(CrashDisk):
    """It leaves out a kind of waiting."""

    def __init__(self, left_out):
        super().__init__()
        self.left_out = left_out

    def sync_folder(self, path):
        if self.left_out == "folders" or self.left_out == f"folder {path.name}":
            self._op("left out", path)
        else:
            super().sync_folder(path)

    def sink(self, path, how):
        sink = super().sink(path, how)
        if self.left_out in ("files", f"file {path.name}"):
            sink.sync = lambda: self._op("left out", path)
        return sink

    def rename(self, old, new):
        if self.left_out == "rename":
            # As by copying: files come into sight one by one.
            self.make_folder(new)
            for name in self.names(old):
                super().rename(old / name, new / name)
        else:
            super().rename(old, new)


@pytest.mark.parametrize(
    "left_out",
    [
        "files",
        "folders",
        "rename",
        "folder models",
        "folder update",
        "folder state",
        "file model.tflite",
        "file manifest.json",
        "file state.0",
    ],
)
def test_the_model_finds_what_was_not_waited_for(left_out):
    found = explore(most=12, carry_on_one_in=10**9, disk=Forgetful(left_out), stops=True)
    assert found.bad


def test_the_model_finds_writes_to_the_newest_file(monkeypatch):
    monkeypatch.setattr(slots, "NAMES", ("state.0", "state.0"))
    assert explore(most=4, carry_on_one_in=10**9, stops=True).bad


# The file system itself.


def states_of(disk, path, most=1000):
    found = set()
    for after in disk.after_power_cuts(most, random.Random(1)):
        found.add(bytes(after._find(path).content) if after._find(path) else None)
    return found


PATH = Path("/file")


def test_what_was_waited_for_is_there():
    disk = CrashDisk()
    sink = disk.sink(PATH, "new")
    sink.write(b"abc")
    assert states_of(disk, PATH) >= {None, b"", b"abc", bytes(3)}
    sink.sync()
    assert states_of(disk, PATH) == {None, b"abc"}
    disk.sync_folder(PATH.parent)
    assert states_of(disk, PATH) == {b"abc"}


def test_pages_come_in_any_order_and_a_page_is_never_half():
    disk = CrashDisk(page=4)
    sink = disk.sink(PATH, "new")
    sink.write(b"aaaabbbb")
    sink.sync()
    disk.sync_folder(PATH.parent)
    sink = disk.sink(PATH, "over")
    sink.write(b"AAAABBBB")
    assert states_of(disk, PATH) == {b"aaaabbbb", b"AAAAbbbb", b"aaaaBBBB", b"AAAABBBB"}


def test_a_rename_happens_or_not_or_half():
    disk = CrashDisk()
    for name in ("old", "new"):
        sink = disk.sink(Path("/", name), "new")
        sink.write(name.encode())
        sink.sync()
    disk.sync_folder(Path("/"))
    disk.rename(Path("/old"), Path("/new"))
    outcomes = {
        (after.size(Path("/old")), bytes(after._find(Path("/new")).content))
        for after in disk.after_power_cuts(100, random.Random(1))
    }
    assert outcomes == {(3, b"new"), (3, b"old"), (None, b"old"), (None, b"new")}
    assert isinstance(sink, CrashSink)
