"""The whole board as the kernel's counters show it: processor, memory, disks, network.

Each figure fails by itself and is unknown then. Rates are of the time between two readings, worked
out here: what psutil keeps between two calls is shared by the whole process, and hides that a
counter began anew.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import psutil

from agent.contract.telemetry import SystemTelemetry
from agent.daemon.aside import Aside

T = TypeVar("T")
Counters = dict[str, tuple[int, int]]  # by device: bytes in and out, or read and written

MIB = 1 << 20
# Free space is looked at for alarms as well, more often than telemetry is sent.
DISK_KEEP_S = 5.0


class SystemReader:
    """Reads again and again; for one thread, which no disk holds up.

    Attributes:
        disks: device -> bytes read and written since the board started, at the last reading.
        networks: interface -> bytes received and sent, likewise.
    """

    def __init__(
        self,
        state_dir: Path,
        root: Path = Path("/"),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take where the agent keeps its state, and where /sys is."""
        self._sys = root / "sys"
        self._space = Aside(lambda: _disk_space(state_dir), keep_s=DISK_KEEP_S, clock=clock)
        self._read_s = 0.0
        self._cpu: Mapping[str, float] = {}
        # Replaced as a whole: another thread may still look at the last ones.
        self.disks: Counters = {}
        self.networks: Counters = {}

    @property
    def disk_free_mib(self) -> float | None:
        """Return the free space where the state lies; None: unknown, or the disk hangs."""
        return (self._space.answer() or (None, None))[1]

    @property
    def memory_available_mib(self) -> float | None:
        """Return what can be had without swapping, as the kernel estimates it."""
        return _memory_mib()[1]

    def read(self, now: float) -> SystemTelemetry:
        """Return how the board fares; `now` is monotonic, seconds."""
        seconds, self._read_s = now - self._read_s, now
        cpu, self._cpu = self._cpu, _told(_cpu_times) or {}
        disks, self.disks = self.disks, _told(self._read_disks) or {}
        networks, self.networks = self.networks, _told(self._read_networks) or {}
        read, written = rates(disks, self.disks, seconds)
        received, sent = rates(networks, self.networks, seconds)
        memory_total, memory_available = _memory_mib()
        disk_total, disk_free = self._space.answer() or (None, None)
        return SystemTelemetry(
            uptime_s=_told(lambda: round(time.clock_gettime(time.CLOCK_BOOTTIME), 2)),
            cpu_percent=busy_percent(cpu, self._cpu),
            load_1m=_told(lambda: round(os.getloadavg()[0], 2)),
            memory_total_mib=memory_total,
            memory_available_mib=memory_available,
            swap_used_mib=_told(lambda: _mib(psutil.swap_memory().used)),
            disk_total_mib=disk_total,
            disk_free_mib=disk_free,
            disk_read_bytes_per_s=read,
            disk_written_bytes_per_s=written,
            network_received_bytes_per_s=received,
            network_sent_bytes_per_s=sent,
        )

    def _read_disks(self) -> Counters:
        """Return those of hardware, without what lies on it: partitions, dm, md, loop."""
        every = psutil.disk_io_counters(perdisk=True, nowrap=False)
        return {
            name: (one.read_bytes, one.write_bytes)
            for name, one in every.items()
            if (self._sys / "block" / name.replace("/", "!") / "device").exists()
        }

    def _read_networks(self) -> Counters:
        """Return those of hardware, else, in a container, all but loopback.

        What goes through bridges and tunnels goes through an interface of hardware as well.
        """
        every = psutil.net_io_counters(pernic=True, nowrap=False)
        every.pop("lo", None)
        real = {name for name in every if (self._sys / "class/net" / name / "device").exists()}
        return {name: (every[name].bytes_recv, every[name].bytes_sent) for name in real or every}


def _told(ask: Callable[[], T]) -> T | None:
    """Return what the system answers; None: it cannot be told. For the main thread alone."""
    with warnings.catch_warnings():
        # About fields that nobody asks for here; it would stand on stderr.
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            return ask()
        except Exception:  # a /proc that a container fills its own way ends in any of them
            return None


def _memory_mib() -> tuple[float | None, float | None]:
    """Return the total and what is available; each may be unknown."""
    memory = _told(psutil.virtual_memory)
    if memory is None:
        return None, None
    # psutil says 0 where the kernel has no estimate and its own makes no sense.
    return _mib(memory.total), _mib(memory.available) if memory.available else None


def _disk_space(folder: Path) -> tuple[float, float] | None:
    """Return MiB in all, and free for us: without what is kept for root."""
    try:
        found = psutil.disk_usage(str(folder))
    except (OSError, ValueError):
        return None
    return _mib(found.total), _mib(found.free)


def _cpu_times() -> dict[str, float]:
    """Return seconds of all processors by what they did; guests' are in `user` and `nice`."""
    times = psutil.cpu_times()._asdict()
    return {name: spent for name, spent in times.items() if not name.startswith("guest")}


def _mib(count: int) -> float:
    return round(count / MIB, 1)


def busy_percent(old: Mapping[str, float], new: Mapping[str, float]) -> float | None:
    """Return how much of the time between two readings processors worked, 0 to 100."""
    # Some go back a little: proc_stat(5) calls iowait not reliable.
    spent = {name: max(0.0, new[name] - old[name]) for name in new if name in old}
    idle = spent.pop("idle", 0.0) + spent.pop("iowait", 0.0)
    busy = sum(spent.values())
    return round(100 * busy / (busy + idle), 1) if busy + idle > 0 else None


def rates(old: Counters, new: Counters, seconds: float) -> tuple[float | None, float | None]:
    """Return bytes per second of all devices, both ways; None where a counter began anew.

    A device that is new counts from the next time on: what it had before is not known.
    """
    shared = old.keys() & new.keys()
    if not shared or seconds <= 0:
        return None, None

    def rate(direction: int) -> float | None:
        deltas = [new[name][direction] - old[name][direction] for name in shared]
        return None if min(deltas) < 0 else round(sum(deltas) / seconds, 1)

    return rate(0), rate(1)
