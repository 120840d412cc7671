"""Nothing that is read as a bundle does harm: A28 of the attack list, by chance and from memory."""

import random
from pathlib import Path

import pytest
from bundle_mutations import SOUND, check, mutated, with_manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_bundles import MEMBERS, archive, made_bundle, made_document
from repeats import repeats

from agent.ota.manifest import parse_manifest
from agent.ota.refusal import RefusalError

CORPUS = sorted((Path(__file__).parent / "bundle_corpus").iterdir())
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from([*MEMBERS, "golden.npz", "anchors.npy", "../x", "0" * 64, "*", 2**53, -1])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*MEMBERS, "sha256", "size", "type", "file"]), inner)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from([*made_document(), "golden", "budget", "edgetpu", "provenance", "x", ""])


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_files_that_were_met_before(path):
    assert check(path.read_bytes()) == path.name.startswith("sound")


def test_corpus_is_there():
    assert len(CORPUS) > 20


def test_format_is_what_it_was(tmp_path):
    """A bundle of today's is to be read by boards of yesterday, and the same is to be written."""
    saved = Path(__file__).parent / "bundle_corpus" / "sound-1.tar"
    assert made_bundle(tmp_path / "a.tar") == saved.read_bytes() == SOUND


@given(st.integers(0, 2**64))
@settings(max_examples=repeats(100, 3000))
def test_changed_bundles(seed):
    check(mutated(SOUND, random.Random(seed)))


@given(st.binary(max_size=4000))
def test_any_bytes(raw):
    assert not check(raw)


@given(st.binary(max_size=2000))
def test_any_manifest(raw):
    assert not check(archive(raw))


@given(
    st.dictionaries(KEYS, VALUES, max_size=3),
    st.sets(st.sampled_from([*made_document()]), max_size=1),
)
@settings(max_examples=repeats(40, 1000))
def test_manifests_that_say_anything(changes, dropped):
    document = made_document() | changes
    for key in dropped:
        document.pop(key)
    try:
        raw = with_manifest(document)
    except (ValueError, OverflowError, UnicodeEncodeError):
        return  # no JSON can say it
    check(raw)


@given(st.binary(max_size=500) | st.text(alphabet='{}[]",:0e-nul', max_size=200).map(str.encode))
def test_any_text_as_a_manifest(raw):
    with pytest.raises(RefusalError):
        parse_manifest(raw)
