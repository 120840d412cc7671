"""When workers use more memory than they may: noticed before the kernel has to choose.

What is shared out is the smallest of what the service's cgroup and those above it allow, and
the board's memory. All workers together may have a part of it; when they have had more for
several looks, the one that has grown most since it was warm is to be replaced. A big model is
no leak: room is left above what the workers need when warm, as far as there is any. What comes
faster than a look, or while a model loads, is the kernel's: it takes workers first, see
`agent.vision.worker`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from agent.daemon.processes import read_rss_bytes

MIB = 1 << 20
# A worker with one camera and a small model takes 100 to 200 MiB. The unit's MemoryHigh is 70 % of
# the board: 640 MiB of the 920 that one with 1 GB shows. Of these the control process takes 60 and
# a model on trial, or an accelerator that is probed, 100 to 200 for a minute: workers get 450.
SERVICE_SHARE = 0.7
# Without a service: the rest is the system's, its page cache's and the camera drivers'.
BOARD_SHARE = 0.5
# Workers that need more than their share when warm get this much more than that ...
ROOM = 1.25
# ... but never more than so much of all there is; above it only the kernel judges.
MOST_SHARE = 0.9
# Allocators keep what they once had; a worker that has grown by less than this has not leaked.
LEAST_GROWTH_BYTES = 32 * MIB
# Reading /proc costs some 50 us a process.
LOOK_EVERY_S = 2.0
LOOKS = 3
# From Ready to the size a worker has when nothing leaks: first frames, buffers, caches.
WARM_AFTER_S = 10.0
# cgroup-v1 says "no limit" with a number near 2^63 (kernel: PAGE_COUNTER_MAX).
UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True, slots=True)
class Budget:
    """What workers may use together."""

    share_bytes: int
    most_bytes: int

    @classmethod
    def of(cls, total_bytes: int, share: float) -> Budget:
        """Return a share of a total."""
        return cls(int(share * total_bytes), int(MOST_SHARE * total_bytes))


def read_budget(root: Path = Path("/")) -> Budget:
    """Return what workers of this process may use: of the service or of the board, the smaller.

    Where nothing can be read there is no limit.
    """
    board = Budget.of(_board_bytes(root), BOARD_SHARE)
    service = Budget.of(_service_bytes(root), SERVICE_SHARE)
    return min(board, service, key=lambda budget: budget.share_bytes)


def _board_bytes(root: Path) -> int:
    try:
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "MemTotal":
                return int(value.split()[0]) << 10  # proc_meminfo(5): in KiB
    except (OSError, ValueError):
        pass
    return UNLIMITED_BYTES


def _service_bytes(root: Path) -> int:
    """Return the least that our cgroups allow: cgroups(7), /proc/[pid]/cgroup.

    `memory.high` counts as `memory.max` does: above it processes are slowed down until they
    look hung (kernel: admin-guide/cgroup-v2.rst).
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return UNLIMITED_BYTES
    least = UNLIMITED_BYTES
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                least = min(least, _least(root / mount, path, ("memory.max", "memory.high")))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes",)
            least = min(least, _least(root / "sys/fs/cgroup/memory", path, names))
    return least


def _least(mount: Path, path: str, names: tuple[str, ...]) -> int:
    """Return the smallest limit of a cgroup and of all above it."""
    group = PurePosixPath(path.lstrip("/"))
    folders = [mount / one for one in (group, *group.parents)]
    return min(_limit(folder / name) for folder in folders for name in names)


def _limit(file: Path) -> int:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max", or not there: the topmost cgroup has none
        return UNLIMITED_BYTES


@dataclass(slots=True)
class _Worker:
    rss_bytes: int = 0
    warm_bytes: int | None = None  # as it was when warm
    warms_from: float = -math.inf
    looked_at: float = 0.0
    looks_over: int = 0

    @property
    def grown_bytes(self) -> int:
        return self.rss_bytes - self.warm_bytes if self.warm_bytes is not None else 0


class WorkerMemory:
    """The memory of all workers, looked at by their supervisors; for one thread."""

    def __init__(
        self,
        budget: Budget,
        *,
        read_rss: Callable[[int], int | None] = read_rss_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget = budget
        self._read_rss = read_rss
        self._clock = clock
        self._workers: dict[int, _Worker] = {}

    def excess(self, pid: int, ready_at: float | None) -> str | None:
        """Look at a worker, if it is time; return why it must go, None where it need not.

        `ready_at` is of the same clock, None while it loads.
        """
        now = self._clock()
        worker = self._workers.setdefault(pid, _Worker())
        if worker.rss_bytes and now - worker.looked_at < LOOK_EVERY_S:
            return None
        rss_bytes = self._read_rss(pid)
        if rss_bytes is None:
            return None
        worker.looked_at, worker.rss_bytes = now, rss_bytes
        if worker.warm_bytes is None:
            if ready_at is not None and now - max(ready_at, worker.warms_from) >= WARM_AFTER_S:
                worker.warm_bytes = rss_bytes
            return None
        over_bytes = sum(one.rss_bytes for one in self._workers.values()) - self._allowed_bytes()
        if over_bytes <= 0 or not self._has_leaked(worker):
            worker.looks_over = 0
            return None
        worker.looks_over += 1
        if worker.looks_over < LOOKS:
            return None
        used, allowed = rss_bytes / MIB, (rss_bytes - over_bytes) / MIB
        return f"worker used {used:.0f} MiB of {max(0.0, allowed):.0f} MiB allowed; replaced"

    def warm_up(self, pid: int) -> None:
        """A worker has more to do from now on: what it takes for that is no leak."""
        worker = self._workers.setdefault(pid, _Worker())
        worker.warm_bytes, worker.looks_over = None, 0
        worker.warms_from = self._clock()

    def forget(self, pid: int) -> None:
        """A worker is gone."""
        self._workers.pop(pid, None)

    def _has_leaked(self, worker: _Worker) -> bool:
        grown = max(one.grown_bytes for one in self._workers.values())
        return worker.grown_bytes == grown and grown >= LEAST_GROWTH_BYTES

    def _allowed_bytes(self) -> int:
        budget = self._budget
        warm_bytes = 0
        for worker in self._workers.values():
            if worker.warm_bytes is None:  # loading takes more than running, for a while
                return budget.most_bytes
            warm_bytes += worker.warm_bytes
        return max(budget.share_bytes, min(int(ROOM * warm_bytes), budget.most_bytes))
