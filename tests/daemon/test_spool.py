"""The database gives back what was put in, finds sparse streams, and tells damage from trouble."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outbox_bench import STREAMS, TELEMETRY, record

from agent.daemon.outbox.records import ClockMark, GapNote, Record
from agent.daemon.outbox.spool import Spool
from agent.daemon.outbox.spool_rows import Row, pack, unpack
from agent.daemon.outbox.spool_survey import BLOCK_ROWS, Survey
from agent.daemon.outbox.spool_trouble import SpoolDamagedError, SpoolUnavailableError

NOTE = GapNote(stream=STREAMS[0], from_seq=3, to_seq=9, reason="queue_full")


@pytest.fixture
def spool(tmp_path: Path):
    spool = Spool(tmp_path / "outbox.db")
    spool.open()
    yield spool
    spool.close()


def insert(spool: Spool, *rows: Row) -> None:
    with spool.transaction():
        spool.insert(rows)


def surveyed(spool: Spool) -> Survey:
    survey = spool.read_head()
    assert not survey.streams
    for _ in spool.count_rows(survey):
        pass
    return survey


texts = st.text(max_size=30)
records = st.builds(
    Record,
    topic=texts,
    payload=st.binary(max_size=200),
    stream=texts,
    seq=st.integers(0, 2**53),
    is_telemetry=st.booleans(),
    clock=st.none() | st.builds(ClockMark, boot=texts, offset_s=st.floats(allow_nan=False)),
)


@settings(deadline=None)
@given(entry=records, row_id=st.integers(1, 2**53), skipped=st.integers(0, 2**40), data=st.data())
def test_a_row_is_what_was_packed_or_nothing(entry, row_id, skipped, data):
    row = Row(row_id, entry, skipped)
    fields = pack(row)
    assert unpack(fields) == row
    at = data.draw(st.integers(0, len(fields) - 1))
    other = data.draw(st.none() | st.integers(0, 5) | st.binary(max_size=5) | st.just(0.5))
    # SQLite tells an integer from a float as Python's == does not.
    spoiled = (*fields[:at], other, *fields[at + 1 :])
    if (type(other), other) != (type(fields[at]), fields[at]):
        assert unpack(spoiled) is None


def test_everything_is_found_again_after_closing(tmp_path, spool):
    rows = [Row(number, record(number), number % 2) for number in range(1, 11)]
    with spool.transaction():
        spool.insert(rows)
        spool.save_notes([NOTE], [])
        spool.save_floors({STREAMS[0]: 2})
    spool.close()
    again = Spool(spool.path)
    again.open()
    survey = surveyed(again)
    assert survey.notes == [NOTE]
    assert survey.floors == {STREAMS[0]: 2}
    assert (survey.next_id, survey.is_intact) == (11, True)
    [(key, found)] = survey.streams.items()
    assert (found.count, found.highest_seq, found.blocks) == (10, 10, [0])
    assert [row for _, row in again.read(key, 0, 100, 100, 1 << 20)[0]] == rows
    again.close()


def test_a_sparse_stream_is_found_by_its_blocks(spool):
    sparse = {5, BLOCK_ROWS * 3 + 1}
    insert(
        spool,
        *(Row(one, record(one, stream=STREAMS[one in sparse])) for one in range(1, BLOCK_ROWS * 4)),
    )
    found = surveyed(spool).streams[STREAMS[1], False]
    assert (found.count, found.blocks) == (2, [0, 3])
    assert found.highest_seq == max(sparse)


def test_a_transaction_that_fails_leaves_nothing(spool):
    row = Row(1, record(1))
    with pytest.raises(SpoolDamagedError, match="UNIQUE"):
        insert(spool, row, row)
    assert surveyed(spool).streams == {}


def test_a_fault_of_ours_is_not_taken_for_damage(spool):
    with pytest.raises(TypeError), spool.transaction():
        spool.insert([Row(1, Record(topic="t", payload=object()))])  # type: ignore[arg-type]


def test_notes_grow_and_go(spool):
    grown = GapNote(stream=NOTE.stream, from_seq=3, to_seq=30, reason=NOTE.reason)
    for note in (NOTE, grown):
        with spool.transaction():
            spool.save_notes([note], [])
    assert surveyed(spool).notes == [grown]
    with spool.transaction():
        spool.save_notes([], [grown.key])
    assert surveyed(spool).notes == []


def test_room_is_free_again_after_deleting(spool):
    assert spool.used_bytes() == 0
    insert(spool, *(Row(one, record(one, size=1000)) for one in range(1, 101)))
    assert 100_000 < spool.used_bytes() < 150_000
    with spool.transaction():
        spool.delete(range(1, 101))
    assert spool.used_bytes() == 0


def test_a_second_process_is_kept_out(spool):
    insert(spool, Row(1, record(1)))
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        sqlite3.connect(spool.path, timeout=0).execute("SELECT * FROM records")


def test_damage_and_trouble_are_told_apart(tmp_path):
    (tmp_path / "text").write_bytes(b"no database" * 100)
    with pytest.raises(SpoolDamagedError, match="not a database"):
        Spool(tmp_path / "text").open()
    with pytest.raises(SpoolDamagedError, match="folder"):
        Spool(tmp_path).open()
    with pytest.raises(SpoolUnavailableError, match="unable to open"):
        Spool(tmp_path / "nowhere" / "outbox.db").open()


def test_a_database_set_aside_takes_no_log_along_and_replaces_an_older_one(tmp_path):
    for _ in range(3):
        spool = Spool(tmp_path / "outbox.db")
        spool.open()
        insert(spool, Row(1, record(1, stream=TELEMETRY)))
        assert spool.set_aside() == tmp_path / "outbox.db.damaged-1"
        assert not spool.exists
    assert [one.name for one in tmp_path.iterdir()] == ["outbox.db.damaged-1"]


def test_of_large_rows_no_more_are_read_than_there_is_room_for(spool):
    insert(spool, *(Row(one, record(one, size=10_000)) for one in range(1, 101)))
    rows, is_all = spool.read((STREAMS[0], False), 0, 1024, 125, 25_000)
    assert ([row_id for row_id, _ in rows], is_all) == ([1, 2, 3], False)
    rows, is_all = spool.read((STREAMS[0], False), 97, 1024, 125, 1 << 20)
    assert ([row_id for row_id, _ in rows], is_all) == ([98, 99, 100], True)


def test_the_highest_number_is_that_of_the_last_whole_row(spool):
    insert(spool, *(Row(one, record(one)) for one in range(1, 11)))
    with spool.transaction():
        spool._open_connection().execute("UPDATE records SET payload=x'00' WHERE id>8")
    assert surveyed(spool).streams[STREAMS[0], False].highest_seq == 8


def test_rows_saved_since_the_survey_began_are_not_counted(spool):
    insert(spool, *(Row(one, record(one)) for one in range(1, BLOCK_ROWS * 2)))
    survey = spool.read_head()
    steps = spool.count_rows(survey)
    next(steps)
    insert(spool, Row(survey.next_id, record(99_999)))
    assert sum(1 for _ in steps) > 0
    found = survey.streams[STREAMS[0], False]
    assert (found.count, found.highest_seq) == (BLOCK_ROWS * 2 - 1, BLOCK_ROWS * 2 - 1)


@pytest.mark.parametrize("row_id", [2**53, 2**63 - 500, 2**63 - 1])
def test_an_impossible_id_is_damage(spool, row_id):
    insert(spool, Row(row_id, record(1)))
    with pytest.raises(SpoolDamagedError, match="impossible id"):
        spool.read_head()
    with pytest.raises(SpoolDamagedError, match="impossible"):
        insert(spool, Row(2**63, record(2)))


def test_a_write_that_proves_the_disk_reaches_it(spool):
    insert(spool, Row(1, record(1)))
    log = spool.path.with_name("outbox.db-wal")
    spool.cut_log()
    assert log.stat().st_size == 0
    with spool.transaction():
        spool.prove()
    assert log.stat().st_size > 0


def test_what_was_set_aside_is_measured_and_goes(tmp_path):
    spool = Spool(tmp_path / "outbox.db")
    assert spool.aside_bytes == 0
    for content in (b"1" * 5000, b"2" * 7000):
        spool.path.write_bytes(content)
        spool.set_aside()
    assert spool.aside_bytes == 7000
    spool.drop_aside()
    assert (spool.aside_bytes, list(tmp_path.iterdir())) == (0, [])
