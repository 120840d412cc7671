"""What is kept of failures: over restarts, damage, full disks and clocks that jump."""

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.daemon.workers import backoff_memory as module
from agent.daemon.workers.backoff_memory import BackoffMemory


class Board:
    """A state folder and a wall clock."""

    def __init__(self, folder):
        self.path = folder / "state" / "backoff.json"
        self.at = 1_800_000_000.0
        self.boot = "first"

    def daemon(self):
        return BackoffMemory(self.path, wall_clock=lambda: self.at, boot=self.boot)


@pytest.fixture
def board(tmp_path):
    return Board(tmp_path)


def test_counts_outlive_the_daemon_and_expire(board):
    one = board.daemon()
    one.note_failure("", 3)
    one.note_failure("breeds", 1)
    assert one.flush(60)
    board.at += module.FORGET_AFTER_S - 1
    assert (board.daemon().failures(""), board.daemon().failures("breeds")) == (3, 1)
    assert board.daemon().failures("other") == 0
    board.at += 2
    assert board.daemon().failures("") == 0


def test_recovery_forgets_one_engine(board):
    one = board.daemon()
    one.note_failure("", 3)
    one.note_failure("breeds", 1)
    one.note_recovery("")
    assert one.flush(60)
    assert (board.daemon().failures(""), board.daemon().failures("breeds")) == (0, 1)


@pytest.mark.parametrize("years", [-10, 10])
def test_a_clock_that_was_set(board, years):
    one = board.daemon()
    one.note_failure("", 5)
    assert one.flush(60)
    board.at += years * 365.25 * 86400
    assert board.daemon().failures("") == (5 if years < 0 else 0)


def test_a_failure_that_goes_on_is_written_now_and_then(board, monkeypatch):
    writes = []
    monkeypatch.setattr(BackoffMemory, "_write", lambda self, stored: writes.append(stored))
    one = board.daemon()
    for _ in range(60):  # a minute between them, as at the longest back-off
        one.note_failure("", 12)
        assert one.flush(60)
        board.at += 60
    assert len(writes) == 6
    one.note_recovery("")
    one.note_recovery("")
    one.note_recovery("other")
    assert one.flush(60)
    assert len(writes) == 7


failures = st.fixed_dictionaries(
    {"count": st.integers(-3, 10**30), "at": st.floats(allow_nan=False, allow_infinity=False)}
)
records = st.fixed_dictionaries(
    {},
    optional={
        "engines": st.dictionaries(st.just(""), failures) | st.none(),
        "unclean": failures | st.none() | st.lists(st.integers(), max_size=2),
        "is_running": st.booleans() | st.text(max_size=2),
    },
)


@given(st.binary(max_size=200) | records.map(lambda record: json.dumps(record).encode()))
def test_whatever_the_file_says_it_starts(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("state") / "backoff.json"
    path.write_bytes(content)
    one = BackoffMemory(path)
    assert 0 <= one.failures("") <= module.MOST_FAILURES
    assert 0 <= one.begin(60) <= module.CRASH_MOST_S
    assert one.flush(60)
    assert BackoffMemory(path).begin(60) >= 0


def test_a_disk_that_takes_nothing_leaves_a_memory_of_this_run(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    one = BackoffMemory(tmp_path / "file" / "backoff.json")
    one.note_failure("", 4)
    assert one.flush(60)
    assert one.failures("") == 4
    assert "back-off not kept" in caplog.text
    assert BackoffMemory(None).begin() == 0.0


def test_a_disk_that_hangs_delays_nobody(board, monkeypatch):
    is_free = threading.Event()
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (is_free.wait(60), real(number)))
    one, before = board.daemon(), set(threading.enumerate())
    one.note_failure("", 1)
    one.note_failure("", 2)
    assert not one.flush(0.01)
    assert one.begin(0.01) == 0.0
    begun = [thread.name for thread in threading.enumerate() if thread not in before]
    assert begun.count("agent.backoff") == 1
    is_free.set()
    assert one.flush(60)
    assert board.daemon().failures("") == 2


def test_a_crash_loop_is_slowed_down_and_a_power_cut_is_none(board):
    waits = []
    for _ in range(10):
        waits.append(board.daemon().begin(60))
        board.at += 30
    assert waits == [0, 0, 10, 20, 40, 80, 160, 300, 300, 300]


def test_a_board_whose_power_is_cut_again_and_again_works_in_between(board):
    waits = []
    for boot in range(10):
        board.boot = f"{boot}"
        waits.append(board.daemon().begin(60))
        board.at += 210
    assert waits == [0, 0, *[10] * 8]


def test_an_end_in_order_or_a_long_run_is_no_crash(board):
    for _ in range(4):
        one = board.daemon()
        one.begin(60)
    one.prove()
    assert one.flush(60)
    one.prove()
    assert [board.daemon().begin(60) for _ in range(3)] == [0, 0, 10]


def test_crashes_long_ago_do_not_count(board):
    for _ in range(5):
        board.daemon().begin(60)
    board.at += module.FORGET_AFTER_S
    assert board.daemon().begin(60) == 0.0


def test_the_file_is_replaced_whole(board, monkeypatch):
    one = board.daemon()
    one.note_failure("", 1)
    assert one.flush(60)
    before = board.path.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    one.note_failure("", 2)
    assert one.flush(60)
    assert board.path.read_bytes() == before
    assert [path.name for path in board.path.parent.iterdir()] == ["backoff.json"]
