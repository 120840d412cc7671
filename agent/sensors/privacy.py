"""What must not leave the board with a recording of its sensors: whose it is, and which one.

A recording takes files from a list of what drivers say of voltages, clocks and the like; this is
the second fence, should one of them name the board after all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from agent.sensors.files import BoardFiles

# Files that tell one board from all others; what they say may be in no other.
_OWN = (
    "etc/machine-id",
    "proc/sys/kernel/random/boot_id",
    "proc/device-tree/serial-number",
    "sys/firmware/devicetree/base/serial-number",
    "sys/class/dmi/id/product_serial",
    "sys/class/dmi/id/product_uuid",
    "sys/class/dmi/id/board_serial",
    "sys/class/dmi/id/chassis_serial",
    "sys/class/net/*/address",
    "sys/class/power_supply/*/serial_number",
    "sys/class/nvme/nvme*/serial",
    "sys/class/mmc_host/mmc*/mmc*/serial",
    "sys/devices/soc0/serial_number",
)
_HOST = ("etc/hostname", "proc/sys/kernel/hostname")
# As systems are delivered: such a name is nobody's, and parts of models and drivers are called so.
_NOBODYS = frozenset(
    ("localhost", "raspberrypi", "jetson", "tegra", "tegra-ubuntu", "ubuntu", "debian", "coral")
)
# Shorter ones stand in other words and numbers as well.
_SHORTEST_OWN, _SHORTEST_HOST = 6, 3
_PATTERNS = (
    ("a hardware address", r"(?<![0-9a-f])(?:[0-9a-f]{2}[:-]){5}[0-9a-f]{2}(?![0-9a-f])"),
    ("a UUID", r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"),
    # Letters and digits: a counter has digits alone, a word letters alone.
    (
        "a serial number",
        r"(?<![0-9a-z])(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{12,}(?![0-9a-z])",
    ),
    ("a serial number", r"serial(?:[ _-]?(?:no|number))?\s*[:=]\s*\S"),
)
_COMPILED = tuple((what, re.compile(pattern, re.IGNORECASE)) for what, pattern in _PATTERNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Private:
    """What is known of this one board; `reason` says what of it a file would give away."""

    own: frozenset[str]
    hosts: frozenset[str]

    def reason(self, path: str, content: bytes) -> str | None:
        """Return why a file must not leave the board, None if it may."""
        text = f"{path}\n{content.decode('utf-8', 'replace')}".lower()
        for what, pattern in _COMPILED:
            if pattern.search(text):
                return what
        if any(_holds(text, word) for word in self.own):
            return "a serial number"
        if any(_holds(text, host) for host in self.hosts):
            return "the host's name"
        return None


def own_names(files: BoardFiles, host_names: Iterable[str] = ()) -> Private:
    """Return what the board's own files say of which one it is; `host_names` are known besides."""
    own = {_word(files.read(path)) for pattern in _OWN for path in files.find(pattern)}
    own.update(_serial_of_processor(files))
    hosts = {_word(files.read(path)) for path in _HOST} | {_word(name) for name in host_names}
    hosts |= {name.partition(".")[0] for name in hosts}
    return Private(
        # Zeros alone are an address of the loopback, or a number that was never given.
        own=frozenset(
            word for word in own if len(word) >= _SHORTEST_OWN and set(word) - set("0:-")
        ),
        hosts=frozenset(name for name in hosts if len(name) >= _SHORTEST_HOST) - _NOBODYS,
    )


def _serial_of_processor(files: BoardFiles) -> Iterable[str]:
    """Yield the number that arch/arm64 and arch/arm print at the end of /proc/cpuinfo."""
    text = (files.raw("proc/cpuinfo") or b"").decode("utf-8", "replace")
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() == "serial":
            yield _word(value)


def _holds(text: str, word: str) -> bool:
    return re.search(rf"(?<![0-9a-z]){re.escape(word)}(?![0-9a-z])", text) is not None


def _word(text: str | None) -> str:
    return (text or "").strip().lower()
