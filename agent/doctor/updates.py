"""Models over the air: whom this board would believe, and whether its repository can be asked.

Each mirror is asked by itself, in the way the daemon asks when something is ordered: by an update
process, which trusts `update.root`, keeps to this board's floors and is given a metadata folder of
its own for the time. So nothing that the board keeps is touched, and signatures, TLS and JSON of
strangers are read in no other process. Cameras are served without any of it: nothing fails here.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from agent import __version__
from agent.config import Config, mirrors_of
from agent.daemon.build_updates import OVER_MQTT, STATE_FOLDER, is_near_by
from agent.doctor.check import Check, State, ok, warn, worst
from agent.ota import strict_json
from agent.ota.clock_policy import NOT_BEFORE, WAITS_S, decide
from agent.ota.disk import RealDisk
from agent.ota.fetching import UpdateProcess
from agent.ota.floors import FloorLog
from agent.ota.jobs import Limits, MetadataJob, Refused, Resolved
from agent.ota.refusal import Code, RefusalError
from agent.ota.slots import FLOORS_NAME
from agent.redaction import redact
from agent.sensors.board import identify
from agent.sensors.clock import read_clock_synced
from agent.sensors.files import BoardFiles

WITHIN_S = 20.0  # one mirror; a board may take 5 s of them to load what checks signatures
CONNECTS_WITHIN_S = 8.0
LOOKS_EVERY_S = 0.02
DAY_S = 86_400.0
MOST_ROOT_BYTES = 512_000  # python-tuf's own cap: UpdaterConfig.root_max_length
# As `edge-agent repo status` has them.
ROOT_SOON_DAYS = 60
WORD_SOON_DAYS = 10
MOST_NAMES = 5
SIGN_ROOT = (
    "`edge-agent repo refresh --also root` where the root keys are; boards find the new one "
    "themselves"
)
COPY_ANEW = "copy the repository to that mirror anew, whole: systemd/repository/README.md says how"
REACH = "see whether that address can be reached from here, or correct update.repository"
REFRESH = (
    "run `edge-agent repo refresh` every day (systemd/repository has a timer); `edge-agent repo "
    "status` says which of its files need more"
)
REMEDIES: dict[Code, str] = {
    "E_NET": REACH,
    "E_SLOW": REACH,
    "E_FREEZE": REFRESH,
    "E_CLOCK": "set this board's clock",
    "E_SPACE": "make room for temporary files",
    "E_SYSTEM": "run the check again; if it stays, look at memory and at `sudo dmesg`",
    "E_ROLLBACK": "this board has seen newer signatures than these; " + COPY_ANEW,
}


class _Signed(Struct, frozen=True, kw_only=True):
    kind: str = field(name="_type")
    version: Annotated[int, Meta(ge=1)]
    expires: Annotated[datetime, Meta(tz=True)]


class _Metadata(Struct, frozen=True, kw_only=True):
    """The part of a metadata file that can be judged without its signatures."""

    signed: _Signed


class Root(Struct, frozen=True, kw_only=True):
    """What `update.root` says of itself; `expires_at`: Unix seconds."""

    version: int
    expires_at: float
    is_open: bool = False  # to be written by anybody


def check_updates(
    config: Config,
    *,
    read_synced: Callable[[], bool | None] = read_clock_synced,
    wall_clock: Callable[[], float] = time.time,
    within_s: float = WITHIN_S,
) -> Iterator[Check]:
    """Yield what there is to say of [update]; at most `within_s` seconds for each mirror."""
    update, mirrors = config.update, mirrors_of(config.update.repository)
    if not update.enabled:
        message = "switched off (update.enabled = false): orders are refused, and what runs stays"
        yield ok("updates", message)
        return
    if not mirrors:
        message = "no order for another model can be carried out until update.repository is set"
        yield ok("updates", message)
        return
    root = read_root(Path(update.root))
    if isinstance(root, Check):  # nothing that a mirror says could be believed
        yield root
        return
    is_synced = read_synced()
    if is_synced is False:
        yield _clock(near_by=is_near_by(config))
    now, believed = wall_clock(), 0
    job = job_of(config, now, is_synced, within_s)
    for place, url in enumerate(mirrors, start=1):
        name = "repository" if len(mirrors) == 1 else f"repository {place}"
        if url == OVER_MQTT:
            message = (
                "is asked over the broker, once there is an order; `broker_orders` tried the way"
            )
            yield ok(name, f"{url} {message}")
            continue
        answer = ask(job, url, within_s)
        if isinstance(answer, Resolved):
            believed = max(believed, answer.floors.root_version)
        yield judge_mirror(name, url, answer, job, now)
    yield judge_root(update.root, root, believed, now)


def _clock(*, near_by: bool) -> Check:
    wait = (
        f"for {WAITS_S / 60:.0f} minutes after the start, as the repository is near by"
        if near_by
        else "however long that takes"
    )
    message = f"the clock is not set, and updates wait for it, {wait}"
    return warn("updates", message, "see `clock`")


def read_root(path: Path) -> Root | Check:
    """Return what a root file says of itself, or why it cannot be one; signatures are not held."""
    remedy = f"copy the repository's metadata/1.root.json to {path}; it is no secret"
    try:
        # Neither a pipe nor a device may hold this up.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                return _no_root(f"{path}: is no regular file", remedy)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                raw = file.read(MOST_ROOT_BYTES + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        if isinstance(error, PermissionError):
            remedy = f"sudo chmod 0644 {path} (it is no secret), and let this user enter its folder"
        reason = error.strerror if isinstance(error, OSError) else "is not a path"
        return _no_root(f"{path}: {reason}", remedy)
    try:
        found = strict_json.decode(raw, _Metadata, most_bytes=MOST_ROOT_BYTES, where=str(path))
    except RefusalError as refusal:
        return _no_root(f"{refusal} ({refusal.code})", remedy)
    signed = found.signed
    if signed.kind != "root":
        return _no_root(f"{path}: is a {signed.kind!r} file, not a 'root'", remedy)
    is_open = bool(mode & stat.S_IWOTH)
    return Root(version=signed.version, expires_at=signed.expires.timestamp(), is_open=is_open)


def _no_root(message: str, remedy: str) -> Check:
    return warn("update_root", f"{message}; until there is one, no update is believed", remedy)


def judge_root(path: str, root: Root, believed: int, now: float) -> Check:
    """Say how long the first root will do.

    Args:
        path: `update.root`.
        root: what it says of itself.
        believed: version of the root that a mirror led to, 0 where none was believed. Behind the
            first root there may be newer ones, and then it does not matter when that one ends.
        now: Unix seconds by this board's clock.
    """
    faults: list[tuple[State, str, str]] = []
    if root.is_open:
        message = f"{path} can be written by anybody, who then says which models run here"
        faults.append(("warn", message, f"sudo chmod 0644 {path}"))
    message = f"{path}: version {root.version}"
    if believed > root.version:
        message += f", and from there the repository led to version {believed}"
        return worst("update_root", message, faults)
    left_s = root.expires_at - max(now, NOT_BEFORE)
    if left_s <= 0:
        wrong = f"it ended {_days(-left_s)} ago, so no update is believed"
        faults.append(("warn", wrong, SIGN_ROOT))
    elif left_s < ROOT_SOON_DAYS * DAY_S:
        wrong = f"it ends in {_days(left_s)}, and no update is believed from then on"
        faults.append(("warn", wrong, SIGN_ROOT))
    else:
        message += f", good until {_date(root.expires_at)}"
    return worst("update_root", message, faults)


def job_of(config: Config, now: float, is_synced: bool | None, within_s: float) -> MetadataJob:
    """Return what an update process is to find out: all that fits this board.

    The floors are those that the daemon keeps, as far as this user may read them: a repository that
    went back is refused here as well.
    """
    update, state = config.update, Path(config.device.state_dir) / STATE_FOLDER
    floors = FloorLog(state / FLOORS_NAME, RealDisk()).read().floors
    # As if the clock had been waited for already: what is signed can be looked at meanwhile.
    at = decide(now=now, is_synced=is_synced, floor=floors.time, waited_s=WAITS_S, allow_floor=True)
    assert at is not None
    return MetadataJob(
        repository=list(mirrors_of(update.repository)),
        metadata_dir="",
        root=update.root,
        floors=floors,
        at=at.at,
        clock_trusted=at.is_trusted,
        board=identify(BoardFiles()).id,
        agent=__version__,
        ca_file=update.ca_file,
        limits=Limits(connect_s=CONNECTS_WITHIN_S, window_s=within_s / 2),
    )


def ask(job: MetadataJob, url: str, within_s: float) -> Resolved | Refused:
    """Give a job of `job_of`'s to an update process, for one of its mirrors."""
    try:
        with tempfile.TemporaryDirectory(
            prefix="edge-agent-check-", ignore_cleanup_errors=True
        ) as folder:
            return _run(replace(job, repository=[url], metadata_dir=folder), within_s)
    except OSError as error:
        message = f"could not be asked: {error.strerror or error}"
        return Refused(code="E_SYSTEM", message=message, is_final=False)


def _run(job: MetadataJob, within_s: float) -> Resolved | Refused:
    ends = time.monotonic() + within_s
    process = UpdateProcess(job)
    try:
        while process.last is None and time.monotonic() < ends:
            process.poll()
            time.sleep(LOOKS_EVERY_S)
    finally:
        process.stop()
    if isinstance(process.last, (Resolved, Refused)):
        return process.last
    message = f"did not answer within {within_s:g} s and was given up"
    return Refused(code="E_SLOW", message=message, is_final=False)


def judge_mirror(
    name: str, url: str, answer: Resolved | Refused, job: MetadataJob, now: float
) -> Check:
    """Say what a mirror's answer means; a refusal with its code, as `model/reported` has it."""
    where = redact(url)
    if isinstance(answer, Refused):
        said = answer.message if where in answer.message else f"{where}: {answer.message}"
        return warn(name, f"{said} ({answer.code})", _remedy(answer.code, url, job.root))
    names = sorted({target.custom.name for target in answer.targets})
    shown = ", ".join([*names[:MOST_NAMES], *(["…"] if len(names) > MOST_NAMES else [])])
    count = len(answer.targets)
    fitting = f"{count} bundle{'' if count == 1 else 's'} of {shown}" if names else "nothing yet"
    message = (
        f"{where} is believed, until {_date(answer.expires_at)}; for {job.board} it has {fitting}"
    )
    left_s = answer.expires_at - max(now, NOT_BEFORE)
    if left_s < WORD_SOON_DAYS * DAY_S:
        return warn(name, f"{message}; that date is {_days(left_s)} away", REFRESH)
    return ok(name, message)


def _remedy(code: Code, url: str, root: str) -> str:
    if code in ("E_NET", "E_SLOW") and url.startswith("file:"):
        return "plug it in or mount it where this user may read it, or correct update.repository"
    if code == "E_SIG":
        return (
            f"if this is the right repository, copy its metadata/1.root.json to {root}; if that "
            "is what is there, somebody changes files on the way"
        )
    return REMEDIES.get(code, COPY_ANEW)


def _date(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at))


def _days(seconds: float) -> str:
    days = int(seconds // DAY_S)
    return "1 day" if days == 1 else f"{days} days"
