"""Readings of the boards in tests/boards, held against what is expected of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec

from agent.sensors.command import read_board
from agent.sensors.replay import open_board

BOARDS = Path(__file__).resolve().parent / "boards"
NAMES = sorted(path.parent.name for path in BOARDS.glob("*/sources.md"))

# What expected.json says besides the reading, by path, and why a reader has no such thing.
COMMENTARY = {
    "schema": "of the file",
    "board": "the folder's name",
    "provenance": "where the facts come from",
    "power.tolerance_w": "of the comparison",
    "power.note": "explains the board",
    "power.naive_all_rails_sum_w": "the wrong total, as others report it",
    "power.board_total_if_parallel_w": "a supposition about the carrier board",
    "accel.note": "explains the board",
    "fan.note": "explains the board",
    "cpu_util_between_samples": "is the estimate's cpu_util, compared there",
}
# What a reading says to people as well where expected.json does not.
OWN_WORDS = ("power.sensor", "power.reason", "estimate.note", "estimate.figures_source")
# Expected where nothing is said of it; elsewhere nothing said means null: nobody knows.
UNSAID: dict[str, Any] = {
    "temps_c": {},
    "temps_unreadable": [],
    "temps_ignored": [],
    "read_errors": {},
    "power.rails_unreadable": [],
    "power.alarms": [],
}
# Their order says nothing.
SETS = (
    "power.in_total",
    "power.excluded_from_total",
    "power.rails_unreadable",
    "power.alarms",
    "temps_unreadable",
    "temps_ignored",
    "throttle.alerts_active",
)


def expected_of(board: Path) -> dict[str, Any]:
    """Return what a correct reader reports."""
    return json.loads((board / "expected.json").read_text())


def reading_of(board: Path) -> dict[str, Any]:
    """Return our reading as the document that `sensors --json` prints."""
    return json.loads(msgspec.json.encode(read_board(open_board(board))))


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return where a reading is not what is expected, in words; none: every field is equal."""
    wanted = _comparable(expected, COMMENTARY)
    for path, value in UNSAID.items():
        section, _, key = path.rpartition(".")
        (wanted[section] if section else wanted).setdefault(key, value)
    more = [path for path in OWN_WORDS if _at(expected, path) is None]
    ours = _comparable(found, dict.fromkeys(more))
    return _differences("", ours, wanted, expected["power"]["tolerance_w"])


def _at(document: dict[str, Any], path: str) -> Any:
    section, _, key = path.rpartition(".")
    return (document.get(section) or {}).get(key)


def _comparable(document: dict[str, Any], without: dict[str, Any]) -> dict[str, Any]:
    copy = json.loads(json.dumps(document))
    for path in without:
        section, _, key = path.rpartition(".")
        holder = copy.get(section) if section else copy
        if holder is not None:
            holder.pop(key, None)
    return copy


def _differences(path: str, found: Any, wanted: Any, tolerance_w: float) -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        return [
            line
            for key in sorted(found.keys() | wanted.keys())
            for line in _differences(
                f"{path}.{key}".lstrip("."), found.get(key), wanted.get(key), tolerance_w
            )
        ]
    if path in SETS and isinstance(found, list) and isinstance(wanted, list):
        found, wanted = sorted(found), sorted(wanted)
    is_same = found == wanted
    if isinstance(found, float | int) and isinstance(wanted, float | int):
        is_same = abs(found - wanted) <= _tolerance(path, tolerance_w)
        is_same &= isinstance(found, bool) == isinstance(wanted, bool)
    return [] if is_same else [f"{path}: {found!r} instead of {wanted!r}"]


def _tolerance(path: str, tolerance_w: float) -> float:
    if path.startswith("power.") and path.endswith("_w"):
        return tolerance_w
    # As many places as expected.json gives.
    return 1e-4 if path.startswith("estimate.") else 1e-9


def copy_with_load(board: Path, folder: Path, share: float) -> Path:
    """Return a copy of a board whose processor was so busy between two samples, 1 s apart."""
    copy = folder / board.name
    shutil.copytree(board, copy)
    busy = round(share * 400)
    for name, user, idle in (("000", 1000, 9000), ("001", 1000 + busy, 9400 - busy)):
        stat = copy / "samples" / name / "proc/stat"
        stat.parent.mkdir(parents=True)
        stat.write_text(f"cpu  {user} 0 0 {idle} 0 0 0 0 0 0\n")
    times = [{"dir": "000", "t_mono_s": 5.0}, {"dir": "001", "t_mono_s": 6.0}]
    (copy / "samples/times.json").write_text(json.dumps(times))
    return copy
