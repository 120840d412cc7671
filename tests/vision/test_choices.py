"""What was measured is remembered, whatever happens to the file it is kept in."""

import fcntl
import json
import multiprocessing
import os
import signal
import stat
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import choices
from agent.choices import MAX_CHOICES, Candidate, Choice, add_choices, most_threads, read_choices

KEY = "0" * 64


def candidate(**changes):
    usual = {"runtime": "litert 2.3.0", "xnnpack": True, "threads": 2, "invoke_ms": 12.5}
    return Candidate(**{**usual, **changes})


def choice(at=1.0, **changes):
    usual = {
        "runtime": "litert",
        "xnnpack": True,
        "threads": 2,
        "invoke_ms": 12.5,
        "candidates": (candidate(), candidate(threads=1, invoke_ms=24.6)),
        "measured_at": at,
    }
    return Choice(**{**usual, **changes})


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "state" / "choices.json"
    add_choices(path, {KEY: choice()})
    assert read_choices(path) == {KEY: choice()}
    assert list(path.parent.iterdir()) == [path]


def test_only_the_newest_are_kept(tmp_path):
    path = tmp_path / "choices.json"
    add_choices(path, {f"{at:064x}": choice(at) for at in range(MAX_CHOICES + 10)})
    kept = read_choices(path)
    assert len(kept) == MAX_CHOICES
    assert min(one.measured_at for one in kept.values()) == 10


def test_no_file_is_no_warning(tmp_path, caplog):
    assert read_choices(tmp_path / "choices.json") == {}
    assert not caplog.records


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'{"a"',
        b"\xff\xfe",
        b'{"' + KEY.encode() + b'": {}}',
        b"[" * 100_000,
        b'{"'
        + KEY.encode()
        + b'": '
        + msgspec.json.encode(choice()).replace(b"12.5", b"1e999")
        + b"}",
        b'{"' + KEY.encode() + b'": ' + msgspec.json.encode(choice()).replace(b"2,", b"-2,") + b"}",
        b" " * (choices.MAX_FILE_BYTES + 1),
    ],
    ids=lambda content: repr(content[:20]),
)
def test_damaged_file_counts_as_empty(tmp_path, caplog, content):
    path = tmp_path / "choices.json"
    path.write_bytes(content)
    assert read_choices(path) == {}
    assert str(path) in caplog.text
    add_choices(path, {KEY: choice()})
    assert read_choices(path) == {KEY: choice()}


@given(st.binary(max_size=200), st.integers(0, 600), st.integers(0, 255))
def test_any_damage_gives_choices_or_none(tmp_path_factory, tail, at, byte):
    path = tmp_path_factory.mktemp("state") / "choices.json"
    data = bytearray(msgspec.json.encode({KEY: choice()}))
    data[at % len(data)] = byte
    path.write_bytes(bytes(data) + tail)
    for key, one in read_choices(path).items():
        assert len(key) == 64
        assert one.threads >= 1
        assert one.describe()


def test_keys_that_are_no_hashes_are_forgotten(tmp_path):
    path = tmp_path / "choices.json"
    path.write_bytes(msgspec.json.encode({"../../etc": choice(), KEY: choice()}))
    assert list(read_choices(path)) == [KEY]


def test_folder_in_its_place_is_said(tmp_path, caplog):
    assert read_choices(tmp_path) == {}
    assert "Is a directory" in caplog.text
    with pytest.raises(OSError, match="directory"):
        add_choices(tmp_path, {})
    assert not list(tmp_path.parent.glob("*.new"))


def test_pipe_in_its_place_does_not_block(tmp_path, caplog):
    path = tmp_path / "choices.json"
    os.mkfifo(path)

    def hangs(*_):
        raise AssertionError("it waits for somebody to write")

    old = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(10)
    try:
        assert read_choices(path) == {}
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    assert "it is no regular file" in caplog.text
    add_choices(path, {KEY: choice()})
    assert read_choices(path) == {KEY: choice()}


@pytest.mark.parametrize(
    "bad",
    [
        b"{}",
        b"null",
        b"[" * 100 + b"]" * 100,
        msgspec.json.encode(choice()).replace(b'"threads":2', b'"threads":-2'),
        msgspec.json.encode(choice()).replace(b"12.5", b"1e999"),
        msgspec.json.encode(choice()).replace(b"2.3.0", b"\xff"),
    ],
    ids=["empty", "null", "deep", "threads", "infinite", "no text"],
)
def test_bad_record_takes_no_other_with_it(tmp_path, caplog, bad):
    path, first, last = tmp_path / "choices.json", "1" * 64, "2" * 64
    good = msgspec.json.encode(choice())
    records = b",".join(
        b'"%s":%s' % (key.encode(), record)
        for key, record in [(first, good), (KEY, bad), ("3" * 64, bad), (last, good)]
    )
    path.write_bytes(b"{" + records + b"}")
    assert read_choices(path) == {first: choice(), last: choice()}
    [warning] = caplog.records
    assert "number=2 of=4" in warning.getMessage()


def test_date_to_come_does_not_outlive_all_others(tmp_path):
    path = tmp_path / "choices.json"
    ahead, soon = time.time() + 400 * 86_400, time.time() + 3600
    records = {KEY: choice(ahead), "1" * 64: choice(soon)}
    path.write_bytes(msgspec.json.encode(records))
    read = read_choices(path)
    assert read[KEY].measured_at == 0.0
    assert read["1" * 64].measured_at == soon
    add_choices(path, {f"a{number:063x}": choice(number) for number in range(1, MAX_CHOICES)})
    kept = read_choices(path)
    assert len(kept) == MAX_CHOICES
    assert KEY not in kept


def test_of_one_key_the_newest_is_kept(tmp_path):
    path = tmp_path / "choices.json"
    add_choices(path, {KEY: choice(2.0), "1" * 64: choice(2.0)})
    kept = add_choices(path, {KEY: choice(1.0), "1" * 64: choice(3.0)})
    assert kept == read_choices(path) == {KEY: choice(2.0), "1" * 64: choice(3.0)}


def _add(path, first):
    for at in range(first, first + 12):
        add_choices(path, {f"{at:064x}": choice(at)})


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / "choices.json"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_add, args=(path, 100 * number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len(json.loads(path.read_bytes())) == 36
    assert list(tmp_path.iterdir()) == [path]


def _die_half_way(path):
    os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    add_choices(path, {KEY: choice()})


def test_what_a_killed_writer_leaves_is_cleared_away(tmp_path):
    path = tmp_path / "choices.json"
    for _ in range(2):
        writer = multiprocessing.get_context("spawn").Process(target=_die_half_way, args=(path,))
        writer.start()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
    [unfinished] = tmp_path.iterdir()
    unfinished.chmod(0)  # another user's
    add_choices(path, {KEY: choice()})
    assert list(tmp_path.iterdir()) == [path]


def test_link_in_place_of_the_unfinished_file_is_not_followed(tmp_path):
    path, other = tmp_path / "choices.json", tmp_path / "other"
    other.write_text("mine")
    (tmp_path / "choices.json.new").symlink_to(other)
    add_choices(path, {KEY: choice()})
    assert other.read_text() == "mine"


def test_writer_that_never_ends_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(choices, "LOCK_WITHIN_S", 0.0)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="another process has it locked"):
            add_choices(tmp_path / "choices.json", {KEY: choice()})
    finally:
        os.close(folder)
    add_choices(tmp_path / "choices.json", {KEY: choice()})


def test_disk_that_takes_nothing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "choices.json"
    add_choices(path, {KEY: choice()})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        add_choices(path, {})
    assert read_choices(path) == {KEY: choice()}
    assert list(tmp_path.iterdir()) == [path]


def test_file_is_on_disk_before_it_takes_the_old_one_s_place(tmp_path, monkeypatch):
    steps = []
    real_fsync, real_replace = os.fsync, choices.Path.replace

    def fsync(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append("fsync folder" if is_folder else "fsync file")
        real_fsync(descriptor)

    def replace(self, target):
        steps.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(choices.Path, "replace", replace)
    add_choices(tmp_path / "choices.json", {KEY: choice()})
    assert steps == ["fsync file", "rename", "fsync folder"]


def test_description_names_the_choice_and_what_was_tried():
    tried = choice(
        candidates=(
            candidate(),
            candidate(threads=1, invoke_ms=24.6),
            candidate(xnnpack=False, threads=1, invoke_ms=80.0),
            candidate(runtime="tflite-runtime 2.14.0", invoke_ms=None, refused="it crashed"),
        )
    )
    assert tried.describe() == (
        "litert 2.3.0, XNNPACK, 2 threads: 12.5 ms (tried: 1 thread: 24.6 ms; "
        "without XNNPACK, 1 thread: 80 ms; tflite-runtime 2.14.0: it crashed)"
    )


def test_description_of_what_was_not_measured():
    told = choice(candidates=(), invoke_ms=None, threads=1, xnnpack=False)
    assert told.describe() == "litert, without XNNPACK, 1 thread"


@pytest.mark.parametrize(
    ("cores", "engines", "threads"),
    [(1, 1, 1), (2, 1, 2), (4, 1, 4), (4, 2, 2), (8, 1, 4), (4, 9, 1)],
)
def test_cores_are_shared_among_engines(monkeypatch, cores, engines, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert most_threads(engines) == threads
