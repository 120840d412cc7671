"""Real processes killed, a real disk that is full, and the order of the system calls."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ota.crash_disk import CrashDisk
from ota.power_cuts import prepared, problems
from ota.update_run import AFTER, BUNDLES, ORDERS, Board, Promises, ready_made
from ota.watched_disk import CHANGES, WatchedDisk
from repeats import repeats

from agent.ota.disk import RealDisk
from agent.ota.slots import Slots

TESTS = Path(__file__).resolve().parents[1]
QUICK_KILLS = repeats(10, 200)
MEMORY = Path("/dev/shm")


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.CRITICAL)


def program(*arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [*prefix, sys.executable, "-m", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_no_kill_in_the_middle_of_an_update_leaves_anything_bad(tmp_path):
    done = program("ota.kill_farm", "at-random", "--folder", tmp_path, "--kills", QUICK_KILLS)
    print(done.stdout)
    figures = json.loads(done.stdout)
    assert figures["bad"] == []
    assert figures["landed"] >= QUICK_KILLS


def test_each_operation_may_be_a_processes_last(tmp_path):
    folder = MEMORY if MEMORY.is_dir() else tmp_path  # a kill asks nothing of a disk
    done = program("ota.kill_farm", "everywhere", "--folder", folder, "--one-in", repeats(40, 4))
    print(done.stdout)
    figures = json.loads(done.stdout)
    assert figures["bad"] == []
    assert figures["rounds"] > 6


# The order of the calls.


STRACE = shutil.which("strace")
CALL = re.compile(r"^(?:\[pid +\d+\] |\d+ +)?(\w+)\((.*)\) += (-?\d+)")


def traced(tmp_path: Path) -> list[tuple[str, list[str]]]:
    """Return the calls of an install, each with the paths that are in it."""
    if STRACE is None:
        message = "strace is not here; scripts/test installs it (Debian's package strace)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    log = tmp_path / "strace.log"
    calls = "trace=fsync,fdatasync,rename,renameat,renameat2,write,openat,unlink,unlinkat"
    prefix = (STRACE, "-f", "-y", "-s", "0", "-e", calls, "-o", str(log))
    done = program("ota.update_run", tmp_path, prefix=prefix)
    if "ptrace" in done.stderr:
        pytest.skip("tracing a process is not permitted here")
    assert done.returncode == 0, done.stderr
    found = []
    for line in log.read_text().splitlines():
        match = CALL.match(line)
        if match and int(match[3].split()[0]) >= 0 and str(tmp_path) in line:
            paths = re.findall(rf'[<"]({re.escape(str(tmp_path))}[^>"]*)[>"]', match[2])
            found.append((match[1], paths))
    return found


def test_files_are_on_the_disk_before_their_name_and_that_before_the_state_says_so(tmp_path):
    calls = traced(tmp_path)
    models, update = tmp_path / "state" / "models", tmp_path / "state" / "update"
    renames = [at for at, (name, _) in enumerate(calls) if name.startswith("rename")]
    into = [at for at in renames if calls[at][1][0].endswith(".new")]
    assert len(into) == 1
    at = into[0]
    fresh, final = calls[at][1]
    assert final == str(models / BUNDLES["1.1"].ref.sha256)
    members = sorted(path.name for path in Path(final).iterdir())
    assert members == ["bundle.ref", "labels.txt", "manifest.json", "model.tflite"]
    for member in members:
        path = f"{fresh}/{member}"
        written = [n for n, call in enumerate(calls) if call == ("write", [path])]
        synced = [n for n, call in enumerate(calls) if call == ("fsync", [path])]
        assert written, member
        assert max(written) < min(synced) < at, member
    folder = calls.index(("fsync", [fresh]))
    assert (
        max(n for n, call in enumerate(calls) if call[0] == "write" and fresh in str(call)) < folder
    )
    assert folder < at
    named = next(n for n in range(at, len(calls)) if calls[n] == ("fsync", [str(models)]))
    state_writes = [
        n for n, (name, paths) in enumerate(calls) if name == "write" and "/state." in str(paths)
    ]
    assert min(n for n in state_writes if n > at) > named
    # Each write of the state is waited for, then its folder, before anything else is written.
    for n in state_writes:
        path = calls[n][1][0]
        after = [call for call in calls[n + 1 :] if call[0] in ("fsync", "write", "rename")]
        assert after[:2] == [("fsync", [path]), ("fsync", [str(update)])]
    # They take turns.
    turns = [calls[n][1][0][-1] for n in state_writes]
    assert turns == [str(n % 2) for n in range(len(turns))]
    assert len(turns) > 5


# A disk that is full, read-only or failing.


@pytest.mark.parametrize(
    ("code", "lasts", "first"),
    [
        (errno.ENOSPC, 1, 0),
        (errno.ENOSPC, 10**9, 5),
        (errno.EIO, 1, 10),
        (errno.EIO, 10**9, 0),
        (errno.EROFS, 10**9, 10),
    ],
)
def test_a_disk_that_fails_at_any_operation_stops_no_model(code, lasts, first):
    """From one operation on, or once: what ran goes on running, and the rest is done later."""
    stopped = 0
    for begins in range(first, 340, repeats(30, 3)):
        disk, promises = prepared(CrashDisk(), is_fat=False)
        count = 0

        def before(name, path, part, begins=begins):
            nonlocal count
            if name in CHANGES:
                count += 1
                if begins < count <= begins + lasts:
                    part()
                    raise OSError(code, os.strerror(code), str(path))

        board = Board(WatchedDisk(disk, before), promises=promises)
        try:
            board.run()
        except OSError:  # of the state alone: everything else is a refusal
            stopped += 1
            assert board.slots.alarm is not None
        choice = board.choose()  # on the same disk
        assert choice.source != "none"
        assert choice.why == ()
        # After a restart, with a disk that works again.
        again = Board(disk)
        assert problems(again, promises) == []
        again.run()
        assert again.choose().why == ()
        assert problems(Board(disk), again.promises) == []
    assert stopped > 2


def board_on(place: Path) -> Board:
    return Board(RealDisk(), state_dir=place / "state", factory=place / "factory")


@pytest.fixture
def small_disk(tmp_path):
    """Mount a tmpfs of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True
    )
    if done.returncode != 0:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize(
    "phase", ["accepted", "metadata", "downloading", "verify", "trial", "probation"]
)
def test_a_full_disk_in_any_phase_is_survived_and_the_state_can_still_be_written(
    small_disk, phase, monkeypatch
):
    monkeypatch.setattr("agent.ota.store.RESERVE_BYTES", 0)
    ready_made(RealDisk(), small_disk / "state", small_disk / "factory")
    board = board_on(small_disk)
    board.run(ORDERS[:1])
    ballast = small_disk / "ballast"
    step = getattr(Board, f"_{phase}")

    def filled(self):
        fill(ballast)
        return step(self)

    monkeypatch.setattr(Board, f"_{phase}", filled)
    board = board_on(small_disk)
    board.run(ORDERS[:2])  # and raises nothing: the state's files have their room already
    late = phase in ("trial", "probation")
    assert board.state.deployment.phase == ("committed" if late else "refused")
    assert board.state.deployment.code == (None if late else "E_SPACE")
    assert board.choose().ref.version == ("1.2" if late else "1.1")
    assert board.choose().why == ()
    monkeypatch.undo()
    monkeypatch.setattr("agent.ota.store.RESERVE_BYTES", 0)
    ballast.unlink()
    board = board_on(small_disk)
    assert problems(board, Promises(kept=Slots(small_disk / "state" / "update").read())) == []
    board.run(ORDERS)
    runs = board.state.engines[""]
    assert runs.active.version == AFTER[ORDERS[-1]][0]
