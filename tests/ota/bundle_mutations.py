"""Files that are nearly bundles, for ever: what must come of every one of them.

`python tests/ota/bundle_mutations.py SECONDS [SEED]` goes on by itself, as a nightly run does.
"""

from __future__ import annotations

import io
import random
import sys
import time
from pathlib import Path

from made_bundles import KINDS, MEMBERS, Unpacked, archive, encoded, made_document, made_manifest

from agent.ota.bundle import header, unpack
from agent.ota.manifest import MOST_BYTES, encode_manifest
from agent.ota.refusal import RefusalError

SOUND = archive(encode_manifest(made_manifest()))
# What headers and manifests are made of, and what other programs put there.
WORDS = [
    b"\0", b"\xff", b"0", b"7", b"../", b"/", b"ustar\0", b"ustar  \0", b"\x80", b"-", b" ",
    b'"', b"{", b"}", b"[", b"\\ud800", b"NaN", b"1e999", b"9" * 30, b'"name"', b"null", b":", b",",
    b"model.tflite", b"labels.txt", b"manifest.json", b"golden.npz", b"x.so", bytes(512),
    bytes(1024), *KINDS.values(),
]  # fmt: skip


def check(raw: bytes) -> bool:
    """Read a file as a board does; return whether it is a bundle.

    Whatever it is: nothing but a refusal is raised, only members of known names come out, and
    never more bytes than went in. A file that is taken is the only one for what came out.
    """
    out = Unpacked()
    try:
        manifest = unpack(io.BytesIO(raw), out, size=len(raw))
    except RefusalError as error:
        assert error.code in ("E_BUNDLE", "E_COMPAT", "E_HASH", "E_JSON", "E_SIZE"), error.code
        assert str(error).isprintable()
        assert {*out} <= {"manifest.json", *MOST_BYTES}
        assert sum(map(len, out.values())) <= len(raw)
        return False
    said = out.pop("manifest.json")
    assert {*out} == {*manifest.files}
    assert archive(said, out) == raw
    return True


def mutated(raw: bytes, chance: random.Random) -> bytes:
    """Return a file with a few changes, most of them where something is decided."""
    data = bytearray(raw)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(data) + 1)
        if chance.random() < 0.5:  # at the edge of a block
            at = min(
                at // 512 * 512 + chance.choice((0, 0, 99, 124, 135, 148, 156, 257)), len(data)
            )
        end = min(len(data), at + chance.choice((0, 1, 1, 2, 12, 512, 4096)))
        word = chance.choice((*WORDS, bytes([chance.randrange(256)]), bytes(data[at:end])))
        if chance.random() < 0.5:  # as long as what was there, so that the rest stays in place
            end = min(len(data), at + len(word))
        data[at:end] = word
    if chance.random() < 0.3:
        fix_checksums(data)
    return bytes(data)


def fix_checksums(data: bytearray) -> None:
    """Give each header that is in place the checksum that a tar program wants to see."""
    for at in range(0, len(data) - 511, 512):
        if data[at + 257 : at + 262] == b"ustar":
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


def with_manifest(document: object) -> bytes:
    """Return an archive that is sound but for what its manifest says."""
    raw = encoded(document)
    return header("manifest.json", len(raw)) + archive(raw, MEMBERS)[512:]


def main() -> None:
    """Go on until time is up; say what was tried."""
    ends = time.monotonic() + float(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    chance, tried, taken = random.Random(seed), 0, 0
    documents = [SOUND, with_manifest(made_document())]
    while time.monotonic() < ends:
        raw = mutated(chance.choice(documents), chance)
        try:
            taken += check(raw)
        except BaseException:
            Path("bundle-mutation.bin").write_bytes(raw)
            raise
        tried += 1
    print(f"seed {seed}: {tried} files, {taken} of them taken, 0 uncaught")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
