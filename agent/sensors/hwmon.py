"""Chips of the kernel's hwmon class, by name: their numbers move between boots.

Documentation/hwmon/sysfs-interface.rst: every chip has a file `name`; temperatures are in
millidegrees, fans in revolutions per minute, pwm 0 to 255.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.sensors.files import BoardFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """One chip; `folder` is relative to the board's root."""

    name: str
    folder: str


def find_chips(files: BoardFiles) -> list[Chip]:
    """Return the chips that tell their names, in the order of their numbers."""
    folders = files.find("sys/class/hwmon/hwmon*")
    named = ((files.read(f"{folder}/name"), folder) for folder in folders)
    return [Chip(name=name, folder=folder) for name, folder in named if name]
