"""Metadata with bytes changed, cut and exchanged: refused with a code, and never by accident."""

import copy
import functools
import tempfile
from pathlib import Path

import msgspec
import pytest
from asking import Board
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from repeats import repeats
from repository_simulator import Repository

from agent.ota.jobs import Resolved
from agent.ota.process import Resolution
from agent.ota.refusal import RefusalError
from agent.ota.transport import StatusError

NAMES = ("2.root", "timestamp", "2.snapshot", "2.targets")
CODES = {"E_SIG", "E_HASH", "E_JSON", "E_SIZE", "E_ROLLBACK", "E_FREEZE", "E_NET", "E_DESIRED"}


class Shelf:
    """A transport of what is in memory."""

    name = "shelf:"

    def __init__(self, files):
        self.files = files

    def open(self, path, *, offset=0, tag=None):
        if path not in self.files:
            raise StatusError(404, f"{self.name}{path}")
        return Pieces(self.files[path])

    def close(self):
        pass


class Pieces:
    start, tag = 0, None

    def __init__(self, content):
        self.total = len(content)
        self._content = content

    def read(self, most):
        taken, self._content = self._content[:most], self._content[most:]
        return taken

    def close(self):
        pass


@functools.cache
def made():
    repository = Repository()
    repository.publish_root()
    repository.add("ssd", "1.0", b"bundle")
    return repository


def asked(files, folder=None):
    with tempfile.TemporaryDirectory() as temporary:
        board = Board(Path(folder or temporary), made(), "shelf:")
        return Resolution(board.job("ssd", "1.0"), lambda url: Shelf(files)).run()


def test_unchanged():
    assert isinstance(asked(made().files), Resolved)


changes = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 10_000), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.integers(0, 10_000), st.just(0)),
    st.tuples(st.just("insert"), st.integers(0, 10_000), st.integers(0, 255)),
    st.tuples(st.just("double"), st.integers(0, 10_000), st.integers(1, 200)),
)


def changed(content, change):
    kind, at, what = change
    at %= len(content)
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ what]) + content[at + 1 :]
    if kind == "cut":
        return content[:at]
    if kind == "insert":
        return content[:at] + bytes([what]) + content[at:]
    return content[: at + what] + content[at:]


@settings(max_examples=repeats(40, 1000), suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(NAMES), change=changes)
def test_one_file_changed(name, change):
    files = dict(made().files)
    path = f"metadata/{name}.json"
    files[path] = changed(files[path], change)
    said = asked(files)
    if isinstance(said, Resolved):
        # Nothing but what no signature covers: space, or a root that counts as not there.
        assert said.target == asked(made().files).target
    else:
        assert said.code in CODES, said
        assert not said.is_final


@settings(max_examples=repeats(20, 200), suppress_health_check=[HealthCheck.too_slow])
@given(mapping=st.permutations(NAMES))
def test_files_exchanged(mapping):
    files = dict(made().files)
    for name, other in zip(NAMES, mapping, strict=True):
        files[f"metadata/{name}.json"] = made().files[f"metadata/{other}.json"]
    said = asked(files)
    assert list(mapping) == list(NAMES) or said.code in CODES


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["signed", "signatures", "version", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=repeats(15, 300), suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(NAMES), content=JSON)
def test_other_json(name, content):
    files = dict(made().files)
    files[f"metadata/{name}.json"] = msgspec.json.encode(content)
    assert asked(files).code in CODES


@settings(max_examples=repeats(15, 300), suppress_health_check=[HealthCheck.too_slow])
@given(custom=JSON)
def test_signed_nonsense_about_a_bundle(custom):
    """The operator's own mistake; their other bundles are not in the way."""
    import json

    try:
        json.dumps(custom, allow_nan=False)
    except ValueError:
        return
    if any_float(custom):  # TUF's canonical form has none
        return
    repository = copy.copy(made())
    repository.files = dict(repository.files)
    for role in ("targets", "snapshot", "timestamp"):
        setattr(repository, role, copy.deepcopy(getattr(made(), role)))
    repository.targets.targets["ssd/1.0.tar"].unrecognized_fields["custom"] = custom
    repository.publish_targets()
    said = asked(repository.files)
    assert (said.code, said.is_final) == ("E_COMPAT", True)


def any_float(value):
    if isinstance(value, dict):
        return any(any_float(one) for one in value.values())
    if isinstance(value, list):
        return any(any_float(one) for one in value)
    return isinstance(value, float)


def test_what_breaks_on_one_mirror_does_not_keep_the_next_from_being_asked(tmp_path):
    class Broken(Shelf):
        def open(self, path, *, offset=0, tag=None):
            raise ZeroDivisionError("never thought of")

    board = Board(tmp_path, made(), "broken:", "shelf:")
    mirrors = {"broken:": Broken({}), "shelf:": Shelf(made().files)}
    assert Resolution(board.job("ssd", "1.0"), mirrors.get).run().mirror == 1
    board.urls.pop()
    said = Resolution(board.job("ssd", "1.0"), mirrors.get).run()
    assert (said.code, said.is_final) == ("E_SYSTEM", False)


@pytest.mark.parametrize("at", [1e300, float("inf")])
def test_times_that_cannot_be(tmp_path, at):
    board = Board(tmp_path, made(), "shelf:")
    board.at = at
    said = Resolution(board.job("ssd", "1.0"), lambda url: Shelf(made().files)).run()
    assert said.code == "E_CLOCK"


def test_a_transport_s_own_refusal_passes_through(tmp_path):
    class Refusing(Shelf):
        def open(self, path, *, offset=0, tag=None):
            raise RefusalError("E_SLOW", "drips")

    board = Board(tmp_path, made(), "shelf:")
    said = Resolution(board.job("ssd", "1.0"), lambda url: Refusing({})).run()
    assert said.code == "E_SLOW"
