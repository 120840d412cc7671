"""`edge-agent model verify`, and `model inspect` of a bundle: what a board would make of it.

All that a board checks is checked by what checks it there, but for the signatures, which are the
repository's: `agent.ota.bundle` for the file, and the self-test's own process for the model.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from agent.config import ModelConfig
from agent.errors import EXIT_OK, UnavailableError
from agent.ota.bundle import Bundle, unpack_into
from agent.ota.manifest import MANIFEST, BundleManifest, budget_for, require_fit
from agent.ota.refusal import RefusalError
from agent.ota.selftest import ExamReport, ExamRequest, start_exam
from agent.sensors.board import identify
from agent.sensors.files import BoardFiles
from agent.vision.engines import installed_runtimes
from agent.vision.inspect import run_inspect
from agent.vision.model_files import MAX_MODEL_BYTES, read_bounded
from agent.vision.tflite_file import parse_tflite

POLL_S = 0.02
WITHIN_S = 150.0  # on a laptop that does other things; boards are stricter
GONE_WITHIN_S = 5.0
Json = dict[str, Any]


@contextmanager
def unpacked(path: Path) -> Iterator[tuple[Bundle, Path]]:
    """Unpack a bundle into a folder that is gone afterwards; every byte is checked.

    Raises:
        RefusalError: a board would refuse the file.
        UnavailableError: it cannot be read, or there is no room.
    """
    with tempfile.TemporaryDirectory(prefix="edge-agent-bundle-") as folder:
        try:
            bundle = unpack_into(path, Path(folder))
        except OSError as error:
            where = error.filename or path
            raise UnavailableError(f"{where}: {error.strerror or error}") from error
        yield bundle, Path(folder)


def examine(folder: Path, manifest: BundleManifest, config: ModelConfig) -> ExamReport:
    """Let the self-test's process examine an unpacked bundle, as it would on this board.

    Raises:
        RefusalError: with its code.
        ModelError: no runtime is installed here.
    """
    installed_runtimes(config.runtime)
    budget = budget_for(manifest, identify(BoardFiles()).id)
    exam = start_exam(
        ExamRequest(
            model=msgspec.structs.replace(config, path=str(folder)),
            manifest_sha256=sha256((folder / MANIFEST).read_bytes()).hexdigest(),
            p95_ms=budget.p95_ms if budget else None,
            rss_mib=budget.rss_mib if budget else None,
            task=manifest.task,
            may_use_accelerator=config.accelerator != "cpu",
            stands_back="no",  # somebody waits
            limit_s=WITHIN_S,
        )
    )
    try:
        while (report := exam.poll()) is None:
            time.sleep(POLL_S)
    finally:
        exam.stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            exam.process.wait(GONE_WITHIN_S)
    if not report.ok:
        raise RefusalError(
            report.code or "E_SELFTEST", report.message or "", is_final=report.is_final
        )
    _require_listed(folder, manifest)
    return report


def _require_listed(folder: Path, manifest: BundleManifest) -> None:
    for name in filter(None, (manifest.model, manifest.edgetpu)):
        data = read_bounded(folder / name, MAX_MODEL_BYTES)
        unlisted = parse_tflite(data, where=name).custom_ops - set(manifest.custom_ops)
        if unlisted:
            raise RefusalError(
                "E_BUNDLE", f"{name}: needs {min(unlisted)}, which custom_ops does not list"
            )


def run_verify(path: Path, config: ModelConfig, *, board: str | None, as_json: bool) -> int:
    """Say whether boards would take a bundle; return the exit code, 1 if they would not.

    board: that it has to be for; None: any

    Raises:
        UnavailableError: the file cannot be read, or nothing here can run a model.
    """
    bundle: Bundle | None = None
    try:
        with unpacked(path) as (bundle, folder):
            require_fit(bundle.manifest, board=board)
            report = examine(folder, bundle.manifest, config)
    except RefusalError as error:
        if not as_json:
            raise RefusalError(error.code, f"{path}: refused: {error.code}: {error}") from error
        _print_json(
            {
                "bundle": about(path, bundle) if bundle else {"path": str(path)},
                "refused": {"code": error.code, "message": str(error)},
            }
        )
        return error.exit_code
    if as_json:
        _print_json({"bundle": about(path, bundle), "exam": report, "refused": None})
        return EXIT_OK
    for name, text in bundle_lines(about(path, bundle)):
        print(f"{name:<12} {text}")
    for name, text in _exam_lines(bundle, report):
        print(f"{name:<12} {text}")
    return EXIT_OK


def run_inspect_bundle(path: Path, config: ModelConfig, *, as_json: bool) -> int:
    """Say what a bundle is, and of its model what `run_inspect` says; return the exit code.

    Raises:
        RefusalError: it is no sound bundle, so there is nothing in it to be looked at.
        UnavailableError: it cannot be read.
    """
    with contextlib.ExitStack() as stack:
        try:
            bundle, folder = stack.enter_context(unpacked(path))
        except RefusalError as error:
            raise RefusalError(error.code, f"{path}: refused: {error.code}: {error}") from error
        known = about(path, bundle)
        if not as_json:
            for name, text in bundle_lines(known):
                print(f"{name:<12} {text}", flush=True)
        return run_inspect(
            msgspec.structs.replace(config, path=str(folder)),
            as_json=as_json,
            shown=str(path),
            bundle=msgspec.to_builtins(known),
        )


def about(path: Path, bundle: Bundle) -> Json:
    """Return what a bundle says of itself, beside what its model does."""
    manifest = bundle.manifest
    return {
        "path": str(path),
        "size_bytes": bundle.size,
        "sha256": bundle.sha256,
        "name": manifest.name,
        "version": manifest.version,
        "release_counter": manifest.release_counter,
        "security_floor": manifest.security_floor,
        "boards": list(manifest.boards),
        "min_agent": manifest.min_agent,
        "budget": manifest.budget,
        "golden": manifest.golden,
        "files": {name: entry.size for name, entry in sorted(manifest.files.items())},
    }


def bundle_lines(known: Json) -> Iterator[tuple[str, str]]:
    """Yield what `about` returns in words."""
    yield "bundle", f"{known['path']}, {known['size_bytes'] / 1e6:.1f} MB"
    yield "sha256", known["sha256"]
    yield "model", f"{known['name']}@{known['version']}"
    yield "release", f"{known['release_counter']}; boards stay at {known['security_floor']} or on"
    newest = f", edge-agent {known['min_agent']} or later" if known["min_agent"] else ""
    yield "boards", (", ".join(known["boards"]) or "all") + newest
    for row, (board, each) in enumerate(known["budget"].items()):
        text = f"{board}: 95 % of runs within {each.p95_ms:g} ms, {each.rss_mib:g} MiB"
        yield "" if row else "budget", text
    if not known["budget"]:
        yield "budget", "none: boards will not refuse it for being slow or large"
    files = (f"{name} {size:,} bytes" for name, size in known["files"].items())
    yield "files", ", ".join(files)


def _exam_lines(bundle: Bundle, report: ExamReport) -> Iterator[tuple[str, str]]:
    yield "here", f"{report.accelerator} of {report.runtime}, threads: {report.threads}"
    if report.p95_ms is not None and report.rss_mib is not None:
        yield "took", f"95 % of {report.runs} runs {report.p95_ms:g} ms, {report.rss_mib:g} MiB"
    if report.golden is None:
        yield "golden", "none: nothing says what its answers should be"
    else:
        yield "golden", f"{report.golden} pictures, answers as promised"
    title = f"{bundle.manifest.name}@{bundle.manifest.version}"
    yield "sound", f"{title} may be published; signatures are the repository's"


def _print_json(document: Json) -> None:
    print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
