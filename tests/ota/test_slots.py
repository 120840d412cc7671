"""The state's two files and the floors' third: what was written is read, or the one before: A25."""

from __future__ import annotations

import errno
import logging
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from ota.crash_disk import CrashDisk
from ota.watched_disk import WatchedDisk
from repeats import repeats

from agent.contract.updates import Desired, Floors
from agent.ota.checked import seal, unseal
from agent.ota.disk import RealDisk, read_bounded, remove_tree
from agent.ota.floors import FloorBook, FloorLog, book_of, highest
from agent.ota.slots import MOST_DENIED, STEP_BYTES, Slots
from agent.ota.state import (
    BundleRef,
    Denied,
    Deployment,
    EngineState,
    Order,
    ReleaseFloor,
    State,
)

REF = BundleRef(
    sha256="a" * 64,
    name="cats",
    version="1.2",
    release_counter=7,
    security_floor=3,
    manifest_sha256="b" * 64,
    p95_ms=40.5,
)
STATE = State(
    engines={"": EngineState(active=REF), "faces": EngineState()},
    deployment=Deployment(
        order=Order(desired=Desired(deployment_id="d1", counter=9), scope="group"),
        phase="probation",
        candidate=REF,
        message="mit Umlauten: äöü\n",
    ),
    counters={"": 9},
    floors=Floors(root_version=2, timestamp_version=40, time=1e9),
    releases={"cats": ReleaseFloor(release_counter=7, security_floor=3)},
)


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.CRITICAL)


def files(tmp_path):
    return [tmp_path / "update" / name for name in ("state.0", "state.1")]


def test_a_folder_that_was_removed_meanwhile_is_made_again(tmp_path):
    folder = tmp_path / "update"
    slots = Slots(folder)
    slots.write(STATE)
    remove_tree(RealDisk(), folder)
    kept = slots.write(replace(STATE, counters={"": 10}))
    assert slots.alarm is None
    assert Slots(folder).read() == kept


def test_a_board_that_was_never_written_to_has_an_empty_state_and_no_alarm(tmp_path):
    slots = Slots(tmp_path / "update")
    assert slots.read() == State()
    assert slots.alarm is None


def test_what_is_written_is_read_by_the_next_process(tmp_path):
    written = Slots(tmp_path / "update").write(STATE)
    assert written == replace(STATE, generation=1)
    slots = Slots(tmp_path / "update")
    assert slots.read() == written
    assert slots.alarm is None
    assert slots.write(STATE).generation == 2


def test_writes_take_turns_and_never_touch_the_newest(tmp_path):
    slots = Slots(tmp_path / "update")
    for counter in range(1, 8):
        before = [path.read_bytes() if path.exists() else b"" for path in files(tmp_path)]
        slots.write(replace(STATE, counters={"": counter}))
        after = [path.read_bytes() if path.exists() else b"" for path in files(tmp_path)]
        changed = [at for at in (0, 1) if before[at] != after[at]]
        assert changed == [(counter - 1) % 2]
        assert len(after[changed[0]]) == STEP_BYTES


def test_a_damaged_newest_gives_the_state_before_and_its_floors_stay(tmp_path):
    slots = Slots(tmp_path / "update")
    slots.write(STATE)
    raised = replace(STATE, floors=replace(STATE.floors, timestamp_version=99))
    slots.write(replace(raised, engines={}))
    newest = files(tmp_path)[1]
    newest.write_bytes(newest.read_bytes().replace(b"cats", b"cots"))
    slots = Slots(tmp_path / "update")
    state = slots.read()
    assert state.engines == STATE.engines  # whole, and the one before
    assert state.floors.timestamp_version == 99  # of the third file
    assert slots.alarm is None
    assert slots.write(state).generation == 2  # over the damaged one
    assert Slots(tmp_path / "update").read().engines == STATE.engines


@pytest.mark.parametrize("damage", ["flip", "empty", "zeros", "cut", "folder", "random", "gone"])
def test_both_damaged_gives_a_new_state_an_alarm_and_all_floors(tmp_path, damage):
    slots = Slots(tmp_path / "update")
    for _ in range(2):
        slots.write(STATE)
    for path in files(tmp_path):
        data = path.read_bytes()
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage != "gone":
            path.write_bytes(
                {
                    "flip": data[:200] + bytes([data[200] ^ 4]) + data[201:],
                    "empty": b"",
                    "zeros": bytes(len(data)),
                    "cut": data[:300],
                    "random": bytes(range(256)) * 16,
                }[damage]
            )
    slots = Slots(tmp_path / "update")
    state = slots.read()
    assert (state.engines, state.deployment, state.generation) == ({}, None, 0)
    assert book_of(state) == book_of(STATE)
    assert "lost" in slots.alarm
    assert "factory" in slots.alarm
    if damage != "folder":
        slots.write(state)
        # Both are new: a fault that passes must not bring back what is out of date.
        assert [unseal("state", path.read_bytes())[0] for path in files(tmp_path)] == [1, 2]
        assert Slots(tmp_path / "update").alarm is None


def test_all_three_damaged_is_said(tmp_path):
    slots = Slots(tmp_path / "update")
    for _ in range(2):
        slots.write(STATE)
    for path in (*files(tmp_path), tmp_path / "update" / "floors.log"):
        path.write_bytes(b"edge-agent-state-1 1 2 00000000\n{}")
    slots = Slots(tmp_path / "update")
    assert slots.read() == State()
    assert "lost as well" in slots.alarm


def test_floors_are_never_lowered_by_what_is_written(tmp_path):
    slots = Slots(tmp_path / "update")
    slots.write(STATE)
    written = slots.write(State())
    assert book_of(written) == book_of(STATE)
    assert written.engines == {}


def test_a_newer_root_may_begin_its_versions_anew(tmp_path):
    slots = Slots(tmp_path / "update")
    slots.write(replace(STATE, floors=Floors(root_version=2, timestamp_version=2**31, time=5.0)))
    rotated = Floors(root_version=3, timestamp_version=41, time=4.0)
    assert slots.write(replace(STATE, floors=rotated)).floors == replace(rotated, time=5.0)
    for path in files(tmp_path):
        path.unlink()
    assert Slots(tmp_path / "update").read().floors == replace(rotated, time=5.0)


def test_a_state_that_could_not_be_read_again_is_not_written(tmp_path):
    slots = Slots(tmp_path / "update")
    kept = slots.write(STATE)
    with pytest.raises(ValueError, match="read again"):
        slots.write(replace(STATE, engines={"": EngineState(active="cats")}))
    with pytest.raises(OSError, match="large"):
        slots.write(replace(STATE, counters={"x" * 1000 + str(at): at for at in range(2000)}))
    assert Slots(tmp_path / "update").read() == kept


def test_the_list_of_denied_bundles_is_bounded(tmp_path):
    denied = tuple(
        Denied(sha256=f"{at:064x}", deployment_id=f"d{at}", code="E_HANG") for at in range(100)
    )
    written = Slots(tmp_path / "update").write(State(engines={"": EngineState(denied=denied)}))
    assert written.engines[""].denied == denied[-MOST_DENIED:]


def test_a_state_of_a_later_version_is_read_as_far_as_it_is_known(tmp_path):
    folder = tmp_path / "update"
    folder.mkdir()
    (folder / "state.0").write_bytes(seal("state", 5, b'{"generation":5,"new":1}'))
    assert Slots(folder).read() == State(generation=5)
    (folder / "state.1").write_bytes(seal("state", 6, b'{"engines":7}'))
    assert Slots(folder).read() == State(generation=5)


def failing(inner, names, code, *, count=1000):
    left = [count]

    def before(name, path, part):
        if name in names and left[0]:
            left[0] -= 1
            raise OSError(code, "injected", str(path))

    return WatchedDisk(inner, before)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("name", ["open", "write", "fsync", "fsync folder"])
def test_a_write_that_fails_promises_nothing_and_may_be_repeated(tmp_path, name, code):
    folder = tmp_path / "update"
    kept = Slots(folder).write(STATE)
    slots = Slots(folder, disk=failing(RealDisk(), (name,), code))
    assert slots.read() == kept  # whatever the disk says
    assert "cannot be written" in slots.alarm
    with pytest.raises(OSError, match="injected"):
        slots.write(State())
    assert slots.read() == kept
    assert Slots(folder).read().generation == 1
    # The disk recovers.
    slots._disk = RealDisk()
    slots._floors._disk = RealDisk()
    assert slots.write(State()).generation == 2
    assert slots.alarm is None


def test_after_a_failed_wait_the_other_file_is_left_alone():
    """What reads as written may never have reached the disk: see fsync(2), and errors of it."""
    disk = CrashDisk()
    folder = Path("/s/update")
    disk.make_folder(folder)
    for _ in range(2):
        Slots(folder, disk).write(STATE)
    slots = Slots(folder, disk)
    slots.read()
    slots._disk = failing(disk, ("fsync",), errno.EIO, count=1)
    with pytest.raises(OSError, match="injected"):
        slots.write(State())
    opened = []
    slots._disk = WatchedDisk(disk, lambda name, path, _: opened.append((name, path.name)))
    slots.write(State())
    assert [name for kind, name in opened if kind == "write"][:1] == ["state.0"]  # once more


def test_what_a_killed_process_did_not_wait_for_is_waited_for_before_it_is_built_upon():
    disk = CrashDisk()
    folder = Path("/s/update")
    disk.make_folder(folder.parent)
    disk.sync_folder(Path("/"))
    Slots(folder, disk).write(STATE)

    class KilledError(Exception):
        pass

    def before(name, path, part):
        if name == "fsync" and path.name == "state.1":
            raise KilledError

    with pytest.raises(KilledError):
        Slots(folder, WatchedDisk(disk, before)).write(replace(STATE, engines={}))
    seen = Slots(folder, disk).read()  # a new process, the same memory of the kernel
    assert seen.engines == {}

    for after in disk.after_power_cuts(200, random.Random(1)):
        assert Slots(folder, after).read() == seen


# The floors' own file.

numbers = st.integers(0, 2**40)
floors = st.builds(
    Floors,
    root_version=st.integers(0, 3),
    timestamp_version=numbers,
    snapshot_version=numbers,
    targets_version=numbers,
    time=st.floats(0, 1e10),
)
releases = st.dictionaries(
    st.sampled_from(["cats", "dogs", "faces"]),
    st.builds(ReleaseFloor, release_counter=numbers, security_floor=numbers),
)
books = st.builds(
    FloorBook,
    floors=floors,
    releases=releases,
    counters=st.dictionaries(st.sampled_from(["", "b"]), numbers),
)


@given(books, books, books)
def test_books_join_in_any_order(one, two, three):
    assert highest(one, two) == highest(two, one)
    assert highest(highest(one, two), three) == highest(one, highest(two, three))
    assert highest(one, one) == one
    both = highest(one, two)
    assert both.floors.time == max(one.floors.time, two.floors.time)
    assert both.floors.root_version == max(one.floors.root_version, two.floors.root_version)
    for name in both.releases:
        each = [book.releases[name] for book in (one, two) if name in book.releases]
        assert both.releases[name].security_floor == max(floor.security_floor for floor in each)


@settings(max_examples=repeats(30, 200))
@given(st.lists(books, min_size=1, max_size=8), st.data())
def test_a_record_that_is_damaged_takes_no_other_with_it(kept, data):
    disk = CrashDisk()
    path = Path("/floors.log")
    sink = disk.sink(path, "new")
    log = FloorLog(path, disk)
    records, size = [], 0
    for book in kept:
        log.keep(book)
        if disk.size(path) > size:
            records.append((size, disk.size(path), log.kept))
            size = disk.size(path)
    content = bytearray(read_bounded(disk, path, 1 << 20))
    start, end = sorted(data.draw(st.lists(st.integers(0, size), min_size=2, max_size=2)))
    content[start:end] = data.draw(st.binary(min_size=end - start, max_size=end - start))
    sink.write(bytes(content))
    expected = FloorBook()
    for begin, stop, book in records:
        if stop <= start or begin >= end:
            expected = highest(expected, book)
    found = FloorLog(path, disk).read()
    assert highest(found, expected) == found
    again = FloorLog(path, disk)
    again.read()
    again.keep(FloorBook(counters={"": 2**41}))  # goes on, whatever half a line is there
    assert FloorLog(path, disk).read().counters[""] == 2**41


def test_the_file_is_written_anew_when_it_has_grown(tmp_path):
    log = FloorLog(tmp_path / "floors.log", RealDisk())
    sizes = []
    for number in range(1, 1000):
        log.keep(FloorBook(floors=Floors(timestamp_version=number)))
        sizes.append((tmp_path / "floors.log").stat().st_size)
    assert max(sizes) < 66_000
    assert sizes.index(max(sizes)) < 900
    assert FloorLog(tmp_path / "floors.log", RealDisk()).read().floors.timestamp_version == 999
    assert [path.name for path in tmp_path.iterdir()] == ["floors.log"]


def test_what_says_nothing_new_is_not_written(tmp_path):
    log = FloorLog(tmp_path / "floors.log", RealDisk())
    log.keep(book_of(STATE))
    before = (tmp_path / "floors.log").read_bytes()
    log.keep(FloorBook(floors=Floors(root_version=2, timestamp_version=3)))
    assert (tmp_path / "floors.log").read_bytes() == before


@given(st.binary(max_size=2000), st.integers(0, 10**18), st.data())
def test_a_record_is_whole_or_none(content, number, data):
    record = seal("state", number, content)
    assert unseal("state", record + b"\n\n") == (number, content)
    assert unseal("floors", record) is None
    at = data.draw(st.integers(0, len(record) - 1))
    assert unseal("state", record[:at]) is None
    flipped = bytearray(record)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    assert unseal("state", bytes(flipped)) in (None, (number, content))


@given(st.binary(max_size=300))
def test_bytes_that_are_no_record_are_none(junk):
    assert unseal("state", junk) is None
    assert unseal("state", b"edge-agent-state-1 " + junk) is None
