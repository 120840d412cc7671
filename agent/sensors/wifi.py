"""Whether the way to the broker is a Wi-Fi that sleeps.

Power saving lets an access point keep packets back until the station wakes: latency of hundreds
of milliseconds, and with some drivers lost connections. It can be read without root: `iw` asks by
nl80211, whose GET_POWER_SAVE is open to all (net/wireless/nl80211.c), and where there is no `iw`,
the older SIOCGIWPOWER (linux/wireless.h; net/wireless/wext-compat.c) says the same.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import psutil

from agent.sensors.commands import ask

SIOCGIWPOWER = 0x8B2D
# struct iwreq: the name, then struct iw_param {s32 value; u8 fixed; u8 disabled; u16 flags} in a
# union of 16 bytes.
IWREQ = struct.Struct("16siBBH8x")


def is_wireless(interface: str, root: Path = Path("/")) -> bool:
    """Return whether this network interface is a Wi-Fi (sysfs-class-net)."""
    folder = root / "sys/class/net" / interface
    return (folder / "wireless").exists() or (folder / "phy80211").exists()


def interface_to(host: str, port: int) -> str | None:
    """Return the interface that packets to a host leave by; None where that is unknown.

    Connecting a datagram socket sends nothing: the kernel only chooses a way (udp(7)).
    """
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[
            0
        ]
        with socket.socket(family, kind, protocol) as chosen:
            chosen.connect(target)
            own = chosen.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address.partition("%")[0] == own for address in addresses):
            return str(name)
    return None


def read_power_save(interface: str, ask_iw: Callable[..., str | None] = ask) -> bool | None:
    """Return whether a Wi-Fi interface sleeps between packets; None where that is unknown."""
    answer = ask_iw("iw", "dev", interface, "get", "power_save")
    if answer is not None:
        _, _, state = answer.partition("Power save:")
        if state.strip() in ("on", "off"):
            return state.strip() == "on"
    return _ask_driver(interface)


def _ask_driver(interface: str) -> bool | None:
    request = IWREQ.pack(interface.encode()[:15], 0, 0, 0, 0)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            answer = fcntl.ioctl(any_socket, SIOCGIWPOWER, request)
    except OSError:
        return None
    return not IWREQ.unpack(answer)[3]
