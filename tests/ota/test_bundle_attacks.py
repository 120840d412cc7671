"""Archives that are none: A17 of the attack list. Each is refused, and nothing is written anywhere.

The same bytes are tried behind a sound manifest as well as in its place.
"""

import hashlib
import io
import json
import tracemalloc

import pytest
from made_bundles import (
    KINDS,
    MEMBERS,
    Counting,
    Unpacked,
    archive,
    encoded,
    joined,
    made_bundle,
    made_document,
    made_manifest,
    padded,
    patched,
    tar_header,
)
from repeats import repeats

from agent.ota.bundle import PIECE_BYTES, examine, header, unpack, unpack_into
from agent.ota.manifest import MAX_BUNDLE_BYTES, MAX_MANIFEST_BYTES, encode_manifest
from agent.ota.refusal import RefusalError

RAW = encode_manifest(made_manifest())
HEAD = header("manifest.json", len(RAW))
LABELS, MODEL = MEMBERS["labels.txt"], MEMBERS["model.tflite"]
NAMES = [
    "../labels.txt", "../../../../etc/cron.d/x", "/etc/passwd", "/labels.txt", "./labels.txt",
    "labels.txt/", "labels.txt/../../x", "a/labels.txt", "..", ".", "/", "", "LABELS.TXT",
    "labels.txt ", "labels.txt\n", "labels\x00.txt", "~/labels.txt", "C:\\labels.txt",
    "..\\labels.txt", "model.tflite", "manifest.json", "l\u0430bels.txt", "x" * 99, "x" * 255,
    "\x1b[2Jlabels.txt", ".staging", "bundle.ref",
]  # fmt: skip
SIZE, MODE, UID, MTIME, MAGIC, LINK, PREFIX = 124, 100, 108, 136, 257, 157, 345
OTHER_HEADERS = {
    "size in base 256": (SIZE, b"\x80" + b"\0" * 10 + b"\x08"),
    "size of 2**87": (SIZE, b"\x80" + b"\x7f" * 11),
    "size below 0": (SIZE, b"\xff" * 12),
    "size with spaces": (SIZE, b"         10 "),
    "size without zeros": (SIZE, b"10\0\0\0\0\0\0\0\0\0\0"),
    "size with underscores": (SIZE, b"0000_000_10\0"),
    "size with a sign": (SIZE, b"-0000000010\0"),
    "size that is none": (SIZE, b"zzzzzzzzzzz\0"),
    "size one more": (SIZE, b"%011o\0" % (len(LABELS) + 1)),
    "size 0": (SIZE, b"%011o\0" % 0),
    "size of 8 GB": (SIZE, b"7" * 11 + b"\0"),
    "setuid": (MODE, b"0004755\0"),
    "a user": (UID, b"0001750\0"),
    "a time": (MTIME, b"14000000000\0"),
    "GNU magic": (MAGIC, b"ustar  \0"),
    "old tar": (MAGIC, bytes(8)),
    "a link's goal": (LINK, b"/etc/passwd"),
    "a prefix": (PREFIX, b"/etc"),
    "a prefix up": (PREFIX, b"../.."),
    "something behind the name": (len("labels.txt") + 1, b"x"),
}


def refused(raw, size=None):
    """Read it as a board would; return the refusal, having looked at what it cost."""
    file, out = Counting(raw), Unpacked()
    tracemalloc.start()
    try:
        with pytest.raises(RefusalError) as caught:
            unpack(file, out, size=size)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * PIECE_BYTES + 2 * sum(map(len, out.values())) + 20 * MAX_MANIFEST_BYTES
    assert file.largest <= PIECE_BYTES
    assert {*out} <= {"manifest.json", *MEMBERS}
    assert str(caught.value).isprintable()
    return caught.value


def with_labels(block, content=LABELS):
    return joined((HEAD, RAW), (block, content), (header("model.tflite", len(MODEL)), MODEL))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_everything_but_regular_files(kind):
    for link in ("", "manifest.json", "/etc/passwd", "../../x"):
        for name, size in (("labels.txt", len(LABELS)), ("labels.txt", 0), ("x", 0)):
            block = tar_header(name, size, kind, link=link)
            assert refused(with_labels(block, LABELS if size else b"")).code == "E_BUNDLE"
    first = tar_header("manifest.json", len(RAW), kind)
    assert refused(joined((first, RAW), (HEAD, RAW))).code == "E_BUNDLE"


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_paths_or_others(name):
    for form in range(3):  # USTAR, GNU and PAX, the latter two with records before the header
        try:
            block = tar_header(name, len(LABELS), form=form)
        except ValueError:
            continue  # USTAR has no room for it
        assert refused(with_labels(block)).code == "E_BUNDLE"
        assert refused(joined((block, RAW), (HEAD, RAW))).code == "E_BUNDLE"


@pytest.mark.parametrize("patch", OTHER_HEADERS.values(), ids=OTHER_HEADERS)
def test_headers_that_say_it_otherwise(patch):
    assert (
        refused(with_labels(patched(header("labels.txt", len(LABELS)), *patch))).code == "E_BUNDLE"
    )
    code = refused(joined((patched(HEAD, *patch), RAW))).code
    # As it may be of any size, its own header can only be told from others by the rest of it.
    assert code == {b"7" * 11 + b"\0": "E_SIZE", b"%011o\0" % 0: "E_JSON"}.get(patch[1], "E_BUNDLE")


def test_checksums_that_are_wrong_or_written_otherwise():
    block = header("labels.txt", len(LABELS))
    for checksum in (
        b"000000\0 ",
        block[148:154] + b" \0",
        b" " * 8,
        b"0" + block[148:154] + b"\0",
    ):
        assert refused(with_labels(block[:148] + checksum + block[156:])).code == "E_BUNDLE"


def test_every_bit_of_a_header_counts():
    block = header("labels.txt", len(LABELS))
    for bit in range(0, 8 * len(block), repeats(7, 1)):  # of each byte at least one
        false = bytearray(block)
        false[bit // 8] ^= 1 << bit % 8
        for each in (bytes(false), patched(false, 0, b"")):
            if each != block:
                with pytest.raises(RefusalError):
                    unpack(io.BytesIO(with_labels(each)), Unpacked())


def member(name, content):
    return header(name, len(content)), content


@pytest.mark.parametrize(
    "members",
    [
        [("labels.txt", LABELS), ("labels.txt", LABELS), ("model.tflite", MODEL)],
        [("model.tflite", MODEL), ("labels.txt", LABELS)],
        [("labels.txt", LABELS), ("model.tflite", MODEL), ("manifest.json", RAW)],
        [("manifest.json", RAW), ("labels.txt", LABELS), ("model.tflite", MODEL)],
        [("labels.txt", LABELS)],
        [("model.tflite", MODEL)],
        [],
        [("labels.txt", LABELS), ("model.tflite", MODEL), ("model.tflite", MODEL)],
    ],
    ids=["twice", "order", "second manifest", "at once", "no model", "no labels", "none", "after"],
)
def test_members_twice_missing_or_out_of_order(members):
    raw = joined((HEAD, RAW), *(member(*each) for each in members))
    assert refused(raw).code == "E_BUNDLE"


@pytest.mark.parametrize("tail", [b"", bytes(512), bytes(1023), bytes(1025), bytes(10240), b"x"])
def test_what_follows_the_end_or_no_end(tail):
    assert refused(archive(RAW, end=tail)).code == "E_BUNDLE"


@pytest.mark.parametrize("tail", [b"x", b"\0", b"x" * 512, HEAD, HEAD * 3])
def test_what_follows_the_end(tail):
    assert refused(archive(RAW) + tail).code == "E_BUNDLE"


def test_padding_holds_nothing():
    raw = archive(RAW)
    spaces = [at for at in range(len(raw)) if archive(RAW)[at] == 0]
    places = {len(HEAD) + len(RAW), raw.index(LABELS) + len(LABELS), len(raw) - 1025, len(raw) - 1}
    for at in places:
        assert at in spaces
        assert refused(raw[:at] + b"x" + raw[at + 1 :]).code == "E_BUNDLE"


def test_every_shorter_file():
    raw = archive(RAW)
    for length in {*range(0, len(raw), 97), *range(len(raw) - 1030, len(raw)), 1, 511, 512, 513}:
        with pytest.raises(RefusalError) as caught:
            unpack(io.BytesIO(raw[:length]), Unpacked())
        assert caught.value.code == "E_BUNDLE"


class Endless:
    """A million members, or one without an end: made as it is read."""

    def __init__(self, first, rest):
        self.data, self.rest, self.count = io.BytesIO(first), rest, 0

    def read(self, size):
        self.count += size
        return self.data.read(size) or (self.rest * (size // len(self.rest) + 1))[:size]


@pytest.mark.parametrize(
    "rest",
    {
        "a million members": tar_header("labels.txt", 0),
        "a million PAX records": tar_header("x", 512, KINDS["PAX record"])
        + b"9 a=b\n\n\n\n" * 51
        + b"\0\0",
        "a million long names": tar_header("x", 512, KINDS["GNU long name"]) + b"a" * 512,
        "zeros for ever": bytes(512),
        "a model for ever": b"x" * 512,
    }.items(),
    ids=lambda item: item[0],
)
def test_archives_without_an_end(rest):
    for first, most in (
        (b"", 2048),
        (joined((HEAD, RAW), end=b""), len(RAW) + 4096),
        (archive(RAW, end=b""), len(archive(RAW)) + 2048),
        (archive(RAW), len(archive(RAW)) + 2048),
    ):
        file = Endless(first, rest[1])
        with pytest.raises(RefusalError):
            unpack(file, Unpacked())
        assert file.count <= most


def test_bombs_of_sizes():
    entry = {"sha256": hashlib.sha256(b"").hexdigest(), "size": MAX_BUNDLE_BYTES}
    for size, code in (
        (MAX_BUNDLE_BYTES, "E_SIZE"),
        (MAX_BUNDLE_BYTES + 1, "E_SIZE"),
        (2**53, "E_SIZE"),
        (2**63, "E_JSON"),
        (2**200, "E_JSON"),
        (-1, "E_JSON"),
        (0, "E_SIZE"),
        (1.5, "E_JSON"),
    ):
        files = {"model.tflite": entry | {"size": size}}
        document = json.dumps(made_document({"model.tflite": b"x"}) | {"files": files}).encode()
        assert refused(joined((header("manifest.json", len(document)), document))).code == code
    two = {"model.tflite": entry, "model_edgetpu.tflite": entry}
    two = {name: each | {"size": MAX_BUNDLE_BYTES // 2} for name, each in two.items()}
    document = encoded(
        made_document({"model.tflite": b"x"}) | {"files": two, "edgetpu": "model_edgetpu.tflite"}
    )
    assert refused(joined((header("manifest.json", len(document)), document))).code == "E_SIZE"
    # Of a manifest, not a byte is read.
    huge = header("manifest.json", MAX_MANIFEST_BYTES + 1) + b"{" * 5_000_000
    assert refused(huge).code == "E_SIZE"


def test_large_members_pass_in_pieces():
    members = {"model.tflite": bytes(8 << 20)}
    file = Counting(archive(encode_manifest(made_manifest(members)), members))
    tracemalloc.start()
    try:
        unpack(file, lambda name, pieces: sum(map(len, pieces)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * PIECE_BYTES + 20 * MAX_MANIFEST_BYTES
    assert file.largest == PIECE_BYTES


def test_nothing_is_written_beside_the_folder(tmp_path):
    folder = tmp_path / "in" / "folder"
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    number = 0
    blocks = [
        tar_header(name, len(LABELS), kind, link=str(victim))
        for name in ("../victim", str(victim), "labels.txt", "../../victim")
        for kind in KINDS.values()
    ]
    for block in blocks:
        number += 1
        path = tmp_path / "bad.tar"
        path.write_bytes(with_labels(block))
        folder.mkdir(parents=True)
        with pytest.raises(RefusalError):
            unpack_into(path, folder)
        with pytest.raises(RefusalError):
            examine(path)
        # What came before the fault is there, and nothing else; no link among it.
        assert {each.name for each in folder.iterdir()} <= {"manifest.json"}
        assert not any(each.is_symlink() for each in folder.iterdir())
        for each in folder.iterdir():
            each.unlink()
        folder.rmdir()
    assert number == len(blocks) > 50
    assert victim.read_bytes() == b"untouched"
    assert {each.name for each in tmp_path.iterdir()} == {"in", "victim", "bad.tar"}


def test_folder_that_is_not_empty_is_not_written_over(tmp_path):
    made_bundle(tmp_path / "a.tar")
    (tmp_path / "labels.txt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        unpack_into(tmp_path / "a.tar", tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_compressed_archives_are_none(tmp_path):
    import bz2
    import gzip
    import lzma

    for packed in (gzip.compress, bz2.compress, lzma.compress):
        assert refused(packed(archive(RAW))).code == "E_BUNDLE"
    assert refused(b"PK\x03\x04" + padded(b"a zip")).code == "E_BUNDLE"
    assert refused(b"<!DOCTYPE html>" + padded(b"a login page")).code == "E_BUNDLE"
