"""A repository in memory, signed with real keys, and a web server that does what it likes with it.

`Repository` publishes as an operator does: metadata are signed the moment they are published, and
`files` is what a web server would have. `WebServer` serves any such mapping, whole or broken:

    with WebServer(repository.files) as server:
        server.faults["targets/"] = Fault(cut_at=0.5)
        ... server.url ...

The servers speak on a socket by themselves, so that they can break every rule there is.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from securesystemslib.signer import CryptoSigner, Key, Signature, Signer, SSlibKey
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

ONLINE = ("timestamp", "snapshot")
DAY = timedelta(days=1)


class PureSigner(Signer):
    """Ed25519 without `cryptography`, slow and fit for tests alone."""

    def __init__(self) -> None:
        import secrets

        from securesystemslib._vendor.ed25519 import ed25519

        self._ed25519 = ed25519
        self._seed = secrets.token_bytes(32)
        self._public = ed25519.publickey_unsafe(self._seed)
        keyid = hashlib.sha256(self._public).hexdigest()
        self._key = SSlibKey(keyid, "ed25519", "ed25519", {"public": self._public.hex()})

    @property
    def public_key(self) -> Key:
        return self._key

    def sign(self, payload: bytes) -> Signature:
        signed = self._ed25519.signature_unsafe(payload, self._seed, self._public)
        return Signature(self._key.keyid, signed.hex())

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri, public_key, secrets_handler=None):
        raise NotImplementedError


def new_signer() -> Signer:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        return PureSigner()
    return CryptoSigner.generate_ed25519()


class Repository:
    """Everything that an operator, or a thief of some of their keys, can publish.

    signers: by role; whoever changes them publishes a root afterwards
    files: what is served, by path
    """

    def __init__(self, *, now: datetime | None = None, root_threshold: int = 1) -> None:
        self.now = now or datetime.now(timezone.utc).replace(microsecond=0)
        self.files: dict[str, bytes] = {}
        self.signers: dict[str, list[Signer]] = {
            "root": [new_signer() for _ in range(root_threshold)],
            **{role: [new_signer()] for role in ("targets", *ONLINE)},
        }
        self.root = Root(expires=self.now + 730 * DAY, consistent_snapshot=True)
        self.root.roles["root"].threshold = root_threshold
        for role, signers in self.signers.items():
            for signer in signers:
                self.root.add_key(signer.public_key, role)
        self.targets = Targets(expires=self.now + 365 * DAY)
        self.snapshot = Snapshot(expires=self.now + 30 * DAY)
        self.timestamp = Timestamp(expires=self.now + 30 * DAY)
        self.publish_root(first=True)
        self.publish_targets(bump=False)

    def sign(self, signed, signers: list[Signer]) -> bytes:
        metadata = Metadata(signed)
        for signer in signers:
            metadata.sign(signer, append=True)
        return metadata.to_bytes(JSONSerializer(compact=True))

    @property
    def first_root(self) -> bytes:
        return self.files["metadata/1.root.json"]

    def publish_root(self, *, first: bool = False, also: list[Signer] | None = None) -> bytes:
        """Sign the root; `also` are the signers of the one before, if they are others."""
        if not first:
            self.root.version += 1
        by_id = {one.public_key.keyid: one for one in [*(also or []), *self.signers["root"]]}
        content = self.sign(self.root, list(by_id.values()))
        self.files[f"metadata/{self.root.version}.root.json"] = content
        return content

    def rotate(self, role: str) -> list[Signer]:
        """Give a role other keys, and publish the root that says so; return the old ones."""
        old = self.signers[role]
        for signer in old:
            self.root.revoke_key(signer.public_key.keyid, role)
        self.signers[role] = [new_signer() for _ in old]
        for signer in self.signers[role]:
            self.root.add_key(signer.public_key, role)
        self.publish_root(also=old if role == "root" else None)
        return old

    def publish_targets(self, *, bump: bool = True) -> None:
        if bump:
            self.targets.version += 1
        content = self.sign(self.targets, self.signers["targets"])
        self.files[f"metadata/{self.targets.version}.targets.json"] = content
        self.snapshot.meta["targets.json"] = MetaFile(
            self.targets.version, len(content), {"sha256": hashlib.sha256(content).hexdigest()}
        )
        self.publish_snapshot(bump=bump)

    def publish_snapshot(self, *, bump: bool = True) -> None:
        if bump:
            self.snapshot.version += 1
        content = self.sign(self.snapshot, self.signers["snapshot"])
        self.files[f"metadata/{self.snapshot.version}.snapshot.json"] = content
        self.timestamp.snapshot_meta = MetaFile(
            self.snapshot.version, len(content), {"sha256": hashlib.sha256(content).hexdigest()}
        )
        self.publish_timestamp(bump=bump)

    def publish_timestamp(self, *, bump: bool = True) -> None:
        if bump:
            self.timestamp.version += 1
        content = self.sign(self.timestamp, self.signers["timestamp"])
        self.files["metadata/timestamp.json"] = content

    def add(self, name: str, version: str, content: bytes, /, **custom: object) -> str:
        """Publish a bundle; return the path of its file."""
        digest = hashlib.sha256(content).hexdigest()
        said = {"name": name, "version": version, "release_counter": 1, "security_floor": 0}
        target = TargetFile(len(content), {"sha256": digest}, f"{name}/{version}.tar")
        target.unrecognized_fields["custom"] = said | custom
        self.targets.targets[target.path] = target
        path = f"targets/{name}/{digest}.{version}.tar"
        self.files[path] = content
        self.publish_targets()
        return path


@dataclass
class Fault:
    """What is wrong with an answer.

    status: this one instead, with `headers` and `body`
    cut_at: the connection ends after this part of the body (0 to 1), or so many bytes (above 1)
    times: for so many requests; then all is well
    drip_s: a byte of the body each so many seconds
    drip_head_s: the same from the first byte of the status line on
    endless: zeros without end, and without a length
    no_length: the end of the connection is the end of the body
    chunked: in chunks of this size
    more: bytes behind the promised end, with a length that says so
    ignores_range: always sends the whole
    wrong_range: sends the whole file and calls it what was asked for
    tag: another ETag than the right one
    body: other bytes
    headers: more of them
    """

    status: int | None = None
    cut_at: float | None = None
    times: int = 1 << 30
    drip_s: float = 0.0
    drip_head_s: float = 0.0
    endless: bool = False
    no_length: bool = False
    chunked: int = 0
    more: bytes = b""
    ignores_range: bool = False
    wrong_range: bool = False
    tag: str | None = None
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Request:
    """What was asked, and how many bytes of a body went out for it."""

    path: str
    headers: dict[str, str]
    sent: int = 0


class WebServer:
    """Serves files on a port of its own; `faults` by a pattern that is searched in the path."""

    def __init__(self, files: dict[str, bytes], tls=None) -> None:
        self.files = files
        self.faults: dict[str, Fault] = {}
        self.requests: list[Request] = []
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self._is_over = threading.Event()
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def port(self) -> int:
        return self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://localhost:{self.port}/"

    def sent(self, pattern: str = "") -> int:
        """Bytes of bodies that went out."""
        return sum(one.sent for one in self.requests if re.search(pattern, one.path))

    def asked(self, pattern: str = "") -> int:
        return sum(1 for one in self.requests if re.search(pattern, one.path))

    def __enter__(self):
        self._threads[0].start()
        return self

    def __exit__(self, *_):
        self._is_over.set()
        for connection in self._open:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while not self._is_over.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(10)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            self._open.append(connection)
            with connection, connection.makefile("rb") as lines:
                while not self._is_over.is_set() and self._answer(connection, lines):
                    pass
        except (OSError, ValueError):  # the other side hung up, or all is over
            connection.close()

    def _read(self, lines) -> Request | None:
        start = lines.readline()
        if not start:
            return None
        headers = {}
        while line := lines.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return Request(start.decode().split()[1].lstrip("/"), headers)

    def _fault(self, path: str) -> Fault:
        for pattern, fault in self.faults.items():
            if re.search(pattern, path) and fault.times > 0:
                fault.times -= 1
                return fault
        return Fault()

    def _answer(self, connection: socket.socket, lines) -> bool:
        request = self._read(lines)
        if request is None:
            return False
        self.requests.append(request)
        fault = self._fault(request.path)
        head, body, is_kept = self._compose(request, fault)
        if fault.drip_head_s:
            self._drip(connection, head, fault.drip_head_s)
        else:
            connection.sendall(head)
        if fault.endless:
            while not self._is_over.is_set():
                connection.sendall(bytes(1 << 16))
                request.sent += 1 << 16
        if fault.drip_s:
            request.sent += self._drip(connection, body, fault.drip_s)
        elif fault.chunked:
            for at in range(0, len(body), fault.chunked):
                piece = body[at : at + fault.chunked]
                connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
                request.sent += len(piece)
            connection.sendall(b"0\r\n\r\n")
        else:
            # In pieces, so that what was sent can be counted where the other side hangs up.
            for at in range(0, len(body), 1 << 14):
                piece = body[at : at + (1 << 14)]
                connection.sendall(piece)
                request.sent += len(piece)
        return is_kept

    def _drip(self, connection: socket.socket, data: bytes, every_s: float) -> int:
        for count, byte in enumerate(data):
            if self._is_over.wait(every_s):
                return count
            connection.sendall(bytes([byte]))
        return len(data)

    def _compose(self, request: Request, fault: Fault) -> tuple[bytes, bytes, bool]:
        content = self.files.get(request.path) if fault.body is None else fault.body
        headers = list(fault.headers)
        status, body = 200, content or b""
        if fault.status is not None:
            status, body = fault.status, fault.body or b""
        elif content is None and not fault.endless:
            status, body = 404, b"not here"
        else:
            content = content or b""
            tag = fault.tag or f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            headers += [("ETag", tag), ("Accept-Ranges", "bytes")]
            asked = re.fullmatch(r"bytes=([0-9]+)-", request.headers.get("range", ""))
            if_range = request.headers.get("if-range")
            if asked and not fault.ignores_range and if_range in (None, tag):
                start = int(asked[1])
                if start >= len(content):
                    status, body = 416, b""
                    headers += [("Content-Range", f"bytes */{len(content)}")]
                else:
                    status = 206
                    body = content if fault.wrong_range else content[start:]
                    first = 0 if fault.wrong_range else start
                    last = len(content) - 1
                    headers += [("Content-Range", f"bytes {first}-{last}/{len(content)}")]
        body += fault.more
        is_kept = not (fault.no_length or fault.endless)
        if fault.chunked:
            headers += [("Transfer-Encoding", "chunked")]
        elif is_kept:
            headers += [("Content-Length", str(len(body)))]
        if fault.cut_at is not None:
            is_kept = False
            body = body[: int(fault.cut_at * len(body) if fault.cut_at <= 1 else fault.cut_at)]
        lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in headers)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), body, is_kept
