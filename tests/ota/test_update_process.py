"""The update process as the control process starts it: what it says, writes, syncs and survives."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from asking import PATIENT, PROJECT, Board, run_process
from repeats import repeats
from repository_simulator import Fault, Repository, WebServer

from agent.contract.updates import Desired, Floors
from agent.errors import EXIT_USAGE
from agent.ota import fetching, steps
from agent.ota.clock_policy import WAITS_S
from agent.ota.fetching import Fetching, Source, UpdateProcess
from agent.ota.jobs import Refused, Resolved, parse_job, to_line

BUNDLE = os.urandom(300_000)


@pytest.fixture
def repository():
    made = Repository()
    made.add("ssd", "1.0", BUNDLE, boards=["rpi-*"], min_agent="0.1")
    return made


@pytest.fixture
def server(repository):
    with WebServer(repository.files) as running:
        yield running


@pytest.fixture
def board(tmp_path, repository, server):
    return Board(tmp_path, repository, server.url)


def until(step, within_s=120.0):
    """Poll as a main loop does."""
    ends = time.monotonic() + within_s
    while time.monotonic() < ends:
        reply = step.poll()
        if not isinstance(reply, steps.Working):
            return reply
        time.sleep(0.005)
    raise AssertionError("still working")


def source(board, **changed):
    return Source(
        **{
            "repository": tuple(board.urls),
            "root": board.root,
            "metadata_dir": board.metadata,
            "board": "rpi-4b",
            "limits": PATIENT,
        }
        | changed
    )


def wanted(version="1.0"):
    return Desired(deployment_id="d1", counter=1, name="ssd", version=version)


def test_a_job_in_a_process_of_its_own(board):
    events, said = run_process(board.job("ssd", "1.0"))
    assert isinstance(events[-1], Resolved)
    assert said == ""
    target = events[-1].target
    events, _ = run_process(board.download_job(target))
    assert events[-1].bytes_fetched == len(BUNDLE)
    assert board.part.read_bytes() == BUNDLE


def test_without_cryptography(board, tmp_path):
    """Boards have none: there is no wheel of it for some of them."""
    (tmp_path / "without").mkdir()
    (tmp_path / "without/cryptography.py").write_text("raise ImportError('not on this board')")
    path = f"{tmp_path / 'without'}:{PROJECT}"
    events, _ = run_process(board.job("ssd", "1.0"), env={"PYTHONPATH": path})
    assert isinstance(events[-1], Resolved), events


def test_control_process_loads_neither_tuf_nor_http():
    code = "import agent.ota.fetching, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT
    ).stdout.split()
    heavy = {"tuf", "securesystemslib", "urllib3", "http.client", "ssl", "cryptography"}
    assert not heavy & set(loaded)


def test_a_download_loads_no_tuf():
    code = "import agent.ota.process, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT
    ).stdout.split()
    assert not {"tuf", "securesystemslib"} & set(loaded)


@pytest.mark.parametrize("line", [b"", b"\n", b"{}\n", b'{"step":"metadata"}\n', b"[" * 5000])
def test_no_job(line):
    with pytest.raises(msgspec.MsgspecError):
        parse_job(line)


@pytest.mark.parametrize("line", [b"", b"[" * 5000])
def test_a_process_without_a_job(line):
    done = subprocess.run(
        [sys.executable, "-m", "agent.ota.process"], input=line, capture_output=True, cwd=PROJECT
    )
    assert done.returncode == EXIT_USAGE
    assert done.stdout == b""


def test_no_root(board):
    board.root.unlink()
    events, _ = run_process(board.job("ssd", "1.0"))
    assert isinstance(events[-1], Refused)
    assert "root.json" in events[-1].message


def test_a_root_that_is_none_is_not_blamed_on_the_mirror(board):
    board.root.write_bytes(b"{}")
    events, _ = run_process(board.job("ssd", "1.0"))
    assert isinstance(events[-1], Refused)
    assert "update.root" in events[-1].message
    assert "http" not in events[-1].message


def test_all_that_fits_this_board(board, repository):
    repository.add("ssd", "2.0", b"x", boards=["jetson-*"])
    repository.add("pose", "1.0", b"y")
    repository.targets.targets["ssd/2.0.tar"].unrecognized_fields["custom"]["more"] = "later"
    repository.targets.targets["pose/1.0.tar"].unrecognized_fields["custom"]["more"] = "later"
    repository.publish_targets()
    names = {(one.custom.name, one.custom.version) for one in board.ask().targets}
    assert names == {("ssd", "1.0"), ("pose", "1.0")}
    assert {one.custom.name for one in board.ask("pose").targets} == {"pose"}


def test_metadata_s_folder_is_one_process_s(board):
    from agent.ota.process import _alone

    with _alone(board.metadata):
        said = board.ask("ssd", "1.0")
    assert (said.code, said.is_final) == ("E_SYSTEM", False)
    assert isinstance(board.ask("ssd", "1.0"), Resolved)


def test_what_python_tuf_leaves_when_it_is_killed_is_swept_up(board):
    board.ask("ssd", "1.0")
    (board.metadata / "tmpabc123").write_bytes(b"half a file")
    board.ask("ssd", "1.0")
    assert {path.name for path in board.metadata.iterdir()} == {
        "root_history", "root.json", "timestamp.json", "snapshot.json", "targets.json",
    }  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"{", bytes(100), b"[" * 100_000, b'{"signed":{}}'])
@pytest.mark.parametrize("name", ["timestamp.json", "targets.json", "root_history/1.root.json"])
def test_damaged_metadata_on_disk_are_fetched_anew(board, name, content):
    board.ask("ssd", "1.0")
    (board.metadata / name).write_bytes(content)
    assert isinstance(board.ask("ssd", "1.0"), Resolved)
    assert (board.metadata / name).read_bytes() != content


def test_no_longer_file_than_agreed_on(board):
    """However a target's length came to be believed, the kernel stops at it."""
    target = board.ask("ssd", "1.0").target
    code = (
        "import sys; sys.argv[0] = 'x'\n"
        "from agent.ota import process\n"
        "process._confine(process.parse_job(open(sys.argv[1], 'rb').read()))\n"
        "try:\n"
        "    open(sys.argv[2], 'wb').write(bytes(64 << 20))\n"
        "except OSError as error:\n"
        "    print(error.errno)\n"
    )
    job, big = board.folder / "job", board.folder / "big"
    job.write_bytes(to_line(board.download_job(target)))
    done = subprocess.run(
        [sys.executable, "-c", code, job, big], capture_output=True, text=True, cwd=PROJECT
    )
    assert done.stdout == "27\n", done.stderr  # EFBIG
    assert big.stat().st_size == 8 << 20


def test_metadata_are_synced_before_they_are_reported(board):
    """python-tuf never does: each file, then the folders, then the answer on stdout."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not here")
    trace = board.folder / "trace"
    calls = "trace=fsync,fdatasync,rename,renameat,renameat2,write,openat,open"
    run_process(
        board.job("ssd", "1.0"), before=(strace, "-f", "-y", "-e", calls, "-s", "40", "-o", trace)
    )
    lines = trace.read_text().splitlines()
    if any("ptrace" in line for line in lines[:3]):
        pytest.skip("strace may not trace here")
    at = {
        "renamed": [n for n, line in enumerate(lines) if re.search(r"rename\w*\(.*metadata", line)],
        "synced": [n for n, line in enumerate(lines) if re.search(r"fsync\(.*metadata", line)],
        "said": [n for n, line in enumerate(lines) if '{\\"event\\":\\"resolved' in line],
    }
    assert len(at["renamed"]) == 4
    assert max(at["renamed"]) < min(at["synced"])
    assert max(at["synced"]) < min(at["said"])
    synced = [re.search(r"<(.*?)>", lines[n])[1] for n in at["synced"]]
    names = [os.path.relpath(path, board.metadata) for path in synced]
    assert sorted(names) == [
        ".", "root_history", "root_history/1.root.json", "snapshot.json", "targets.json",
        "timestamp.json",
    ]  # fmt: skip
    assert names[-1] == "."
    assert names.index("root_history") > names.index("root_history/1.root.json")


def test_bundles_are_synced_before_they_are_reported(board):
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not here")
    target = board.ask("ssd", "1.0").target
    trace = board.folder / "trace"
    run_process(
        board.download_job(target),
        before=(strace, "-f", "-y", "-e", "trace=fsync,pwrite64,write", "-s", "40", "-o", trace),
    )
    lines = trace.read_text().splitlines()
    if any("ptrace" in line for line in lines[:3]):
        pytest.skip("strace may not trace here")
    written = [n for n, line in enumerate(lines) if "pwrite64(" in line and "bundle.part>" in line]
    synced = [n for n, line in enumerate(lines) if "fsync(" in line and "bundle.part>" in line]
    said = [n for n, line in enumerate(lines) if '{\\"event\\":\\"downloaded' in line]
    assert max(written) < max(synced) < min(said)


def test_steps_from_order_to_file(board):
    fetching = Fetching(source(board), read_synced=lambda: True)
    asking = fetching.metadata(wanted(), Floors())
    said = until(asking)
    assert isinstance(said, steps.Succeeded), said
    assert (said.target.ref.title, said.target.size) == ("ssd@1.0", len(BUNDLE))
    assert said.target.boards == ("rpi-*",)
    assert said.floors.targets_version == 2
    assert said.clock_trusted is True
    assert asking.expires_at > time.time()
    said = until(fetching.download(said.target.ref, said.target.size, board.part))
    assert isinstance(said, steps.Succeeded), said
    assert board.part.read_bytes() == BUNDLE


def test_steps_say_how_far_they_are(board, server):
    fetching = Fetching(source(board), read_synced=lambda: True)
    target = until(fetching.metadata(wanted(), Floors())).target
    server.faults["targets/"] = Fault(drip_s=0.001)
    step = fetching.download(target.ref, target.size, board.part)
    ends = time.monotonic() + 60
    while step.poll().bytes_done is None and time.monotonic() < ends:
        time.sleep(0.01)
    working = step.poll()
    assert 0 < working.bytes_done < working.bytes_total == len(BUNDLE)
    assert working.progress == working.bytes_done / working.bytes_total
    step.stop()


def test_steps_refused(board):
    asking = Fetching(source(board), read_synced=lambda: None).metadata(wanted("9"), Floors())
    said = until(asking)
    assert (said.code, said.is_final, said.clock_trusted) == ("E_DESIRED", False, None)
    assert said.floors.root_version == 1


def test_a05_steps_tell_how_stale_the_repository_is(board, repository):
    late = repository.now.timestamp() + 40 * 86_400
    fetching = Fetching(source(board), read_synced=lambda: True, now=lambda: late)
    asking = fetching.metadata(wanted(), Floors())
    assert until(asking).code == "E_FREEZE"
    assert asking.stale_days == pytest.approx(10, abs=0.1)


def test_a06_steps_wait_for_the_clock(board):
    now = 0.0
    fetching = Fetching(source(board), read_synced=lambda: False, clock=lambda: now)
    asking = fetching.metadata(wanted(), Floors())
    assert asking.poll() == steps.Working(waits_for="the clock to be set")
    now = WAITS_S
    said = until(asking)  # the repository is near by
    assert isinstance(said, steps.Succeeded)
    assert said.clock_trusted is False
    assert said.floors.time == 0.0
    far = Fetching(source(board, allow_floor=False), read_synced=lambda: False, clock=lambda: now)
    now += WAITS_S
    assert until(far.metadata(wanted(), Floors())).code == "E_CLOCK"


def test_a_process_that_crashes(board, monkeypatch):
    monkeypatch.setattr(fetching, "PROCESS", "import os, sys; os.kill(os.getpid(), 11)")
    said = until(UpdateProcess(board.job("ssd", "1.0")))
    assert (said.code, said.is_final) == ("E_SYSTEM", False)
    assert "SIGSEGV" in said.message


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise SystemExit('no such luck')", "exit code 1: no such luck"),
        ("print('good morning')", "nobody understands"),
        ("import os, time; os.write(1, b'x' * 5_000_000); time.sleep(60)", "too much"),
        ("", "exit code 0"),
    ],
)
def test_a_process_that_talks_nonsense(board, monkeypatch, code, says):
    monkeypatch.setattr(fetching, "PROCESS", code)
    said = until(UpdateProcess(board.job("ssd", "1.0")))
    assert says in said.message


def test_a_process_that_is_given_up(board, server):
    server.faults["timestamp"] = Fault(drip_head_s=0.01)
    process = UpdateProcess(board.job("ssd", "1.0"))
    assert isinstance(process.poll(), steps.Working)
    process.stop()
    process.stop()
    assert process._process.wait(60) == -9


def test_a_process_ends_with_its_parent(board, server):
    server.faults["timestamp"] = Fault(drip_head_s=0.01)
    code = (
        "import os, subprocess, sys\n"
        "from agent.ota.fetching import process_command\n"
        "child = subprocess.Popen(process_command(os.getpid()), stdin=sys.stdin)\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=to_line(board.job("ssd", "1.0")),
        capture_output=True,
        cwd=PROJECT,
    )
    child = int(done.stdout)
    ends = time.monotonic() + 60
    while time.monotonic() < ends and is_running(child):
        time.sleep(0.01)
    assert not is_running(child)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("seed", range(repeats(3, 50)))
def test_killed_at_any_time_it_does_it_again(board, server, repository, seed):
    """What is left on disk never keeps the next process from coming to the same end."""
    import random

    chance = random.Random(seed)
    server.faults["timestamp"] = Fault(drip_head_s=0.0005)
    for _ in range(2):
        process = UpdateProcess(board.job("ssd", "1.0"))
        ends = time.monotonic() + chance.uniform(0.1, 0.5)
        while time.monotonic() < ends and isinstance(process.poll(), steps.Working):
            time.sleep(0.002)
        process.stop()
        process._process.wait(60)  # until then it holds the lock, and nobody else gets in
    server.faults.clear()
    repository.add("ssd", "1.1", b"newer")
    assert isinstance(board.ask("ssd", "1.1"), Resolved)
