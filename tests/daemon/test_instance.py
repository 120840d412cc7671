"""One agent per state folder, with real processes and real signals."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.daemon import instance
from agent.daemon.workers.worker_run import spawn_worker
from agent.errors import EXIT_UNAVAILABLE, UnavailableError
from agent.link import open_link

HOLD = """
import pathlib, subprocess, sys, time
from agent.daemon.instance import acquire
held = acquire(pathlib.Path(sys.argv[1]))
child = subprocess.Popen(["sleep", "60"])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=Path(instance.__file__).parent.parent.parent,
    )
    child = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    os.kill(child, signal.SIGKILL)


def test_the_second_is_told_who_the_first_is(tmp_path, holder):
    with pytest.raises(UnavailableError) as refused:
        instance.acquire(tmp_path)
    assert f"another edge-agent (process {holder.pid}) runs on {tmp_path}" in str(refused.value)
    assert "systemctl stop edge-agent" in str(refused.value)
    assert refused.value.exit_code == EXIT_UNAVAILABLE


def test_kill_9_lets_the_next_one_start_although_a_child_lives(tmp_path, holder):
    holder.kill()
    holder.wait()
    held = instance.acquire(tmp_path)
    assert held is not None
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    held.release()


def open_files(pid):
    """Yield what a process has open; it may close some meanwhile."""
    for number in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield number.readlink()


def test_a_worker_does_not_inherit_the_lock(tmp_path):
    held = instance.acquire(tmp_path)
    ours, theirs = open_link()
    process = spawn_worker(theirs)
    try:
        assert not any(tmp_path in path.parents for path in open_files(process.pid))
        held.release()
        instance.acquire(tmp_path).release()
    finally:
        process.kill()
        process.wait()
        ours.close()
        theirs.close()


@pytest.mark.parametrize("stale", [b"", b"999999\n", b"not a number", b"\xff" * 5000])
def test_what_a_former_one_left_does_no_harm(tmp_path, stale):
    (tmp_path / "lock").write_bytes(stale)
    held = instance.acquire(tmp_path)
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    (tmp_path / "lock").write_bytes(stale[:20])
    with pytest.raises(UnavailableError, match="another edge-agent"):
        instance.acquire(tmp_path)
    held.release()
    held.release()
    instance.acquire(tmp_path).release()


def test_the_folder_is_made(tmp_path):
    instance.acquire(tmp_path / "a" / "b").release()
    assert (tmp_path / "a" / "b" / "lock").exists()


def test_where_no_folder_can_be_it_runs_on_without(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert instance.acquire(tmp_path / "file" / "state") is None
    assert "a second instance would not be noticed" in caplog.text


def test_file_systems_without_locks(tmp_path, caplog, monkeypatch):
    def refuse(descriptor, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert instance.acquire(tmp_path) is None
    assert "No locks available" in caplog.text


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES])
def test_a_lock_that_can_only_be_read_is_as_good(tmp_path, holder, monkeypatch, error):
    real = os.open

    def read_only(path, flags, *more, **how):
        if flags & os.O_RDWR:
            raise OSError(error, os.strerror(error))
        return real(path, flags, *more, **how)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(UnavailableError, match=f"process {holder.pid}"):
        instance.acquire(tmp_path)
    holder.kill()
    holder.wait()
    instance.acquire(tmp_path).release()
