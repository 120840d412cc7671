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
