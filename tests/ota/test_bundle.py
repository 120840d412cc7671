"""The bundle: one file that can be written in one way, and nothing comes out that is not in it."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import msgspec
import pytest
from made_bundles import (
    MEMBERS,
    Counting,
    Unpacked,
    archive,
    encoded,
    made_bundle,
    made_document,
    made_manifest,
)

from agent.ota.bundle import (
    PIECE_BYTES,
    examine,
    header,
    is_bundle,
    unpack,
    unpack_into,
    write_bundle,
)
from agent.ota.manifest import MOST_BYTES, encode_manifest
from agent.ota.refusal import RefusalError
from agent.ota.state import BundleRef
from agent.ota.store import Store
from agent.vision import golden, labels
from agent.vision.heads import anchors
from agent.vision.manifest import parse_manifest

PROJECT = Path(__file__).resolve().parent.parent.parent
WRITE = """
import os, sys
from pathlib import Path
os.umask(int(sys.argv[2], 8))
sys.path[:0] = sys.argv[3:]
from made_bundles import made_bundle
made_bundle(Path(sys.argv[1]))
"""


def test_what_was_packed_comes_out(tmp_path):
    raw = made_bundle(tmp_path / "a.tar")
    out = Unpacked()
    manifest = unpack(io.BytesIO(raw), out, size=len(raw))
    assert manifest == made_manifest()
    assert out == {"manifest.json": encode_manifest(manifest), **MEMBERS}
    assert [*out] == ["manifest.json", "labels.txt", "model.tflite"]
    # And it is what a model folder's manifest may be.
    assert parse_manifest(out["manifest.json"], where="it").files == manifest.files


def test_examined_bundle_is_the_hash_of_its_very_bytes(tmp_path):
    raw = made_bundle(tmp_path / "a.tar")
    bundle = examine(tmp_path / "a.tar")
    assert (bundle.sha256, bundle.size) == (hashlib.sha256(raw).hexdigest(), len(raw))
    assert unpack_into(tmp_path / "a.tar", made_folder(tmp_path)) == bundle
    names = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert names == {"manifest.json": encode_manifest(bundle.manifest), **MEMBERS}


def made_folder(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("most", [1, 7, 511, None])
def test_pieces_of_any_size_are_put_together(tmp_path, most):
    raw = made_bundle(tmp_path / "a.tar")
    out = Unpacked()
    unpack(Counting(raw, most), out)
    assert out["model.tflite"] == MEMBERS["model.tflite"]


def test_other_tar_programs_read_it(tmp_path):
    raw = made_bundle(tmp_path / "a.tar")
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        members = {info.name: tar.extractfile(info).read() for info in tar}
        assert {(info.mtime, info.uid, info.gid, info.mode) for info in tar} == {(0, 0, 0, 0o644)}
    assert next(iter(members)) == "manifest.json"
    assert {name: members[name] for name in MEMBERS} == MEMBERS
    if shutil.which("tar"):
        told = subprocess.run(
            ["tar", "-tf", tmp_path / "a.tar"], capture_output=True, text=True, check=True
        )
        assert told.stdout.split() == [*members]
        assert told.stderr == ""


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 8**11 - 1])
def test_header_is_a_ustar_header(size):
    info = tarfile.TarInfo.frombuf(header("labels.txt", size), "ascii", "strict")
    assert (info.name, info.size, info.mode, info.type) == ("labels.txt", size, 0o644, b"0")
    assert (info.uid, info.gid, info.mtime, info.uname, info.gname) == (0, 0, 0, "", "")


def test_same_content_is_the_same_file(tmp_path):
    first = made_bundle(tmp_path / "a.tar")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name, content in reversed(MEMBERS.items()):
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o755)
        os.utime(folder / name, (1, 1_000_000_000))
    again = {name: folder / name for name in MEMBERS}
    assert made_bundle(tmp_path / "b.tar", again) == first
    # A process of its own: another umask, another seed of hashes, another time zone, no locale.
    for umask in ("000", "077"):
        path = tmp_path / f"{umask}.tar"
        subprocess.run(
            [sys.executable, "-c", WRITE, path, umask, PROJECT, Path(__file__).parent],
            env={"PYTHONHASHSEED": umask[1], "TZ": "Asia/Tokyo", "LC_ALL": "C"},
            cwd=tmp_path,
            check=True,
        )
        assert path.read_bytes() == first
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~int(umask, 8)


def test_order_of_what_is_said_changes_nothing():
    said = {"provenance": {"b": "1", "a": ("x", "y")}, "license": "MIT"}
    one = encode_manifest(made_manifest(**said))
    turned = dict(reversed(MEMBERS.items()))
    other = encode_manifest(
        made_manifest(turned, provenance={"a": ("x", "y"), "b": "1"}, license="MIT")
    )
    assert one == other
    assert b"null" not in one


def test_bundle_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"what was there")
    with pytest.raises(RefusalError, match="is not the file") as caught:
        write_bundle({**MEMBERS, "labels.txt": b"other"}, made_manifest(), path)
    assert caught.value.code == "E_HASH"
    with pytest.raises(RefusalError, match="listed"):
        write_bundle({**MEMBERS, "golden.npz": b"other"}, made_manifest(), path)
    with pytest.raises(OSError, match="No such file"):
        write_bundle({**MEMBERS, "labels.txt": tmp_path / "none"}, made_manifest(), path)
    assert path.read_bytes() == b"what was there"
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.tflite", b"b model" * 100), ("labels.txt", b"dog\ncat\n")],
)
def test_manifest_of_one_with_the_model_of_another_is_refused(name, content):
    """A10: same size, so that the hash alone tells them apart."""
    raw = archive(encode_manifest(made_manifest()), {**MEMBERS, name: content})
    out = Unpacked()
    with pytest.raises(RefusalError, match=name) as caught:
        unpack(io.BytesIO(raw), out)
    assert caught.value.code == "E_HASH"
    assert content not in out.values()  # not a byte: it is all one piece


def test_last_piece_of_a_false_member_is_never_handed_on():
    size = PIECE_BYTES * 2 + 1000
    members = {"model.tflite": bytes(size)}
    raw = archive(encode_manifest(made_manifest(members)), {"model.tflite": bytes(size - 1) + b"1"})
    out = Unpacked()
    with pytest.raises(RefusalError):
        unpack(io.BytesIO(raw), out)
    assert len(out["model.tflite"]) == PIECE_BYTES * 2


@pytest.mark.parametrize("habit", ["looks at nothing", "stops after one", "swallows errors"])
def test_members_are_checked_whatever_is_done_with_them(habit):
    members = {"model.tflite": bytes(PIECE_BYTES * 2)}
    false = {"model.tflite": bytes(PIECE_BYTES * 2 - 1) + b"1"}

    def into(name, pieces):
        if habit == "stops after one":
            next(iter(pieces))
        if habit == "swallows errors":
            with contextlib.suppress(RefusalError):
                assert sum(map(len, pieces))

    raw = encode_manifest(made_manifest(members))
    unpack(io.BytesIO(archive(raw, members)), into)
    with pytest.raises(RefusalError) as caught:
        unpack(io.BytesIO(archive(raw, false)), into)
    assert caught.value.code == "E_HASH"


@pytest.mark.parametrize(
    "extra",
    ["extra.so", "edgetpu.so", "sitecustomize.py", "model.tflite.sig", "golden.npy", "LICENSE"],
)
def test_anything_that_no_manifest_can_name_is_refused(extra):
    """A12: a file more, in the archive or in the manifest as well."""
    listed = encoded(made_document(files=made_document()["files"] | {extra: entry(b"more")}))
    for raw in (listed, encode_manifest(made_manifest())):
        with pytest.raises(RefusalError) as caught:
            unpack(io.BytesIO(archive(raw, {**MEMBERS, extra: b"more"})), Unpacked())
        assert caught.value.code in ("E_JSON", "E_BUNDLE")


def entry(content):
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def test_member_that_is_known_but_not_listed_is_refused():
    raw = encode_manifest(made_manifest())
    for name in ("anchors.npy", "golden.npz", "model_edgetpu.tflite"):
        with pytest.raises(RefusalError, match=r"is due|lists") as caught:
            unpack(io.BytesIO(archive(raw, {**MEMBERS, name: b"more"})), Unpacked())
        assert caught.value.code == "E_BUNDLE"


def test_store_takes_it_apart(tmp_path):
    raw = made_bundle(tmp_path / "a.tar")
    store = Store(tmp_path / "models")
    ref = BundleRef(
        sha256=hashlib.sha256(raw).hexdigest(),
        name="made",
        version="1.0.0",
        release_counter=3,
        security_floor=0,
    )
    store.part(ref.sha256).write_bytes(raw)
    taken = store.put(store.part(ref.sha256), ref)
    store.verify(taken)
    assert store.read(taken, "model.tflite") == MEMBERS["model.tflite"]


def test_sizes_are_held_against_the_files_own():
    raw = archive(encode_manifest(made_manifest()))
    unpack(io.BytesIO(raw), Unpacked(), size=len(raw))
    for size, code in ((len(raw) - 1, "E_BUNDLE"), (len(raw) + 512, "E_BUNDLE"), (2**40, "E_SIZE")):
        file = Counting(raw)
        with pytest.raises(RefusalError) as caught:
            unpack(file, Unpacked(), size=size)
        assert caught.value.code == code
        assert file.count < len(raw) - len(MEMBERS["model.tflite"])


def test_bundle_is_told_from_other_files(tmp_path):
    made_bundle(tmp_path / "a.tar")
    (tmp_path / "model.tflite").write_bytes(MEMBERS["model.tflite"])
    assert is_bundle(tmp_path / "a.tar")
    assert not is_bundle(tmp_path / "model.tflite")
    assert not is_bundle(tmp_path)
    assert not is_bundle(tmp_path / "none")


def test_a_file_that_fails_is_no_refusal(tmp_path):
    class Failing(Counting):
        def read(self, size=-1):
            if self.count > 600:
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(OSError, match="Input/output"):
        unpack(Failing(archive(encode_manifest(made_manifest())), 100), Unpacked())


def test_no_member_may_be_larger_than_what_reads_it_takes():
    assert MOST_BYTES["golden.npz"] == golden.MAX_FILE_BYTES
    assert MOST_BYTES["labels.txt"] == labels.MAX_LABELS_BYTES
    assert MOST_BYTES["anchors.npy"] == anchors.MAX_ANCHORS_BYTES


def test_manifest_for_people(tmp_path):
    raw = encode_manifest(made_manifest(license="Apache-2.0"))
    assert raw.endswith(b"}\n")
    assert raw.count(b"\n") > 10
    known = json.loads(raw)
    assert known["name"] == "made"
    assert msgspec.json.decode(raw) == known
