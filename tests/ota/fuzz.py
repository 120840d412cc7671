"""All that reads strangers' bytes, for a fuzzer that looks at which lines were reached.

    pip install atheris; cd tests/ota
    PYTHONPATH=../.. python fuzz.py desired -max_total_time=600

`bundle` begins with `bundle_corpus`, the others with their seeds here. What ends a run is an
exception that is no refusal: its file goes into `bundle_corpus`, or among the seeds, when mended.
`test_fuzz_corpus.py` reads all of them with every target.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

if __name__ == "__main__":
    import atheris

    instrumented = atheris.instrument_imports(include=["agent.ota", "agent.contract"])
else:
    import contextlib

    instrumented = contextlib.nullcontext()
with instrumented:
    from bundle_mutations import SOUND, check
    from made_bundles import made_manifest

    from agent.ota.checked import seal, unseal
    from agent.ota.chunks import Chunk, is_path, pack, parse_request, unpack
    from agent.ota.desired import parse_desired
    from agent.ota.jobs import parse_event
    from agent.ota.manifest import encode_manifest, parse_manifest
    from agent.ota.refusal import RefusalError
    from agent.ota.strict_json import MAX_INTEGER, decode

CORPUS = Path(__file__).parent / "bundle_corpus"


def read_manifest(raw: bytes) -> None:
    """What is taken is written in one way, which is taken as well and means the same."""
    try:
        manifest = parse_manifest(raw)
    except RefusalError as error:
        assert error.code in ("E_BUNDLE", "E_COMPAT", "E_HASH", "E_JSON", "E_SIZE"), error.code
        assert str(error).isprintable()
    else:
        assert parse_manifest(encode_manifest(manifest)) == manifest


def read_desired(raw: bytes) -> None:
    """What is taken has a counter that every program can hold, and names that are no paths."""
    try:
        desired = parse_desired(raw)
    except RefusalError as error:
        assert error.code in ("E_SIZE", "E_JSON", "E_DESIRED"), error.code
        assert str(error).isprintable()
    else:
        assert 0 <= desired.counter <= MAX_INTEGER
        assert "/" not in f"{desired.name}{desired.version}"
        assert parse_desired(msgspec.json.encode(desired)) == desired


def read_json(raw: bytes) -> None:
    """What is taken means what the standard library says."""
    try:
        found = decode(raw, object, most_bytes=1 << 16, where="it")
    except RefusalError as error:
        assert error.code in ("E_SIZE", "E_JSON"), error.code
    else:
        assert found == json.loads(raw)


def read_request(raw: bytes) -> None:
    """What is taken asks for a file of a repository, and for no other."""
    try:
        request = parse_request(raw)
    except ValueError:
        return
    assert is_path(request.path)
    assert ".." not in request.path.split("/")
    assert not request.path.startswith("/")


def read_chunk(raw: bytes) -> None:
    """There is one way to write an answer."""
    found = unpack(raw)
    assert found is None or pack(found) == raw


def read_event(raw: bytes) -> None:
    """What the update process says, should somebody have taken it over."""
    try:
        parse_event(raw)
    except (msgspec.MsgspecError, RecursionError):
        return


def read_record(raw: bytes) -> None:
    """A record of the state files: whole or none."""
    found = unseal("state", raw)
    if found is not None:
        assert raw.startswith(seal("state", *found))  # behind it the file is filled up


ORDER = b'{"deployment_id":"d-1","counter":7,"name":"ssd","version":"1"}'
# Of each: what reads it, and what is sound or nearly so.
TARGETS: dict[str, tuple[Callable[[bytes], object], list[bytes]]] = {
    "bundle": (check, [SOUND]),
    "manifest": (read_manifest, [encode_manifest(made_manifest())]),
    "desired": (
        read_desired,
        [
            ORDER,
            ORDER.replace(b'"name"', b'"engine":"faces","pinned":true,"name"'),
            b'{"deployment_id":"x","counter":1,"action":"rollback"}',
            b'{"deployment_id":"x","counter":1,"action":"factory","at":1.5e9}',
            b'{"counter":9007199254740993}', b'{"a":{"a":1,"a":2}}', b"", b"null", b"[" * 4096,
        ],
    ),
    "json": (
        read_json,
        [b'{"a":[1,-2.5e3,"\\ud83d\\ude00",null,{"b":{}}]}', b"NaN", b"\xef\xbb\xbf1", b"1e999",
         b'"\\ud800"', b"9" * 400, b"[[[[", b'{"a":1,"\\u0061":2}'],
    ),
    "request": (
        read_request,
        [b'{"id":"1-2","path":"metadata/timestamp.json","offset":0,"length":61440}',
         b'{"id":"1-2","path":"targets/ssd/ab.1.tar","offset":9,"length":1}',
         b'{"id":"1-2","path":"targets/../x","offset":0,"length":1}'],
    ),
    "chunk": (read_chunk, [pack(Chunk(status=200, total=3, piece=b"a")), pack(Chunk(status=404))]),
    "event": (
        read_event,
        [b'{"event":"progress","bytes_done":1,"bytes_total":2}',
         b'{"event":"refused","code":"E_NET","message":"no","is_final":false}',
         b'{"event":"need","id":"1","path":"metadata/1.root.json","offset":0,"length":1}'],
    ),
    "record": (read_record, [seal("state", 7, b'{"generation":7}'), b"edge-agent-state-1 "]),
}  # fmt: skip


def main() -> None:
    """Hand over to libFuzzer, with the corpus first."""
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        sys.exit(f"one of: {', '.join(TARGETS)}")
    read, seeds = TARGETS[name]
    # It stays, as the fuzzer ends without a word to Python: what was found is gone on from.
    folder = Path(tempfile.gettempdir(), f"edge-agent-fuzz-{name}")
    folder.mkdir(exist_ok=True)
    for number, seed in enumerate(seeds):
        (folder / f"seed-{number}").write_bytes(seed)
    sys.argv += [str(folder), *([str(CORPUS)] if name == "bundle" else [])]
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
