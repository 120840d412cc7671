"""`edge-agent sensors --record`: this board's sensor files as a folder that a test can read.

Written so that the owner of a board which nobody here has can send one file. Taken is only what
WANTED lists, from folders of a fixed depth, so links that lead in circles are never followed; what
names this one board is left out (see `privacy`), and the owner is told.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import msgspec

from agent.errors import AgentError
from agent.sensors.files import BoardFiles
from agent.sensors.mailbox import Mailbox, through_mailbox
from agent.sensors.privacy import Private
from agent.sensors.replay import COMMANDS, ERRORS, TIMES, Board, Moment, command_file

# What drivers call their values, after Documentation/hwmon/sysfs-interface.rst and each reader.
_VALUES = r"(?:in|curr|power|energy|temp|fan|pwm|oc|humidity)[0-9]+(?:_[a-z0-9_]+)?"
_HWMON = rf"name|label|rpm|samples|update_interval|shunt_resistor[0-9]*|{_VALUES}"
_IIO = (
    r"rail_name_[0-9]+|in_(?:voltage|current|power)[0-9]+_input|(?:crit|warn)_current_limit_[0-9]+"
)
_SUPPLY = (
    r"type|scope|status|online|present|health|capacity|"
    r"(?:voltage|current|power|energy|charge|temp)(?:_[a-z_]+)?"
)
_FREQUENCIES = r"(?:scaling|cpuinfo)_(?:cur|min|max)_freq|scaling_governor"
_APEX = (
    r"temp|temp_poll_interval|status|driver_version|trip_point[0-9]_temp|hw_temp_warn[0-9](?:_en)?"
)
# Folders, and names of files in them that may leave the board.
WANTED: tuple[tuple[str, str], ...] = (
    ("proc/device-tree", r"model|compatible|nvidia,boardids|nvidia,dtsfilename"),
    ("sys/firmware/devicetree/base", r"model|compatible"),
    ("etc", r"nv_tegra_release"),
    ("proc", r"stat|cpuinfo|meminfo"),
    ("sys/class/dmi/id", r"sys_vendor|product_name"),
    ("sys/class/hwmon/hwmon*", _HWMON),
    ("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*", _HWMON),
    ("sys/bus/i2c/drivers/ina3221x/*/iio*", _IIO),
    ("sys/class/thermal/thermal_zone*", r"type|temp|trip_point_[0-9]+_(?:type|temp)"),
    ("sys/class/thermal/cooling_device*", r"type|cur_state|max_state"),
    ("sys/class/power_supply/*", _SUPPLY),
    ("sys/class/powercap/*", r"name|enabled|energy_uj|max_energy_range_uj"),
    ("sys/devices/system/cpu/cpufreq/policy*", rf"{_FREQUENCIES}|affected_cpus"),
    ("sys/class/devfreq/*", r"(?:cur|min|max)_freq|governor"),
    ("sys/class/devfreq/*/device", r"load"),
    ("sys/class/devfreq/*/device/of_node", r"name"),
    ("sys/devices/gpu.0", r"load"),
    ("sys/devices/*.g*", r"load"),
    ("sys/devices/platform/*.g*", r"load"),
    ("sys/devices/platform/gpu.0", r"load"),
    ("sys/devices/platform/bus@0/*.g*", r"load"),
    ("sys/devices/pwm-fan", r"target_pwm|cur_pwm|rpm_measured"),
    ("sys/devices/platform/soc*/soc*:firmware", r"get_throttled"),
    ("sys/class/apex/apex_*", _APEX),
)
# What else a file says is nobody's business, or grows with the number of processors.
_LINES = {
    "proc/stat": re.compile(rb"cpu[0-9]* "),
    "proc/meminfo": re.compile(rb"MemTotal:"),
    "proc/cpuinfo": re.compile(rb"vendor_id|model name|Hardware|Model|CPU [a-z]+\b"),
}
# Counters are in every sample, whether they moved or not.
_COUNTER = re.compile(r"proc/stat|.*/energy(?:_uj|[0-9]+_input)")
# Those that only read. What a tool says of the board and no file does.
QUESTIONS: tuple[tuple[str, ...], ...] = (
    ("vcgencmd", "get_throttled"),
    ("vcgencmd", "measure_temp"),
    ("vcgencmd", "measure_temp", "pmic"),
    ("vcgencmd", "measure_volts", "core"),
    ("vcgencmd", "measure_clock", "arm"),
    ("vcgencmd", "pmic_read_adc"),
)
# A Jetson has some 200, a server with 128 processors some 1500.
MOST_FILES = 4000
# In a driver that hangs, no reader's thread can be ended; what has been read by then is kept.
WITHIN_S = 60.0
_READABLE = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH


@dataclass(slots=True)
class Look:
    """What the files said at one moment: bytes, or the errno's name."""

    at_s: float
    read: dict[str, bytes | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A tree of files by path, and what did not get into it."""

    files: dict[str, bytes]
    left_out: dict[str, str]  # path -> why
    hung_at: str | None  # the file that never answered


def record(
    board: Board,
    private: Private,
    *,
    within_s: float = WITHIN_S,
    sleep: Callable[[float], None] = time.sleep,
) -> Recording:
    """Return the board's files at each of its moments, without what names it."""
    looks, hung_at = _look(board, within_s, sleep)
    left_out: dict[str, str] = {}
    for look in looks:
        for path, content in list(look.read.items()):
            reason = private.reason(path, content if isinstance(content, bytes) else b"")
            if reason is not None:
                left_out[path] = reason
    kept = [
        Look(look.at_s, {path: said for path, said in look.read.items() if path not in left_out})
        for look in looks
    ]
    files = compose(kept)
    # Where a program is missing or fails, the firmware may answer; of a recording there is none.
    ask = through_mailbox(board.ask, Mailbox(board.files.root))
    for question in QUESTIONS:
        path, answer = f"{COMMANDS}/{command_file(*question)}", ask(*question)
        reason = private.reason(path, (answer or "").encode())
        if reason is not None:
            left_out[path] = reason
        elif answer is not None:
            files[path] = f"{answer}\n".encode()
    return Recording(files=files, left_out=left_out, hung_at=hung_at)


def compose(looks: list[Look]) -> dict[str, bytes]:
    """Return the tree of some moments: what each file said first, and what changed, by moment.

    A file that could be read at some moments only is what it was at the last: a value or an error.
    """
    last: dict[str, bytes | str] = {}
    for look in looks:
        last.update(look.read)
    files = {path: said for path, said in last.items() if isinstance(said, bytes)}
    failing = {path: said for path, said in last.items() if isinstance(said, str)}
    for path in list(files):
        values = [said for look in looks if isinstance(said := look.read.get(path), bytes)]
        files[path] = values[0]
        if len(looks) > 1 and (len(set(values)) > 1 or _COUNTER.fullmatch(path)):
            files |= _samples(path, looks)
    if len(looks) > 1:
        files[TIMES] = as_json(
            [Moment(f"{number:03}", look.at_s) for number, look in enumerate(looks)]
        )
    if failing:
        files[ERRORS] = as_json(failing)
    return files


def _samples(path: str, looks: list[Look]) -> dict[str, bytes]:
    """Return a file at each moment, or what it said before where it could not be read then."""
    samples: dict[str, bytes] = {}
    latest: bytes | None = None
    for number, look in enumerate(looks):
        said = look.read.get(path)
        latest = said if isinstance(said, bytes) else latest
        if latest is not None:
            samples[f"samples/{number:03}/{path}"] = latest
    return samples


def as_json(document: object) -> bytes:
    """Return a document as people read it."""
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def _look(
    board: Board, within_s: float, sleep: Callable[[float], None]
) -> tuple[list[Look], str | None]:
    """Return a look at each moment, and the path that kept the reader until the time was up."""
    looks: list[Look] = []
    current = ""
    is_over = threading.Event()

    def read_all() -> None:
        nonlocal current
        for at_s in board.moments(sleep):
            look = Look(at_s)
            looks.append(look)
            for path in islice(_wanted(board.files), MOST_FILES):
                if is_over.is_set():
                    return
                current = path
                said = _read(board.files, path)
                if said is not None:
                    look.read[path] = said
        current = ""

    reader = threading.Thread(target=read_all, name="recorder", daemon=True)
    reader.start()
    reader.join(within_s)
    is_over.set()
    reader.join(1.0)  # slow, not hung
    if not looks:
        raise AgentError("no file of this board could be read in time")
    if not reader.is_alive():
        return looks, None
    looks[-1].read[current] = "ETIMEDOUT"
    return [Look(look.at_s, dict(look.read)) for look in looks], current


def _wanted(files: BoardFiles) -> Iterator[str]:
    for folder, names in WANTED:
        allowed = re.compile(names)
        for path in files.find(f"{folder}/*"):
            if allowed.fullmatch(path.rpartition("/")[2]):
                yield path


def _read(files: BoardFiles, path: str) -> bytes | str | None:
    """Return what a file says, or its errno; None for what is no file, or is only written."""
    try:
        mode = os.stat(files.root / path).st_mode  # noqa: PTH116 - through links, as reading goes
        if not stat.S_ISREG(mode) or not mode & _READABLE:
            return None
    except OSError:
        pass  # in a recording it may be among the samples or the errors alone
    try:
        content = files.whole(path)
    except OSError as error:
        is_file = error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ESPIPE)
        return errno.errorcode.get(error.errno or 0, "EIO") if is_file else None
    kept = _LINES.get(path)
    if kept is None:
        return content
    return b"".join(
        line
        for line in content.splitlines(keepends=True)
        if kept.match(line) and line[-1:] == b"\n"
    )
