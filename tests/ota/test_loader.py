"""Which model a start finds: whatever is damaged, the next one; what heals a board of none: A25."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from ota.plain_bundle import plain_bundle, unpack_plain
from ota.update_run import Board, order, ready_made
from ota.watched_disk import WatchedDisk
from repeats import repeats

from agent.ota.disk import RealDisk
from agent.ota.loader import choose
from agent.ota.slots import Slots
from agent.ota.state import Deployment, EngineState, Order, State
from agent.ota.store import Store

PROJECT = Path(__file__).resolve().parents[2]
BUNDLES = {name: plain_bundle(at) for at, name in enumerate(["active", "previous", "candidate"], 1)}


@pytest.fixture
def folder(tmp_path):
    ready_made(RealDisk(), tmp_path / "state", tmp_path / "factory")
    return tmp_path


@pytest.fixture
def store(folder):
    return Store(folder / "state" / "models", unpack=unpack_plain)


@pytest.fixture
def refs(store):
    found = {}
    for name, bundle in BUNDLES.items():
        part = store.part(bundle.ref.sha256)
        part.write_bytes(bundle.data)
        found[name] = store.put(part, bundle.ref)
    return found


@pytest.fixture
def state(refs):
    return State(
        engines={"": EngineState(active=refs["active"], previous=refs["previous"])},
        deployment=Deployment(
            order=Order(desired=order(9, "1.3"), scope="device"),
            phase="trial",
            candidate=refs["candidate"],
            attempts=1,
        ),
    )


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def test_the_candidate_is_first_while_it_is_on_trial(state, store, refs, folder):
    for phase in ("trial", "probation"):
        on_trial = replace(state, deployment=replace(state.deployment, phase=phase))
        choice = choose(on_trial, store, "", folder / "factory")
        assert (choice.source, choice.ref, choice.why) == ("candidate", refs["candidate"], ())
        assert choice.path == store.path(refs["candidate"])
        assert choice.manifest_sha256 == refs["candidate"].manifest_sha256
    for phase in ("verify", "selftest", "shadow", "committed", "rolled_back", "refused"):
        other = replace(state, deployment=replace(state.deployment, phase=phase))
        assert choose(other, store, "", folder / "factory").source == "active"


def test_a_trial_that_could_not_be_counted_is_none(state, store, folder):
    choice = choose(state, store, "", folder / "factory", may_try=False)
    assert choice.source == "active"
    assert "counted" in choice.why[0]


def test_another_engines_trial_is_none_of_ours(state, store, folder):
    assert choose(state, store, "faces", folder / "factory").source == "factory"


def test_a_flipped_bit_leads_one_step_back_each_time(state, store, refs, folder):
    """The active model's bit, then the one before, then the factory's: each is said."""
    steps = ["candidate", "active", "previous"]
    for at, source in enumerate(steps):
        choice = choose(state, store, "", folder / "factory")
        assert choice.source == source
        assert len(choice.why) == at
        spoil(store.path(refs[source]) / "model.tflite")
    choice = choose(state, store, "", folder / "factory")
    assert (choice.source, choice.path) == ("factory", folder / "factory")
    assert [words.split()[0] for words in choice.why] == steps
    assert all("is not the file it was" in words for words in choice.why)
    spoil(folder / "factory" / "model.tflite")
    choice = choose(state, store, "", folder / "factory")
    assert (choice.source, choice.path, choice.ref) == ("none", None, None)
    assert choice.why[3].startswith("factory: ")


def test_a_board_that_was_ordered_back_to_the_factory_starts_there(store, refs, folder):
    state = State(engines={"": EngineState(active=None, previous=refs["previous"])})
    assert choose(state, store, "", folder / "factory").source == "factory"
    # Rather any model than none.
    choice = choose(state, store, "", None)
    assert (choice.source, choice.why) == ("previous", ("factory: there is none",))


def test_the_factorys_model_may_be_on_trial(state, store, folder):
    back = replace(state, deployment=replace(state.deployment, candidate=None))
    assert choose(back, store, "", folder / "factory").source == "factory"
    assert choose(back, store, "", None).source == "active"


def test_the_shipped_model_is_whole(store):
    choice = choose(State(), store, "", PROJECT / "models" / "default")
    assert (choice.source, choice.manifest_sha256, choice.why) == ("factory", "", ())


def test_a_bare_file_may_be_the_factorys_model(store, tmp_path):
    bare = tmp_path / "own.tflite"
    assert choose(State(), store, "", bare).source == "none"
    bare.write_bytes(b"")
    assert "empty" in choose(State(), store, "", bare).why[0]
    bare.write_bytes(b"TFL3")
    assert choose(State(), store, "", bare).path == bare


@pytest.mark.parametrize(
    "manifest",
    [None, b"", b"{", b"[" * 100_000, b"\xff", json.dumps({"files": {"x": {}}}).encode()],
)
def test_a_factory_folder_without_a_readable_manifest_is_no_model(store, folder, manifest):
    path = folder / "factory" / "manifest.json"
    path.unlink()
    if manifest is not None:
        path.write_bytes(manifest)
    choice = choose(State(), store, "", folder / "factory")
    assert choice.source == "none"
    assert "manifest.json" in choice.why[0]


def test_a_store_that_is_gone_is_no_reason_to_stop(state, tmp_path, folder):
    nowhere = Store(tmp_path / "nowhere", unpack=unpack_plain)
    choice = choose(state, nowhere, "", folder / "factory")
    assert choice.source == "factory"
    assert len(choice.why) == 3


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), MemoryError(), RuntimeError("?")]
)
def test_nothing_that_reading_does_escapes(state, folder, error):
    def before(name, path, part):
        raise error

    broken = WatchedDisk(RealDisk(), before)
    store = Store(folder / "state" / "models", broken, unpack_plain)
    choice = choose(state, store, "", folder / "factory", disk=broken)
    assert choice.source == "none"
    assert len(choice.why) == 4


@settings(max_examples=repeats(15, 200))
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["candidate", "active", "previous"]),
            st.integers(0, 99_999),
            st.binary(max_size=40),
        ),
        max_size=4,
    )
)
def test_what_is_chosen_is_whole_whatever_was_written_into_the_store(tmp_path_factory, damage):
    tmp_path = tmp_path_factory.mktemp("board")
    ready_made(RealDisk(), tmp_path / "state", tmp_path / "factory")
    store = Store(tmp_path / "models", unpack=unpack_plain)
    found = {}
    for name, bundle in BUNDLES.items():
        part = store.part(bundle.ref.sha256)
        part.write_bytes(bundle.data)
        found[name] = store.put(part, bundle.ref)
    for name, at, junk in damage:
        files = sorted(store.path(found[name]).iterdir())
        path = files[at % len(files)]
        data = bytearray(path.read_bytes())
        data[at % len(data) : at % len(data) + len(junk)] = junk
        path.write_bytes(data)
    state = State(
        engines={"": EngineState(active=found["active"], previous=found["previous"])},
        deployment=Deployment(
            order=Order(desired=order(9, "1.3"), scope="device"),
            phase="trial",
            candidate=found["candidate"],
        ),
    )
    choice = choose(state, store, "", tmp_path / "factory")
    assert choice.source != "none"
    if choice.ref is not None:
        manifest = (choice.path / "manifest.json").read_bytes()
        assert hashlib.sha256(manifest).hexdigest() == choice.manifest_sha256
        for name, entry in json.loads(manifest)["files"].items():
            data = (choice.path / name).read_bytes()
            assert hashlib.sha256(data).hexdigest() == entry["sha256"]


def test_a_board_with_nothing_left_is_healed_by_an_update(folder):
    """Both state files, both models and the factory's damaged; then an order comes."""
    state_dir, factory = folder / "state", folder / "factory"
    board = Board(RealDisk(), state_dir=state_dir, factory=factory)
    board.run(("1.1", "1.2"))
    for path in [*(state_dir / "models").rglob("model.tflite"), factory / "model.tflite"]:
        spoil(path)
    board = Board(RealDisk(), state_dir=state_dir, factory=factory)
    assert board.choose().source == "none"
    assert len(board.choose().why) == 3
    for name in ("state.0", "state.1"):
        spoil_state(state_dir / "update" / name)
    (factory / "model.tflite").unlink()
    board = Board(RealDisk(), state_dir=state_dir, factory=factory)
    assert board.choose().source == "none"
    assert "lost" in board.slots.alarm
    assert board.state.counters == {"": 2}  # older orders are replays still
    assert board.state.releases["cats"].release_counter == 2
    # The order that is retained is older; a new one, for what lies here damaged, heals it.
    board.run(("1.1", "1.2", "1.2"))
    assert board.choose().source == "active"
    again = Board(RealDisk(), state_dir=state_dir, factory=factory)
    assert again.choose().ref.version == "1.2"
    assert again.slots.alarm is None
    assert Slots(state_dir / "update").read() == again.state


def spoil_state(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
