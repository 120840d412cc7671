"""Bundles with a framing of a few lines, where what counts is what is done with the members."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from agent.ota.refusal import RefusalError
from agent.ota.state import BundleRef


@dataclass(frozen=True)
class Plain:
    """A bundle's file, and what the repository says of it."""

    ref: BundleRef
    data: bytes


def plain_bundle(version: int, *, name="cats", model=b"", labels=b"cat\ndog\n", floor=0) -> Plain:
    """Make a bundle whose model is a page and a half of its own."""
    model = model or hashlib.sha256(b"%d" % version).digest() * 192
    members = {"model.tflite": model, "labels.txt": labels}
    manifest = {
        "schema": "edge-agent/manifest/1",
        "name": name,
        "version": f"1.{version}",
        "release_counter": version,
        "security_floor": floor,
        "labels": "labels.txt",
        "files": {
            member: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            for member, content in members.items()
        },
    }
    members = {"manifest.json": json.dumps(manifest).encode(), **members}
    data = b"".join(
        b"%s %d\n%s" % (member.encode(), len(content), content)
        for member, content in members.items()
    )
    ref = BundleRef(
        sha256=hashlib.sha256(data).hexdigest(),
        name=name,
        version=f"1.{version}",
        release_counter=version,
        security_floor=floor,
    )
    return Plain(ref, data)


@dataclass(frozen=True)
class Said:
    name: str
    version: str
    release_counter: int
    security_floor: int


def unpack_plain(file, into, *, size) -> Said:
    """Take one apart, reading forward only."""
    said = None
    while size > 0:
        head = b""
        while not head.endswith(b"\n"):
            byte = file.read(1)
            if not byte or len(head) > 200:
                raise RefusalError("E_BUNDLE", "no line is here")
            head += byte
        name, length = head.decode().split()
        size -= len(head) + int(length)
        content = file.read(int(length))
        if len(content) != int(length):
            raise RefusalError("E_BUNDLE", "ends too soon")
        if name == "manifest.json":
            said = json.loads(content)
        into(name, [content[:4000], content[4000:]])
    if said is None:
        raise RefusalError("E_BUNDLE", "has no manifest")
    return Said(*(said[key] for key in ("name", "version", "release_counter", "security_floor")))
