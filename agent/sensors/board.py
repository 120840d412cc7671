"""Which board this is, in its own words."""

from __future__ import annotations

from pathlib import Path


def read_board_model(root: Path = Path("/")) -> str | None:
    """Return the board's name from the device tree, else from DMI; None where neither says.

    Device tree: Documentation/devicetree/usage-model.rst ("model"); its text ends in a NUL.
    """
    for path in ("proc/device-tree/model", "sys/class/dmi/id/product_name"):
        try:
            with (root / path).open("rb") as file:
                text = file.read(256).decode("utf-8", "replace").strip("\0 \n")
        except OSError:
            continue
        if text:
            return text
    return None


def read_cpu_name(root: Path = Path("/")) -> str | None:
    """Return what sets this processor apart: its name, or on Arm its maker's and part's numbers.

    The first processor's lines of proc_cpuinfo(5); arch/arm64/kernel/cpuinfo.c prints no name.
    """
    wanted = ("model name", "CPU implementer", "CPU part", "CPU variant", "CPU revision")
    try:
        with (root / "proc/cpuinfo").open("rb") as file:
            text = file.read(1 << 16).decode("utf-8", "replace")
    except OSError:
        return None
    facts: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in wanted:
            facts.setdefault(name.strip(), value.strip())
    return ", ".join(facts[name] for name in wanted if name in facts) or None
