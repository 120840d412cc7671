"""The operator's keys: files of their own, never in the repository, each to be kept apart.

Ed25519, one key a file, in OpenSSH's format, which cryptography writes and reads whole: with a
passphrase by bcrypt and AES-256. `ssh-keygen -p -f root-1.key` sets, changes or removes one.
Nothing but a file's name says whose key it is; that it fits is seen by its id.
"""

from __future__ import annotations

import getpass
import os
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
)
from securesystemslib.signer import CryptoSigner, Key

from agent.errors import AgentError, UnavailableError

# Of bcrypt: 16 is OpenSSH's own; each guess of a passphrase costs about a second of a desktop.
KDF_ROUNDS: Final = 64
KEY_FILE_MODE: Final = 0o600
MAX_KEY_FILE_BYTES: Final = 16 << 10
# An extra field of a key in root metadata, which clients ignore; so a name outlives its file.
NAME_FIELD: Final = "x-edge-agent-name"

AskPassphrase = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was made and is not stored yet."""

    name: str
    signer: CryptoSigner
    content: bytes


def make_key(name: str, passphrase: bytes | None) -> NewKey:
    """Make a key; `name` is what its file is called, such as root-1."""
    private = Ed25519PrivateKey.generate()
    lock: KeySerializationEncryption = NoEncryption()
    if passphrase:
        builder = PrivateFormat.OpenSSH.encryption_builder().kdf_rounds(KDF_ROUNDS)
        try:
            lock = builder.build(passphrase)
            content = private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, lock)
        except UnsupportedAlgorithm as error:
            raise UnavailableError(
                'a passphrase needs bcrypt: pip install "edge-agent[operator]"'
            ) from error
    else:
        content = private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, lock)
    signer = CryptoSigner(private)
    signer.public_key.unrecognized_fields[NAME_FIELD] = name
    return NewKey(name=name, signer=signer, content=content)


def name_of(key: Key) -> str:
    """Return what a key of root metadata is called."""
    name = key.unrecognized_fields.get(NAME_FIELD)
    return name if isinstance(name, str) else key.keyid[:8]


class KeyRing:
    """Folders to look for keys in, such as a memory stick's; reads only what is asked for."""

    def __init__(self, folders: Sequence[Path], ask: AskPassphrase) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise UnavailableError(f"--keys {folder}: is not a folder")
        self._folders = folders
        self._ask = ask
        self._passphrases: list[bytes] = []

    def path(self, key: Key) -> Path | None:
        """Return where a key's file lies."""
        name = f"{name_of(key)}.key"
        return next((path for folder in self._folders if (path := folder / name).is_file()), None)

    def signers(self, keys: Iterable[Key]) -> list[CryptoSigner]:
        """Return those of the keys that are here.

        Raises:
            AgentError: a key's file is damaged, open to others, or another key's.
        """
        found = [(key, path) for key in keys if (path := self.path(key)) is not None]
        return [self._signer(key, path) for key, path in found]

    def _signer(self, key: Key, path: Path) -> CryptoSigner:
        signer = CryptoSigner(self._load(path))
        if signer.public_key.keyid != key.keyid:
            raise AgentError(
                f"{path}: is another key ({signer.public_key.keyid[:8]}) than the repository's"
                f" {name_of(key)} ({key.keyid[:8]})"
            )
        return signer

    def _load(self, path: Path) -> Ed25519PrivateKey:
        content = _read_private(path)
        try:
            private = load_ssh_private_key(content, None)
        except TypeError:
            return _ed25519(path, self._unlock(path, content))  # it has a passphrase
        except (ValueError, UnsupportedAlgorithm) as error:
            raise AgentError(f"{path}: is not a key of this program: {error}") from error
        return _ed25519(path, private)

    def _unlock(self, path: Path, content: bytes) -> object:
        """Try the passphrases given before, then ask for another."""
        for passphrase in [*self._passphrases, None]:
            asked = self._ask(str(path)) if passphrase is None else passphrase
            try:
                private = load_ssh_private_key(content, asked)
            except ValueError:
                continue
            except UnsupportedAlgorithm as error:
                raise UnavailableError(
                    f'{path}: its passphrase needs bcrypt: pip install "edge-agent[operator]"'
                ) from error
            if passphrase is None:
                self._passphrases.append(asked)
            return private
        raise AgentError(f"{path}: this is not its passphrase")


def _ed25519(path: Path, private: object) -> Ed25519PrivateKey:
    if not isinstance(private, Ed25519PrivateKey):
        raise AgentError(f"{path}: is not an Ed25519 key")
    return private


def _read_private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MAX_KEY_FILE_BYTES)
    except OSError as error:
        raise UnavailableError(f"{path}: cannot be read: {error.strerror}") from error
    # A stick's FAT knows no rights and shows all files as open.
    if mode & (stat.S_IRWXG | stat.S_IRWXO) and _keeps_rights(path):
        raise AgentError(f"{path}: others may read this key; chmod 600 it, or make a new one")
    return content


def _keeps_rights(path: Path) -> bool:
    """Return whether the folder's file system has rights at all: vfat and exfat mount without.

    /proc/self/mountinfo, proc(5): the 5th field is the mount point, behind ` - ` the type.
    """
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return True
    resolved, best, kind = path.resolve(), "", ""
    for line in lines:
        before, _, behind = line.partition(" - ")
        place = before.split()[4]
        if len(place) >= len(best) and resolved.is_relative_to(place):
            best, kind = place, behind.split()[0]
    return kind not in ("vfat", "exfat", "msdos", "ntfs", "ntfs3", "fuseblk", "9p", "drvfs")


def passphrases_from(file: Path | None) -> AskPassphrase:
    """Return how to ask for a passphrase: from a file's first line, else from the terminal."""

    def ask(what: str) -> bytes:
        if file is not None:
            return _first_line(file)
        if not sys.stdin.isatty():
            raise UnavailableError(
                f"{what}: has a passphrase; give it by --passphrase-file, or run this in a terminal"
            )
        return getpass.getpass(f"passphrase of {what}: ").encode()

    return ask


def new_passphrase(file: Path | None) -> bytes:
    """Return a passphrase for new keys: from a file's first line, else asked for twice."""
    if file is not None:
        passphrase = _first_line(file)
    elif not sys.stdin.isatty():
        raise UnavailableError("--passphrase needs a terminal, or --passphrase-file")
    else:
        passphrase = getpass.getpass("passphrase for the new keys: ").encode()
        if passphrase != getpass.getpass("again: ").encode():
            raise AgentError("the two passphrases differ; nothing was done")
    if not passphrase:
        raise AgentError("the passphrase is empty; nothing was done")
    return passphrase


def _first_line(file: Path) -> bytes:
    try:
        return file.read_bytes().split(b"\n")[0].rstrip(b"\r")
    except OSError as error:
        raise UnavailableError(f"--passphrase-file {file}: {error.strerror}") from error
