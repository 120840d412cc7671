"""Bundles for tests: sound ones, and every kind of tar archive that is none."""

import io
import json
import tarfile

import msgspec

from agent.ota.bundle import describe, header, write_bundle
from agent.ota.manifest import BundleManifest, encode_manifest

MEMBERS = {"model.tflite": b"a model" * 100, "labels.txt": b"cat\ndog\n"}
KINDS = {
    "hard link": tarfile.LNKTYPE,
    "symbolic link": tarfile.SYMTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "folder": tarfile.DIRTYPE,
    "pipe": tarfile.FIFOTYPE,
    "contiguous file": tarfile.CONTTYPE,
    "old regular file": tarfile.AREGTYPE,
    "PAX record": tarfile.XHDTYPE,
    "global PAX record": tarfile.XGLTYPE,
    "Solaris PAX record": tarfile.SOLARIS_XHDTYPE,
    "GNU long name": tarfile.GNUTYPE_LONGNAME,
    "GNU long link": tarfile.GNUTYPE_LONGLINK,
    "GNU sparse file": tarfile.GNUTYPE_SPARSE,
    "GNU volume": b"V",
    "GNU multi-volume": b"M",
    "GNU folder dump": b"D",
    "unknown": b"?",
}


def made_manifest(members=MEMBERS, **more):
    known = {"labels": "labels.txt"} if "labels.txt" in members else {}
    return BundleManifest(
        schema="edge-agent/manifest/1",
        name="made",
        **{"version": "1.0.0", "release_counter": 3, **known, **more},
        files=describe(members),
    )


def made_bundle(path, members=MEMBERS, **more):
    """Write a sound bundle; return its bytes."""
    write_bundle(members, made_manifest(members, **more), path)
    return path.read_bytes()


def made_document(members=MEMBERS, **more):
    """Return the manifest as a dict, to be changed where `BundleManifest` could not be."""
    return json.loads(encode_manifest(made_manifest(members))) | more


def encoded(document):
    return msgspec.json.encode(document)


def padded(content):
    return content + bytes(-len(content) % 512)


def joined(*members, end=bytes(1024)):
    """Return an archive of (header, content) pairs, as they are given."""
    return b"".join(head + padded(content) for head, content in members) + end


def archive(raw, members=MEMBERS, end=bytes(1024)):
    """Return an archive that is as it should be, but for what is in it."""
    listed = [("manifest.json", raw), *sorted(members.items())]
    return joined(*((header(name, len(content)), content) for name, content in listed), end=end)


def tar_header(name, size=0, kind=tarfile.REGTYPE, *, form=tarfile.GNU_FORMAT, link="", **fields):
    """Return a header as tarfile writes it."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(form)


def patched(block, start, content):
    """Return a header with other bytes and the checksum that belongs to them."""
    block = bytearray(block)
    block[start : start + len(content)] = content
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


class Counting(io.RawIOBase):
    """A file that notes how much is asked of it at once, and how much in all."""

    def __init__(self, data, most=None):
        self.file, self.most = io.BytesIO(data), most
        self.largest = self.count = 0

    def read(self, size=-1):
        self.largest = max(self.largest, size)
        piece = self.file.read(size if self.most is None else min(size, self.most))
        self.count += len(piece)
        return piece


class Unpacked(dict):
    """What was handed on, by name."""

    def __call__(self, name, pieces):
        assert name not in self
        self[name] = b""
        for piece in pieces:
            self[name] += piece
