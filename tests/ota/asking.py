"""Jobs as the control process gives them, run in this process or in one of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec

from agent.contract.updates import Floors
from agent.ota import fetch
from agent.ota.fetch_mqtt import Lines
from agent.ota.jobs import DownloadJob, Limits, MetadataJob, parse_event, to_line
from agent.ota.process import Resolution, download

PROJECT = Path(__file__).resolve().parent.parent.parent
# So that what takes a minute takes a second, where somebody is to be too slow.
QUICK = Limits(least_bytes_per_s=1000.0, window_s=0.8, connect_s=2.0, deadline_s=20.0, pause_s=0.0)
# For all else: a machine that others share is slow now and then.
PATIENT = msgspec.structs.replace(QUICK, window_s=20.0, connect_s=30.0, deadline_s=120.0)


class Board:
    """A board's part: folders, floors that it keeps, the clock it has."""

    def __init__(self, folder: Path, repository, *urls: str, limits: Limits = PATIENT) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.metadata = folder / "metadata"
        self.root = folder / "root.json"
        self.root.write_bytes(repository.first_root)
        self.part = folder / "bundle.part"
        self.urls = list(urls)
        self.floors = Floors()
        self.at = repository.now.timestamp()
        self.clock_trusted: bool | None = True
        self.limits = limits
        self.events: list[object] = []

    def job(self, name=None, version=None, **changed) -> MetadataJob:
        job = MetadataJob(
            repository=self.urls,
            metadata_dir=str(self.metadata),
            root=str(self.root),
            floors=self.floors,
            at=self.at,
            clock_trusted=self.clock_trusted,
            board="rpi-4b",
            agent="0.3.0",
            name=name,
            version=version,
            limits=self.limits,
        )
        return msgspec.structs.replace(job, **changed)

    def connect(self, url: str, ca_file: str = ""):
        lines = Lines(-1)
        return fetch.connect(
            url, ca_file=ca_file, limits=self.limits, lines=lines, ask=self.events.append
        )

    def ask(self, name=None, version=None, **changed):
        """Run a job of `metadata`, and keep the floors as the control process does."""
        job = self.job(name, version, **changed)
        said = Resolution(job, lambda url: self.connect(url, job.ca_file)).run()
        if said.floors is not None:
            self.floors = said.floors
        return said

    def fetch(self, target, **changed):
        """Run a job of `download`."""
        job = msgspec.structs.replace(self.download_job(target), **changed)
        return download(job, lambda url: self.connect(url, job.ca_file), self.events.append)

    def download_job(self, target) -> DownloadJob:
        return DownloadJob(
            repository=self.urls,
            name=target.custom.name,
            version=target.custom.version,
            sha256=target.sha256,
            length=target.length,
            part=str(self.part),
            limits=self.limits,
        )

    def lose_metadata(self) -> None:
        """What a power cut may leave of files that were never synced."""
        for path in self.metadata.rglob("*.json"):
            path.write_bytes(b"")


def run_process(job, *, before: tuple[str, ...] = (), env=None, timeout=300):
    """Run a job in a process of its own; return its events and what it wrote to stderr."""
    done = subprocess.run(
        [*before, sys.executable, "-m", "agent.ota.process"],
        input=to_line(job),
        capture_output=True,
        cwd=PROJECT,
        env={**os.environ, **(env or {})},
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr.decode()
    return [parse_event(line) for line in done.stdout.splitlines()], done.stderr.decode()
