"""The store: a bundle is under its hash whole, or not at all."""

from __future__ import annotations

import errno
import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from ota.plain_bundle import Plain, plain_bundle, unpack_plain
from ota.watched_disk import CHANGES, WatchedDisk
from repeats import repeats

from agent.contract.manifest import FileEntry
from agent.ota.bundle import describe, write_bundle
from agent.ota.disk import RealDisk, read_bounded, remove_tree
from agent.ota.manifest import BundleManifest
from agent.ota.refusal import RefusalError
from agent.ota.state import BundleRef
from agent.ota.store import NOTE, RESERVE_BYTES, Store

BUNDLE = plain_bundle(1)
OTHER = plain_bundle(2)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "models", unpack=unpack_plain)


def fetched(store: Store, bundle: Plain = BUNDLE, data: bytes | None = None):
    part = store.part(bundle.ref.sha256)
    part.write_bytes(bundle.data if data is None else data)
    return part


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_bundle_is_taken_in_and_known(store, tmp_path):
    ref = store.put(fetched(store), BUNDLE.ref)
    assert replace(ref, manifest_sha256="") == BUNDLE.ref
    assert len(ref.manifest_sha256) == 64
    assert store.path(ref) == tmp_path / "models" / BUNDLE.ref.sha256
    assert {path.name for path in store.path(ref).iterdir()} == {
        "manifest.json",
        "model.tflite",
        "labels.txt",
        NOTE,
    }
    assert store.has(ref)
    assert store.known(ref.sha256) == ref
    store.verify(ref)
    assert store.read(ref, "labels.txt") == b"cat\ndog\n"
    assert b'"cats"' in store.read(ref, "manifest.json")
    assert {oct(path.stat().st_mode & 0o77) for path in store.path(ref).iterdir()} == {"0o0"}
    with pytest.raises(RefusalError, match="not in its manifest"):
        store.read(ref, NOTE)


def test_a_real_bundle_is_taken_in(tmp_path):
    members = {"model.tflite": b"\x18\0\0\0TFL3" + bytes(9000), "labels.txt": b"cat\n"}
    manifest = BundleManifest(
        schema="edge-agent/manifest/1",
        name="cats",
        version="1.0",
        release_counter=3,
        security_floor=1,
        labels="labels.txt",
        files=describe(members),
    )
    store = Store(tmp_path / "models")
    file = tmp_path / "cats.tar"
    sha256 = write_bundle(members, manifest, file)
    wanted = BundleRef(
        sha256=sha256, name="cats", version="1.0", release_counter=3, security_floor=1
    )
    part = store.part(sha256)
    part.write_bytes(file.read_bytes())
    ref = store.put(part, wanted)
    store.verify(ref)
    assert store.read(ref, "labels.txt") == b"cat\n"
    assert isinstance(manifest.files["labels.txt"], FileEntry)


def test_it_may_be_put_again_with_or_without_its_file(store):
    part = fetched(store)
    ref = store.put(part, BUNDLE.ref)
    before = store.path(ref).stat().st_ino
    assert store.put(part, BUNDLE.ref) == ref
    part.unlink()
    assert store.put(part, BUNDLE.ref) == ref
    assert store.path(ref).stat().st_ino == before


def test_a_folder_that_was_removed_meanwhile_is_made_again(store, tmp_path):
    ref = store.put(fetched(store), BUNDLE.ref)
    remove_tree(RealDisk(), tmp_path / "models")  # by somebody who needs room
    assert not store.has(ref)
    assert store.put(fetched(store), BUNDLE.ref) == ref
    store.verify(ref)


def test_other_bytes_than_promised_are_not_even_taken_apart(store, tmp_path):
    taken_apart = []

    def unpack(file, into, *, size):
        taken_apart.append(size)
        return unpack_plain(file, into, size=size)

    store = Store(tmp_path / "models", unpack=unpack)
    for data in (BUNDLE.data[:-1], BUNDLE.data + b"x", b"", OTHER.data):
        part = fetched(store, data=data)
        with pytest.raises(RefusalError) as refusal:
            store.put(part, BUNDLE.ref)
        assert (refusal.value.code, refusal.value.is_final) == ("E_HASH", False)
        assert not part.exists()  # it is fetched anew
    with pytest.raises(RefusalError) as refusal:
        store.put(part, BUNDLE.ref)
    assert (refusal.value.code, refusal.value.is_final) == ("E_HASH", False)
    assert taken_apart == []
    assert everything(tmp_path / "models") == [".staging"]


def test_a_file_that_changes_while_it_is_taken_apart_is_refused(store, tmp_path):
    part = fetched(store)

    def unpack(file, into, *, size):
        part.write_bytes(OTHER.data)
        return unpack_plain(file, into, size=size)

    with pytest.raises(RefusalError) as refusal:
        Store(tmp_path / "models", unpack=unpack).put(part, BUNDLE.ref)
    assert refusal.value.code in ("E_HASH", "E_BUNDLE")
    assert everything(tmp_path / "models") == [".staging"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "dogs"), ("version", "9"), ("release_counter", 4), ("security_floor", 1)],
)
def test_a_manifest_that_says_otherwise_than_the_repository_is_refused(store, field, value):
    wanted = replace(BUNDLE.ref, **{field: value})
    with pytest.raises(RefusalError) as refusal:
        store.put(fetched(store), wanted)
    assert refusal.value.code == "E_BUNDLE"
    assert not store.has(wanted)
    store.put(fetched(store), BUNDLE.ref)
    with pytest.raises(RefusalError, match=field):  # nor is it by one that is here already
        store.put(fetched(store), wanted)
    assert store.has(BUNDLE.ref)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "", ".hidden", NOTE, "x" * 65, "twice"])
def test_members_lie_in_their_folder_whatever_they_are_called(tmp_path, name):
    def unpack(file, into, *, size):
        into("twice", [b"first"])
        into(name, [b"evil"])

    store = Store(tmp_path / "models", unpack=unpack)
    with pytest.raises(RefusalError) as refusal:
        store.put(fetched(store), BUNDLE.ref)
    assert refusal.value.code == "E_BUNDLE"
    assert everything(tmp_path) == ["models", "models/.staging"]


def test_a_member_that_no_manifest_lists_is_refused(tmp_path):
    def unpack(file, into, *, size):
        said = unpack_plain(file, into, size=size)
        into("extra.so", [b"\x7fELF"])
        return said

    store = Store(tmp_path / "models", unpack=unpack)
    with pytest.raises(RefusalError, match=r"extra\.so"):
        store.put(fetched(store), BUNDLE.ref)
    assert not store.has(BUNDLE.ref)


def spoil(path, kind):
    data = path.read_bytes()
    if kind == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif kind == "longer":
        path.write_bytes(data + b"\0")
    elif kind == "shorter":
        path.write_bytes(data[:-1])
    elif kind == "gone":
        path.unlink()
    elif kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif kind == "link":
        path.rename(path.with_suffix(".real"))
        path.symlink_to(path.with_suffix(".real"))
    else:
        path.unlink()
        path.mkdir()


DAMAGES = ["flip", "longer", "shorter", "gone", "pipe", "link", "folder"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.tflite", "labels.txt", "manifest.json"])
def test_damage_of_any_file_is_found_at_every_load_and_healed(store, name, damage):
    ref = store.put(fetched(store), BUNDLE.ref)
    spoil(store.path(ref) / name, damage)
    with pytest.raises(RefusalError):
        store.verify(ref)
    with pytest.raises(RefusalError):
        store.read(ref, name)
    # Without its file it is thrown away, so that it is fetched again.
    part = store.part(ref.sha256)
    part.unlink()
    with pytest.raises(RefusalError) as refusal:
        store.put(part, BUNDLE.ref)
    assert (refusal.value.code, refusal.value.is_final) == ("E_HASH", False)
    assert not store.has(ref)
    assert store.put(fetched(store), BUNDLE.ref) == ref
    store.verify(ref)


def test_what_does_not_belong_there_is_found(store):
    ref = store.put(fetched(store), BUNDLE.ref)
    (store.path(ref) / "model_edgetpu.tflite").write_bytes(b"would be loaded")
    with pytest.raises(RefusalError, match="edgetpu"):
        store.verify(ref)


def test_without_its_manifests_hash_nothing_is_believed(store):
    store.put(fetched(store), BUNDLE.ref)
    with pytest.raises(RefusalError):
        store.verify(BUNDLE.ref)


@settings(max_examples=repeats(20, 200))
@given(at=st.integers(0), bit=st.integers(0, 7))
def test_no_flipped_bit_is_overlooked(tmp_path_factory, at, bit):
    folder = tmp_path_factory.mktemp("store")
    store = Store(folder / "models", unpack=unpack_plain)
    ref = store.put(fetched(store), BUNDLE.ref)
    sizes = [(path, path.stat().st_size) for path in sorted(store.path(ref).iterdir())]
    at %= sum(size for _, size in sizes)
    for path, size in sizes:
        if at < size:
            data = bytearray(path.read_bytes())
            data[at] ^= 1 << bit
            path.write_bytes(data)
            break
        at -= size
    if path.name == NOTE:
        assert store.known(ref.sha256) in (None, ref)
    else:
        with pytest.raises(RefusalError):
            store.verify(ref)


def test_only_what_is_kept_stays(store, tmp_path):
    refs = [store.put(fetched(store, one), one.ref) for one in map(plain_bundle, range(1, 5))]
    staging = tmp_path / "models" / ".staging"
    (staging / f"{refs[0].sha256}.part.json").write_text("{}")
    (staging / f"{refs[0].sha256}.new").mkdir()
    (staging / f"{refs[0].sha256}.new" / "half").write_text("x")
    (staging / "junk").mkdir()
    (tmp_path / "models" / "notes.txt").write_text("somebody's")
    collected = store.collect({ref.sha256 for ref in refs[1:3]}, {refs[0].sha256})
    assert sorted(collected.removed) == sorted([refs[0].sha256, refs[3].sha256])
    assert collected.fault is None
    assert [store.has(ref) for ref in refs] == [False, True, True, False]
    assert everything(staging) == sorted([f"{refs[0].sha256}.part", f"{refs[0].sha256}.part.json"])
    store.collect({ref.sha256 for ref in refs[1:3]})
    assert everything(staging) == []
    assert (tmp_path / "models" / "notes.txt").exists()
    for ref in refs[1:3]:
        store.verify(ref)


def test_collecting_goes_through_no_link(store, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("keep")
    store.part("x")
    for name in (".staging/link", "a" * 64):
        (tmp_path / "models" / name).symlink_to(tmp_path / "precious")
    assert store.collect(()).fault is None
    assert everything(tmp_path) == ["models", "models/.staging", "precious", "precious/file"]


def test_space_is_asked_for_before_anything_is_fetched(store, tmp_path):
    class Small(RealDisk):
        def free_bytes(self, folder):
            assert folder.exists()
            return 30_000_000

    small = Store(tmp_path / "models", Small())
    assert small.free_bytes() == 30_000_000
    fits = (30_000_000 - RESERVE_BYTES) * 10 // 11 // 2
    small.require_space(fits)
    small.require_space(fits * 3 // 2, have=fits)  # part of it is here
    with pytest.raises(RefusalError) as refusal:
        small.require_space(fits + 2)
    assert (refusal.value.code, refusal.value.is_final) == ("E_SPACE", False)
    store.require_space(1)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "E_SPACE"),
        (errno.EDQUOT, "E_SPACE"),
        (errno.EROFS, "E_SYSTEM"),
        (errno.EIO, "E_SYSTEM"),
    ],
)
def test_a_disk_that_fails_at_any_operation_leaves_all_or_nothing(tmp_path, code, said):
    failed = 0
    for wanted in range(100):
        folder = tmp_path / str(wanted)
        folder.mkdir()
        count = 0

        def before(name, path, part, wanted=wanted):
            nonlocal count
            count += name in CHANGES
            if name in CHANGES and count > wanted:
                part()
                raise OSError(code, os.strerror(code), str(path))

        store = Store(folder / "models", WatchedDisk(RealDisk(), before), unpack_plain)
        good = Store(folder / "models", unpack=unpack_plain)
        part = folder / "fetched"
        part.write_bytes(BUNDLE.data)
        try:
            ref = store.put(part, BUNDLE.ref)
        except RefusalError as refusal:
            failed += 1
            assert (refusal.code, refusal.is_final) == (said, False)
            assert part.exists()
        else:
            good.verify(ref)
            break
        store.collect(())  # on the same disk, and does not raise
        if good.has(BUNDLE.ref):
            good.verify(good.known(BUNDLE.ref.sha256))
        good.verify(good.put(part, BUNDLE.ref))  # the disk has recovered
    assert failed > 15


def test_a_disk_that_cannot_be_read_says_so(tmp_path, store):
    ref = store.put(fetched(store), BUNDLE.ref)

    def before(name, path, part):
        if name in ("read", "names", "size", "free"):
            raise OSError(errno.EIO, "Input/output error", str(path))

    broken = Store(tmp_path / "models", WatchedDisk(RealDisk(), before), unpack_plain)
    assert not broken.has(ref)
    assert broken.known(ref.sha256) is None
    for ask in (
        lambda: broken.verify(ref),
        lambda: broken.read(ref, "labels.txt"),
        lambda: broken.put(broken.part(ref.sha256), ref),
        lambda: broken.require_space(1),
    ):
        with pytest.raises(RefusalError) as refusal:
            ask()
        assert refusal.value.code == "E_SYSTEM"
    assert broken.collect(()).fault is not None
    assert store.has(ref)


def test_a_thread_may_put_while_another_loads(store):
    ref = store.put(fetched(store), BUNDLE.ref)
    done = threading.Event()

    def work():
        for one in map(plain_bundle, range(2, 12)):
            store.put(fetched(store, one), one.ref)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.is_set():
        store.verify(ref)
    thread.join()
    assert len([name for name in store.path(ref).parent.iterdir() if len(name.name) == 64]) == 11


# The real disk.


def test_a_link_or_a_pipe_is_no_file(tmp_path):
    disk = RealDisk()
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "folder-link").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert disk.size(tmp_path / "file") == 1
    for name in ("link", "pipe", "folder-link"):
        assert disk.size(tmp_path / name) is None
        assert not disk.is_folder(tmp_path / name)
        with pytest.raises(OSError):
            disk.open(tmp_path / name)
        with pytest.raises(OSError):
            disk.sink(tmp_path / name, "over")
    assert disk.names(tmp_path / "nowhere") == []
    assert disk.size(tmp_path / "nowhere") is None
    remove_tree(disk, tmp_path / "folder-link")
    assert (tmp_path / "file").exists()


def test_the_three_ways_of_writing(tmp_path):
    disk, path = RealDisk(), tmp_path / "file"
    for how, piece, expected in (
        ("new", b"abcdef", b"abcdef"),
        ("over", b"XY", b"XYcdef"),
        ("append", b"!", b"XYcdef!"),
    ):
        sink = disk.sink(path, how)
        sink.write(piece)
        sink.sync()
        sink.close()
        assert path.read_bytes() == expected
    with pytest.raises(FileExistsError):
        disk.sink(path, "new")
    with pytest.raises(OSError) as error:
        read_bounded(disk, path, 6)
    assert error.value.errno == errno.EFBIG
    assert read_bounded(disk, path, 7) == path.read_bytes()
    with disk.open(path) as file:
        assert file.read(2) == b"XY"
