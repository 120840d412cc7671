"""The way to the broker: a Wi-Fi that sleeps delays every acknowledgement."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agent.address import Address
from agent.doctor.check import Check, ok, warn
from agent.sensors.wifi import interface_to, is_wireless, read_power_save


def check_wifi(
    address: Address,
    root: Path = Path("/"),
    *,
    way: Callable[[str, int], str | None] = interface_to,
    sleeps: Callable[[str], bool | None] = read_power_save,
) -> Check:
    """Whether the interface that leads to the broker saves power."""
    interface = way(address.host, address.port)
    if interface is None:
        return ok("network", f"no way to {address.host} is known now")
    if not is_wireless(interface, root):
        return ok("network", f"{address.host} is reached by {interface}")
    is_asleep = sleeps(interface)
    if is_asleep:
        return warn(
            "network",
            f"{address.host} is reached by {interface}, a Wi-Fi that saves power: packets wait up "
            "to some hundred milliseconds, and some drivers lose the connection",
            "sudo nmcli connection modify NAME 802-11-wireless.powersave 2 && sudo nmcli "
            f"connection up NAME (NAME from `nmcli connection`); without NetworkManager `sudo iw "
            f"dev {interface} set power_save off` at each start",
        )
    state = "does not save power" if is_asleep is False else "does not tell whether it saves power"
    return ok("network", f"{address.host} is reached by {interface}, a Wi-Fi that {state}")
