"""A repository with real keys, a web server that serves it, and a client that believes nothing."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tuf.ngclient import Updater

from agent.operator import repo_commands
from agent.operator.repo_commands import Call
from agent.ota.bundle import describe, write_bundle
from agent.ota.manifest import BundleManifest

TODAY = datetime.now(timezone.utc)


def make_bundle(folder: Path, version="1.0.0", counter=1, *, name="door", floor=0, **more) -> Path:
    """Write a small bundle, whose model is none."""
    members = {"model.tflite": f"model {name} {version} {counter}".encode() * 500}
    manifest = BundleManifest(
        schema="edge-agent/manifest/1",
        name=name,
        version=version,
        release_counter=counter,
        security_floor=floor,
        files=describe(members),
        **more,
    )
    path = folder / f"{name}-{version}.tar"
    write_bundle(members, manifest, path)
    return path


@dataclass
class Site:
    """A repository's folder and its keys; every command at a day of its own."""

    home: Path
    folder: Path = field(init=False)
    keys: Path = field(init=False)

    def __post_init__(self):
        self.folder, self.keys = self.home / "repository", self.home / "keys"

    def call(self, *keys: Path, days=0.0, dry_run=False, as_json=False, passphrase_file=None):
        return Call(
            folder=self.folder,
            keys=keys or (self.keys,),
            passphrase_file=passphrase_file,
            dry_run=dry_run,
            as_json=as_json,
            now=TODAY + timedelta(days=days),
        )

    def init(self, **options) -> Site:
        assert repo_commands.run_init(self.call(**options), with_passphrase=False) == 0
        return self

    def publish(self, version="1.0.0", counter=1, *, channel=None, keys=(), **options) -> Path:
        bundle = make_bundle(self.home, version, counter)
        call = self.call(*keys, **options)
        assert repo_commands.run_publish(call, bundle, channel=channel) == 0
        return bundle

    def refresh(self, *also, keys=(), **options):
        assert repo_commands.run_refresh(self.call(*keys, **options), also=also) == 0

    def rotate(self, role, *replace, new_keys=None, keys=(), **options):
        call = self.call(*keys, **options)
        done = repo_commands.run_rotate(
            call, role=role, replace=replace, new_keys=new_keys, with_passphrase=False
        )
        assert done == 0

    def take(self, *names: str) -> Path:
        """Carry keys to another place."""
        place = self.home / "-".join(names)
        place.mkdir()
        for name in names:
            (self.keys / f"{name}.key").rename(place / f"{name}.key")
        return place

    def lose(self, *names: str) -> None:
        for name in names:
            (self.keys / f"{name}.key").unlink()

    def content(self) -> dict[str, bytes]:
        """Return every file there is but the lock, by its name below the home."""
        return {
            str(path.relative_to(self.home)): path.read_bytes()
            for path in sorted(self.home.rglob("*"))
            if path.is_file() and path.name != ".lock"
        }


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def served(folder: Path):
    """Serve a folder as any static server does; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Board:
    """python-tuf's own client, with what it has come to trust so far."""

    folder: Path
    root: bytes

    def updater(self, url: str) -> Updater:
        for name in ("metadata", "targets"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        return Updater(
            str(self.folder / "metadata"),
            f"{url}/metadata/",
            str(self.folder / "targets"),
            f"{url}/targets/",
            bootstrap=self.root,
        )

    def refresh(self, url: str) -> Updater:
        updater = self.updater(url)
        updater.refresh()
        return updater

    def fetch(self, url: str, path: str = "door/1.0.0.tar") -> bytes | None:
        updater = self.refresh(url)
        info = updater.get_targetinfo(path)
        if info is None:
            return None
        place = self.folder / "targets" / path.replace("/", "-")
        return Path(updater.download_target(info, str(place))).read_bytes()
