"""Boards that nobody has: files below a folder, and what a board is called."""

import json
from pathlib import Path

import msgspec

from agent.contract.reading import BoardIdentity

BOARDS = Path(__file__).resolve().parent / "boards"
NAMES = sorted(
    one.parent.name for one in BOARDS.glob("*/expected.json") if one.parent.name[0] != "_"
)


def grow(root, files):
    """Write {path: text}; a text of None makes an empty folder."""
    for path, text in files.items():
        file = root / path
        if text is None:
            file.mkdir(parents=True, exist_ok=True)
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return root


def chip(number, name, **files):
    folder = f"sys/class/hwmon/hwmon{number}"
    return {f"{folder}/name": name, **{f"{folder}/{file}": text for file, text in files.items()}}


def zone(number, kind, temp=None):
    folder = f"sys/class/thermal/thermal_zone{number}"
    return {f"{folder}/type": kind} | ({} if temp is None else {f"{folder}/temp": temp})


def cooling(number, kind, state):
    folder = f"sys/class/thermal/cooling_device{number}"
    return {f"{folder}/type": kind} | ({} if state is None else {f"{folder}/cur_state": state})


def expected(board):
    return json.loads((BOARDS / board / "expected.json").read_text())


def identity_of(board):
    return msgspec.convert(expected(board)["board_id"], BoardIdentity)


def identity(family, soc=None):
    return BoardIdentity(id=family, family=family, soc=soc, model=None, compatible=[])


def silent(*command, **_):
    """A board without tools."""
