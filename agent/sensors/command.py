"""`edge-agent sensors`: one reading of the board, or a recording of it to send."""

from __future__ import annotations

import gzip
import io
import os
import platform
import socket
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import msgspec

from agent import __version__
from agent.contract.reading import Reading
from agent.durable import write_durably
from agent.errors import EXIT_OK, AgentError
from agent.sensors.board import identify
from agent.sensors.calibration import FILE_NAME, Calibration, load_calibration
from agent.sensors.privacy import own_names
from agent.sensors.reader import BoardReader
from agent.sensors.recorder import Recording, as_json, record
from agent.sensors.replay import Board, open_board
from agent.sensors.show import show

HERE = Path("/")
ARCHIVE = ".tar.gz"
FIRMWARE = (Path("/dev/vcio_gencmd"), Path("/dev/vcio"))
TO_FIRMWARE = (
    "ask the firmware: `sudo usermod -aG video $USER`, then log in again (it owns /dev/vcio)"
)
# Until the next start. Documentation/power/powercap/powercap.rst; CVE-2020-8694 is why it is so.
TO_RAPL = (
    "watts of the processor: `sudo chgrp video /sys/class/powercap/intel-rapl:*/energy_uj` and "
    "`sudo chmod g+r` of the same, for users in that group (who may then guess at what other "
    "programs compute)"
)


def run_sensors(root: Path, *, as_json_document: bool, state_dir: Path) -> int:
    """Print one reading of the board below `root`; return the exit code.

    Args:
        root: of the board.
        as_json_document: print that instead of a table.
        state_dir: where this board's calibration is kept; that of another board is elsewhere.

    Raises:
        AgentError: `root` is a recording that cannot be understood.
    """
    board = open_board(root)
    calibration, problem = None, None
    if board.files.root == HERE:
        board_id = identify(board.files).id
        calibration, problem = load_calibration(state_dir / FILE_NAME, board_id)
    reading = read_board(board, calibration)
    if as_json_document:
        print(as_json(reading).decode(), end="")
    else:
        print(show(reading, [*hints(reading, board), *([problem] if problem else [])]))
    return EXIT_OK


def read_board(board: Board, calibration: Calibration | None = None) -> Reading:
    """Return the reading at the last of the board's moments; counters need those before."""
    reader = BoardReader(
        board.files.root, ask=board.ask, calibration=calibration, files=board.files
    )
    try:
        looks = [reader.read(at_s) for at_s in board.moments()]
    finally:
        reader.close()
    return looks[-1].reading


def hints(reading: Reading, board: Board) -> list[str]:
    """Return what the owner of the board can do so that more is known."""
    found = []
    is_ours = board.files.root == HERE and reading.board_id.family == "raspberry-pi"
    devices = [device for device in FIRMWARE if is_ours and device.exists()]
    if devices and not any(os.access(device, os.R_OK) for device in devices):
        found.append(TO_FIRMWARE)
    errors = reading.read_errors.items()
    if any(error in ("EACCES", "EPERM") for path, error in errors if "powercap" in path):
        found.append(TO_RAPL)
    return found


def run_record(root: Path, destination: Path) -> int:
    """Write a recording of the board; return the exit code.

    Raises:
        AgentError: there is something at the destination already, or it cannot be written.
    """
    is_archive = destination.name.endswith(ARCHIVE)
    _refuse_to_overwrite(destination, is_archive=is_archive)
    name = destination.resolve().name.removesuffix(ARCHIVE)
    board = open_board(root)
    hosts = [socket.gethostname(), platform.node()] if board.files.root == HERE else []
    recording = record(board, own_names(board.files, hosts))
    try:
        if is_archive:
            with tempfile.TemporaryDirectory() as folder:
                tree = write_tree(Path(folder), recording, name)
            destination.parent.mkdir(parents=True, exist_ok=True)
            write_durably(destination, pack(tree, name))  # no half an archive on a full disk
        else:
            tree = write_tree(destination, recording, name)
    except OSError as error:
        raise AgentError(f"the recording could not be written: {error}") from error
    _tell(recording, destination, len(tree))
    return EXIT_OK


def write_tree(folder: Path, recording: Recording, name: str) -> dict[str, bytes]:
    """Write a recording and our own reading of it; return all files by path."""
    tree = dict(recording.files)
    _write(folder, tree)
    reading = read_board(open_board(folder))
    ours = {
        "sources.md": _sources(recording, name),
        "expected.json": _expected(reading, name),
    }
    _write(folder, ours)
    return tree | ours


def pack(tree: dict[str, bytes], name: str) -> bytes:
    """Return one archive, the same for the same tree: nobody's name and no time is in it."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path, content in sorted(tree.items()):
            entry = tarfile.TarInfo(f"{name}/{path}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def _refuse_to_overwrite(destination: Path, *, is_archive: bool) -> None:
    if is_archive:
        if os.path.lexists(destination):
            raise AgentError(f"{destination} is there already; name another file")
    elif destination.is_dir():
        if any(destination.iterdir()):
            raise AgentError(f"{destination} is not empty; name another folder")
    elif os.path.lexists(destination):
        raise AgentError(f"{destination} is no folder; a name that ends in {ARCHIVE} makes a file")


def _write(folder: Path, tree: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in tree.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def _sources(recording: Recording, name: str) -> bytes:
    day = time.strftime("%Y-%m-%d", time.gmtime())
    lines = [
        f"# Sources: {name}",
        "",
        f"- recorded on {day} by `edge-agent sensors --record`, version {__version__}",
        "- `expected.json` is that version's own reading: correct what is wrong in it",
        f"- files left out, as they named this one board: {len(recording.left_out)}",
    ]
    if recording.hung_at:
        lines.append(f"- the recording ended at /{recording.hung_at}, which never answered")
    return "\n".join([*lines, ""]).encode()


def _expected(reading: Reading, name: str) -> bytes:
    """Return our reading as the skeleton of what a correct reader reports."""
    document = msgspec.to_builtins(reading)
    document["power"]["tolerance_w"] = 0.002
    notes = ["what the recording agent read itself; to be corrected by the board's owner"]
    provenance = {"status": "recorded", "notes": notes}
    return as_json({"schema": 1, "board": name, **document, "provenance": provenance})


def _tell(recording: Recording, destination: Path, count: int) -> None:
    for path, reason in recording.left_out.items():
        print(f"left out: /{path}, as it holds {reason}", file=sys.stderr)
    if recording.hung_at:
        print(f"ended early: /{recording.hung_at} never answered", file=sys.stderr)
    print(f"{count} files in {destination}; look through them before you send them")
