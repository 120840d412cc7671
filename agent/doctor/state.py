"""The folder of the agent's state: is it written to, does it last, is there room, is it taken?

What waits for the broker outlives a restart only there, and so do the numbers of results.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.daemon.instance import LOCK_FILE
from agent.doctor.check import Check, State, ok, warn, worst
from agent.sensors.storage import MEMORY, NETWORK, Mount, find_mount

MIB = 1 << 20
# Beside the outbox: its journal, what is learned of models, and room for the system's own logs.
DISK_RESERVE_MIB = 100
INODES_RESERVE = 1000
# A card in order takes some 10 ms. While one fsync lasts, results gather in memory.
SLOW_FSYNC_S = 1.0
FSYNCS = 3
WRITTEN_BYTES = 4096
LOST = "what waits for the broker is lost with the process, and models are measured anew"


def check_state(path: Path, outbox_max_mb: float, root: Path = Path("/")) -> Iterator[Check]:
    """Yield what there is to say of a state folder; `root` is for the kernel's files."""
    yield check_state_dir(path, find_mount(path.resolve(), root))
    yield check_disk(path, outbox_max_mb)
    yield check_instance(path, root)


def check_state_dir(
    path: Path, mount: Mount | None, write: Callable[[Path], float] | None = None
) -> Check:
    """Whether it can be written, and what is written stays; `write` returns seconds."""
    place = _existing(path)
    remedy = f"sudo install -d -o $USER {path}, or set device.state_dir"
    faults: list[tuple[State, str, str]] = []
    how = f"{path} can be created"
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        if mount is not None and mount.is_read_only:
            remedy = f"mount {mount.point} read-write, or set device.state_dir to where it is"
        faults.append(("warn", f"{path} cannot be written, so {LOST}", remedy))
        how = ""
    elif place == path:
        try:
            took_s = (write or time_fsync)(path)
        except OSError as error:
            message = f"writing to {path} fails ({error.strerror}), so {LOST}"
            remedy = "look for errors of the disk in `sudo dmesg`, and for room with `df`"
            faults.append(("warn", message, remedy))
            how = ""
        else:
            how = f"{path} can be written, on disk within {took_s * 1000:.0f} ms"
            if took_s > SLOW_FSYNC_S:
                remedy = "try another card, or keep device.state_dir on an SSD"
                faults.append(("warn", "that is slow, as of a card near its end", remedy))
    faults.extend(_faults_of(mount))
    return worst("state_dir", how, faults)


def _existing(path: Path) -> Path:
    return next(place for place in [path, *path.absolute().parents] if place.exists())


def _faults_of(mount: Mount | None) -> Iterator[tuple[State, str, str]]:
    """Yield why what is written there would not last, or not be safe."""
    if mount is None:
        return
    if mount.fstype in MEMORY:
        remedy = "set device.state_dir to a folder on a disk"
        yield "warn", f"{mount.point} is memory ({mount.fstype}) and empty after a reboot", remedy
    elif mount.fstype == "overlay":
        # raspi-config's overlay file system keeps changes in memory, a container's in the
        # container: proc_pid_mountinfo(5) cannot tell how long either lives.
        yield (
            "warn",
            f"{mount.point} is an overlay, and what is written to it is gone after a reboot or "
            "with the container",
            "mount a partition or a volume at device.state_dir",
        )
    elif mount.fstype in NETWORK:
        yield (
            "warn",
            f"{mount.point} is on a network ({mount.fstype}), where the outbox's database is not "
            "safe (https://sqlite.org/wal.html)",
            "set device.state_dir to a folder on a disk of this board",
        )


def time_fsync(folder: Path) -> float:
    """Write a small file and wait until it is on the disk; return the median of a few times, s.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / f".check-{os.getpid()}"
    times = []
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for _ in range(FSYNCS):
            began = time.monotonic()
            os.write(descriptor, os.urandom(WRITTEN_BYTES))
            os.fsync(descriptor)
            times.append(time.monotonic() - began)
    finally:
        os.close(descriptor)
        path.unlink()
    return statistics.median(times)


def check_disk(
    path: Path,
    outbox_max_mb: float,
    statvfs: Callable[[Path], os.statvfs_result] = os.statvfs,
) -> Check:
    """Whether a full outbox fits."""
    disk = statvfs(_existing(path))
    free_mib = disk.f_bavail * disk.f_frsize // MIB
    held = sum(file.stat().st_size for file in path.glob("outbox.db*")) // MIB
    needed_mib = round(outbox_max_mb * 1e6 / MIB) + DISK_RESERVE_MIB - held
    faults: list[tuple[State, str, str]] = []
    if free_mib < needed_mib:
        message = (
            f"a full outbox needs {needed_mib} MiB (mqtt.outbox_max_mb = {outbox_max_mb:g} and "
            f"{DISK_RESERVE_MIB} MiB to spare)"
        )
        remedy = f"free {needed_mib - free_mib} MiB, or lower mqtt.outbox_max_mb"
        faults.append(("warn", message, remedy))
    # Some file systems make inodes as they need them, and say 0 of 0.
    if disk.f_files and disk.f_favail < INODES_RESERVE:
        message = f"only {disk.f_favail} files can still be made (inodes)"
        faults.append(("warn", message, "remove what makes many small files there"))
    return worst("disk", f"{free_mib} MiB free for {path}", faults)


def check_instance(path: Path, root: Path = Path("/")) -> Check:
    """Whether another agent runs on this folder; asked of /proc/locks, so nothing is locked."""
    holder = _lock_holder(path / LOCK_FILE, root)
    if holder is None:
        return ok("instance", f"no agent runs on {path}")
    return warn(
        "instance",
        f"an agent runs on {path} (process {holder}), and has what it uses: cameras and "
        "accelerators may be called busy here, and a second agent would refuse to start",
        "sudo systemctl stop edge-agent while checking those",
    )


def _lock_holder(file: Path, root: Path) -> int | None:
    """Return the process that has a file locked: proc_locks(5).

    Told apart by the inode alone where no device fits: overlays and btrfs show other numbers.
    """
    try:
        inode = str(file.stat().st_ino)
        lines = (root / "proc/locks").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        # "1: FLOCK ADVISORY WRITE 1234 08:02:131 0 EOF"; those who wait have "->" as second.
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5].split(":")[-1] == inode:
            return int(fields[4])
    return None
