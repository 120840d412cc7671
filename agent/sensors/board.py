"""Which board this is: by its device tree, else by its processor.

The device tree's `compatible` (Documentation/devicetree/usage-model.rst) names the board first and
its chip last. Makers of carrier boards put strings of their own before, and suffixes after, so
module numbers are looked for in all of it; `model` is free text and read last. Raspberry Pis:
Documentation/devicetree/bindings/arm/bcm/bcm2835.yaml, and raspberrypi/linux for those since the 5.
Jetsons: bindings/arm/tegra.yaml, and the module numbers of NVIDIA's part list.
"""

from __future__ import annotations

import re
from pathlib import Path

from msgspec import UNSET, UnsetType

from agent.contract.reading import BoardIdentity, Family
from agent.sensors.files import BoardFiles

TREES = ("proc/device-tree", "sys/firmware/devicetree/base")
RAPL_ZONES = "sys/class/powercap/intel-rapl*:*"
# First string of a compatible, after "raspberrypi,"; the longest that fits is meant.
PIS = {
    "model-a": "rpi-1a",
    "model-a-plus": "rpi-1a-plus",
    "model-b": "rpi-1b",
    "model-b-plus": "rpi-1b-plus",
    "compute-module": "rpi-cm1",
    "model-zero": "rpi-zero",
    "model-zero-w": "rpi-zero-w",
    "model-zero-2": "rpi-zero-2w",
    "model-zero-2-w": "rpi-zero-2w",
    "2-model-b": "rpi-2b",
    "3-model-a-plus": "rpi-3a-plus",
    "3-model-b": "rpi-3b",
    "3-model-b-plus": "rpi-3b-plus",
    "3-compute-module": "rpi-cm3",
    "3-plus-compute-module": "rpi-cm3-plus",
    "4-model-b": "rpi-4b",
    "400": "rpi-400",
    "4-compute-module": "rpi-cm4",
    "4-compute-module-s": "rpi-cm4s",
    "5-model-b": "rpi-5",
    "500": "rpi-500",
    "5-compute-module": "rpi-cm5",
}
# NVIDIA's module numbers; those of p3767 are two products, by the second number.
MODULES = {
    "p2180": "jetson-tx1",
    "p3448": "jetson-nano",
    "p3310": "jetson-tx2",
    "p3489": "jetson-tx2",  # TX2i, TX2 4GB
    "p3636": "jetson-tx2-nx",
    "p3668": "jetson-xavier-nx",
    "p2888": "jetson-agx-xavier",
    "p3767-0000": "jetson-orin-nx",
    "p3767-0001": "jetson-orin-nx",
    "p3767-0003": "jetson-orin-nano",
    "p3767-0004": "jetson-orin-nano",
    "p3767-0005": "jetson-orin-nano",
    "p3701": "jetson-agx-orin",
    "p3834": "jetson-agx-thor",
}
# Strings of older device trees that name no module; the longer before what it begins with.
NAMED = (
    ("nvidia,jetson-xavier-nx", "jetson-xavier-nx"),
    ("nvidia,jetson-xavier", "jetson-agx-xavier"),
    ("nvidia,jetson-nano", "jetson-nano"),
    ("nvidia,galen", "jetson-agx-xavier"),
    ("nvidia,p2972", "jetson-agx-xavier"),
    ("nvidia,quill", "jetson-tx2"),
    ("nvidia,p2771", "jetson-tx2"),
    ("fsl,imx8mq-phanbell", "coral-dev-board"),
    ("google,imx8mq-phanbell", "coral-dev-board"),
)
# Words of `model`, in the order in which they are looked for.
WORDS = (
    ("raspberry pi zero 2", "rpi-zero-2w"),
    ("raspberry pi zero w", "rpi-zero-w"),
    ("raspberry pi zero", "rpi-zero"),
    ("raspberry pi 2 model b", "rpi-2b"),
    ("raspberry pi 3 model a plus", "rpi-3a-plus"),
    ("raspberry pi 3 model b plus", "rpi-3b-plus"),
    ("raspberry pi 3 model b", "rpi-3b"),
    ("raspberry pi 4 model b", "rpi-4b"),
    ("raspberry pi 400", "rpi-400"),
    ("raspberry pi 500", "rpi-500"),
    ("raspberry pi 5", "rpi-5"),
    ("raspberry pi compute module 3 plus", "rpi-cm3-plus"),
    ("raspberry pi compute module 3", "rpi-cm3"),
    ("raspberry pi compute module 4s", "rpi-cm4s"),
    ("raspberry pi compute module 4", "rpi-cm4"),
    ("raspberry pi compute module 5", "rpi-cm5"),
    ("jetson nano", "jetson-nano"),
    ("tx2 nx", "jetson-tx2-nx"),
    ("jetson tx2", "jetson-tx2"),
    ("quill", "jetson-tx2"),
    ("xavier nx", "jetson-xavier-nx"),
    ("agx xavier", "jetson-agx-xavier"),
    ("jetson-agx", "jetson-agx-xavier"),
    ("orin nx", "jetson-orin-nx"),
    ("orin nano", "jetson-orin-nano"),
    ("agx orin", "jetson-agx-orin"),
    ("agx thor", "jetson-agx-thor"),
    ("i.mx8mq phanbell", "coral-dev-board"),
)
# Chips of which there is one board here, so that the chip alone says it.
ONE_BOARD = {"tegra186": "jetson-tx2", "tegra264": "jetson-agx-thor"}
SOCS = {
    "rpi-zero-2w": "bcm2837",
    "rpi-3": "bcm2837",
    "rpi-4": "bcm2711",
    "rpi-cm4": "bcm2711",
    "rpi-5": "bcm2712",
    "rpi-cm5": "bcm2712",
    "jetson-nano": "tegra210",
    "jetson-tx2": "tegra186",
    "jetson-xavier-nx": "tegra194",
    "jetson-agx-xavier": "tegra194",
    "jetson-orin": "tegra234",
    "jetson-agx-orin": "tegra234",
    "jetson-agx-thor": "tegra264",
    "coral-dev-board": "imx8mq",
}
_SOC = re.compile(r"(?:nvidia,(tegra[0-9]{2,3})|brcm,(bcm2[0-9]{3})|fsl,(imx8mq))(?![0-9])")
_MODULE = re.compile(r"(p[0-9]{4})(?:-([0-9]{4}))?")
# nv_tegra_release: "# R36 (release), REVISION: 4.3, ..."; its BOARD is wrong on most boards.
_RELEASE = re.compile(r"# R([0-9]{1,4}) .{0,64}?REVISION: ([0-9]{1,4}(?:\.[0-9]{1,4})*)")


def identify(files: BoardFiles) -> BoardIdentity:
    """Return which board this is; of one that nobody knows, `generic`. Reads below the root only.

    A Jetson module without a name here is `jetson-` and its chip, and a Raspberry Pi `rpi-` and its
    chip. An x86 machine is `x86-rapl` where it has RAPL, which counts its processor's energy.
    """
    compatible = _strings(_tree(files, "compatible"))
    # Containers hide the device tree; Jetsons have their name in DMI as well since Linux for
    # Tegra 36.
    model = _text(_tree(files, "model")) or (None if compatible else _dmi_name(files))
    soc = next((soc for soc in map(_soc_of, compatible) if soc), None)
    board = (
        _by_compatible(compatible)
        or _by_older_files(files)
        or _by_model(model or "")
        or ONE_BOARD.get(soc or "")
        or _by_soc(soc)
    )
    if board is None:
        board = "generic" if compatible else _by_processor(files)
    family = family_of(board)
    return BoardIdentity(
        id=board,
        family=family,
        soc=soc or next((SOCS[start] for start in _starts(SOCS) if board.startswith(start)), None),
        model=model,
        compatible=compatible,
        l4t=_read_l4t(files) if family == "jetson" else UNSET,
    )


def family_of(board: str) -> Family:
    """Return the family of a board's id."""
    families: dict[str, Family] = {
        "rpi-": "raspberry-pi",
        "jetson-": "jetson",
        "coral-": "coral",
        "x86": "x86",
    }
    return next((families[start] for start in families if board.startswith(start)), "generic")


def parse_l4t(release: str) -> str | None:
    """Return Jetson Linux' version, such as 36.4.3, from the text of /etc/nv_tegra_release."""
    found = _RELEASE.search(release)
    return f"{found[1]}.{found[2]}" if found else None


def read_board_model(root: Path = Path("/")) -> str | None:
    """Return the board's name from the device tree, else from DMI; None where neither says.

    Device tree: Documentation/devicetree/usage-model.rst ("model"); its text ends in a NUL.
    """
    files = BoardFiles(root)
    return _text(_tree(files, "model")) or _dmi_name(files)


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


def _tree(files: BoardFiles, name: str) -> bytes | None:
    """Return a property of the device tree's root; containers may hide one of its two places."""
    found = (files.raw(f"{tree}/{name}") for tree in TREES)
    return next((value for value in found if value), None)


def _strings(value: bytes | None) -> list[str]:
    texts = (part.decode("utf-8", "replace").strip() for part in (value or b"").split(b"\0"))
    return [text for text in texts if text]


def _text(value: bytes | None) -> str | None:
    return (value or b"").split(b"\0")[0][:256].decode("utf-8", "replace").strip() or None


def _soc_of(compatible: str) -> str | None:
    found = _SOC.match(compatible)  # a later step of a chip, such as bcm2712d0, is the same chip
    return next((soc for soc in found.groups() if soc), None) if found else None


def _by_compatible(compatible: list[str]) -> str | None:
    known = {f"raspberrypi,{name}": board for name, board in PIS.items()}
    for text in compatible:
        fitting = [start for start in _starts(known) if f"{text}-".startswith(f"{start}-")]
        if fitting:
            return known[fitting[0]]
    if any(text.startswith("nvidia,") for text in compatible):
        module = next((board for board in map(_module_in, compatible) if board), None)
        if module:
            return module
    for text in compatible:
        for start, board in NAMED:
            if text.startswith(start):
                return board
    return None


def _module_in(text: str) -> str | None:
    """Return the board of the first module number in a text; carriers have numbers as well."""
    for found in _MODULE.finditer(text):
        board = MODULES.get(f"{found[1]}-{found[2]}") or MODULES.get(found[1])
        if board:
            return board
    return None


def _by_older_files(files: BoardFiles) -> str | None:
    """Return the module by what Jetson Linux before 34 has in its device tree."""
    source = _text(_tree(files, "nvidia,dtsfilename")) or ""
    numbers = re.findall(r"[0-9]{4}", _text(_tree(files, "nvidia,boardids")) or "")
    return _module_in(source) or next(
        (MODULES[f"p{number}"] for number in numbers if f"p{number}" in MODULES), None
    )


def _by_model(model: str) -> str | None:
    text = model.lower()
    return next((board for words, board in WORDS if words in text), None)


def _by_soc(soc: str | None) -> str | None:
    if soc is None or soc.startswith("imx"):
        return None
    return f"jetson-{soc}" if soc.startswith("tegra") else f"rpi-{soc}"


def _by_processor(files: BoardFiles) -> str:
    """Return what a machine is of which nothing else tells: x86, or nobody knows."""
    cpu = files.read("proc/cpuinfo") or ""
    if files.find(RAPL_ZONES):
        return "x86-rapl"
    is_x86 = re.search(r"^vendor_id\s*: (GenuineIntel|AuthenticAMD)", cpu, re.MULTILINE)
    return "x86" if is_x86 else "generic"


def _dmi_name(files: BoardFiles) -> str | None:
    return files.read("sys/class/dmi/id/product_name") or None


def _read_l4t(files: BoardFiles) -> str | UnsetType:
    return parse_l4t(files.read("etc/nv_tegra_release") or "") or UNSET


def _starts(table: dict[str, str]) -> list[str]:
    return sorted(table, key=len, reverse=True)
