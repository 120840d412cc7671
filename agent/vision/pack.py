"""`edge-agent model pack`: from a model that runs here to a bundle that boards can judge.

What can be known is filled in, as `model inspect` shows it; the answers to golden pictures are
recorded and the time and memory it needs are measured. The bundle is then unpacked and loaded as
a board would, before the file gets its name.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from agent import __version__
from agent.config import ModelConfig
from agent.contract.manifest import (
    Budget,
    HeadManifest,
    InputManifest,
)
from agent.contract.updates import Version
from agent.errors import EXIT_OK, EXIT_USAGE, AgentError, ModelError, UnavailableError
from agent.ota.bundle import describe, write_bundle
from agent.ota.manifest import (
    ANCHORS,
    EDGETPU,
    GOLDEN,
    LABELS,
    MANIFEST,
    MODEL,
    BundleManifest,
    encode_manifest,
)
from agent.ota.selftest import ExamReport
from agent.sensors.board import identify
from agent.sensors.files import BoardFiles
from agent.vision.accelerate import explain
from agent.vision.bundles import examine
from agent.vision.cameras.images import load_image
from agent.vision.child import may_crash, run_in_child, serve
from agent.vision.golden_recording import (
    STEPS,
    Picture,
    Recorded,
    kernels_of,
    record,
    usual_pictures,
)
from agent.vision.inspect import manifest_example
from agent.vision.model import Model, build_model, lowest_score, tensors_of
from agent.vision.model_files import ModelFiles, read_model
from agent.vision.tflite_file import TfliteFile, parse_tflite


class PackRequest(Struct, frozen=True, kw_only=True):
    """One call of `run_pack`; what is None is inferred, see the command's help."""

    config: ModelConfig
    out: str
    name: str | None = None
    version: str | None = None
    release_counter: int | None = None
    security_floor: int | None = None
    boards: tuple[str, ...] = ()
    min_agent: str | None = None
    golden: tuple[str, ...] = ()  # pictures
    budget: dict[str, Budget] = {}
    margin: float = 2.0  # of a measured budget over what was measured
    license: str | None = None
    provenance: dict[str, str] = {}
    as_json: bool = False


class PackUsageError(AgentError):
    """Something that has to be said was not."""

    exit_code = EXIT_USAGE


def run_pack(request: PackRequest) -> int:
    """Write a bundle; return the exit code.

    Raises:
        AgentError: it cannot be made; what was there before is untouched.
    """
    if may_crash(request.config.runtime):
        return run_in_child(__name__, request, model=request.config.path)
    return pack_here(request)


def pack_here(request: PackRequest) -> int:
    """Do what was asked in this process; see `run_pack`."""
    out = Path(request.out)
    files = read_model(request.config.path)
    try:
        with tempfile.TemporaryDirectory(prefix="edge-agent-pack-") as folder:
            made = _Packing(request, files, Path(folder)).make()
            members = {name: Path(folder) / name for name in made.manifest.files}
            sha256 = write_bundle(members, made.manifest, out)
    except OSError as error:
        raise UnavailableError(f"{error.filename or out}: {error.strerror or error}") from error
    _report(request, made, sha256)
    return EXIT_OK


class _Made(Struct, frozen=True, kw_only=True):
    """What is to be written, and what people want to know of it."""

    manifest: BundleManifest
    golden: str
    notes: tuple[str, ...]


class _Packing:
    """One bundle in the making: a model folder in `folder`, which grows."""

    def __init__(self, request: PackRequest, files: ModelFiles, folder: Path) -> None:
        self._request = request
        self._files = files
        self._folder = folder
        self._notes: list[str] = []
        wanted = request.config
        self._config = ModelConfig(
            path=str(folder),
            accelerator=wanted.accelerator,
            runtime=wanted.runtime,
            threads=wanted.threads,
        )

    def make(self) -> _Made:
        """Fill the folder; return its manifest."""
        request, files = self._request, self._files
        try:
            model = build_model(files, request.config)
        except ModelError as error:
            raise explain(error, files) from error
        self._copy()
        manifest = self._write(self._inferred(model))
        golden, shown = self._golden(read_model(str(self._folder)))
        (self._folder / GOLDEN).write_bytes(golden.data)
        by = {"golden_by": ", ".join(golden.kernels)} if golden.kernels else {}
        told = {**manifest.provenance, **by}
        manifest = self._write(
            msgspec.structs.replace(manifest, golden=golden.golden, provenance=told)
        )
        report = examine(self._folder, manifest, self._config)
        budget = request.budget or self._measured(report)
        manifest = self._write(msgspec.structs.replace(manifest, budget=budget))
        return _Made(manifest=manifest, golden=shown, notes=tuple(self._notes))

    def _copy(self) -> None:
        """Put the model's files there, under the names they have in a bundle."""
        files, manifest = self._files, self._files.manifest
        (self._folder / MODEL).write_bytes(files.plain.data)
        if files.edgetpu is not None:
            (self._folder / EDGETPU).write_bytes(files.edgetpu.data)
        listed = manifest.labels and str(files.folder / manifest.labels)
        for name, source in (
            (LABELS, self._request.config.labels_file or listed),
            (ANCHORS, manifest.head.anchors and str(files.folder / manifest.head.anchors)),
        ):
            if source:
                (self._folder / name).write_bytes(Path(source).read_bytes())

    def _has(self, name: str) -> str | None:
        return name if (self._folder / name).exists() else None

    def _write(self, manifest: BundleManifest) -> BundleManifest:
        """Write manifest.json; return it with the files there are now."""
        names = sorted(path.name for path in self._folder.iterdir() if path.name != MANIFEST)
        entries = describe({name: self._folder / name for name in names})
        manifest = msgspec.structs.replace(manifest, files=entries)
        (self._folder / MANIFEST).write_bytes(encode_manifest(manifest))
        return manifest

    def _inferred(self, model: Model) -> BundleManifest:
        """Return all but golden, budget and files, as far as it can be known."""
        request, own = self._request, self._files.manifest
        file = parse_tflite(self._files.plain.data, where=self._files.where)
        score = lowest_score(request.config, own, model.head.kind)
        known = manifest_example(self._files, file, model, score)
        head = msgspec.convert({**known["head"]}, HeadManifest)
        counter = request.release_counter or int(time.time())
        floor = own.security_floor if request.security_floor is None else request.security_floor
        return BundleManifest(
            schema="edge-agent/manifest/1",
            name=request.name or own.name.replace(".", "-"),
            version=self._version(file),
            release_counter=counter,
            security_floor=floor,
            boards=request.boards or own.boards,
            min_agent=request.min_agent or own.min_agent,
            task=model.head.task,
            head=msgspec.structs.replace(head, anchors=self._has(ANCHORS)),
            input=msgspec.convert(known["input"], InputManifest),
            tensors=tensors_of(model.engine),
            edgetpu="model_edgetpu.tflite" if self._has(EDGETPU) else None,
            labels="labels.txt" if self._has(LABELS) else None,
            custom_ops=tuple(sorted(self._custom_ops(file))),
            license=request.license or own.license or _text(file.exporter.get("license")),
            provenance=self._provenance(model),
            files={},
        )

    def _version(self, file: TfliteFile) -> str:
        """Return the version that was asked for, else the model's own where it can be one."""
        own = self._request.version or self._files.manifest.version or file.version
        if own is None:
            raise PackUsageError("the model says no version: give one with --version")
        try:
            return msgspec.convert(own, Version)
        except msgspec.ValidationError as error:
            raise PackUsageError(f"{own[:80]!r} cannot be a version: {error}") from error

    def _custom_ops(self, file: TfliteFile) -> set[str]:
        compiled = self._files.edgetpu
        others = parse_tflite(compiled.data, where=compiled.where).custom_ops if compiled else ()
        return {*file.custom_ops, *others}

    def _provenance(self, model: Model) -> dict[str, Any]:
        """Return the model's own, then what is known here, then what was said."""
        own = {
            key: tuple(map(str, value)) if isinstance(value, list) else str(value)
            for key, value in self._files.manifest.provenance.items()
        }
        return {
            **own,
            "source_file": Path(self._files.where).name,
            "source_sha256": self._files.plain.sha256,
            "packed_by": f"edge-agent {__version__}, {kernels_of(model)}",
            **self._request.provenance,
        }

    def _golden(self, unpacked: ModelFiles) -> tuple[Recorded, str]:
        """Record what it answers to pictures: those chosen, else its own, else the usual ones."""
        own = self._own_golden()
        if own is not None:
            return own, "the model's own, which it keeps"
        chosen = [_picture(path) for path in self._request.golden]
        recorded = record(
            unpacked, self._config, chosen or [*usual_pictures()], is_chosen=bool(chosen)
        )
        for name in recorded.left_out:
            self._notes.append(f"golden: {name} is left out, kernels do not agree on it")
        if recorded.golden.score_tolerance > STEPS[0][0]:
            self._notes.append(
                f"golden: answers may differ by {recorded.golden.score_tolerance:g}, as they do "
                "between kernels here; pictures of what it is for (--golden) may need less"
            )
        if not recorded.found:
            self._notes.append(
                "golden: the model finds nothing in these pictures, which proves little; give "
                "pictures of what it is for with --golden"
            )
        shown = f"{len(recorded.pictures)} pictures ({', '.join(recorded.pictures)})"
        return recorded, f"{shown}, findings: {recorded.found}"

    def _own_golden(self) -> Recorded | None:
        """Return the folder's golden file as it is; that the model keeps it is checked later."""
        golden = self._files.manifest.golden
        if golden is None or self._request.golden:
            return None
        return Recorded(
            golden=msgspec.structs.replace(golden, file=GOLDEN),
            data=(self._files.folder / golden.file).read_bytes(),
            pictures=(),
            found=1,
            left_out=(),
            kernels=(),
        )

    def _measured(self, report: ExamReport) -> dict[str, Budget]:
        """Allow what it took here with a margin, on boards like this one."""
        if report.p95_ms is None or report.rss_mib is None or report.not_comparable:
            self._notes.append("budget: none, as nothing could be measured here that holds")
            return {}
        board, margin = identify(BoardFiles()).id, self._request.margin
        self._notes.append(
            f"budget: what it took on this board ({board}) times {margin:g}; for others there is "
            "none: add --budget BOARD=MS,MIB"
        )
        return {
            board: Budget(
                p95_ms=max(0.1, round(report.p95_ms * margin, 1)),
                rss_mib=max(1.0, round(report.rss_mib * margin)),
            )
        }


def _picture(path: str) -> Picture:
    try:
        return Path(path).name, load_image(Path(path))
    except OSError as error:
        raise UnavailableError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UnavailableError(f"{path}: is no picture that can be used: {error}") from error


def _text(value: object) -> str | None:
    return value[:200] if isinstance(value, str) else None


def _report(request: PackRequest, made: _Made, sha256: str) -> None:
    manifest, size = made.manifest, Path(request.out).stat().st_size
    title = f"{manifest.name}@{manifest.version}"
    if request.as_json:
        document = {
            "bundle": {"path": request.out, "sha256": sha256, "size_bytes": size},
            "manifest": manifest,
            "golden": made.golden,
            "notes": made.notes,
        }
        print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return
    spent = ", ".join(
        f"{board} p95 {each.p95_ms:g} ms and {each.rss_mib:g} MiB"
        for board, each in manifest.budget.items()
    )
    print(f"bundle       {request.out}, {size / 1e6:.1f} MB")
    print(f"sha256       {sha256}")
    print(f"model        {title}, {manifest.task} by {manifest.head.type}")
    print(
        f"release      {manifest.release_counter}, boards stay at {manifest.security_floor} or on"
    )
    print(f"boards       {', '.join(manifest.boards) or 'all'}")
    print(f"golden       {made.golden}")
    print(f"budget       {spent or 'none'}")
    for note in made.notes:
        print(f"note         {note}")


if __name__ == "__main__":
    sys.exit(serve(PackRequest, pack_here))
