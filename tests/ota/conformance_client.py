#!/usr/bin/env python3
"""Our TUF client, as the public conformance suite wants to call one: `init`, `refresh`, `download`.

    pytest tuf_conformance --entrypoint tests/ota/conformance_client.py

The suite: github.com/theupdateframework/tuf-conformance. It needs `faketime` for its repositories
of days gone by, and `cryptography` for keys that are not Ed25519.

Everything that boards do is in use here: the transport with its caps, the floors, which this
client keeps in `floors` beside the metadata, the time that is handed over, the folder that is
synced. Two things are this file's own: target paths are any, and delegations are followed, which
boards never do.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path
from urllib.parse import quote

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from agent.contract.updates import Floors
from agent.ota.fetch_http import HttpTransport
from agent.ota.jobs import Limits
from agent.ota.refusal import RefusalError
from agent.ota.transport import PIECE_BYTES, Reply
from agent.ota.trust import Repository, as_refusals

LIMITS = Limits(connect_s=5.0, window_s=5.0, deadline_s=30.0)


class _Mirror:
    """The suite's url has no folder `metadata` at its end."""

    def __init__(self, url: str) -> None:
        self._inner = HttpTransport(url, limits=LIMITS)
        self.name = self._inner.name

    def open(self, path: str, *, offset: int = 0, tag: str | None = None) -> Reply:
        return self._inner.open(path.removeprefix("metadata/"), offset=offset, tag=tag)

    def close(self) -> None:
        self._inner.close()


def init(folder: Path, root: Path) -> None:
    content = root.read_bytes()
    (folder / "root.json").write_bytes(content)
    # Not as .json: the suite takes those for metadata.
    (folder / "trusted-root").write_bytes(content)


def refresh(folder: Path, url: str) -> Repository:
    floors = Floors()
    kept = folder / "floors"
    if kept.exists():
        floors = msgspec.json.decode(kept.read_bytes(), type=Floors)
    root = (folder / "trusted-root").read_bytes()
    at = max(time.time(), floors.time)
    repository = Repository(folder, _Mirror(url), root=root, at=at, floors=floors)
    try:
        repository.refresh()
    finally:
        raised = repository.raised(is_clock_trusted=True)
        kept.write_bytes(msgspec.json.encode(raised))
    return repository


def download(repository: Repository, url: str, name: str, folder: Path) -> None:
    with as_refusals(url):
        target = repository.updater.get_targetinfo(name)
        if target is None:
            raise RefusalError("E_DESIRED", f"no {name}")
        place = folder / quote(name, safe="")
        if repository.updater.find_cached_target(target, str(place)) is not None:
            return
        path = name
        if repository._trusted.root.consistent_snapshot:
            above, slash, last = name.rpartition("/")
            path = f"{above}{slash}{next(iter(target.hashes.values()))}.{last}"
        transport = HttpTransport(url, limits=LIMITS)
        reply = transport.open(path)
        content = b""
        while len(content) <= target.length and (piece := reply.read(PIECE_BYTES)):
            content += piece
        reply.close()
        target.verify_length_and_hashes(content)
        assert "sha256" not in target.hashes or (
            hashlib.sha256(content).hexdigest() == target.hashes["sha256"]
        )
        place.write_bytes(content)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-dir", type=Path)
    parser.add_argument("--target-base-url")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    said = parser.parse_args()
    try:
        if said.command == "init":
            init(said.metadata_dir, said.root)
            return 0
        repository = refresh(said.metadata_dir, said.metadata_url)
        for name in said.target_name:
            download(repository, said.target_base_url, name, said.target_dir)
    except RefusalError as refusal:
        print(f"{refusal.code} {refusal}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
