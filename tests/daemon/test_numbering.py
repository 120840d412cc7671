"""Numbers go on over restarts, are never given twice, and cost a write in thousands."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from agent.daemon.outbox.numbering import BLOCK, Numbering, Numbers, unnamed
from agent.durable import write_durably

STREAM = "camera/door/detections"


def loaded(path: Path) -> Numbering:
    numbering = Numbering(path)
    numbering.load()
    return numbering


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "seq.json"


def test_a_run_that_ended_suddenly_leaves_its_whole_block_unused(path):
    numbering = loaded(path)
    assert numbering.begin(STREAM, 0) == 1
    numbering.save(numbering.to_save())
    again = loaded(path)
    assert again.left == {STREAM: Numbers(end=BLOCK, done=0, kept=None)}
    assert again.begin(STREAM, 0) == BLOCK + 1


def test_a_run_that_was_closed_is_continued_exactly(path):
    numbering = loaded(path)
    numbering.begin(STREAM, 0)
    numbering.end(STREAM, 7, 5, 7, 0)
    numbering.save(numbering.to_save())
    assert loaded(path).begin(STREAM, 0) == 8


def test_the_next_block_is_reserved_when_half_of_this_one_is_used(path):
    numbering = loaded(path)
    numbering.begin(STREAM, 0)
    numbering.save(numbering.to_save())
    numbering.use(STREAM, BLOCK // 2, 0)
    assert numbering.is_saved
    numbering.use(STREAM, BLOCK // 2 + 1, 4000)
    assert not numbering.is_saved
    numbering.save(numbering.to_save())
    assert loaded(path).left[STREAM].end > BLOCK
    assert loaded(path).left[STREAM].done == 4000


def test_what_the_database_knows_beyond_the_file_is_not_given_again(path):
    assert loaded(path).begin(STREAM, 123) == 124


def test_a_stream_that_begins_before_the_file_is_read_never_falls_behind_it(path):
    earlier = loaded(path)
    earlier.begin(STREAM, 50_000)
    earlier.save(earlier.to_save())
    late = Numbering(path, wall_clock=lambda: 1_800_000_000.0)
    assert late.begin(STREAM, 0) == 1_800_000_000_000
    late.load()
    late.save(late.to_save())
    assert loaded(path).begin(STREAM, 0) > 1_800_000_000_000


def test_a_stream_that_began_with_a_clock_that_was_behind_goes_on_behind_the_file(path):
    earlier = loaded(path)
    earlier.begin(STREAM, 50_000)
    earlier.save(earlier.to_save())
    late = Numbering(path, wall_clock=lambda: 1.0)
    late.begin(STREAM, 0)
    late.load()
    assert late.to_save()[STREAM].end == 50_000 + 2 * BLOCK


@pytest.mark.parametrize("seed", range(50))
def test_a_damaged_file_is_set_aside_and_its_copy_used(path, seed):
    dice = random.Random(seed)
    numbering = loaded(path)
    numbering.begin(STREAM, dice.randrange(10**9))
    numbering.save(numbering.to_save())
    first = numbering.left.get(STREAM) or numbering.to_save()[STREAM]
    content = bytearray(path.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)
    again = loaded(path)
    assert "numbering goes on from its copy" in again.damage[0]
    assert path.with_name("seq.json.damaged").exists()
    assert again.begin(STREAM, 0) > first.end


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"[1]", b'{"version":1}'])
def test_without_a_copy_numbering_starts_behind_what_the_database_knows(path, content):
    path.write_bytes(content)
    numbering = loaded(path)
    assert "numbers may repeat" in numbering.damage[0]
    assert numbering.begin(STREAM, 41) == 42


def test_a_file_that_is_gone_is_replaced_by_its_copy(path):
    numbering = loaded(path)
    numbering.begin(STREAM, 0)
    numbering.save(numbering.to_save())
    path.unlink()
    assert loaded(path).begin(STREAM, 0) > BLOCK


def test_a_failed_write_leaves_the_old_file_and_no_other(path, monkeypatch):
    write_durably(path, b"old")

    def no_space(number: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="no space"):
        write_durably(path, b"new")
    assert [one.name for one in path.parent.iterdir()] == ["seq.json"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("left", "accounted", "has_notes", "expected"),
    [
        (Numbers(end=100, done=0, kept=None), 40, True, (41, 100, "restart")),
        (Numbers(end=100, done=0, kept=None), 100, True, None),
        (Numbers(end=100, done=0, kept=50), 40, True, (41, 50, "damaged")),
        (Numbers(end=100, done=0, kept=40), 40, True, None),
        (Numbers(end=100, done=0, kept=40, noted=60), 40, True, None),
        (Numbers(end=100, done=0, kept=40, noted=60), 40, False, (41, 60, "damaged")),
        (Numbers(end=100, done=0, kept=50, noted=45), 40, False, (41, 50, "damaged")),
    ],
)
def test_what_the_run_before_leaves_nothing_of_is_named(left, accounted, has_notes, expected):
    note = unnamed(STREAM, left, accounted, has_notes=has_notes)
    assert (note and (note.from_seq, note.to_seq, note.reason)) == expected
