"""How hard the processor works: what the estimate and its calibration go by."""

from __future__ import annotations

from agent.sensors.files import BoardFiles

# A clock that was measured counts where it is this far below what the kernel asked for.
CAPPED_BELOW = 0.99


class CpuLoad:
    """The share of time in which the processors worked, from one look to the next."""

    def __init__(self, files: BoardFiles) -> None:
        self._files = files
        self._last: tuple[int, int] | None = None

    def step(self) -> float | None:
        """Return 0..1 of all processors together since the last step; None: unknown.

        proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal; what guests used is in
        user already. Waiting for a disk is no work.
        """
        times = parse_times(self._files.sensor("proc/stat").text())
        last, self._last = self._last, times
        if times is None or last is None:
            return None
        busy, total = times[0] - last[0], times[1] - last[1]
        return min(1.0, max(0.0, busy / total)) if total > 0 else None


def freq_ratio(clocks_hz: dict[str, int] | None) -> float | None:
    """Return the processor's clock as a share of its highest; a measured one if it is lower."""
    clocks = clocks_hz or {}
    now, most = clocks.get("cpu"), clocks.get("cpu_max")
    measured = clocks.get("arm_measured")
    if measured and (now is None or measured < CAPPED_BELOW * now):
        now = measured
    return min(1.0, now / most) if now and most else None


def parse_times(text: str | None) -> tuple[int, int] | None:
    """Return ticks of work, and all ticks, from the first line of /proc/stat."""
    words = (text or "").partition("\n")[0].split()
    numbers = words[1:9]
    if not words or words[0] != "cpu" or len(numbers) < 4:
        return None
    if not all(word.isascii() and word.isdecimal() and len(word) < 20 for word in numbers):
        return None
    ticks = [int(word) for word in numbers]
    return sum(ticks) - sum(ticks[3:5]), sum(ticks)
